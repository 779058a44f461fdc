//! One test for each rule of replication without which something is lost: the counterexample that needs the rule, step
//! by step, judged by what users see. `lost_logs.rs` has those about logs of which something is gone,
//! `power_cuts.rs` those about files and trees.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::record::Update;
use lento_core::types::Hash;
use lento_core::types::Recno;
use sim::steps::*;
use sim::world::World;

#[test]
fn a_file_saved_by_rename_never_shows_without_its_content() {
    let [old, new] = ["old", "new"].map(|text| text.repeat(50_000));
    let mut world = world(1);
    store(&mut world, SERVER, "f", &old);
    // Long in writing: what is new is known everywhere while it is empty.
    create(&mut world, SERVER, "f.new");
    settle(&mut world);
    everywhere(&world, "f.new", Some(""));
    store(&mut world, SERVER, "f.new", &new);
    rename(&mut world, SERVER, "f.new", "f");
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 1);
            world.run_job_except(node, |job| matches!(job, Output::Fetch { .. }));
            world.timeout(node);
        }
        world.deliver(CLIENT, SERVER);
        world.deliver(SERVER, CLIENT);
        assert_eq!(read(&world, CLIENT, "f").as_ref(), Some(&old), "what is new is still on its way");
    }
    settle(&mut world);
    everywhere(&world, "f", Some(&new));
}

#[test]
fn rule_1_a_close_never_travels_empty() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "tmp", "one");
    rename(&mut world, CLIENT, "tmp", "f");
    store(&mut world, CLIENT, "f", "two");
    world.connect(CLIENT);
    let shown = shown(&mut world, "f");
    assert!(!shown.contains(&Some(String::new())), "an empty f in between: {shown:?}");
    assert!(!shown.contains(&None), "no f in between: {shown:?}");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    everywhere(&world, "tmp", None);
}

#[test]
fn rule_1_limbo_keeps_what_is_removed_before_it_was_read() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "the server's");
    store(&mut world, CLIENT, "f", "the client's");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "f", Some("the server's"));
    assert!(is_kept(&world, "the client's"));
}

#[test]
fn rule_1_a_file_that_is_never_quiet_while_it_is_read_ends_as_it_is() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    store(&mut world, CLIENT, "f", "v");
    // So that a folded close leaves its time in a record of its own.
    let file = at(&world, CLIENT, "f").unwrap();
    world.nodes[CLIENT].disk.user_setxattr(file, b"user.x", b"y");
    let mut reads = 0;
    // Each read begins before the newest close is known here, and ends after one more.
    for round in 0..12 {
        world.read_journal(CLIENT, 100);
        store(&mut world, CLIENT, "f", &format!("known {round}"));
        world.read_journal(CLIENT, 1);
        store(&mut world, CLIENT, "f", &format!("not known {round}"));
        reads += u32::from(world.run_read(CLIENT, true));
        while world.run_read(CLIENT, false) {}
    }
    assert!(reads > 8, "{reads} reads");
    settle(&mut world);
    everywhere(&world, "f", Some("not known 11"));
}

#[test]
fn rule_2_nothing_is_shown_before_its_content() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    let big = "x".repeat(100_000);
    store(&mut world, SERVER, "tmp", &big);
    rename(&mut world, SERVER, "tmp", "f");
    for _ in 0..2000 {
        world.step();
        let here = read(&world, CLIENT, "f");
        assert!(
            here.as_deref() == Some("old") || here.as_deref() == Some(&big),
            "torn: {:?}",
            here.map(|h| h.len())
        );
    }
    settle(&mut world);
    everywhere(&world, "f", Some(&big));
}

#[test]
fn rule_3_a_power_cut_begins_a_new_incarnation() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "kept");
    // Durable here before it could be sent.
    world.cut(CLIENT);
    world.nodes[CLIENT].disk.make_durable();
    remove(&mut world, CLIENT, "f");
    mkdir(&mut world, CLIENT, "d");
    // The removal cancels the creation; only the directory is sent, under a number that comes back after the cut.
    world.connect(CLIENT);
    without_syncs(&mut world, |world| at(world, SERVER, "d").is_some());
    world.power(CLIENT);
    settle(&mut world);
    everywhere(&world, "f", Some("kept"));
    assert!(at(&world, CLIENT, "d").is_some());
}

#[test]
fn rule_4_what_a_power_cut_forgot_comes_back_whole() {
    let mut world = world(1);
    world.nodes[CLIENT].disk.make_durable();
    store(&mut world, CLIENT, "f", "sent");
    without_syncs(&mut world, |world| read(world, SERVER, "f").as_deref() == Some("sent"));
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f"), None, "the cut took it");
    settle(&mut world);
    everywhere(&world, "f", Some("sent"));
}

#[test]
fn rule_5_nothing_that_is_not_durable_is_forwarded() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "news");
    for _ in 0..200 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job_except(SERVER, is_sync);
        world.deliver(SERVER, CLIENT);
        world.read_journal(CLIENT, 8);
        world.run_job(CLIENT);
        world.timeout(SERVER);
        assert_eq!(read(&world, CLIENT, "f"), None, "forwarded before the sync");
    }
    settle(&mut world);
    everywhere(&world, "f", Some("news"));
}

#[test]
fn rule_6_a_close_is_judged_by_what_was_on_disk_before_it() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // The user stores over v0; before lento reads that record, the server's v1 reaches base.
    store(&mut world, CLIENT, "f", "mine");
    store(&mut world, SERVER, "f", "v1");
    for _ in 0..100 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job(SERVER);
        world.deliver(SERVER, CLIENT);
        world.timeout(SERVER);
    }
    settle(&mut world);
    everywhere(&world, "f", Some("v1"));
    assert!(is_kept(&world, "mine"));
}

#[test]
fn rule_14_what_is_stored_over_a_loser_is_the_same_conflict() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    for n in 1..=2 {
        for client in [CLIENT, CLIENT + 1] {
            store(&mut world, client, "f", &format!("{n} of {client}"));
        }
        store(&mut world, SERVER, "f", &format!("v{n}"));
        // It reads them and sends them off; no verdict comes back yet.
        for _ in 0..100 {
            world.now += 20;
            for node in 0..world.nodes.len() {
                world.read_journal(node, 8);
                world.run_job(node);
                world.timeout(node);
            }
        }
    }
    settle(&mut world);
    everywhere(&world, "f", Some("v2"));
    let volume = world.nodes[SERVER].volume.as_ref().unwrap();
    let status = volume.status(&world.nodes[SERVER].store).unwrap();
    assert!(status.judged.conflicts > 2, "each was judged by itself: {:?}", status.judged);
    let rows = lento_core::Volume::conflicts(&world.nodes[SERVER].store, 10).unwrap();
    let hashes: Vec<Option<Hash>> = rows.iter().map(|(_, row)| row.hash).collect();
    let of = |client: usize| Some(Hash::of(format!("2 of {client}").as_bytes()));
    assert!(
        hashes.len() == 2 && hashes.contains(&of(CLIENT)) && hashes.contains(&of(CLIENT + 1)),
        "{rows:?}"
    );
    assert_eq!((status.conflicts, Some(status.newest_conflict)), (2, rows.last().map(|(at, _)| *at)));
}

#[test]
fn rule_7_a_treatment_takes_only_what_it_left_itself() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // One store, the other's store in between, a second store on top of that.
    store(&mut world, CLIENT, "f", "one");
    settle(&mut world);
    store(&mut world, OTHER, "f", "other");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "two");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "f", None);
    store(&mut world, OTHER, "f", "again");
    settle(&mut world);
    everywhere(&world, "f", Some("again"));
}

#[test]
fn rule_8_a_removal_says_whether_it_took_the_last_name() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "text");
    link(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    world.cut(CLIENT);
    // Here one name stays under a new name that the server refuses; there one name is gone already.
    store(&mut world, SERVER, "h", "in the way");
    remove(&mut world, SERVER, "g");
    rename(&mut world, CLIENT, "g", "h");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "h", Some("in the way"));
    assert!(
        read(&world, SERVER, "f").as_deref() == Some("text") || is_kept(&world, "text"),
        "the content is gone"
    );
}

#[test]
fn rule_9_only_directories_new_to_each_other_are_unified() {
    let mut world = world(1);
    world.cut(CLIENT);
    mkdir(&mut world, CLIENT, "b");
    store(&mut world, CLIENT, "b/one", "1");
    mkdir(&mut world, SERVER, "b");
    store(&mut world, SERVER, "b/two", "2");
    settle(&mut world);
    everywhere(&world, "b/one", Some("1"));
    everywhere(&world, "b/two", Some("2"));
    // Its own first b must not become one with its second.
    world.cut(CLIENT);
    store(&mut world, SERVER, "c", "taken");
    rename(&mut world, CLIENT, "b", "c");
    mkdir(&mut world, CLIENT, "b");
    store(&mut world, CLIENT, "b/three", "3");
    settle(&mut world);
    everywhere(&world, "b/one", Some("1"));
    everywhere(&world, "c", Some("taken"));
    assert!(read(&world, SERVER, "b/three").is_some() || is_kept(&world, "3"));
}

#[test]
fn rule_12_a_verdict_is_given_once_and_again_told() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "server's");
    store(&mut world, CLIENT, "f", "client's");
    world.connect(CLIENT);
    let judged = |world: &World| {
        let conflict = |r: &&lento_core::record::KmlRecord| matches!(r.origin, lento_core::record::KmlOrigin::Replay { verdict, .. } if verdict > 1);
        world.nodes[SERVER].disk.kml.iter().filter(conflict).count()
    };
    for _ in 0..20_000 {
        if judged(&world) > 0 {
            break;
        }
        world.step();
    }
    // The stream breaks before the client hears it; nothing but the KML is left of it at the server.
    world.cut(CLIENT);
    world.kill(SERVER);
    settle(&mut world);
    assert_eq!(judged(&world), 1);
    everywhere(&world, "f", Some("server's"));
    assert!(is_kept(&world, "client's"));
}

#[test]
fn rule_13_a_replay_never_meets_a_user_it_has_not_seen() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "from the server");
    // The replay that makes f is asked for; before it runs, users make f, move it and take it away.
    let mut asked = false;
    for _ in 0..4000 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job(SERVER);
        world.deliver(SERVER, CLIENT);
        if world.next_is_replay(CLIENT) {
            asked = true;
            break;
        }
        world.run_job(CLIENT);
        world.timeout(SERVER);
    }
    assert!(asked);
    store(&mut world, CLIENT, "f", "from a user");
    rename(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    everywhere(&world, "f", Some("from the server"));
    assert!(read(&world, SERVER, "g").as_deref() == Some("from a user") || is_kept(&world, "from a user"));
}

#[test]
fn rule_15_the_server_never_waits_for_a_writer() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // A database that is open for ever at the server, and a client that stores.
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"half a transaction");
    store(&mut world, CLIENT, "f", "client's");
    store(&mut world, CLIENT, "other", "more");
    world.rest();
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("client's"));
    assert_eq!(read(&world, SERVER, "other").as_deref(), Some("more"));
    world.close(SERVER, file);
    settle(&mut world);
    everywhere(&world, "f", Some("client's"));
    assert!(is_kept(&world, "half a transaction"));
}

#[test]
fn rule_15_the_server_decides_about_a_file_of_several_names_too() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    link(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    // Its one inode cannot be replaced under the writer, and must not be shared with him.
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"half a transaction");
    store(&mut world, CLIENT, "f", "client's");
    store(&mut world, CLIENT, "other", "more");
    world.rest();
    assert_eq!(read(&world, SERVER, "other").as_deref(), Some("more"));
    assert!(is_kept(&world, "client's"));
    world.close(SERVER, file);
    settle(&mut world);
    everywhere(&world, "g", Some("half a transaction"));
}

#[test]
fn rule_15_a_busy_file_defers_its_own_change_only() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    let file = at(&world, CLIENT, "f").unwrap();
    world.open_and_store(CLIENT, file, b"being written");
    store(&mut world, SERVER, "f", "server's");
    store(&mut world, SERVER, "g", "beside it");
    for _ in 0..4000 {
        world.step();
    }
    assert_eq!(read(&world, CLIENT, "g").as_deref(), Some("beside it"));
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("being written"));
    let status = world.nodes[CLIENT].volume.as_ref().unwrap().status(&world.nodes[CLIENT].store).unwrap();
    assert!(status.position > status.applied, "acknowledged what waits for the writer: {status:?}");
    world.close(CLIENT, file);
    settle(&mut world);
    everywhere(&world, "f", Some("server's"));
    assert!(is_kept(&world, "being written"));
}

#[test]
fn a_content_that_was_superseded_is_asked_for_again_although_nothing_else_happens() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "one");
    settle(&mut world);
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"two");
    store(&mut world, SERVER, "g", "in the way");
    rename(&mut world, CLIENT, "f", "g");
    remove(&mut world, CLIENT, "g");
    let without_time = |world: &mut World| {
        for _ in 0..100 {
            for node in [CLIENT, SERVER] {
                world.read_journal(node, 8);
                world.run_job(node);
            }
            world.deliver(CLIENT, SERVER);
            world.deliver(SERVER, CLIENT);
        }
    };
    // Rename and removal are refused, and what f was is nowhere any more.
    without_time(&mut world);
    assert_eq!(read(&world, CLIENT, "f"), None);
    world.close(SERVER, file);
    without_time(&mut world);
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn rule_18_a_replay_asks_nobody_else() {
    // The core plans replays and never waits for anything but presto's answer and its journal: no output of a batch
    // refers to another batch, and one is under way at a time.
    let mut world = world(1);
    for number in 0..40 {
        store(&mut world, SERVER, &format!("f{number}"), "x");
    }
    for _ in 0..3000 {
        world.step();
        assert!(world.replays_under_way(CLIENT) <= 1);
    }
    settle(&mut world);
}

/// The journal confirms the client's newest replay once more, as it does where a replay finds that it is done.
fn confirm_twice(world: &mut World, expected: fn(&Update) -> bool) {
    let journal = &mut world.nodes[CLIENT].disk.kml;
    let mut twice = journal.last().unwrap().clone();
    assert!(expected(&twice.update), "{twice:?}");
    twice.recno = Recno(journal.len() as u64 + 1);
    journal.push(twice);
    settle(world);
}

#[test]
fn a_replay_that_the_journal_confirms_twice_stops_nobody() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "text");
    store(&mut world, SERVER, "one", "1");
    store(&mut world, SERVER, "two", "2");
    settle(&mut world);
    remove(&mut world, SERVER, "f");
    settle(&mut world);
    confirm_twice(&mut world, |update| matches!(update, Update::Remove { .. }));
    rename(&mut world, SERVER, "one", "three");
    settle(&mut world);
    confirm_twice(&mut world, |update| matches!(update, Update::Rename { .. }));
    rename(&mut world, SERVER, "three", "two");
    settle(&mut world);
    confirm_twice(&mut world, |update| matches!(update, Update::Rename { .. }));
    store(&mut world, SERVER, "g", "more");
    store(&mut world, CLIENT, "h", "back");
    settle(&mut world);
    for (path, text) in [("f", None), ("one", None), ("two", Some("1")), ("three", None)] {
        everywhere(&world, path, text);
    }
    everywhere(&world, "g", Some("more"));
    everywhere(&world, "h", Some("back"));
}

#[test]
fn rule_7_what_was_under_way_at_a_second_hello_of_a_stream_does_not_come_back_after_its_welcome() {
    let mut world = world(1);
    let is_replay = |job: &Output| matches!(job, Output::Replay { .. });
    store(&mut world, CLIENT, "a", "text");
    let file = create(&mut world, CLIENT, "f");
    while world.replays_under_way(SERVER) == 0 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job_except(node, is_replay) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    // That replay will not be done as it was planned.
    create(&mut world, SERVER, "a");
    remove(&mut world, SERVER, "a");
    world.greet_again(CLIENT);
    while world.run_job(CLIENT) {}
    while world.deliver(CLIENT, SERVER) {}
    world.run_job_except(SERVER, |job| !matches!(job, Output::Replay { .. }));
    for _ in 0..20 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        while world.run_job_except(SERVER, is_replay) {}
        world.timeout(SERVER);
        while world.deliver(SERVER, CLIENT) {}
    }
    // The server has not received it, says the welcome, and it waits behind a content that is read: this is a part of it.
    world.nodes[CLIENT].disk.user_setattr(file, 0o600);
    world.read_journal(CLIENT, 8);
    settle(&mut world);
    let there = at(&world, SERVER, "f").unwrap();
    assert_eq!(world.nodes[SERVER].disk.inodes[&there].attributes.mode & 0o777, 0o600);
}

#[test]
fn a_resolved_conflict_is_listed_no_more_and_what_is_left_later_is_another() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    let clash = |world: &mut World, text: &str| {
        world.cut(CLIENT);
        store(world, CLIENT, "f", &format!("client's {text}"));
        store(world, SERVER, "f", &format!("server's {text}"));
        settle(world);
    };
    let listed = |world: &World| {
        let node = &world.nodes[SERVER];
        let count = node.volume.as_ref().unwrap().status(&node.store).unwrap().conflicts;
        let rows = lento_core::Volume::conflicts(&node.store, 10).unwrap();
        assert_eq!(count, rows.len() as u64);
        rows
    };
    clash(&mut world, "first");
    let (position, _) = listed(&world).pop().unwrap();
    for _ in 0..2 {
        world.give(SERVER, Input::Resolved(position));
        world.rest();
        assert!(listed(&world).is_empty());
    }
    clash(&mut world, "second");
    let rows = listed(&world);
    assert!(rows.len() == 1 && rows[0].0 > position, "{rows:?}");
    everywhere(&world, "f", Some("server's second"));
}

#[test]
fn a_sent_content_that_a_power_cut_takes_back_is_not_taken_for_what_is_in_the_file() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    store(&mut world, CLIENT, "f", "v1");
    world.nodes[CLIENT].disk.make_durable();
    let synced = world.nodes[CLIENT].disk.clone();
    // Somebody stores on; what lento reads for the close before is this.
    let file = at(&world, CLIENT, "f").unwrap();
    world.nodes[CLIENT].disk.user_store(file, b"v2");
    for _ in 0..10 {
        world.now += 20;
        world.read_journal(CLIENT, 8);
        world.run_job(CLIENT);
        world.timeout(CLIENT);
    }
    // The store is written after that, the files are not, and both before the server says anything.
    world.nodes[CLIENT].store.make_durable();
    world.nodes[CLIENT].disk = synced;
    for _ in 0..50 {
        world.now += 20;
        world.deliver(CLIENT, SERVER);
        world.read_journal(SERVER, 8);
        world.run_job(SERVER);
        world.timeout(SERVER);
    }
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("v1"));
    settle(&mut world);
    everywhere(&world, "f", Some("v2"));
    assert!(is_kept(&world, "v1"), "what is older on the disk is no update");
}
