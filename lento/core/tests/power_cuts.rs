//! What a power cut leaves in files and trees (rule 10): what is torn takes no good one's place, what was synced is there, and
//! what no record tells is found.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::Volume;
use lento_core::io::Input;
use lento_core::io::LogLimit;
use lento_core::io::Output;
use lento_core::message::Message;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::types::LogRecord;
use lento_core::types::LogWhat;
use sim::disk::Keeps;
use sim::disk::STAGING;
use sim::steps::*;
use sim::world::World;

#[test]
fn rule_10_a_file_torn_by_a_power_cut_never_takes_the_place_of_a_good_one() {
    for chmod in [false, true] {
        for seed in 0..12 {
            let mut world = World::new(seed, 2);
            world.tears = true;
            store(&mut world, OTHER, "f", "good and whole");
            settle(&mut world);
            let file = at(&world, CLIENT, "f").unwrap();
            world.nodes[CLIENT].disk.user_store(file, b"being written over it");
            if chmod {
                // Its record shows the version that the store has left; it vouches for nothing of that.
                world.nodes[CLIENT].disk.user_setattr(file, 0o600);
            }
            world.power(CLIENT);
            let left = read(&world, CLIENT, "f").unwrap();
            settle(&mut world);
            everywhere(&world, "f", Some("good and whole"));
            assert!(left == "good and whole" || is_kept(&world, &left), "seed {seed}: {left} is nowhere");
        }
    }
}

#[test]
fn rule_10_what_was_closed_and_is_on_the_disk_is_an_update_after_a_power_cut() {
    let mut world = world(1);
    world.tears = true;
    store(&mut world, CLIENT, "f", "first");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "second, closed");
    world.nodes[CLIENT].disk.make_durable();
    world.power(CLIENT);
    settle(&mut world);
    everywhere(&world, "f", Some("second, closed"));
    assert!(world.nodes[SERVER].kept.is_empty());
}

/// The tree is ahead of the journal: nothing tells of what users had done, and nothing else would ever look for it.
#[test]
fn after_a_power_cut_what_is_in_the_tree_and_in_no_record_is_found() {
    for node in [CLIENT, SERVER] {
        let mut world = world(1);
        store(&mut world, node, "kept", "text");
        store(&mut world, node, "removed", "text");
        settle(&mut world);
        world.nodes[node].disk.make_durable();
        store(&mut world, node, "new", "made in the last second");
        remove(&mut world, node, "removed");
        world.power_but(node, Keeps::Tree);
        assert_eq!(read(&world, node, "new").as_deref(), Some("made in the last second"));
        settle(&mut world);
        everywhere(&world, "kept", Some("text"));
        everywhere(&world, "new", Some("made in the last second"));
        everywhere(&world, "removed", None);
    }
}

/// An fsync is a promise. What a later store has torn holds it all the same, and nobody has anything better.
#[test]
fn what_was_synced_and_not_sent_is_in_the_tree_whatever_a_later_store_has_torn() {
    for seed in 0..12 {
        let mut world = World::new(seed, 2);
        world.tears = true;
        store(&mut world, OTHER, "f", "good and whole");
        settle(&mut world);
        world.cut(CLIENT);
        let file = at(&world, CLIENT, "f").unwrap();
        let disk = &mut world.nodes[CLIENT].disk;
        disk.user_store(file, b"closed");
        disk.user_close(file);
        disk.user_store(file, b"synced");
        disk.user_fsync(file);
        disk.user_store(file, b"synced, and more");
        world.power(CLIENT);
        let left = read(&world, CLIENT, "f").unwrap();
        settle(&mut world);
        everywhere(&world, "f", Some(&left));
        assert!(world.nodes[SERVER].kept.is_empty(), "seed {seed}");
    }
}

/// Goes on until one of the client's replays has put something aside; then the power goes, and takes what the journal told.
fn put_aside_then_power_cut(world: &mut World) {
    for _ in 0..2000 {
        world.now += 1;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            world.timeout(node);
        }
        world.run_job(SERVER);
        if world.next_is_replay(CLIENT) {
            let Some(Output::Replay { items, untouched_since, .. }) = world.nodes[CLIENT].jobs.pop_front()
            else {
                unreachable!()
            };
            for item in &items {
                let disk = &mut world.nodes[CLIENT].disk;
                disk.replay(std::slice::from_ref(item), untouched_since);
                if !disk.inodes[&STAGING].entries.is_empty() {
                    return world.power_but(CLIENT, Keeps::Tree);
                }
            }
            panic!("nothing was put aside by {items:?}");
        }
        world.run_job(CLIENT);
        world.deliver(CLIENT, SERVER);
        world.deliver(SERVER, CLIENT);
    }
    panic!("nothing was replayed");
}

/// Nobody else would look there, and what was in it would be taken for removed.
#[test]
fn what_a_replay_had_put_aside_is_known_again_after_a_power_cut() {
    let mut world = world(1);
    mkdir(&mut world, SERVER, "a");
    mkdir(&mut world, SERVER, "b");
    store(&mut world, SERVER, "a/f", "in a");
    store(&mut world, SERVER, "b/f", "in b");
    settle(&mut world);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    rename(&mut world, SERVER, "a", "c");
    rename(&mut world, SERVER, "b", "a");
    rename(&mut world, SERVER, "c", "b");
    let ours = at(&world, CLIENT, "a/f");
    put_aside_then_power_cut(&mut world);
    settle(&mut world);
    everywhere(&world, "a/f", Some("in b"));
    everywhere(&world, "b/f", Some("in a"));
    assert_eq!(at(&world, CLIENT, "b/f"), ours, "it was moved, and not made anew");
}

/// A new object is whole there before it takes the place of another one. Who finds it there again may not make it twice.
#[test]
fn what_a_replay_had_made_aside_is_known_again_after_a_power_cut() {
    for tears in [false, true] {
        let mut world = world(1);
        world.tears = tears;
        store(&mut world, SERVER, "f", "old");
        settle(&mut world);
        world.nodes[CLIENT].disk.make_durable();
        world.nodes[CLIENT].store.make_durable();
        world.cut(CLIENT);
        store(&mut world, SERVER, "f.new", "new");
        rename(&mut world, SERVER, "f.new", "f");
        world.rest_without(&[CLIENT]);
        world.connect(CLIENT);
        put_aside_then_power_cut(&mut world);
        settle(&mut world);
        everywhere(&world, "f", Some("new"));
        assert!(world.nodes[CLIENT].disk.inodes[&STAGING].entries.is_empty(), "nothing is left there");
    }
}

/// No record tells of the other name of a file: who removes the one that is known has not removed the file.
#[test]
fn a_torn_file_does_not_come_back_as_another_one_under_a_name_that_no_record_tells() {
    for seed in 0..12 {
        let mut world = World::new(seed, 1);
        world.tears = true;
        store(&mut world, SERVER, "f", "good and whole");
        settle(&mut world);
        world.nodes[SERVER].disk.make_durable();
        link(&mut world, SERVER, "f", "g");
        let file = at(&world, SERVER, "f").unwrap();
        world.nodes[SERVER].disk.user_store(file, b"being written over it");
        world.power_but(SERVER, Keeps::Tree);
        remove(&mut world, SERVER, "f");
        store(&mut world, SERVER, "f", "another one");
        settle(&mut world);
        world.now += 60_000;
        settle(&mut world);
        everywhere(&world, "f", Some("another one"));
        everywhere(&world, "g", Some("good and whole"));
    }
}

/// Two files in each other's place are still those two.
#[test]
fn what_has_changed_places_in_a_power_cut_is_not_taken_for_removed() {
    for node in [SERVER, CLIENT] {
        let mut world = world(1);
        for name in ["a", "b", "c"] {
            mkdir(&mut world, node, name);
            store(&mut world, node, &format!("{name}/f"), &format!("of {name}"));
        }
        settle(&mut world);
        world.nodes[node].disk.make_durable();
        rename(&mut world, node, "a", "x");
        rename(&mut world, node, "b", "a");
        rename(&mut world, node, "c", "b");
        rename(&mut world, node, "x", "c");
        let other = SERVER + CLIENT - node;
        let theirs = ["a/f", "b/f", "c/f"].map(|path| at(&world, other, path));
        world.power_but(node, Keeps::Tree);
        settle(&mut world);
        everywhere(&world, "a/f", Some("of b"));
        everywhere(&world, "b/f", Some("of c"));
        everywhere(&world, "c/f", Some("of a"));
        let moved = ["c/f", "a/f", "b/f"].map(|path| at(&world, other, path));
        assert_eq!(moved, theirs, "they were moved, and not made anew");
    }
}

/// The client's updates reach the server, and nothing of them becomes durable at the client.
fn send_without_sync(world: &mut World) {
    for _ in 0..400 {
        world.now += 1;
        world.run_job_except(CLIENT, is_sync);
        world.deliver(CLIENT, SERVER);
        world.run_job(SERVER);
        world.read_journal(SERVER, 8);
    }
}

/// The same of a creation: its record alone is in the log, with that content.
#[test]
fn what_was_sent_with_a_creation_and_lost_is_not_what_is_there_was_made_over() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "one");
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    world.read_journal(CLIENT, 2);
    // Its record is not read yet when the content is.
    store(&mut world, CLIENT, "f", "two");
    send_without_sync(&mut world);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("two"));
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("one"), "the cut took it");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(is_kept(&world, "one"));
}

/// A record may travel with a later content than its own. If the power takes that, who writes on has never seen it.
#[test]
fn what_was_sent_and_lost_is_not_what_a_later_store_was_made_over() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "zero");
    settle(&mut world);
    store(&mut world, CLIENT, "f", "one");
    world.nodes[CLIENT].disk.make_durable();
    world.read_journal(CLIENT, 1);
    // Its record is not read yet when the content is.
    store(&mut world, CLIENT, "f", "two");
    send_without_sync(&mut world);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("two"));
    world.nodes[CLIENT].store.make_durable();
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("one"), "the cut took it");
    store(&mut world, CLIENT, "f", "six");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(is_kept(&world, "six"));
}

/// The verdict went with the power, and the log that tells it is no longer kept.
#[test]
fn a_directory_that_was_unified_and_removed_since_does_not_come_back() {
    let mut world = world(1);
    world.cut(CLIENT);
    mkdir(&mut world, SERVER, "a");
    mkdir(&mut world, CLIENT, "a");
    world.rest_without(&[CLIENT]);
    world.read_journal(CLIENT, 8);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    world.connect(CLIENT);
    // The client is not told the verdict.
    for _ in 0..400 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.timeout(SERVER);
        while world.run_job(SERVER) {}
        while world.run_job_except(CLIENT, is_sync) {}
        world.deliver(CLIENT, SERVER);
        let is_verdict = |record: &LogRecord| matches!(record.what, LogWhat::Verdict(_));
        let tells = |message: &Message| matches!(message, Message::Records { records, .. } if records.iter().any(is_verdict));
        if !world.next_message(SERVER, CLIENT).is_some_and(tells) {
            world.deliver(SERVER, CLIENT);
        }
    }
    let judged = |record: &KmlRecord| matches!(record.origin, KmlOrigin::Replay { .. });
    assert!(world.nodes[SERVER].disk.kml.iter().any(judged), "its record has a verdict");
    world.power(CLIENT);
    world.cut(CLIENT);
    remove(&mut world, SERVER, "a");
    world.log_limit = LogLimit { bytes: 1, patience: 20 };
    world.give(SERVER, Input::LogLimit(world.log_limit));
    store(&mut world, SERVER, "f", "text");
    world.rest_without(&[CLIENT]);
    let trees = world.trees_sent;
    settle(&mut world);
    assert!(world.trees_sent > trees, "it gets the tree");
    assert_eq!([SERVER, CLIENT].map(|node| at(&world, node, "a")), [None, None]);
}

/// The same on a server: nobody has been told of what a program was promised, and everybody of what was there before.
#[test]
fn what_was_synced_on_a_server_and_told_to_nobody_is_in_the_tree_whatever_a_later_store_has_torn() {
    for seed in 0..24 {
        let mut world = World::new(seed, 2);
        world.tears = true;
        store(&mut world, SERVER, "f", "good and whole");
        settle(&mut world);
        let file = at(&world, SERVER, "f").unwrap();
        let disk = &mut world.nodes[SERVER].disk;
        disk.user_store(file, b"closed");
        disk.user_close(file);
        disk.user_fsync(file);
        if seed % 2 == 0 {
            disk.user_store(file, b"closed once more");
            disk.user_close(file);
            disk.make_durable();
        }
        // Lento knows of the records, and not of what is in the file.
        world.read_journal(SERVER, 8);
        world.nodes[SERVER].store.make_durable();
        let disk = &mut world.nodes[SERVER].disk;
        disk.user_store(file, b"closed, and more");
        world.power(SERVER);
        let left = read(&world, SERVER, "f").unwrap();
        settle(&mut world);
        world.now += 60_000;
        settle(&mut world);
        everywhere(&world, "f", Some(&left));
    }
}

/// The tree is ahead of the journal, and what is in the way of a removal's record has not been sent.
#[test]
fn what_was_removed_before_it_was_sent_does_not_come_back_empty_after_a_power_cut() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f.new", "new");
    rename(&mut world, CLIENT, "f.new", "f");
    world.read_journal(CLIENT, 8);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    remove(&mut world, CLIENT, "f");
    world.power_but(CLIENT, Keeps::Tree);
    world.connect(CLIENT);
    let shown = shown(&mut world, "f");
    assert!(!shown.contains(&Some(String::new())), "an empty f in between: {shown:?}");
    settle(&mut world);
    everywhere(&world, "f", None);
    world.check_limbo().unwrap();
}

/// The note of it falls back with the log, and a Conflict with another name comes of the same file.
#[test]
fn what_a_writer_left_stays_in_limbo_until_the_note_of_its_conflict_is_on_the_disk() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "first");
    settle(&mut world);
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"left by a writer");
    remove(&mut world, CLIENT, "f");
    go_on(&mut world, 50);
    assert_eq!(at(&world, SERVER, "f"), None, "the server waits for no writer");
    world.close(SERVER, file);
    // Presto's own sync: the store is not in it.
    world.nodes[SERVER].disk.make_durable();
    for _ in 0..200 {
        world.now += 1;
        world.read_journal(SERVER, 8);
        world.run_job_except(SERVER, is_sync);
        world.timeout(SERVER);
    }
    assert!(is_kept(&world, "left by a writer"));
    assert!(world.nodes[SERVER].disk.in_limbo().contains(&file), "the note of it is not durable yet");
    world.power_but(SERVER, Keeps::Tree);
    settle(&mut world);
    assert!(!world.nodes[SERVER].disk.in_limbo().contains(&file));
    let conflicts = Volume::conflicts(&world.nodes[SERVER].store, 10).unwrap();
    let [(_, conflict)] = &conflicts[..] else { panic!("{conflicts:?}") };
    assert!(is_kept_of(&world, conflict.record, "left by a writer"));
}

/// All of it is in the journal and at the server, whose verdicts have not come when the power goes; and what was noted of the
/// sending goes with it.
#[test]
fn what_was_sent_and_then_removed_is_no_conflict_after_a_power_cut() {
    let mut world = world(1);
    settle(&mut world);
    let store = world.nodes[CLIENT].store.clone();
    let file = create(&mut world, CLIENT, "f");
    world.nodes[CLIENT].disk.user_store(file, b"synced");
    world.nodes[CLIENT].disk.user_fsync(file);
    let one_way = |world: &mut World| {
        for _ in 0..200 {
            world.now += 20;
            for node in [CLIENT, SERVER] {
                world.read_journal(node, 8);
                while world.run_job(node) {}
                world.timeout(node);
            }
            world.deliver(CLIENT, SERVER);
        }
    };
    one_way(&mut world);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("synced"));
    remove(&mut world, CLIENT, "f");
    one_way(&mut world);
    everywhere(&world, "f", None);
    world.nodes[CLIENT].disk.make_durable();
    world.kill(CLIENT);
    world.nodes[CLIENT].store = store;
    world.power(CLIENT);
    settle(&mut world);
    everywhere(&world, "f", None);
    assert_eq!(Volume::conflicts(&world.nodes[SERVER].store, 10).unwrap(), []);
}
