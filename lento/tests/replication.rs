//! Streams between two agents over loopback: who is let in, what is passed on, and contents in both directions.

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
use lento::jobs::Jobs;
use lento::store::VolumeStore;
use lento::volume::Mail;
use lento_core::io::FetchItem;
use lento_core::io::FetchResult;
use lento_core::io::Input;
use lento_core::io::ReadResult;
use lento_core::lineage::Lineage;
use lento_core::message::Hello;
use lento_core::message::Message;
use lento_core::message::Welcome;
use lento_core::types::Epoch;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

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

#[tokio::test]
async fn messages_go_both_ways_and_an_end_is_told() {
    let authority = Authority::new();
    let (mut server, mut client) = (node(), node());
    let address = server.serve(&authority, "a", &["b"]);
    let peers = peers(&authority, "b", "a", address);
    peers.follow("a", client.volume.clone());
    let to_server = client.connected("a").await;
    to_server.say(&client.volume.name, hello());
    let to_client = server.connected("b").await;
    assert_eq!(server.message("b").await, hello());
    let welcome = Message::Welcome(Welcome {
        greeting: 1,
        lineage: Lineage::first(Epoch(1)),
        position: Position(5),
        received: Recno(0),
    });
    to_client.say(&server.volume.name, welcome.clone());
    assert_eq!(client.message("a").await, welcome);

    to_client.hang_up("the volume does not like that");
    assert!(
        matches!(client.mail().await, Mail::Disconnected(node, id) if node == "a" && id == to_server.id())
    );
    assert!(
        matches!(server.mail().await, Mail::Disconnected(node, id) if node == "b" && id == to_client.id())
    );
    let again = client.connected("a").await;
    assert_ne!(again.id(), to_server.id());
    again.say(&client.volume.name, hello());
    server.connected("b").await;
    server.message("b").await;
    again.goodbye(&client.volume.name);
    assert!(matches!(server.mail().await, Mail::Disconnected(node, _) if node == "b"));
}

#[tokio::test]
async fn a_node_outside_the_replication_list_is_refused_with_the_reason() {
    let authority = Authority::new();
    let (mut server, mut client) = (node(), node());
    let address = server.serve(&authority, "a", &["c"]);
    let peers = peers(&authority, "b", "a", address);
    peers.follow("a", client.volume.clone());
    client.connected("a").await.say(&client.volume.name, hello());
    match client.message("a").await {
        Message::Refused { reason, retry: true } => {
            assert!(reason.contains("node b is not on the replication list"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    server.nothing_comes().await;
}

#[tokio::test]
async fn another_authority_and_another_name_get_no_connection() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut server = node();
    let address = server.serve(&authority, "a", &["b"]);
    for peers in [peers(&stranger, "b", "a", address), peers(&authority, "b", "other", address)] {
        let mut client = node();
        peers.follow("a", client.volume.clone());
        peers.follow("other", client.volume.clone());
        client.nothing_comes().await;
    }
    server.nothing_comes().await;
}

#[test]
fn a_certificate_of_another_node_is_not_taken_for_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let files = Authority::new().node_files(dir.path(), "a");
    assert!(files.load("a").is_ok());
    let error = files.load("b").unwrap_err().to_string();
    assert!(error.contains("\"a\"") && error.contains("\"b\""), "{error}");
    // A certificate that is fine but no node's.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["x.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let error = files.load("a").unwrap_err().to_string();
    assert!(error.contains("names no node"), "{error}");
}

fn large() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    for (index, byte) in bytes.iter_mut().enumerate().skip(1 << 20).take(1 << 20) {
        *byte = u8::try_from(index % 251).unwrap();
    }
    bytes
}

#[tokio::test]
async fn a_large_content_is_staged_at_the_server_while_it_is_read() {
    let authority = Authority::new();
    let (mut server, mut client) = (node(), node());
    let address = server.serve(&authority, "a", &["b"]);
    let peers = peers(&authority, "b", "a", address);
    peers.follow("a", client.volume.clone());
    client.connected("a").await;
    let mut server_presto = server.attach().await;
    let mut client_presto = client.attach().await;

    let path = client.dir.path().join("content");
    std::fs::write(&path, large()).unwrap();
    let jobs = client.jobs(&peers, client.store());
    jobs.read(Ticket(3), FileId { ino: 9, generation: 1 }, Some("a".to_owned()));
    answer_resolve(&mut client_presto, File::open(&path).unwrap()).await;
    let staged = answer_open_stage(&mut server_presto, server.dir.path()).await;

    let Mail::Staged { node, hash, size, name } = server.mail().await else { panic!() };
    assert_eq!((node.as_str(), hash, size), ("b", Hash::of(&large()), 3 << 20));
    assert!(staged.ends_with(&name));
    assert_eq!(std::fs::read(&staged).unwrap(), large());
    match client.mail().await {
        Mail::Answer(
            1,
            Ticket(3),
            Input::ContentRead { result: ReadResult::Whole { hash, inline, .. }, .. },
        ) => {
            assert_eq!((hash, inline), (Hash::of(&large()), None));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_the_server_does_not_have_is_superseded_and_without_it_a_fetch_fails() {
    let authority = Authority::new();
    let (server, mut client) = (node(), node());
    let store = Arc::new(
        VolumeStore::open(&server.dir.path().join("store"), "boot", &server.dir.path().join("life")).unwrap(),
    );
    server.volume.admission().write().store = Some(store);
    let address = server.serve(&authority, "a", &["b"]);
    let peers = peers(&authority, "b", "a", address);
    let jobs = client.jobs(&peers, client.store());
    let item = |size| FetchItem { object: ObjectId::ROOT, hash: Hash::of(b"gone"), size };
    jobs.fetch(Ticket(1), vec![item(4)]);
    match client.mail().await {
        Mail::Answer(1, Ticket(1), Input::Fetched { results, .. }) => {
            assert!(matches!(results.as_slice(), [FetchResult::Failed(_)]), "{results:?}");
        }
        other => panic!("{other:?}"),
    }
    peers.follow("a", client.volume.clone());
    client.connected("a").await;
    let mut presto = client.attach().await;
    jobs.fetch(Ticket(2), vec![item(4), item(1 << 20), item(5)]);
    answer_open_stage(&mut presto, client.dir.path()).await;
    match client.mail().await {
        Mail::Answer(1, Ticket(2), Input::Fetched { results, .. }) => {
            assert_eq!(results, vec![FetchResult::Superseded; 3]);
        }
        other => panic!("{other:?}"),
    }
}

/// One try to stage `path` at the server: whether it succeeded, with the hash. After a failure the wire is whole again
/// and both are connected.
async fn stage(
    path: &std::path::Path,
    ticket: u64,
    jobs: &Jobs,
    wire: &Wire,
    client: (&mut Node, &mut HandChannel),
    server: (&Node, &mut HandChannel),
) -> Result<Hash, String> {
    let (client, client_presto) = client;
    let (server, server_presto) = server;
    jobs.read(Ticket(ticket), FileId { ino: 9, generation: 1 }, Some("a".to_owned()));
    answer_resolve(client_presto, File::open(path).unwrap()).await;
    answer_open_stage(server_presto, server.dir.path()).await;
    let mut failure = None;
    let (mut was_down, mut again) = (false, false);
    while failure.is_none() || !again {
        match client.mail().await {
            Mail::Answer(_, at, Input::ContentRead { result, .. }) if at == Ticket(ticket) => match result {
                ReadResult::Whole { hash, .. } => return Ok(hash),
                ReadResult::Failed(reason) => {
                    wire.cut_after(usize::MAX);
                    failure = Some(reason);
                }
                other => panic!("{other:?}"),
            },
            Mail::Disconnected(..) => was_down = true,
            Mail::Connected(..) => again = was_down,
            other => panic!("{other:?}"),
        }
    }
    Err(failure.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_is_cut_goes_on_where_it_was() {
    const SIZE: usize = 24 << 20;
    let authority = Authority::new();
    let (mut server, mut client) = (node(), node());
    let wire = Wire::to(server.serve(&authority, "a", &["b"])).await;
    let peers = peers(&authority, "b", "a", wire.address);
    peers.follow("a", client.volume.clone());
    client.connected("a").await;
    let mut server_presto = server.attach().await;
    let mut client_presto = client.attach().await;

    let path = client.dir.path().join("content");
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let jobs = client.jobs(&peers, client.store());
    let before = wire.sent();
    let mut ticket = 0;
    let mut hash = None;
    while hash.is_none() {
        ticket += 1;
        assert!(ticket < 8, "it does not get on");
        wire.cut_after(if ticket <= 3 { SIZE / 5 } else { usize::MAX });
        let near = (&mut client, &mut client_presto);
        let tried = stage(&path, ticket, &jobs, &wire, near, (&server, &mut server_presto)).await;
        assert!(tried.is_err() || ticket > 3, "{tried:?}");
        hash = tried.ok();
        // The server sees the end of the stream a little after the client does.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let total = wire.sent() - before;
    assert_eq!(hash, Some(Hash::of(&bytes)));
    let Mail::Staged { name, .. } = server.mail().await else { panic!() };
    assert_eq!(std::fs::read(server.dir.path().join(name)).unwrap(), bytes);
    // What was on its way at each of the three cuts is sent again.
    println!("{ticket} tries, {total} bytes for {SIZE}");
    assert!(total < SIZE + 3 * (8 << 20), "{total} bytes for {SIZE}");
}
