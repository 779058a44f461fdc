//! Large contents between two agents over a wire that counts: what a change costs where bytes moved, and where a new file
//! is renamed over an old one, in both directions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod common;

use common::Authority;
use common::HandChannel;
use common::Wire;
use common::node::Node;
use common::node::answer_open_stage;
use common::node::answer_resolve;
use common::node::node;
use common::node::peers;
use lento::content::source::version;
use lento::jobs::Jobs;
use lento::store::VolumeStore;
use lento::volume::Mail;
use lento_core::Volume;
use lento_core::io::FetchItem;
use lento_core::io::FetchResult;
use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::io::ReadResult;
use lento_core::lineage::Lineage;
use lento_core::message::Message;
use lento_core::message::SnapshotObject;
use lento_core::message::Welcome;
use lento_core::record::After;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::Attributes;
use lento_core::types::Epoch;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Tag;
use lento_core::types::Ticket;
use lento_core::types::Time;
use lento_core::types::mode;
use lento_core::volume::Before;
use lento_core::volume::Config;
use lento_core::volume::Fault;
use lento_core::volume::Millis;
use lento_core::volume::Role;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

const ENTROPY: u64 = 7;
const SIZE: usize = 24 << 20;
const ROOT: FileId = FileId { ino: 2, generation: 1 };
/// The server's files: the old content, and the new one saved over it.
const SERVER_OLD: FileId = FileId { ino: 10, generation: 1 };
const SERVER_NEW: FileId = FileId { ino: 11, generation: 1 };
/// The client's.
const CLIENT_OLD: FileId = FileId { ino: 20, generation: 1 };
const CLIENT_NEW: FileId = FileId { ino: 21, generation: 1 };

/// The object of the server's old file, named by the first record of its journal, and that of its new one.
const OLD: ObjectId = ObjectId(Tag { replica: 7, incarnation: 1, number: 1 });
const NEW: ObjectId = ObjectId(Tag { replica: 7, incarnation: 1, number: 3 });

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The new content: a line at the front, and everything else where it was not.
fn inserted(old: &[u8]) -> Vec<u8> {
    [b"a line at the front\n", old].concat()
}

fn after(path: &Path) -> After {
    let version = version(&File::open(path).unwrap()).unwrap();
    After { attributes: attributes(), version, nlink: 1, missing: None }
}

fn attributes() -> Attributes {
    Attributes { mode: mode::FILE | 0o644, ..Attributes::default() }
}

fn make(name: &[u8], file: FileId) -> Update {
    Update::Make {
        dir: ROOT,
        name: name.to_vec(),
        file,
        after: After { attributes: attributes(), nlink: 1, ..After::default() },
        symlink: Vec::new(),
        xattrs: Vec::new(),
        dir_mtime: Time::default(),
    }
}

fn close(file: FileId, path: &Path) -> Update {
    Update::Close { file, replaces: None, after: after(path), left: Left::Whole }
}

/// `4913` becomes `f`.
fn rename_over(file: FileId, path: &Path, replaced: FileId) -> Update {
    Update::Rename {
        from: ROOT,
        from_name: b"4913".to_vec(),
        to: ROOT,
        to_name: b"f".to_vec(),
        file,
        after: after(path),
        replaced: Some(replaced),
        replaced_last: true,
        replaced_limbo: false,
        exchange: false,
        whiteout: false,
        from_mtime: Time::default(),
        to_mtime: Time::default(),
    }
}

/// A core on a store, fed by hand.
struct Core {
    volume: Volume,
    store: Arc<VolumeStore>,
    /// Its next record.
    next: u64,
    files: BTreeMap<FileId, PathBuf>,
    greeting: u64,
}

impl Core {
    fn new(node: &Node, replica: u64, role: Role) -> Core {
        let config = Config {
            name: "ns/v".to_owned(),
            role,
            new_replica: replica,
            root: ROOT,
            staging: FileId { ino: 3, generation: 1 },
            before: Before::Whole,
            entropy: ENTROPY,
            tail: 0,
            adopts: false,
            snapshot_chunk: 512,
        };
        let store = node.store();
        let volume = store.write(|tables| Volume::open(config, tables)).unwrap();
        let mut core = Core { volume, store, next: 1, files: BTreeMap::new(), greeting: ENTROPY };
        core.feed(Input::PrestoUp { first: Recno(1), last: Recno(0) });
        core
    }

    /// Contents that are to be read are read, and everything is durable at once.
    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let volume = &mut self.volume;
            let fed =
                self.store.write(|tables| -> Result<(), Fault> { volume.handle(Millis(1), input, tables) });
            fed.unwrap();
            while let Some(output) = self.volume.poll_output() {
                match output {
                    Output::ReadContent { ticket, file, stage_at: None } => {
                        let path = &self.files[&file];
                        let (bytes, version) = (std::fs::read(path).unwrap(), after(path).version);
                        let (hash, size) = (Hash::of(&bytes), bytes.len() as u64);
                        let result = ReadResult::Whole { hash, size, version, racy: false, inline: None };
                        inputs.push(Input::ContentRead { ticket, result });
                    }
                    Output::Sync { ticket } => {
                        inputs.push(Input::Synced { ticket, recno: Some(Recno(self.next - 1)) });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Records of the journal.
    fn happened(&mut self, origin: KmlOrigin, updates: Vec<Update>) {
        let numbers = self.next..;
        self.next += updates.len() as u64;
        let record =
            |(update, recno)| KmlRecord { recno: Recno(recno), time: Time::default(), origin, update };
        self.feed(Input::Journal(updates.into_iter().zip(numbers).map(record).collect()));
    }

    /// A client whose base has these objects, each under one name.
    fn snapshot(&mut self, objects: &[(ObjectId, &[u8], Vec<u8>)]) {
        let from = |message| Input::Message("a".to_owned(), message);
        self.feed(Input::Connected("a".to_owned()));
        self.greeting += 1;
        let position = Position(8 + self.greeting);
        let welcome = Welcome {
            greeting: self.greeting,
            lineage: Lineage::first(Epoch(1)),
            position,
            received: Recno(0),
        };
        self.feed(from(Message::Welcome(welcome)));
        let root = SnapshotObject {
            object: ObjectId::ROOT,
            attributes: Attributes { mode: mode::DIR | 0o755, ..Attributes::default() },
            symlink: Vec::new(),
            hash: None,
            size: 0,
            xattrs: Vec::new(),
            entries: Vec::new(),
        };
        let mut chunk = vec![root.clone()];
        chunk.extend(objects.iter().map(|(object, name, bytes)| SnapshotObject {
            object: *object,
            attributes: attributes(),
            hash: Some(Hash::of(bytes)),
            size: bytes.len() as u64,
            entries: vec![(ObjectId::ROOT, name.to_vec())],
            ..root.clone()
        }));
        self.feed(from(Message::SnapshotBegin { position, objects: chunk.len() as u64 }));
        self.feed(from(Message::SnapshotChunk(chunk)));
        self.feed(from(Message::SnapshotEnd(position)));
    }
}

/// Made here by a replay, as the server's object.
fn replayed(object: ObjectId, bytes: &[u8]) -> KmlOrigin {
    let record = OpId(Tag { replica: 0, incarnation: 0, number: 9 });
    KmlOrigin::Replay { record, object, hash: Some(Hash::of(bytes)), verdict: 0 }
}

/// Two agents and the wire between them.
struct Pair {
    server: Node,
    client: Node,
    server_presto: HandChannel,
    client_presto: HandChannel,
    wire: Wire,
    jobs: Jobs,
    server_core: Core,
    client_core: Core,
    old: Vec<u8>,
    new: Vec<u8>,
    old_file: PathBuf,
    new_file: PathBuf,
}

async fn pair() -> Pair {
    let authority = Authority::new();
    let (server, mut client) = (node(), node());
    let wire = Wire::to(server.serve(&authority, "a", &["b"])).await;
    let peers = peers(&authority, "b", "a", wire.address);
    peers.follow("a", client.volume.clone());
    client.connected("a").await;
    let (server_presto, client_presto) = (server.attach().await, client.attach().await);
    let server_core = Core::new(&server, 7, Role::Server);
    let client_core = Core::new(&client, 8, Role::Client { server: "a".to_owned() });
    server.volume.admission().write().store = Some(server_core.store.clone());
    let jobs = client.jobs(&peers, client_core.store.clone());
    let old = noise(SIZE);
    let new = inserted(&old);
    let [old_file, new_file] = ["old", "new"].map(|name| server.dir.path().join(name));
    std::fs::write(&old_file, &old).unwrap();
    std::fs::write(&new_file, &new).unwrap();
    Pair {
        server,
        client,
        server_presto,
        client_presto,
        wire,
        jobs,
        server_core,
        client_core,
        old,
        new,
        old_file,
        new_file,
    }
}

impl Pair {
    /// Both have the old content under `f`.
    fn agree(&mut self) {
        self.server_core.files.insert(SERVER_OLD, self.old_file.clone());
        let there = vec![make(b"f", SERVER_OLD), close(SERVER_OLD, &self.old_file)];
        self.server_core.happened(KmlOrigin::User, there);
        self.client_core.snapshot(&[(OLD, b"f", self.old.clone())]);
        let here = vec![make(b"f", CLIENT_OLD), close(CLIENT_OLD, &self.old_file)];
        self.client_core.happened(replayed(OLD, &self.old), here);
        for (core, file) in [(&self.server_core, SERVER_OLD), (&self.client_core, CLIENT_OLD)] {
            assert_eq!(core.store.read(|tables| Volume::object_of(tables, file)).unwrap(), Some(OLD));
        }
    }

    /// The client's `file` goes to the server, which opens its old content for that: bytes on the wire.
    async fn stage(&mut self, file: FileId) -> usize {
        let before = self.wire.sent();
        self.jobs.read(Ticket(1), file, Some("a".to_owned()));
        answer_resolve(&mut self.client_presto, File::open(&self.new_file).unwrap()).await;
        let staged = answer_open_stage(&mut self.server_presto, self.server.dir.path()).await;
        let old = File::open(&self.old_file).unwrap();
        assert_eq!(answer_resolve(&mut self.server_presto, old).await, SERVER_OLD.ino);
        match self.client.mail().await {
            Mail::Answer(1, Ticket(1), Input::ContentRead { result: ReadResult::Whole { hash, .. }, .. }) => {
                assert_eq!(hash, Hash::of(&self.new));
            }
            other => panic!("{other:?}"),
        }
        assert!(std::fs::read(staged).unwrap() == self.new);
        self.wire.sent() - before
    }

    /// The content of an object comes from the server: bytes on the wire, and how often the server looked.
    async fn fetch(&mut self, object: ObjectId, file: FileId, content: (&Path, &[u8])) -> (usize, usize) {
        let (path, bytes) = content;
        let before = self.wire.received();
        let item = FetchItem { object, hash: Hash::of(bytes), size: bytes.len() as u64 };
        self.jobs.fetch(Ticket(2), vec![item]);
        let old = File::open(&self.old_file).unwrap();
        assert_eq!(answer_resolve(&mut self.client_presto, old).await, CLIENT_OLD.ino);
        let staged = answer_open_stage(&mut self.client_presto, self.client.dir.path()).await;
        let mut looks = 0;
        let mail = loop {
            tokio::select! {
                mail = self.client.mail() => break mail,
                ino = answer_resolve(&mut self.server_presto, File::open(path).unwrap()) => {
                    assert_eq!(ino, file.ino);
                    looks += 1;
                }
            }
        };
        match mail {
            Mail::Answer(1, Ticket(2), Input::Fetched { results, .. }) => {
                assert!(matches!(results.as_slice(), [FetchResult::Staged(_)]), "{results:?}");
            }
            other => panic!("{other:?}"),
        }
        assert!(std::fs::read(staged).unwrap() == bytes);
        (self.wire.received() - before, looks)
    }
}

/// A few chunks, and what else goes over the wire.
const LITTLE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_insertion_at_the_front_costs_the_client_a_few_chunks() {
    let mut pair = pair().await;
    pair.agree();
    let written = vec![close(CLIENT_OLD, &pair.new_file)];
    pair.client_core.happened(KmlOrigin::User, written);
    let sent = pair.stage(CLIENT_OLD).await;
    println!("{sent} bytes for {SIZE}");
    assert!(sent < LITTLE, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_saved_by_rename_is_built_upon_the_one_it_replaces() {
    let mut pair = pair().await;
    pair.agree();
    let saved = vec![
        make(b"4913", CLIENT_NEW),
        close(CLIENT_NEW, &pair.new_file),
        rename_over(CLIENT_NEW, &pair.new_file, CLIENT_OLD),
    ];
    pair.client_core.happened(KmlOrigin::User, saved);
    let sent = pair.stage(CLIENT_NEW).await;
    println!("{sent} bytes for {SIZE}");
    assert!(sent < LITTLE, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_renamed_right_after_it_was_closed_is_not_sent_whole() {
    let mut pair = pair().await;
    pair.agree();
    let closed = vec![make(b"4913", CLIENT_NEW), close(CLIENT_NEW, &pair.new_file)];
    pair.client_core.happened(KmlOrigin::User, closed);
    let renamed = vec![rename_over(CLIENT_NEW, &pair.new_file, CLIENT_OLD)];
    let before = pair.wire.sent();
    pair.jobs.read(Ticket(1), CLIENT_NEW, Some("a".to_owned()));
    answer_resolve(&mut pair.client_presto, File::open(&pair.new_file).unwrap()).await;
    pair.client_core.happened(KmlOrigin::User, renamed);
    answer_open_stage(&mut pair.server_presto, pair.server.dir.path()).await;
    let old = File::open(&pair.old_file).unwrap();
    assert_eq!(answer_resolve(&mut pair.server_presto, old).await, SERVER_OLD.ino);
    assert!(matches!(pair.client.mail().await, Mail::Answer(1, Ticket(1), _)));
    let sent = pair.wire.sent() - before;
    assert!(sent < LITTLE, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_saved_by_rename_is_built_upon_what_the_client_has_there() {
    let mut pair = pair().await;
    pair.agree();
    pair.server_core.files.insert(SERVER_NEW, pair.new_file.clone());
    let saved = vec![
        make(b"4913", SERVER_NEW),
        close(SERVER_NEW, &pair.new_file),
        rename_over(SERVER_NEW, &pair.new_file, SERVER_OLD),
    ];
    pair.server_core.happened(KmlOrigin::User, saved);
    pair.client_core.snapshot(&[(NEW, b"f", pair.new.clone())]);
    let (path, bytes) = (pair.new_file.clone(), pair.new.clone());
    let (received, looks) = pair.fetch(NEW, SERVER_NEW, (&path, &bytes)).await;
    println!("{received} bytes for {SIZE}");
    assert!(received < LITTLE, "{received}");
    assert_eq!(looks, 2, "blocks first, then chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_place_costs_one_block() {
    let mut pair = pair().await;
    pair.agree();

    let mut changed = pair.old.clone();
    changed[SIZE / 2..SIZE / 2 + 4096].fill(7);
    let path = pair.server.dir.path().join("changed");
    std::fs::write(&path, &changed).unwrap();
    pair.server_core.files.insert(SERVER_OLD, path.clone());
    pair.server_core.happened(KmlOrigin::User, vec![close(SERVER_OLD, &path)]);
    let (received, looks) = pair.fetch(OLD, SERVER_OLD, (&path, &changed)).await;
    println!("{received} bytes for {SIZE}");
    assert!(received < 2 * (64 << 10), "{received}");
    assert_eq!(looks, 1);
}
