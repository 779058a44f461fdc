//! What came to be behind Presto's back: shown, taken, and adopted. `SIM_RUNS=n`, `SIM_SEED=n`.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::scrub::Found;
use lento_core::scrub::ScrubStatus;
use lento_core::types::FileId;
use lento_core::types::mode;
use sim::disk::Disk;
use sim::disk::ROOT;
use sim::scrub::cookie;
use sim::steps::*;
use sim::world::Dice;
use sim::world::World;

fn scrub_status(world: &World, node: usize) -> ScrubStatus {
    let node = &world.nodes[node];
    node.volume.as_ref().unwrap().status(&node.store).unwrap().scrub
}

fn file(disk: &mut Disk, dir: FileId, name: &str, bytes: &[u8]) -> FileId {
    let file = disk.user_make(dir, name.as_bytes(), mode::FILE).unwrap();
    disk.user_store(file, bytes);
    disk.user_close(file);
    file
}

fn dirs(disk: &Disk) -> Vec<FileId> {
    let mut found = vec![ROOT];
    let mut at = 0;
    while at < found.len() {
        let below = disk.inodes[&found[at]].entries.values().copied();
        found.extend(below.filter(|file| disk.inodes[file].attributes.is_dir()).collect::<Vec<_>>());
        at += 1;
    }
    found
}

/// All that somebody may do.
const KINDS: u64 = 9;
/// The same without modes and extended attributes: where a record of another change follows before the scrub comes by, a
/// change of these may not be seen.
const PLAIN_KINDS: u64 = 7;

/// Something that somebody does to a tree.
fn act(disk: &mut Disk, dice: &mut Dice, bytes: &[u8], kinds: u64) {
    let dirs = dirs(disk);
    let pick = |dice: &mut Dice| dirs[dice.roll(dirs.len() as u64) as usize];
    let (dir, to) = (pick(dice), pick(dice));
    let name = vec![b'a' + dice.roll(5) as u8];
    let names: Vec<_> = disk.inodes[&dir].entries.clone().into_iter().collect();
    let picked = (!names.is_empty()).then(|| names[dice.roll(names.len() as u64) as usize].clone());
    match (dice.roll(kinds), picked) {
        (0 | 1, _) => {
            if let Ok(file) = disk.user_make(dir, &name, mode::FILE) {
                disk.user_store(file, bytes);
                disk.user_close(file);
            }
        }
        (2, _) => drop(disk.user_make(dir, &name, mode::DIR)),
        (3, Some((_, file))) if disk.inodes[&file].attributes.is_file() => {
            disk.user_store(file, bytes);
            disk.user_close(file);
        }
        (4, Some((old, _))) => drop(disk.user_remove(dir, &old)),
        (5 | 6, Some((old, _))) => drop(disk.user_rename(dir, &old, to, &name, dice.roll(4) == 0)),
        (7, Some((_, file))) => disk.user_setattr(file, 0o600 + dice.roll(0o77) as u32),
        (8, Some((_, file))) if dice.roll(2) == 0 => disk.user_setxattr(file, b"user.x", bytes),
        (8, Some((_, file))) => drop(disk.user_link(file, to, &name)),
        _ => {}
    }
}

/// Users of this node do something, so often.
fn users(world: &mut World, node: usize, times: usize, kinds: u64) {
    for _ in 0..times {
        let bytes = world.content();
        act(&mut world.nodes[node].disk, &mut world.dice, &bytes, kinds);
    }
}

/// Somebody does something behind Presto's back, so often.
fn behind(world: &mut World, node: usize, times: usize, kinds: u64) {
    for _ in 0..times {
        let bytes = world.content();
        let World { nodes, dice, .. } = world;
        nodes[node].disk.behind(|disk| act(disk, dice, &bytes, kinds));
    }
}

/// The story, where `SIM_TRACE` asks for it.
fn told(world: &World) -> String {
    if std::env::var_os("SIM_TRACE").is_some() { world.log.join("\n") } else { String::new() }
}

fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_RUNS").unwrap_or(most),
    }
}

#[test]
fn what_is_found_is_shown_and_nothing_else_happens() {
    let mut world = World::new(3, 1);
    let kept = file(&mut world.nodes[SERVER].disk, ROOT, "kept", b"one");
    world.rest();
    let (records, tree) = (world.nodes[SERVER].disk.last(), world.nodes[CLIENT].disk.tree());
    world.nodes[SERVER].disk.behind(|disk| {
        disk.user_store(kept, b"other");
        let dir = disk.user_make(ROOT, b"dir", mode::DIR).unwrap();
        file(disk, dir, "in it", b"two");
    });
    world.give(SERVER, Input::Scrub(Found::Show));
    world.rest();
    let status = scrub_status(&world, SERVER);
    let mut paths: Vec<&str> = status.paths.iter().map(|(path, _)| path.as_str()).collect();
    paths.sort();
    assert_eq!(paths, ["/", "/dir", "/kept"], "the root's time moved as well");
    assert!(!status.running && !status.taken && status.found == 3, "{status:?}");
    assert_eq!(world.nodes[SERVER].disk.last(), records);
    assert_eq!(world.nodes[CLIENT].disk.tree(), tree);
}

#[test]
fn what_is_taken_travels() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 2);
        users(&mut world, SERVER, 20, KINDS);
        world.rest();
        let node = world.dice.roll(3) as usize;
        behind(&mut world, node, 12, KINDS);
        let tree = world.nodes[node].disk.tree();
        world.give(node, Input::Scrub(Found::Take));
        world.rest();
        if world.nodes[node].disk.tree() != tree {
            panic!("seed {seed}: a scrub changes nothing by itself\n{}", told(&world));
        }
        if let Err(why) = world.check_agreement() {
            panic!("seed {seed}, node {node}: {why}\n{}", told(&world));
        }
        assert!(!scrub_status(&world, node).running, "seed {seed}");
        world.give(node, Input::Scrub(Found::Show));
        world.rest();
        assert_eq!(scrub_status(&world, node).found, 0, "seed {seed}: {:?}", scrub_status(&world, node));
    }
}

#[test]
fn users_may_go_on_while_the_tree_is_looked_through() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 2);
        users(&mut world, SERVER, 20, KINDS);
        world.rest();
        let node = world.dice.roll(3) as usize;
        behind(&mut world, node, 8, PLAIN_KINDS);
        world.give(node, Input::Scrub(Found::Take));
        for _ in 0..20 {
            let node = world.dice.roll(3) as usize;
            users(&mut world, node, 1, KINDS);
            for _ in 0..world.dice.roll(40) {
                world.step();
            }
        }
        world.rest();
        for node in 0..3 {
            world.give(node, Input::Scrub(Found::Take));
        }
        world.rest();
        if let Err(why) = world.check_agreement() {
            panic!("seed {seed}: {why}\n{}", told(&world));
        }
        for node in 0..3 {
            assert!(world.nodes[node].faults.is_empty(), "seed {seed}: {:?}", world.nodes[node].faults);
        }
    }
}

#[test]
fn after_a_clean_end_tree_and_store_agree_without_a_look() {
    for seed in seeds(200) {
        let mut world = World::new(seed, 1);
        let mut dice = Dice(seed);
        world.rest();
        for _ in 0..4 {
            for node in [SERVER, CLIENT, SERVER, CLIENT] {
                users(&mut world, node, 2, KINDS);
            }
            for _ in 0..dice.roll(300) {
                world.step();
            }
            // Lento is away already, and then not yet there again.
            let contents: Vec<_> = (0..dice.roll(4)).map(|_| world.content()).collect();
            world.boot_after_a_clean_end(CLIENT, |disk| {
                contents.iter().for_each(|bytes| act(disk, &mut dice, bytes, KINDS));
            });
            assert!(!scrub_status(&world, CLIENT).running, "seed {seed}: nothing is looked through");
        }
        world.rest();
        if let Err(why) = world.check_agreement() {
            panic!("seed {seed}: {why}\n{}", told(&world));
        }
        assert_eq!(world.nodes[CLIENT].disk.tree(), world.nodes[SERVER].disk.tree(), "seed {seed}");
        assert!(world.nodes[CLIENT].faults.is_empty(), "seed {seed}: {:?}", world.nodes[CLIENT].faults);
    }
}

#[test]
fn a_directory_is_adopted_through_kills() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 1);
        world.nodes[SERVER].adopts = true;
        world.nodes[SERVER].store = Default::default();
        behind(&mut world, SERVER, 40, KINDS);
        world.nodes[SERVER].disk.make_durable();
        let tree = world.nodes[SERVER].disk.tree();
        world.kill(SERVER);
        world.restart(SERVER);
        for _ in 0..world.dice.roll(3) {
            for _ in 0..world.dice.roll(120) {
                world.step();
            }
            world.kill(SERVER);
            world.restart(SERVER);
        }
        world.rest();
        assert!(world.nodes[SERVER].adopted, "seed {seed}");
        assert_eq!(world.nodes[SERVER].disk.tree(), tree, "seed {seed}");
        if let Err(why) = world.check_agreement() {
            panic!("seed {seed}: {why}\n{}", told(&world));
        }
        let taken = world.nodes[SERVER].disk.last();
        world.kill(SERVER);
        world.restart(SERVER);
        world.rest();
        assert_eq!(world.nodes[SERVER].disk.last(), taken, "seed {seed}: it is adopted once");
    }
}

/// Goes on until the scrub is about to list this directory.
fn until_listing(world: &mut World, node: usize, path: &str) {
    let dir = at(world, node, path).unwrap();
    for _ in 0..200 {
        world.read_journal(node, 8);
        if world.nodes[node].jobs.iter().any(|job| matches!(job, Output::List { dir: d, .. } if *d == dir)) {
            return;
        }
        world.run_job(node);
        world.timeout(node);
    }
    panic!("{path} is not listed");
}

#[test]
fn what_moves_from_where_the_walk_has_not_been_to_where_it_has_is_looked_at() {
    let (first, second) = if cookie(b"a") < cookie(b"b") { ("a", "b") } else { ("b", "a") };
    let there = |name: &str| format!("{second}/{name}");
    let here = |name: &str| format!("{first}/{name}");
    for node in [SERVER, CLIENT] {
        let mut world = world(1);
        for path in [first, second, &there("d"), &there("d/e")] {
            mkdir(&mut world, node, path);
        }
        store(&mut world, node, &there("f"), "text");
        settle(&mut world);
        let (dir, file) = (at(&world, node, &there("d/e")).unwrap(), at(&world, node, &there("f")).unwrap());
        world.nodes[node].disk.behind(|disk| {
            let new = disk.user_make(dir, b"new", mode::FILE).unwrap();
            disk.user_store(new, b"nobody told");
            disk.user_store(file, b"nobody told this");
        });
        world.give(node, Input::Scrub(Found::Take));
        until_listing(&mut world, node, second);
        rename(&mut world, node, &there("d"), &here("d"));
        rename(&mut world, node, &there("f"), &here("f"));
        settle(&mut world);
        everywhere(&world, &here("d/e/new"), Some("nobody told"));
        everywhere(&world, &here("f"), Some("nobody told this"));
    }
}

#[test]
fn what_is_away_while_its_directory_is_listed_is_looked_into_when_it_is_back() {
    let mut world = world(1);
    for path in ["a", "b", "b/d"] {
        mkdir(&mut world, SERVER, path);
    }
    settle(&mut world);
    let dir = at(&world, SERVER, "b/d").unwrap();
    world.nodes[SERVER].disk.behind(|disk| disk.user_make(dir, b"new", mode::DIR).unwrap());
    world.give(SERVER, Input::Scrub(Found::Take));
    until_listing(&mut world, SERVER, "b");
    let b = at(&world, SERVER, "b").unwrap();
    // As a listing that goes on while names come and go may not show it.
    let hidden = world.nodes[SERVER].disk.inodes.get_mut(&b).unwrap().entries.remove(b"d".as_slice());
    world.run_job(SERVER);
    world.nodes[SERVER].disk.inodes.get_mut(&b).unwrap().entries.insert(b"d".to_vec(), hidden.unwrap());
    settle(&mut world);
    assert!(at(&world, CLIENT, "b/d/new").is_some());
}

/// Its ctime has moved, and no record tells to what. That is no store of anybody's.
#[test]
fn a_file_that_has_lost_one_of_its_names_was_not_written() {
    for over in [false, true] {
        let mut world = world(1);
        store(&mut world, SERVER, "f", "old");
        link(&mut world, SERVER, "f", "g");
        store(&mut world, SERVER, "h", "another");
        settle(&mut world);
        if over {
            rename(&mut world, SERVER, "h", "g");
        } else {
            remove(&mut world, SERVER, "g");
        }
        settle(&mut world);
        store(&mut world, SERVER, "f", "new");
        settle(&mut world);
        everywhere(&world, "f", Some("new"));
        let of_user = |record: &KmlRecord| record.origin == KmlOrigin::User;
        assert!(!world.nodes[CLIENT].disk.kml.iter().any(of_user), "nobody has written here");
        assert!(world.nodes[SERVER].kept.is_empty());
    }
}
