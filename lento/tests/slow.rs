//! Clients that are slow on purpose, driven by hand: each loses its stream by a deadline with a reason, what waits for it
//! is bounded, and nobody beside it notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says where"
)]

mod common;

use bytes::Bytes;
use common::Authority;
use common::node::Node;
use common::node::answer_open_stage;
use common::node::answer_resolve;
use common::node::node;
use common::node::peers;
use common::soon;
use intermezzo_proto::v1;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use lento::rooms::Limits;
use lento::volume::Mail;
use lento::wire;
use lento_core::Volume;
use lento_core::io::Input;
use lento_core::lineage::Lineage;
use lento_core::message::Hello;
use lento_core::message::Message;
use lento_core::record::After;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::record::Update;
use lento_core::types::Attributes;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::Version;
use lento_core::types::mode;
use lento_core::volume::Before;
use lento_core::volume::Config;
use lento_core::volume::Fault;
use lento_core::volume::Millis;
use lento_core::volume::Role;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

const SHORT: Limits = Limits { taken_within: Duration::from_millis(800) };
const FILE: FileId = FileId { ino: 10, generation: 1 };
const OBJECT: ObjectId = ObjectId(Tag { replica: 7, incarnation: 1, number: 1 });

fn hello() -> Message {
    Message::Hello(Hello {
        greeting: 1,
        snapshot: None,
        replica: 7,
        incarnation: 1,
        lineage: Lineage::default(),
        applied: Position(0),
        tail_from: Position(0),
        position: Position(0),
        has: (Recno(0), Recno(0)),
        partial: false,
    })
}

/// A connection as nobody's agent makes it.
async fn raw(authority: &Authority, name: &str, address: SocketAddr) -> ReplicationClient<Channel> {
    let identity = authority.identity(name).now().unwrap();
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let channel = soon(endpoint.tls_config(identity.client("a")).unwrap().connect()).await.unwrap();
    ReplicationClient::new(channel)
}

fn refused(reason: String) -> Message {
    Message::Refused { reason, retry: true }
}

/// An honest client beside it gets what is said to it.
async fn others_are_served(server: &mut Node, authority: &Authority, address: SocketAddr) {
    let mut honest = node();
    let peers = peers(authority, "c", "a", address);
    peers.follow("a", honest.volume.clone());
    honest.connected("a").await.say(&honest.volume.name, hello());
    let link = server.connected("c").await;
    assert_eq!(server.message("c").await, hello());
    link.say(&server.volume.name, refused("for c".to_owned()));
    assert_eq!(honest.message("a").await, refused("for c".to_owned()));
    peers.unfollow("a", &honest.volume.name);
    assert!(matches!(server.mail().await, Mail::Disconnected(node, _) if node == "c"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_stream() {
    let authority = Authority::new();
    let mut server = node();
    server.limits = SHORT;
    let address = server.serve(&authority, "a", &["b", "c"]);
    let mut client = raw(&authority, "b", address).await;
    let (frames, outbound) = mpsc::channel(4);
    let never_read = soon(client.connect(ReceiverStream::new(outbound))).await.unwrap();
    for frame in wire::client_frames(common::node::VOLUME, &hello()) {
        frames.send(frame).await.unwrap();
    }
    let link = server.connected("b").await;
    server.message("b").await;
    for _ in 0..4000 {
        link.say(&server.volume.name, refused("x".repeat(4000)));
    }
    others_are_served(&mut server, &authority, address).await;
    assert!(matches!(server.mail().await, Mail::Disconnected(node, id) if node == "b" && id == link.id()));
    assert!(link.reason().contains("taken nothing"), "{}", link.reason());
    drop((never_read, frames));
}

#[tokio::test]
async fn too_much_for_one_client_ends_its_stream_and_the_memory_is_free() {
    let (link, mut queue) = lento::link::link();
    let name = "ns/v".into();
    let chunk = |_| lento_core::message::SnapshotObject {
        object: OBJECT,
        attributes: Attributes::default(),
        symlink: Vec::new(),
        hash: None,
        size: 0,
        xattrs: vec![(b"user.x".to_vec(), vec![0; 60_000])],
        entries: Vec::new(),
    };
    let mut said = 0;
    while link.reason().is_empty() && said < 2000 {
        link.say(&name, Message::SnapshotChunk((0..5).map(chunk).collect()));
        said += 1;
    }
    assert!(link.reason().contains("too slow"), "after {said} messages of 300 kB: {}", link.reason());
    assert!(said < 1000, "{said} messages of 300 kB were taken");
    let mut kept = 0;
    while tokio::time::timeout(Duration::from_millis(50), queue.next()).await.is_ok_and(|next| next.is_some())
    {
        kept += 1;
    }
    assert_eq!(kept, said - 1);
}

#[tokio::test]
async fn a_second_stream_of_one_node_ends_the_first() {
    let authority = Authority::new();
    let mut server = node();
    let address = server.serve(&authority, "a", &["b"]);
    let mut client = raw(&authority, "b", address).await;
    let mut streams = Vec::new();
    let mut links = Vec::new();
    for _ in 0..8 {
        let (frames, outbound) = mpsc::channel(4);
        let stream = soon(client.connect(ReceiverStream::new(outbound))).await.unwrap();
        for frame in wire::client_frames(common::node::VOLUME, &hello()) {
            frames.send(frame).await.unwrap();
        }
        streams.push((frames, stream));
        loop {
            match server.mail().await {
                Mail::Connected(node, link) if node == "b" => break links.push(link),
                Mail::Disconnected(..) | Mail::Message(..) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let (last, earlier) = links.split_last().unwrap();
    assert!(earlier.iter().all(|link| link.reason().contains("another stream")));
    assert!(last.reason().is_empty());
}

#[tokio::test]
async fn a_content_that_comes_byte_by_byte_is_given_up() {
    let authority = Authority::new();
    let mut server = node();
    server.limits = SHORT;
    let address = server.serve(&authority, "a", &["b"]);
    let mut presto = server.attach().await;
    let mut client = raw(&authority, "b", address).await;
    let (chunks, outbound) = mpsc::channel(4);
    let say = |what| v1::StageChunk { what: Some(what) };
    let begin = v1::StageBegin {
        volume: common::node::VOLUME.to_owned(),
        size: 1 << 20,
        version: 1,
        ..Default::default()
    };
    chunks.send(say(v1::stage_chunk::What::Begin(begin))).await.unwrap();
    let began = Instant::now();
    let replies = tokio::spawn(async move { client.stage(ReceiverStream::new(outbound)).await });
    answer_open_stage(&mut presto, server.dir.path()).await;
    let drip = tokio::spawn(async move {
        for offset in 0.. {
            let piece = v1::Piece { offset, data: Bytes::from_static(b"x"), ..Default::default() };
            if chunks.send(say(v1::stage_chunk::What::Piece(piece))).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut replies = soon(replies).await.unwrap().unwrap().into_inner();
    let why = soon(async {
        loop {
            if let Err(status) = replies.message().await {
                return status.message().to_owned();
            }
        }
    })
    .await;
    assert!(why.contains("too little"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(10));
    drip.abort();
}

/// The server's core has read that the file was made and closed.
fn known(server: &Node, path: &std::path::Path, hash: Hash, size: u64) {
    let store = server.store();
    let config = Config {
        name: common::node::VOLUME.to_owned(),
        role: Role::Server,
        new_replica: 7,
        root: FileId { ino: 2, generation: 1 },
        staging: FileId { ino: 3, generation: 1 },
        adopts: false,
        snapshot_chunk: 512,
        before: Before::Whole,
        entropy: 1,
        tail: 0,
    };
    let version = lento::content::source::version(&File::open(path).unwrap()).unwrap();
    let attributes = Attributes { mode: mode::FILE | 0o644, ..Attributes::default() };
    let made = KmlRecord {
        recno: Recno(1),
        time: Time::default(),
        origin: KmlOrigin::Replay { record: OpId(OBJECT.0), object: OBJECT, hash: Some(hash), verdict: 0 },
        update: Update::Make {
            dir: FileId { ino: 2, generation: 1 },
            name: b"f".to_vec(),
            file: FILE,
            after: After { attributes, version: Version { size, ..version }, nlink: 1, missing: None },
            symlink: Vec::new(),
            xattrs: Vec::new(),
            dir_mtime: Time::default(),
        },
    };
    store
        .write(|tables| {
            let mut volume = Volume::open(config, tables)?;
            volume.handle(Millis(1), Input::Journal(vec![made]), tables)?;
            Ok::<_, Fault>(())
        })
        .unwrap();
    server.volume.admission().write().store = Some(store);
}

#[tokio::test]
async fn contents_that_nobody_takes_make_room_for_others() {
    let authority = Authority::new();
    let mut server = node();
    server.limits = SHORT;
    let address = server.serve(&authority, "a", &["b", "c"]);
    let mut presto = server.attach().await;
    let path = server.dir.path().join("f");
    let mut bytes = vec![0; 16 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let hash = Hash::of(&bytes);
    known(&server, &path, hash, bytes.len() as u64);
    let request = || v1::FetchRequest {
        volume: common::node::VOLUME.to_owned(),
        items: vec![v1::FetchItem {
            object: Some(wire::tag(OBJECT.0)),
            hash: Bytes::copy_from_slice(&hash.0),
            have: None,
        }],
    };
    let opens = tokio::spawn({
        let path = path.clone();
        async move {
            loop {
                answer_resolve(&mut presto, File::open(&path).unwrap()).await;
            }
        }
    });
    let mut greedy = raw(&authority, "b", address).await;
    let mut never_read = Vec::new();
    for _ in 0..40 {
        never_read.push(soon(greedy.fetch(request())).await.unwrap().into_inner());
    }
    assert_eq!(whole(raw(&authority, "c", address).await, request()).await, bytes.len());
    // What was opened and is not taken ends by itself, so that even its own node finds room again.
    soon(async {
        while server.contents.available_permits() < lento::jobs::CONCURRENCY {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(whole(raw(&authority, "b", address).await, request()).await, bytes.len());
    drop(never_read);
    opens.abort();
}

/// Takes a content; how many bytes came.
async fn whole(mut client: ReplicationClient<Channel>, request: v1::FetchRequest) -> usize {
    let mut stream = soon(client.fetch(request)).await.unwrap().into_inner();
    let mut came = 0;
    soon(async {
        while let Some(chunk) = stream.message().await.unwrap() {
            came += chunk.piece.map_or(0, |piece| piece.data.len().max(piece.unpacked as usize));
            if chunk.end.is_some() {
                break;
            }
        }
    })
    .await;
    came
}
