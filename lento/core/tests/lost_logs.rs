//! Counterexamples about logs of which something is gone: a lost disk, a restored backup, a power cut. Whoever has more
//! brings it back, and nobody takes anything away.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Output;
use sim::steps::*;
use sim::world::World;

#[test]
fn a_server_that_lost_its_data_takes_nothing_from_its_clients() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "dear");
    settle(&mut world);
    store(&mut world, CLIENT, "g", "not sent yet");
    world.wipe(SERVER);
    store(&mut world, SERVER, "h", "new");
    world.rest();
    for node in [CLIENT, OTHER] {
        assert_eq!(read(&world, node, "f").as_deref(), Some("dear"));
        assert_eq!(read(&world, node, "h"), None);
        assert!(waiting(&world, node)[0].contains("another history"), "{:?}", waiting(&world, node));
    }
    assert_eq!(read(&world, SERVER, "g"), None);
    // One that begins anew follows.
    world.wipe(OTHER);
    world.rest();
    assert_eq!(read(&world, OTHER, "h").as_deref(), Some("new"));
}

#[test]
fn a_server_that_does_not_know_that_it_is_a_backup_learns_it_from_its_clients() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    let backup = (world.nodes[SERVER].store.clone(), world.nodes[SERVER].disk.clone());
    store(&mut world, CLIENT, "g", "since then");
    settle(&mut world);
    (world.nodes[SERVER].store, world.nodes[SERVER].disk) = backup;
    world.restart(SERVER);
    settle(&mut world);
    everywhere(&world, "g", Some("since then"));
}

#[test]
fn who_no_longer_has_the_records_since_a_backup_brings_back_what_it_has() {
    let mut world = world(1);
    world.tail = 0;
    world.restart(CLIENT);
    store(&mut world, CLIENT, "f", "old");
    store(&mut world, CLIENT, "same", "same");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "new");
    mkdir(&mut world, CLIENT, "dir");
    store(&mut world, CLIENT, "dir/g", "since then");
    link(&mut world, CLIENT, "dir/g", "dir/h");
    settle(&mut world);
    // What is durable everywhere is kept no longer: this tells that it is.
    store(&mut world, CLIENT, "last", "last");
    settle(&mut world);
    store(&mut world, CLIENT, "pending", "not sent yet");
    world.restore();
    settle(&mut world);
    everywhere(&world, "dir/g", Some("since then"));
    everywhere(&world, "dir/h", Some("since then"));
    everywhere(&world, "last", Some("last"));
    everywhere(&world, "pending", Some("not sent yet"));
    everywhere(&world, "same", Some("same"));
    everywhere(&world, "f", Some("old"));
    assert!(is_kept(&world, "new"), "nobody can tell that it was the newer one");
}

#[test]
fn rule_11_a_restored_backup_takes_nothing_back() {
    let mut world = world(2);
    store(&mut world, CLIENT, "old", "old");
    store(&mut world, CLIENT, "gone", "gone");
    mkdir(&mut world, OTHER, "dir");
    settle(&mut world);
    world.back_up();

    store(&mut world, CLIENT, "new", "new");
    store(&mut world, SERVER, "at-server", "written there, lost there");
    remove(&mut world, OTHER, "gone");
    rename(&mut world, OTHER, "old", "dir/moved");
    settle(&mut world);
    store(&mut world, CLIENT, "dir/moved", "changed after it was moved");
    settle(&mut world);

    world.restore();
    assert_eq!(read(&world, SERVER, "gone").as_deref(), Some("gone"), "the backup has it");
    settle(&mut world);
    everywhere(&world, "new", Some("new"));
    everywhere(&world, "at-server", Some("written there, lost there"));
    everywhere(&world, "gone", None);
    everywhere(&world, "old", None);
    everywhere(&world, "dir/moved", Some("changed after it was moved"));
    assert!(world.nodes[SERVER].kept.is_empty(), "and nothing of it is a conflict");
}

#[test]
fn rule_11_what_is_written_over_a_backup_and_what_it_had_forgotten_are_both_kept() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "first");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "second");
    settle(&mut world);

    world.restore();
    store(&mut world, SERVER, "f", "over the first");
    store(&mut world, CLIENT, "f", "third");
    settle(&mut world);
    everywhere(&world, "f", Some("over the first"));
    assert!(is_kept(&world, "third"));
}

#[test]
fn rule_11_who_is_furthest_ahead_comes_first() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "0");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "1");
    settle(&mut world);
    world.cut(OTHER);
    for text in ["2", "3"] {
        store(&mut world, CLIENT, "f", text);
        world.rest_without(&[OTHER]);
    }
    store(&mut world, OTHER, "g", "meanwhile");

    // OTHER, which is behind, comes back first.
    world.restore();
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    settle(&mut world);
    everywhere(&world, "f", Some("3"));
    everywhere(&world, "g", Some("meanwhile"));
    assert!(world.nodes[SERVER].kept.is_empty());
}

#[test]
fn rule_11_a_tree_says_more_than_the_records_that_made_it() {
    let mut world = world(2);
    world.tail = 0;
    world.restart(CLIENT);
    settle(&mut world);
    world.back_up();
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    // So that all of that is durable everywhere, and CLIENT keeps no records of it.
    store(&mut world, SERVER, "g", "g");
    settle(&mut world);
    world.cut(OTHER);
    store(&mut world, CLIENT, "f", "two");
    world.rest_without(&[OTHER]);
    world.restore();
    // OTHER has the records, and brings them back first.
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("one"));
    settle(&mut world);
    assert!(is_kept(&world, "two") || read(&world, SERVER, "f").as_deref() == Some("two"));
}

#[test]
fn rule_11_an_older_content_never_stands_for_one_that_is_not_here_yet() {
    let two = "two".repeat(40_000);
    let mut world = world(2);
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    world.back_up();
    store(&mut world, OTHER, "f", &two);
    without_fetches(&mut world);
    assert_eq!(
        read(&world, CLIENT, "f").as_deref(),
        Some("one"),
        "it knows of the other, and has not got it"
    );
    world.cut(CLIENT);
    let file = at(&world, CLIENT, "f").unwrap();
    world.nodes[CLIENT].disk.user_setattr(file, 0o600);
    world.read_journal(CLIENT, 8);
    world.restore();
    world.connect(CLIENT);
    world.rest_without(&[OTHER]);
    settle(&mut world);
    everywhere(&world, "f", Some(&two));
}

#[test]
fn rule_20_what_a_lost_conflict_store_had_is_told_again_where_it_still_is() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "old");
    settle(&mut world);
    world.back_up();
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "mine");
    store(&mut world, SERVER, "f", &"theirs".repeat(20_000));
    world.connect(CLIENT);
    without_fetches(&mut world);
    assert!(is_kept(&world, "mine"));
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("mine"), "the other one is not there yet");
    world.restore();
    settle(&mut world);
    assert!(is_kept(&world, "mine") || read(&world, SERVER, "f").as_deref() == Some("mine"));
}

/// `CLIENT` has half of a tree durably, and the server falls back to a time before that.
fn half_a_tree() -> World {
    let mut world = world(2);
    for number in 0..8 {
        store(&mut world, SERVER, &format!("f{number}"), "old");
    }
    settle(&mut world);
    world.back_up();
    for number in 0..8 {
        store(&mut world, OTHER, &format!("f{number}"), "new");
    }
    settle(&mut world);
    world.wipe(CLIENT);
    world.connect(CLIENT);
    let is_half = |world: &World| waiting(world, CLIENT).iter().any(|why| why.starts_with("6 of about"));
    for _ in 0..20_000 {
        if is_half(&world) {
            break;
        }
        world.step();
    }
    assert!(is_half(&world), "{:?}", waiting(&world, CLIENT));
    for _ in 0..8 {
        world.now += 40;
        world.timeout(CLIENT);
        while world.run_job(CLIENT) {}
    }
    world.restore();
    world
}

#[test]
fn half_a_tree_of_a_log_that_is_lost_is_begun_anew() {
    let mut world = half_a_tree();
    world.rest_without(&[OTHER]);
    assert_eq!(read(&world, CLIENT, "f7").as_deref(), Some("old"));
    settle(&mut world);
    everywhere(&world, "f7", Some("new"));
}

#[test]
fn half_a_tree_of_a_log_that_is_lost_is_void_before_the_next_one_comes() {
    let mut world = half_a_tree();
    world.connect(CLIENT);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) {}
        // The welcome, and nothing behind it.
        if world.deliver(SERVER, CLIENT) {
            break;
        }
    }
    world.cut(CLIENT);
    // Its position is one of the new log as well by the time.
    for number in 0..8 {
        store(&mut world, SERVER, &format!("g{number}"), "since then");
    }
    world.rest_without(&[CLIENT, OTHER]);
    world.rest_without(&[OTHER]);
    assert_eq!(read(&world, CLIENT, "f0").as_deref(), Some("old"));
    settle(&mut world);
    everywhere(&world, "f0", Some("new"));
}

#[test]
fn a_power_cut_of_the_server_costs_no_new_tree() {
    let mut world = world(1);
    for name in ["a", "b", "c", "d"] {
        store(&mut world, SERVER, name, name);
    }
    settle(&mut world);
    let before = world.trees_sent;
    world.power(SERVER);
    store(&mut world, SERVER, "after", "after");
    settle(&mut world);
    everywhere(&world, "after", Some("after"));
    assert_eq!(world.trees_sent, before);
}

/// `CLIENT` has made a file that everybody has, and has not heard so; the server falls back to a time before it.
fn made_and_forgotten(text: &str) -> World {
    let mut world = world(2);
    world.back_up();
    store(&mut world, CLIENT, "f", text);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT, OTHER] {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(OTHER, SERVER) || world.deliver(SERVER, OTHER) {}
    }
    assert_eq!(read(&world, OTHER, "f").as_deref(), Some(text));
    world.cut(CLIENT);
    world.cut(OTHER);
    world
}

#[test]
fn rule_11_what_others_wrote_over_a_record_is_not_what_its_maker_saw() {
    let mut world = made_and_forgotten("one");
    remove(&mut world, CLIENT, "f");
    store(&mut world, OTHER, "f", "two");
    world.read_journal(OTHER, 8);
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn rule_11_the_maker_of_a_record_gets_what_others_wrote_over_it() {
    let mut world = made_and_forgotten("one");
    store(&mut world, OTHER, "f", "two");
    world.read_journal(OTHER, 8);
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(world.nodes[SERVER].kept.is_empty(), "who wrote it had seen the first");
}

#[test]
fn rule_11_who_has_a_content_brings_it_although_another_had_to_leave_it_out() {
    let big = "x".repeat(100_000);
    let mut world = world(2);
    world.back_up();
    store(&mut world, CLIENT, "f", &big);
    without_fetches(&mut world);
    assert_eq!(read(&world, OTHER, "f"), None, "it knows of the file, and has not got it");
    world.restore();
    // For the maker nobody waits for ever.
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    settle(&mut world);
    everywhere(&world, "f", Some(&big));
}

#[test]
fn rule_11_what_a_replay_has_just_made_is_here() {
    let mut world = world(1);
    world.back_up();
    store(&mut world, SERVER, "f", "text");
    for _ in 0..400 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        for node in [SERVER, CLIENT] {
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("text"), "and its record is not read");
    world.restore();
    world.connect(CLIENT);
    for _ in 0..20 {
        while world.run_job(CLIENT) || world.run_job(SERVER) {}
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    settle(&mut world);
    everywhere(&world, "f", Some("text"));
}

#[test]
fn rule_11_what_was_written_over_a_refused_content_stands_for_no_other() {
    let mut world = world(2);
    store(&mut world, SERVER, "f", "old");
    settle(&mut world);
    world.back_up();
    world.cut(CLIENT);
    let file = at(&world, CLIENT, "f").unwrap();
    // It stays open, so that nothing is put in its place.
    world.open_and_store(CLIENT, file, b"mine");
    world.flush(CLIENT, file);
    store(&mut world, SERVER, "f", "theirs");
    world.connect(CLIENT);
    for _ in 0..400 {
        world.now += 20;
        for node in 0..3 {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        for client in [CLIENT, OTHER] {
            while world.deliver(client, SERVER) || world.deliver(SERVER, client) {}
        }
    }
    assert!(is_kept(&world, "mine"));
    assert_eq!(read(&world, OTHER, "f").as_deref(), Some("theirs"));
    world.cut(CLIENT);
    world.open_and_store(CLIENT, file, b"mine again");
    world.close(CLIENT, file);
    world.read_journal(CLIENT, 8);
    world.restore();
    world.connect(CLIENT);
    world.rest_without(&[OTHER]);
    settle(&mut world);
    for text in ["theirs", "mine again"] {
        assert!(is_kept(&world, text) || read(&world, SERVER, "f").as_deref() == Some(text), "{text}");
    }
}

#[test]
fn what_others_call_otherwise_since_a_backup_comes_to_rest() {
    let mut world = world(2);
    world.back_up();
    mkdir(&mut world, OTHER, "d");
    settle(&mut world);
    world.restore();
    mkdir(&mut world, SERVER, "d");
    world.connect(CLIENT);
    for steps in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job_except(node, |job| matches!(job, Output::Replay { .. })) {}
            world.run_job(SERVER);
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
        if steps == 200 {
            // Having got the tree it is told verdicts again.
            world.cut(CLIENT);
            world.connect(CLIENT);
        }
    }
    // It follows the new log, and its tree has not: the directory is known by the name that OTHER gave it.
    store(&mut world, CLIENT, "d/f", "text");
    settle(&mut world);
    everywhere(&world, "d/f", Some("text"));
}

#[test]
fn rule_11_a_newer_content_in_the_place_of_one_that_others_brought_back_is_still_pending() {
    let mut world = made_and_forgotten("one");
    world.restore();
    world.connect(CLIENT);
    // The server knows nothing of the file: its newest content may take the oldest place.
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            while world.run_job_except(node, |job| matches!(job, Output::ReadContent { .. })) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    store(&mut world, CLIENT, "f", "two");
    world.read_journal(CLIENT, 8);
    world.cut(CLIENT);
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("one"), "the other one has brought it back");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(world.nodes[SERVER].kept.is_empty(), "it was made over that very content");
}

/// The client's disk has `here`, closed; the server has got `sent` in the place of that; then the current fails.
fn sent_and_cut(here: &str, sent: &str) -> World {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", here);
    world.read_journal(CLIENT, 8);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    if sent != here {
        store(&mut world, CLIENT, "f", sent);
    }
    world.connect(CLIENT);
    without_syncs(&mut world, |world| read(world, SERVER, "f").as_deref() == Some(sent));
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some(here));
    world
}

#[test]
fn after_a_power_cut_a_client_shows_what_the_server_has_and_not_what_it_believes_to_have_sent() {
    let mut world = sent_and_cut("one", "two");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn after_a_power_cut_what_was_sent_and_is_lost_here_is_not_written_over_unseen() {
    let mut world = sent_and_cut("one", "two, longer");
    store(&mut world, CLIENT, "f", "over one");
    settle(&mut world);
    everywhere(&world, "f", Some("two, longer"));
    assert!(is_kept(&world, "over one"));
}

#[test]
fn after_a_power_cut_what_was_sent_and_is_here_is_an_ordinary_content() {
    for again in [None, Some("two")] {
        let mut world = sent_and_cut("one", "one");
        if let Some(text) = again {
            store(&mut world, CLIENT, "f", text);
        }
        settle(&mut world);
        everywhere(&world, "f", Some(again.unwrap_or("one")));
        assert!(world.nodes[SERVER].kept.is_empty(), "nothing of it is a conflict");
    }
}

#[test]
fn a_file_that_went_unread_is_told_of_only_when_its_removal_cannot_be_lost() {
    let mut world = world(1);
    let is_read = |job: &Output| matches!(job, Output::ReadContent { .. });
    store(&mut world, SERVER, "f", "text");
    world.read_journal(SERVER, 2);
    // Everything is durable before somebody has read the content.
    for _ in 0..200 {
        world.now += 20;
        world.timeout(SERVER);
        while world.run_job_except(SERVER, is_read) {}
    }
    remove(&mut world, SERVER, "f");
    world.read_journal(SERVER, 1);
    while world.run_job_except(SERVER, is_sync) || world.deliver(SERVER, CLIENT) {}
    world.power(SERVER);
    settle(&mut world);
    everywhere(&world, "f", Some("text"));
}

#[test]
fn a_journal_that_outlives_the_store_names_objects_as_the_next_life_does() {
    let mut world = world(1);
    mkdir(&mut world, SERVER, "d");
    mkdir(&mut world, CLIENT, "d");
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job_except(node, is_sync) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    // Both are one by now, says the journal. The store was to be durable after it.
    world.nodes[SERVER].disk.make_durable();
    world.power(SERVER);
    store(&mut world, CLIENT, "d/f", "text");
    settle(&mut world);
    everywhere(&world, "d/f", Some("text"));
}
