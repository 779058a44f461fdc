//! What a power cut leaves in files and trees (rule 10): what is torn takes no good one's place, what was synced is there, and
//! what no record tells is found.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use sim::disk::Keeps;
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
