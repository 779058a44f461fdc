//! What a server does about Replicators that stay away, have another history, or say what cannot be.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Input;
use lento_core::io::LogLimit;
use lento_core::io::Output;
use lento_core::message::Hello;
use lento_core::message::Message;
use lento_core::types::Attributes;
use lento_core::types::Content;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::OpKind;
use lento_core::types::Operation;
use lento_core::types::Recno;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::mode;
use lento_core::volume::ReplicatorStatus;
use lento_core::volume::Status;
use sim::disk::ROOT;
use sim::world::World;

const SERVER: usize = 0;
const CLIENT: usize = 1;
const OTHER: usize = 2;

fn world(clients: usize) -> World {
    let mut world = World::new(11, clients);
    world.rest();
    world
}

fn status(world: &World, node: usize) -> Status {
    let node = &world.nodes[node];
    node.volume.as_ref().unwrap().status(&node.store).unwrap()
}

fn replicator(world: &World, node: &str) -> ReplicatorStatus {
    status(world, SERVER).replicators.into_iter().find(|one| one.node == node).unwrap()
}

fn store(world: &mut World, node: usize, name: &str, text: &str) {
    let disk = &mut world.nodes[node].disk;
    let file = disk.entry(ROOT, name.as_bytes());
    let file = file.unwrap_or_else(|| disk.user_make(ROOT, name.as_bytes(), mode::FILE).unwrap());
    world.store(node, file, text.as_bytes());
}

fn text(world: &World, node: usize, name: &str) -> Option<String> {
    let disk = &world.nodes[node].disk;
    let file = disk.entry(ROOT, name.as_bytes())?;
    Some(String::from_utf8_lossy(&disk.inodes[&file].bytes).into_owned())
}

fn limit(world: &mut World, bytes: u64, patience: u64) {
    world.log_limit = LogLimit { bytes, patience };
    world.give(SERVER, Input::LogLimit(world.log_limit));
}

#[test]
fn who_is_away_too_long_for_the_log_gets_the_tree_and_keeps_its_own_updates() {
    let mut world = world(2);
    limit(&mut world, 20_000, 10_000);
    store(&mut world, SERVER, "f", "before");
    world.rest();
    world.cut(CLIENT);
    store(&mut world, CLIENT, "mine", "made while away");
    store(&mut world, CLIENT, "f", "mine as well");
    for number in 0..100 {
        store(&mut world, SERVER, &format!("g{}", number % 5), &format!("{number}"));
        world.rest_without(&[CLIENT]);
    }
    store(&mut world, SERVER, "f", "theirs");
    world.now += 10_000;
    world.rest_without(&[CLIENT]);
    let away = replicator(&world, "n1");
    assert!(away.must_resync && !away.connected, "{away:?}");
    assert!(!replicator(&world, "n2").must_resync, "who is here gets all of the log");
    assert!(world.log.iter().any(|line| line.contains("MustResync") && line.contains("n1")));
    let trees = world.trees_sent;
    world.rest();
    assert_eq!(world.trees_sent, trees + 1);
    let back = replicator(&world, "n1");
    assert!(!back.must_resync && back.connected, "{back:?}");
    world.check_agreement().unwrap();
    assert_eq!(text(&world, SERVER, "mine").as_deref(), Some("made while away"));
    assert_eq!(text(&world, CLIENT, "f").as_deref(), Some("theirs"));
    assert!(world.nodes[SERVER].kept.contains(&Hash::of(b"mine as well")), "judged, and kept");
}

#[test]
fn a_log_within_its_limit_is_kept_however_long_somebody_is_away() {
    let mut world = world(2);
    limit(&mut world, 1 << 20, 0);
    world.cut(CLIENT);
    for number in 0..50 {
        store(&mut world, SERVER, &format!("g{}", number % 5), &format!("{number}"));
    }
    world.now += 1_000_000;
    world.rest_without(&[CLIENT]);
    assert!(!replicator(&world, "n1").must_resync);
    let trees = world.trees_sent;
    world.rest();
    assert_eq!(world.trees_sent, trees);
    world.check_agreement().unwrap();
}

#[test]
fn a_short_absence_costs_nobody_the_tree() {
    let mut world = world(2);
    limit(&mut world, 1000, 3_600_000);
    world.kill(SERVER);
    for number in 0..50 {
        store(&mut world, SERVER, &format!("g{number}"), "x");
    }
    world.rest_without(&[CLIENT, OTHER]);
    assert!(!replicator(&world, "n1").must_resync && !replicator(&world, "n2").must_resync);
    let trees = world.trees_sent;
    world.rest();
    assert_eq!(world.trees_sent, trees);
}

#[test]
fn another_history_shows_as_such_at_the_server() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "kept here");
    world.rest();
    world.wipe(SERVER);
    world.rest();
    let one = replicator(&world, "n1");
    assert!(one.other_history && !one.connected && !one.syncing, "{one:?}");
    let waiting = status(&world, SERVER).waiting;
    assert!(waiting.iter().any(|why| why.contains("n1") && why.contains("another history")), "{waiting:?}");
    assert_eq!(text(&world, CLIENT, "f").as_deref(), Some("kept here"));
}

/// A client driven by hand: says hello as `replica`, then this; what the server hangs up for.
fn said(world: &mut World, replica: u64, messages: Vec<Message>) -> Vec<String> {
    let node = "n1".to_owned();
    world.cut(CLIENT);
    world.give(SERVER, Input::Connected(node.clone()));
    let hello = Hello {
        greeting: 1,
        replica,
        incarnation: 1,
        lineage: Default::default(),
        position: Default::default(),
        applied: Default::default(),
        tail_from: Default::default(),
        snapshot: None,
        has: (Recno(0), Recno(0)),
        partial: false,
    };
    world.give(SERVER, Input::Message(node.clone(), Message::Hello(hello)));
    world.give(SERVER, Input::Timeout);
    let mut why = Vec::new();
    for message in messages {
        world.give(SERVER, Input::Message(node.clone(), message));
        let jobs = std::mem::take(&mut world.nodes[SERVER].jobs);
        for job in jobs {
            match job {
                Output::Hangup(to, reason) if to == node => why.push(reason),
                Output::Send(to, Message::Refused { reason, .. }) if to == node => why.push(reason),
                Output::Send(to, _) if to == node => {}
                other => world.nodes[SERVER].jobs.push_back(other),
            }
        }
    }
    world.give(SERVER, Input::Disconnected(node));
    world.rest_without(&[CLIENT]);
    why
}

fn id(replica: u64, number: u64) -> Tag {
    Tag { replica, incarnation: 1, number }
}

fn create(replica: u64, number: u64, name: &str, bytes: &[u8]) -> Operation {
    let content = Content { hash: Hash::of(bytes), size: bytes.len() as u64, inline: Some(bytes.to_vec()) };
    Operation {
        id: OpId(id(replica, number)),
        time: Time::default(),
        object: ObjectId(id(replica, number)),
        kind: OpKind::Create {
            dir: ObjectId::ROOT,
            name: name.into(),
            attributes: Attributes { mode: mode::FILE | 0o644, ..Attributes::default() },
            symlink: vec![],
            content: Some(content),
            xattrs: vec![],
            dir_mtime: Time::default(),
            seen: Default::default(),
        },
    }
}

#[test]
fn records_that_cannot_be_a_clients_next_ones_end_its_stream() {
    let mut world = world(2);
    let me = 5000;
    let submit = |ops: Vec<Operation>| vec![Message::Submit(ops)];
    assert_eq!(
        said(&mut world, me, submit(vec![create(me, 1, "a", b"x"), create(me, 2, "b", b"y")])),
        [""; 0]
    );
    for (ops, reason) in [
        (vec![create(me, 9, "c", b"x"), create(me, 8, "d", b"x")], "out of order"),
        (vec![create(me, 9, "c", b"x"), create(me, 9, "c", b"x")], "out of order"),
        (vec![create(102, 9, "c", b"x")], "another replica"),
        (
            vec![Operation { object: ObjectId(id(102, 9)), ..create(me, 9, "c", b"x") }],
            "another replica made",
        ),
    ] {
        let why = said(&mut world, me, submit(ops.clone()));
        assert!(why.len() == 1 && why[0].contains(reason), "{ops:?}: {why:?}");
    }
    assert_eq!(text(&world, OTHER, "a").as_deref(), Some("x"));
    assert_eq!(text(&world, OTHER, "c"), None);
}

#[test]
fn a_client_may_not_have_any_number_of_records_under_way() {
    let mut world = world(2);
    let me = 5000;
    let many = (0..70).map(|batch| {
        let ops = (1..=1000).map(|number| create(me, batch * 1000 + number, "f", b"x")).collect();
        Message::Submit(ops)
    });
    // Nothing gets its verdict meanwhile.
    let why = said(&mut world, me, many.collect());
    assert!(why.first().is_some_and(|why| why.contains("under way")), "{why:?}");
    let barriers = (0..3000).map(|id| Message::Barrier { id, after: Recno(u64::MAX) }).collect();
    let why = said(&mut world, me, barriers);
    assert!(why.first().is_some_and(|why| why.contains("barriers")), "{why:?}");
}

#[test]
fn a_copied_disk_is_refused_by_name() {
    let mut world = world(2);
    for (replica, whose) in [(102, "n2"), (100, "server")] {
        let why = said(&mut world, replica, vec![Message::Submit(Vec::new())]);
        assert!(why.iter().any(|why| why.contains(whose) && why.contains("copied")), "{why:?}");
    }
    world.rest();
    world.check_agreement().unwrap();
}

#[test]
fn a_record_that_the_file_system_refuses_holds_up_its_own_client_only() {
    let mut world = world(2);
    world.nodes[SERVER].disk.refuses = Some(b"refused".to_vec());
    store(&mut world, CLIENT, "refused", "waits");
    store(&mut world, CLIENT, "behind", "waits as well");
    for _ in 0..400 {
        world.step();
    }
    store(&mut world, OTHER, "other", "goes on");
    for _ in 0..20_000 {
        world.step();
        if text(&world, SERVER, "other").is_some() {
            break;
        }
    }
    assert_eq!(text(&world, SERVER, "other").as_deref(), Some("goes on"));
    let waiting = status(&world, SERVER).waiting;
    assert!(waiting.iter().any(|why| why.contains("n1") && why.contains("refuses")), "{waiting:?}");
    world.nodes[SERVER].disk.refuses = None;
    world.now += 60_000;
    world.rest();
    world.check_agreement().unwrap();
    assert_eq!(text(&world, OTHER, "behind").as_deref(), Some("waits as well"));
}
