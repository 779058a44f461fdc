//! The CML's treatments change what travels, never what comes of it: a history made while the server is away ends in the
//! same tree on both sides, with fewer records than were made. `SIM_RUNS=n`, `SIM_SEED=n`.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::record::KmlOrigin;
use lento_core::types::FileId;
use lento_core::types::Time;
use lento_core::types::mode;
use sim::disk::ROOT;
use sim::world::World;

const SERVER: usize = 0;
const CLIENT: usize = 1;

/// Something a user does; much of it undoes or repeats what was done before.
fn act(world: &mut World) {
    let files = world.files(CLIENT);
    let dirs: Vec<FileId> = files
        .iter()
        .map(|(_, _, file)| *file)
        .filter(|file| world.nodes[CLIENT].disk.inodes[file].attributes.is_dir())
        .chain([ROOT])
        .collect();
    let dir = dirs[world.dice.roll(dirs.len() as u64) as usize];
    let name = vec![b'a' + world.dice.roll(4) as u8];
    let picked = (!files.is_empty()).then(|| files[world.dice.roll(files.len() as u64) as usize].clone());
    let bits = 0o600 + world.dice.roll(0o77) as u32;
    let what = world.dice.roll(12);
    let bytes = world.content();
    let disk = &mut world.nodes[CLIENT].disk;
    match (what, picked) {
        (0 | 1, _) => {
            if let Ok(file) = disk.user_make(dir, &name, mode::FILE) {
                disk.user_store(file, &bytes);
                disk.user_close(file);
            }
        }
        (2, _) => {
            let _ = disk.user_make(dir, &name, mode::DIR);
        }
        (3 | 4, Some((_, _, file))) if disk.inodes[&file].attributes.is_file() => {
            disk.user_store(file, &bytes);
            disk.user_close(file);
        }
        (5 | 6, Some((dir, name, _))) => {
            let _ = disk.user_remove(dir, &name);
        }
        (7 | 8, Some((from, from_name, _))) => {
            let exchange = bits % 5 == 0;
            let _ = disk.user_rename(from, &from_name, dir, &name, exchange);
        }
        (9, Some((_, _, file))) => disk.user_setattr(file, bits),
        (10, Some((_, _, file))) => disk.user_setxattr(file, b"user.x", &bytes),
        (11, Some((_, _, file))) => {
            let _ = disk.user_link(file, dir, &name);
        }
        _ => {}
    }
}

/// Records made, and records that the server took.
fn run(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed, 1);
    world.rest();
    for _ in 0..world.dice.roll(3) {
        for _ in 0..20 {
            act(&mut world);
        }
        world.rest();
    }
    world.cut(CLIENT);
    let (before, taken) = (world.nodes[CLIENT].disk.last().0, world.nodes[SERVER].disk.last().0);
    for _ in 0..60 {
        act(&mut world);
        while world.read_journal(CLIENT, 4) {}
    }
    let made = world.nodes[CLIENT].disk.last().0 - before;
    let tree = world.nodes[CLIENT].disk.tree();
    world.rest();
    if let Err(why) = world.check_agreement() {
        panic!("seed {seed}: {why}");
    }
    assert_eq!(
        world.nodes[SERVER].disk.tree(),
        tree,
        "seed {seed}: the server has another tree than the user made"
    );
    let refused = |record: &&lento_core::record::KmlRecord| matches!(record.origin, KmlOrigin::Replay { verdict, .. } if verdict > 1);
    assert_eq!(
        world.nodes[SERVER].disk.kml.iter().filter(refused).count(),
        0,
        "seed {seed}: a verdict against the only user"
    );
    let sent = world.nodes[SERVER].disk.last().0 - taken;
    (made as usize, sent as usize)
}

#[test]
fn the_server_ends_with_the_users_tree() {
    let one = std::env::var("SIM_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let most = std::env::var("SIM_RUNS").ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    let seeds = one.map_or(0..most, |seed| seed..seed + 1);
    let (mut made, mut sent) = (0, 0);
    for seed in seeds {
        let (m, s) = run(seed);
        made += m;
        sent += s;
    }
    println!("{made} records made, {sent} sent");
    assert!(one.is_some() || sent * 10 < made * 9, "the treatments save nothing: {sent} of {made}");
}

#[test]
fn an_archive_unpacked_and_removed_again_sends_next_to_nothing() {
    let mut world = World::new(1, 1);
    world.rest();
    world.cut(CLIENT);
    for round in 0..50_u32 {
        let disk = &mut world.nodes[CLIENT].disk;
        let dir = disk.user_make(ROOT, b"build", mode::DIR).unwrap();
        for number in 0..10 {
            let name = format!("o{number}").into_bytes();
            let file = disk.user_make(dir, &name, mode::FILE).unwrap();
            disk.user_store(file, &round.to_be_bytes());
            disk.user_close(file);
            disk.user_remove(dir, &name).unwrap();
        }
        disk.user_remove(ROOT, b"build").unwrap();
        while world.read_journal(CLIENT, 64) {}
    }
    world.rest();
    world.check_agreement().unwrap();
    let sent = world.nodes[SERVER].disk.last().0;
    assert!(sent <= 2, "{sent} of 1,600 records were sent");
}

#[test]
fn a_content_that_cannot_be_read_at_first_is_read_however_many_others_are_at_hand() {
    let mut world = World::new(6, 1);
    world.rest();
    world.cut(CLIENT);
    for number in 0..300_u32 {
        let disk = &mut world.nodes[CLIENT].disk;
        let file = disk.user_make(ROOT, format!("f{number}").as_bytes(), mode::FILE).unwrap();
        disk.user_store(file, &number.to_be_bytes());
        disk.user_close(file);
        if number == 0 {
            world.nodes[CLIENT].unreadable.insert(file, 8);
        }
    }
    world.rest();
    world.check_agreement().unwrap();
}

#[test]
fn a_file_closed_again_while_it_is_read_travels_however_many_replays_lie_before_it() {
    let mut world = World::new(5, 1);
    let file = world.nodes[CLIENT].disk.user_make(ROOT, b"mine", mode::FILE).unwrap();
    world.rest();
    for number in 0..300_u32 {
        let name = format!("theirs {number}").into_bytes();
        world.nodes[SERVER].disk.user_make(ROOT, &name, mode::FILE).unwrap();
    }
    world.rest();
    for bytes in [b"first", b"again"] {
        let disk = &mut world.nodes[CLIENT].disk;
        disk.user_store(file, bytes);
        disk.user_close(file);
        while world.read_journal(CLIENT, 64) || world.run_read(CLIENT, false) {}
    }
    // The read that was asked for after the first close finds what nobody has closed yet.
    world.nodes[CLIENT].disk.user_store(file, b"still open");
    assert!(world.run_read(CLIENT, true));
    world.nodes[CLIENT].disk.user_close(file);
    world.rest();
    world.check_agreement().unwrap();
}

#[test]
fn a_life_that_has_not_met_its_server_yet_treats_what_it_reads() {
    use sim::steps::*;
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "of the life before");
    world.cut(CLIENT);
    world.rest_without(&[CLIENT]);
    world.read_journal(CLIENT, 64);
    world.kill(CLIENT);
    for round in 0..100 {
        store(&mut world, CLIENT, "f", &format!("round {round}"));
        create(&mut world, CLIENT, "scratch");
        remove(&mut world, CLIENT, "scratch");
        while world.read_journal(CLIENT, 8) {}
    }
    let node = &world.nodes[CLIENT];
    let pending = node.volume.as_ref().unwrap().status(&node.store).unwrap().pending;
    assert!(pending < 10, "{pending} records wait");
    settle(&mut world);
    everywhere(&world, "f", Some("round 99"));
    everywhere(&world, "scratch", None);
}

/// As rsync does: a file is written and closed, and then gets its time.
#[test]
fn a_time_that_is_set_after_the_content_was_read_is_kept() {
    use sim::steps::*;
    let mut world = world(1);
    let slow = create(&mut world, CLIENT, "slow");
    world.nodes[CLIENT].unreadable.insert(slow, 3);
    store(&mut world, CLIENT, "slow", "it waits for its content");
    store(&mut world, CLIENT, "f", "read at once");
    // Records are sent in their order, so what is read of `f` waits.
    for _ in 0..20 {
        world.read_journal(CLIENT, 8);
        while world.run_job(CLIENT) {}
    }
    let file = at(&world, CLIENT, "f").unwrap();
    let time = Time { sec: 77, nsec: 5 };
    world.nodes[CLIENT].disk.user_set_time(file, time);
    settle(&mut world);
    for node in [SERVER, CLIENT] {
        let file = at(&world, node, "f").unwrap();
        assert_eq!(world.nodes[node].disk.inodes[&file].attributes.mtime, time, "n{node}");
    }
}
