//! Mass removals: what one node is about to take from everybody waits for a person, as users see it.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::Held;
use lento_core::Volume;
use lento_core::io::Input;
use lento_core::io::Judgement;
use lento_core::io::MassOptions;
use lento_core::types::Hash;
use lento_core::volume::Status;
use sim::steps::*;
use sim::world::World;

const ALL: usize = 40;

/// Forty files of 41 objects, asked about beyond a half, and never about fewer than ten.
fn with(clients: usize) -> World {
    let mut world = world(clients);
    options(&mut world, Some(50));
    for n in 0..ALL {
        store(&mut world, SERVER, &name(n), &format!("content {n}"));
    }
    settle(&mut world);
    world
}

fn options(world: &mut World, percent: Option<u8>) {
    world.mass = MassOptions { percent, minimum: 10 };
    world.give(SERVER, Input::MassRemoval(world.mass));
}

fn name(n: usize) -> String {
    format!("f{n:02}")
}

fn status(world: &World) -> Status {
    let node = &world.nodes[SERVER];
    node.volume.as_ref().unwrap().status(&node.store).unwrap()
}

fn held(world: &World) -> Vec<(String, Held)> {
    status(world).held
}

fn there(world: &World, node: usize) -> usize {
    (0..ALL).filter(|n| at(world, node, &name(*n)).is_some()).count()
}

fn remove_all(world: &mut World, node: usize, upto: usize) {
    (0..upto).for_each(|n| remove(world, node, &name(n)));
}

/// Everything goes on until only a person can help.
fn rest(world: &mut World) {
    for client in 1..world.nodes.len() {
        world.connect(client);
    }
    world.rest();
}

fn judge(world: &mut World, judgement: Judgement) {
    world.give(SERVER, Input::Judged("n1".into(), judgement));
    world.rest();
}

#[test]
fn what_a_node_removed_while_it_was_away_is_held_before_the_first_file_is_gone() {
    let mut world = with(2);
    world.cut(CLIENT);
    remove_all(&mut world, CLIENT, ALL);
    rest(&mut world);
    assert_eq!((there(&world, SERVER), there(&world, OTHER)), (ALL, ALL));
    let all = held(&world);
    let [(node, asked)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((node.as_str(), asked.removals, asked.paths[0].as_str()), ("n1", ALL as u64, "/f00"));
    assert!(asked.objects > ALL as u64 && asked.judgement.is_none());
    assert!(waiting(&world, SERVER).iter().any(|why| why.contains("a person has to approve or refuse")));
    assert_eq!(world.asked, 1, "and it is told once");
    judge(&mut world, Judgement::Approved);
    settle(&mut world);
    assert_eq!((there(&world, SERVER), there(&world, CLIENT), there(&world, OTHER)), (0, 0, 0));
    assert!(held(&world).is_empty());
}

#[test]
fn refused_the_node_gets_everything_back_and_nobody_lists_a_conflict() {
    let mut world = with(2);
    world.cut(CLIENT);
    mkdir(&mut world, SERVER, "d");
    remove_all(&mut world, CLIENT, ALL);
    rest(&mut world);
    judge(&mut world, Judgement::Refused);
    settle(&mut world);
    for n in 0..ALL {
        everywhere(&world, &name(n), Some(&format!("content {n}")));
    }
    assert!(held(&world).is_empty());
    assert!(Volume::conflicts(&world.nodes[SERVER].store, 10).unwrap().is_empty());
    // From then on one by one, as ever.
    remove(&mut world, CLIENT, &name(3));
    settle(&mut world);
    everywhere(&world, &name(3), None);
}

#[test]
fn others_go_on_and_so_does_what_the_node_did_before() {
    let mut world = with(2);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "before", "told at once");
    remove_all(&mut world, CLIENT, ALL);
    store(&mut world, CLIENT, "after", "waits");
    rest(&mut world);
    store(&mut world, OTHER, "other", "of another node");
    store(&mut world, SERVER, "own", "of the server");
    remove(&mut world, OTHER, &name(7));
    rest(&mut world);
    for node in [SERVER, CLIENT, OTHER] {
        for (path, text) in
            [("before", "told at once"), ("other", "of another node"), ("own", "of the server")]
        {
            assert_eq!(read(&world, node, path).as_deref(), Some(text), "{path} at n{node}");
        }
    }
    assert_eq!((there(&world, SERVER), there(&world, OTHER)), (ALL - 1, ALL - 1));
    assert_eq!(read(&world, OTHER, "after"), None, "it is in the order of its node");
    judge(&mut world, Judgement::Refused);
    settle(&mut world);
    everywhere(&world, "after", Some("waits"));
    assert_eq!(there(&world, CLIENT), ALL - 1);
}

#[test]
fn a_removal_that_goes_on_is_held_before_much_of_it_is_done() {
    let mut world = with(1);
    // Connected: each is sent as it happens.
    for n in 0..ALL {
        remove(&mut world, CLIENT, &name(n));
        for _ in 0..5 {
            world.now += 10;
            world.read_journal(CLIENT, 4);
            world.run_job(CLIENT);
            world.deliver(CLIENT, SERVER);
            world.read_journal(SERVER, 4);
            world.run_job(SERVER);
            world.deliver(SERVER, CLIENT);
            world.timeout(SERVER);
            world.timeout(CLIENT);
        }
    }
    rest(&mut world);
    assert_eq!(held(&world).len(), 1);
    assert!(there(&world, SERVER) >= ALL - 10, "{} are left", there(&world, SERVER));
    judge(&mut world, Judgement::Refused);
    settle(&mut world);
    assert!(there(&world, CLIENT) >= ALL - 10);
}

#[test]
fn less_than_is_wanted_is_done_at_once_and_so_is_all_where_nothing_is_asked() {
    let mut world = with(1);
    world.cut(CLIENT);
    remove_all(&mut world, CLIENT, ALL / 2);
    settle(&mut world);
    assert_eq!((there(&world, SERVER), world.asked), (ALL / 2, 0));
    options(&mut world, None);
    world.cut(CLIENT);
    (ALL / 2..ALL).for_each(|n| remove(&mut world, CLIENT, &name(n)));
    settle(&mut world);
    assert_eq!((there(&world, SERVER), world.asked), (0, 0));
}

#[test]
fn what_a_node_has_made_itself_just_now_it_may_remove() {
    let mut world = with(1);
    for round in 0..3 {
        for n in 0..ALL {
            store(&mut world, CLIENT, &format!("tmp{n}"), &format!("{round} {n}"));
        }
        // Seen by all, so that nothing cancels out.
        settle(&mut world);
        world.give(SERVER, Input::Timeout);
        if round > 0 {
            continue;
        }
        remove(&mut world, CLIENT, &name(0));
        for n in 0..ALL {
            store(&mut world, CLIENT, &format!("new{n}"), &format!("{n}"));
        }
        settle(&mut world);
        for n in 0..ALL {
            remove(&mut world, CLIENT, &format!("new{n}"));
        }
        settle(&mut world);
        assert_eq!(world.asked, 0, "{:?}", held(&world));
    }
    assert_eq!(there(&world, SERVER), ALL - 1);
}

#[test]
fn what_is_asked_survives_kills_and_so_does_the_answer() {
    for judgement in [Judgement::Approved, Judgement::Refused] {
        let mut world = with(2);
        world.cut(CLIENT);
        remove_all(&mut world, CLIENT, ALL);
        rest(&mut world);
        for node in [SERVER, CLIENT] {
            world.kill(node);
            world.start(node, false);
            rest(&mut world);
            assert_eq!((held(&world).len(), there(&world, SERVER)), (1, ALL));
        }
        world.give(SERVER, Input::Judged("n1".into(), judgement));
        world.kill(SERVER);
        world.start(SERVER, false);
        settle(&mut world);
        let left = if judgement == Judgement::Approved { 0 } else { ALL };
        assert_eq!((there(&world, SERVER), there(&world, CLIENT), held(&world).len()), (left, left, 0));
    }
}

#[test]
fn names_that_a_repair_of_the_file_system_has_lost_are_asked_about() {
    let mut world = with(2);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    // fsck: the names are gone, and no record tells of it.
    let lost: Vec<_> = (0..ALL).map(|n| dir_and_name(&world, CLIENT, &name(n))).collect();
    for (dir, name) in lost {
        let inode = world.nodes[CLIENT].disk.inodes.get_mut(&dir).unwrap();
        inode.entries.remove(&name);
    }
    world.give(CLIENT, Input::Scrub(lento_core::scrub::Found::Take));
    rest(&mut world);
    assert_eq!((there(&world, SERVER), there(&world, OTHER)), (ALL, ALL), "{:?}", held(&world));
    assert_eq!(held(&world).len(), 1);
    judge(&mut world, Judgement::Refused);
    settle(&mut world);
    for n in 0..ALL {
        everywhere(&world, &name(n), Some(&format!("content {n}")));
    }
}

#[test]
fn what_was_written_meanwhile_is_not_lost_with_an_approval() {
    let mut world = with(2);
    world.cut(CLIENT);
    remove_all(&mut world, CLIENT, ALL);
    rest(&mut world);
    store(&mut world, OTHER, &name(5), "written while a person thinks");
    rest(&mut world);
    judge(&mut world, Judgement::Approved);
    settle(&mut world);
    assert_eq!(there(&world, SERVER), 1);
    everywhere(&world, &name(5), Some("written while a person thinks"));
    let hash = Hash::of(b"written while a person thinks");
    assert!(world.nodes[SERVER].disk.shows(hash));
}
