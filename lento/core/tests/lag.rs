//! What a server says of a Replicator that is behind, and a client of what waits: in records, bytes and age.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::types::Recno;
use lento_core::types::mode;
use lento_core::volume::ReplicatorStatus;
use lento_core::volume::Safety;
use lento_core::volume::Status;
use sim::disk::ROOT;
use sim::world::World;

const SERVER: usize = 0;
const CLIENT: usize = 1;

fn write(world: &mut World, node: usize, name: &str, bytes: usize) {
    let disk = &mut world.nodes[node].disk;
    let file = disk.user_make(ROOT, name.as_bytes(), mode::FILE).unwrap();
    disk.user_store(file, &vec![7; bytes]);
    disk.user_close(file);
}

fn status(world: &World, node: usize) -> Status {
    let node = &world.nodes[node];
    node.volume.as_ref().unwrap().status(&node.store).unwrap()
}

fn replicator(world: &World) -> ReplicatorStatus {
    status(world, SERVER).replicators[0].clone()
}

/// Lets things happen without anybody connecting again by himself.
fn run(world: &mut World) {
    for _ in 0..4000 {
        world.step();
    }
}

#[test]
fn every_presto_is_told_what_has_its_verdict() {
    let mut world = World::new(11, 1);
    world.rest();
    write(&mut world, CLIENT, "file", 100);
    let is_told = |world: &World| {
        let disk = &world.nodes[CLIENT].disk;
        disk.settled == disk.last().0
    };
    assert!(world.settle());
    assert!(is_told(&world));
    // The next one knows of nothing, and nothing new happens.
    world.kill_presto(CLIENT);
    assert!(world.settle());
    assert!(is_told(&world), "whoever waits for it at the end of a machine would wait in vain");
}

#[test]
fn a_replicator_that_is_away_falls_behind_and_catches_up() {
    let mut world = World::new(11, 1);
    world.rest();
    write(&mut world, SERVER, "before", 100);
    assert!(world.settle());
    let even = replicator(&world);
    assert_eq!((even.lag_records, even.lag.unwrap()), (0, Default::default()));

    world.cut(CLIENT);
    write(&mut world, SERVER, "first", 1000);
    run(&mut world);
    let behind = replicator(&world);
    let lag = behind.lag.unwrap();
    assert!(!behind.connected && behind.lag_records >= 2, "{behind:?}");
    assert_eq!(lag.bytes, 1000);
    let since = lag.since.expect("the oldest record has a time");

    // More of it: the oldest stays the oldest. A server that was killed knows it from its log.
    write(&mut world, SERVER, "second", 30);
    run(&mut world);
    world.kill(SERVER);
    world.restart(SERVER);
    run(&mut world);
    let lag = replicator(&world).lag.unwrap();
    assert_eq!((lag.bytes, lag.since), (1030, Some(since)));

    world.connect(CLIENT);
    assert!(world.settle());
    let even = replicator(&world);
    assert_eq!((even.lag_records, even.lag.unwrap()), (0, Default::default()));
}

#[test]
fn a_client_that_is_away_says_what_waits() {
    let mut world = World::new(12, 1);
    world.rest();
    world.cut(CLIENT);
    write(&mut world, CLIENT, "mine", 500);
    write(&mut world, CLIENT, "too", 20);
    run(&mut world);
    let waiting = status(&world, CLIENT);
    assert_eq!(waiting.pending_bytes, 520, "{waiting:?}");
    assert!(waiting.pending >= 2 && waiting.pending_since.is_some(), "{waiting:?}");
    world.connect(CLIENT);
    assert!(world.settle());
    let idle = status(&world, CLIENT);
    assert_eq!((idle.pending, idle.pending_bytes, idle.pending_since), (0, 0, None));
    let judged = status(&world, SERVER).judged;
    assert!(judged.accepted >= 2, "{judged:?}");
}

/// Where a file in the root is safe, if its newest record is this one.
fn safety(world: &World, node: usize, name: &str, newest: Recno) -> Safety {
    let node = &world.nodes[node];
    let file = node.disk.entry(ROOT, name.as_bytes()).unwrap();
    node.volume.as_ref().unwrap().safety(&node.store, file, newest).unwrap()
}

#[test]
fn a_file_is_safe_where_its_records_are_durable() {
    let mut world = World::new(13, 1);
    world.rest();
    world.cut(CLIENT);
    write(&mut world, CLIENT, "mine", 500);
    let newest = world.nodes[CLIENT].disk.last();
    assert_eq!(safety(&world, CLIENT, "mine", newest), Safety::Local, "nobody has read of it");
    run(&mut world);
    for newest in [newest, Recno(0)] {
        assert_eq!(safety(&world, CLIENT, "mine", newest), Safety::Local, "the server has not heard of it");
    }
    world.connect(CLIENT);
    assert!(world.settle());
    assert_eq!(safety(&world, CLIENT, "mine", newest), Safety::Server);
    let last = world.nodes[SERVER].disk.last();
    for newest in [last, Recno(0)] {
        assert_eq!(safety(&world, SERVER, "mine", newest), Safety::Everywhere);
    }

    world.cut(CLIENT);
    write(&mut world, SERVER, "other", 30);
    let newest = world.nodes[SERVER].disk.last();
    assert_eq!(safety(&world, SERVER, "other", newest), Safety::Local, "it is not durable yet");
    run(&mut world);
    assert_eq!(safety(&world, SERVER, "other", newest), Safety::Server);
    assert_eq!(safety(&world, SERVER, "mine", last), Safety::Everywhere, "this one has not changed");
    world.connect(CLIENT);
    assert!(world.settle());
    assert_eq!(safety(&world, SERVER, "other", newest), Safety::Everywhere);
}

#[test]
fn the_time_of_a_directory_moves_for_all_by_what_stays_on_one() {
    let mut world = World::new(14, 1);
    world.rest();
    for node in [CLIENT, SERVER] {
        world.nodes[node].disk.user_touch(ROOT);
        assert!(world.settle());
    }
    let time = |node: usize| world.nodes[node].disk.after(ROOT).attributes.mtime;
    assert_eq!(time(CLIENT), time(SERVER));
}
