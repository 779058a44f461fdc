//! Counterexamples about contents that nobody has read yet. Of the server's own users, when the log falls back, or the file
//! moves on: what a place of the log tells is durable, or is told again at a place that nobody has come to. Of a client's,
//! when its file goes because the server has it under another name.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::Volume;
use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::io::Policy;
use lento_core::message::Message;
use lento_core::types::Hash;
use lento_core::types::LogWhat;
use lento_core::types::Position;
use lento_core::types::Verdict;
use sim::steps::*;
use sim::world::World;
use std::cell::RefCell;
use std::rc::Rc;

fn is_read(job: &Output) -> bool {
    matches!(job, Output::ReadContent { .. })
}

/// The server reads its journal, makes everything durable and tells everybody what it may. It reads no content.
fn go_on_without_reads(world: &mut World) {
    for _ in 0..200 {
        world.now += 20;
        for node in 0..world.nodes.len() {
            world.read_journal(node, 8);
            while world.run_job_except(node, if node == SERVER { is_read } else { |_| false }) {}
            world.timeout(node);
            if node != SERVER {
                while world.deliver(node, SERVER) || world.deliver(SERVER, node) {}
            }
        }
    }
}

/// `f` at the server is closed and durable, and not read.
fn closed_and_not_read(clients: usize) -> World {
    let mut world = world(clients);
    store(&mut world, SERVER, "f", "one");
    go_on_without_reads(&mut world);
    world
}

fn last(world: &World) -> Position {
    Position(world.nodes[SERVER].disk.last().0)
}

/// The client hears of the server's log up to here, and no more.
fn up_to_here(world: &mut World) {
    let end = last(world);
    world.mangle = Some(Box::new(move |from, _, message| match message {
        Message::Records { records, upto, stable } if from == SERVER => {
            let records = records.into_iter().filter(|record| record.position <= end).collect();
            Some(vec![Message::Records { records, upto: upto.min(end), stable }])
        }
        other => Some(vec![other]),
    }));
}

/// A client has heard that `f` was made and not what is in it, since it was removed before anybody had read it; the server
/// falls back to a time before that.
fn told_without_content() -> World {
    let mut world = closed_and_not_read(2);
    world.back_up();
    up_to_here(&mut world);
    remove(&mut world, SERVER, "f");
    world.rest();
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some(""), "it is on its way out");
    world.mangle = None;
    world.restore();
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("one"));
    world
}

#[test]
fn a_content_that_went_unread_is_told_to_those_who_heard_that_there_is_none() {
    let mut world = told_without_content();
    settle(&mut world);
    everywhere(&world, "f", Some("one"));
}

#[test]
fn what_is_to_be_told_anew_survives_every_crash() {
    for steps in 0..120 {
        for power in [false, true] {
            let mut world = told_without_content();
            world.connect(CLIENT);
            for _ in 0..steps {
                world.step();
            }
            if power {
                world.power(SERVER);
            } else {
                world.kill(SERVER);
            }
            settle(&mut world);
            everywhere(&world, "f", Some("one"));
        }
    }
}

#[test]
fn a_later_content_is_told_only_when_it_cannot_be_lost() {
    for syncs in [false, true] {
        let mut world = closed_and_not_read(1);
        if syncs {
            store(&mut world, SERVER, "g", "beside it");
            world.read_journal(SERVER, 8);
        }
        store(&mut world, SERVER, "f", "two, longer");
        // Both are read while the record of the second is not.
        for _ in 0..3 {
            world.now += 200;
            world.timeout(SERVER);
            while world.run_read(SERVER, true) {}
        }
        for _ in 0..8 {
            world.run_job_except(SERVER, is_sync);
            world.deliver(SERVER, CLIENT);
            world.run_job(CLIENT);
        }
        world.power(SERVER);
        settle(&mut world);
        everywhere(&world, "f", Some("one"));
    }
}

#[test]
fn a_sync_never_makes_a_later_content_durable_in_the_log_alone() {
    let mut world = closed_and_not_read(1);
    store(&mut world, SERVER, "g", "beside it");
    world.read_journal(SERVER, 8);
    // The disk is durable by now, and the store will be with what is in it then.
    world.nodes[SERVER].disk.make_durable();
    store(&mut world, SERVER, "f", "two, longer");
    for _ in 0..30 {
        world.now += 200;
        world.timeout(SERVER);
        while world.run_read(SERVER, true) {}
    }
    world.nodes[SERVER].store.make_durable();
    world.power(SERVER);
    settle(&mut world);
    everywhere(&world, "f", Some("one"));
}

#[test]
fn who_writes_on_and_on_does_not_hold_up_the_log() {
    for syncs in [false, true] {
        let mut world = closed_and_not_read(1);
        let file = at(&world, SERVER, "f").unwrap();
        if syncs {
            store(&mut world, SERVER, "g", "beside it");
            world.read_journal(SERVER, 8);
        }
        world.nodes[SERVER].disk.writers.insert(file);
        for number in 0..30 {
            world.nodes[SERVER].disk.user_store(file, format!("the {number}th").as_bytes());
            world.now += 200;
            world.timeout(SERVER);
            while world.run_read(SERVER, true) {}
            while world.run_job_except(SERVER, is_sync) {}
            while world.deliver(SERVER, CLIENT) {}
            while world.run_job(CLIENT) {}
            world.read_journal(CLIENT, 8);
            assert!(!read(&world, CLIENT, "f").is_some_and(|text| text.contains("th")), "it may be lost");
        }
        go_on_without_reads(&mut world);
        let told = read(&world, CLIENT, "f").unwrap();
        assert!(told.contains("th"), "{told}");
        if syncs {
            everywhere(&world, "g", Some("beside it"));
        }
        // Nobody closed it: who has it brings it back.
        world.power(SERVER);
        settle(&mut world);
    }
}

#[test]
fn what_was_written_over_an_unread_content_outlives_a_backup_between_the_two() {
    let mut world = closed_and_not_read(1);
    world.back_up();
    store(&mut world, SERVER, "f", "two");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(world.nodes[SERVER].kept.is_empty(), "who wrote it had seen the first");
}

#[test]
fn a_removal_of_an_unread_content_outlives_a_backup_before_it() {
    let mut world = closed_and_not_read(1);
    world.back_up();
    remove(&mut world, SERVER, "f");
    settle(&mut world);
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", None);
    assert!(!world.nodes[SERVER].kept.contains(&Hash::of(b"one")), "who removed it had seen it");
}

/// What the server's users did to a content that nobody had read, and a backup has forgotten.
const FORGOTTEN: [fn(&mut World); 3] = [
    |world| remove(world, SERVER, "f"),
    |world| rename(world, SERVER, "g", "f"),
    |world| store(world, SERVER, "f", "two"),
];

#[test]
fn what_was_written_over_a_backup_is_not_what_a_forgotten_record_had_found() {
    for (number, act) in FORGOTTEN.into_iter().enumerate() {
        let mut world = world(1);
        store(&mut world, SERVER, "f", "old");
        store(&mut world, SERVER, "g", "beside it");
        settle(&mut world);
        world.back_up();
        store(&mut world, SERVER, "f", "nobody reads this");
        go_on_without_reads(&mut world);
        act(&mut world);
        settle(&mut world);
        world.restore();
        store(&mut world, SERVER, "f", "over the backup");
        world.rest_without(&[CLIENT]);
        // Two eras since the client's.
        world.power(SERVER);
        settle(&mut world);
        let is_here = (0..2).all(|node| read(&world, node, "f").as_deref() == Some("over the backup"));
        assert!(is_here || is_kept(&world, "over the backup"), "the act {number}");
    }
}

/// Holds back what `OTHER` offers; the messages.
fn held_offers(world: &mut World) -> Rc<RefCell<Vec<Message>>> {
    let held = Rc::new(RefCell::new(Vec::new()));
    let to = Rc::clone(&held);
    world.mangle = Some(Box::new(move |from, _, message| match message {
        offer @ Message::Offer { .. } if from == OTHER => {
            to.borrow_mut().push(offer);
            Some(Vec::new())
        }
        other => Some(vec![other]),
    }));
    held
}

#[test]
fn what_another_client_has_just_stored_is_not_what_a_forgotten_record_had_found() {
    let mut world = world(2);
    store(&mut world, SERVER, "f", "old");
    settle(&mut world);
    world.back_up();
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "nobody reads this");
    go_on_without_reads(&mut world);
    remove(&mut world, SERVER, "f");
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, OTHER, "f"), None);
    world.restore();
    let held = held_offers(&mut world);
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    // For what OTHER has to offer nobody waits for ever.
    world.now += 40_000;
    world.rest();
    store(&mut world, CLIENT, "f", "meanwhile");
    for _ in 0..100 {
        world.now += 20;
        world.read_journal(CLIENT, 8);
        for node in [SERVER, CLIENT] {
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("meanwhile"), "and its record is not read");
    let offers: Vec<Message> = held.borrow_mut().drain(..).collect();
    assert!(!offers.is_empty());
    world.mangle = None;
    for offer in offers {
        world.give(SERVER, Input::Message("n2".into(), offer));
    }
    settle(&mut world);
    assert!(is_kept(&world, "meanwhile") || read(&world, SERVER, "f").as_deref() == Some("meanwhile"));
}

/// The client offers a record at a time, and each is read before the next one comes, unless its stream is cut first.
fn record_by_record(cuts: bool) {
    let mut world = world(2);
    world.back_up();
    store(&mut world, SERVER, "f", "nobody reads this");
    go_on_without_reads(&mut world);
    remove(&mut world, SERVER, "f");
    settle(&mut world);
    world.restore();
    let held = held_offers(&mut world);
    world.cut(CLIENT);
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    let offers: Vec<Message> = held.borrow_mut().drain(..).collect();
    let mut made = false;
    for offer in offers {
        let Message::Offer { records, upto } = offer else { continue };
        for (at, record) in records.iter().enumerate() {
            if made && cuts {
                break;
            }
            let upto = if at + 1 == records.len() { upto } else { record.position };
            let offer = Message::Offer { records: vec![record.clone()], upto };
            world.give(SERVER, Input::Message("n2".into(), offer));
            world.rest_without(&[CLIENT]);
            made |= read(&world, SERVER, "f").is_some();
        }
    }
    assert!(made, "it was brought back without a content");
    world.mangle = None;
    if cuts {
        world.cut(OTHER);
    }
    settle(&mut world);
    everywhere(&world, "f", None);
}

#[test]
fn what_was_made_and_removed_unread_stays_so_record_by_record() {
    record_by_record(false);
}

#[test]
fn what_was_made_and_removed_unread_stays_so_with_a_cut_between_the_two() {
    record_by_record(true);
}

#[test]
fn what_changed_behind_presto_before_it_was_read_holds_up_nothing_for_good() {
    let mut world = closed_and_not_read(1);
    world.power(SERVER);
    let file = at(&world, SERVER, "f").unwrap();
    world.nodes[SERVER].disk.behind(|disk| disk.user_store(file, b"behind presto"));
    store(&mut world, SERVER, "g", "beside it");
    settle(&mut world);
    everywhere(&world, "g", Some("beside it"));
    // After a power cut nobody vouches for it: it is kept, and what others have comes back.
    everywhere(&world, "f", Some(""));
    assert!(world.nodes[SERVER].kept.contains(&Hash::of(b"behind presto")));
}

#[test]
fn a_file_that_presto_cannot_touch_keeps_no_client_waiting() {
    let mut world = closed_and_not_read(1);
    world.back_up();
    store(&mut world, CLIENT, "g", "from a client");
    settle(&mut world);
    world.restore();
    world.nodes[SERVER].disk.refuses_file = at(&world, SERVER, "f");
    world.connect(CLIENT);
    let mut refused = 0;
    for _ in 0..500 {
        world.now += 20;
        refused += world.replays_under_way(SERVER);
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {
            refused += world.replays_under_way(SERVER);
        }
    }
    assert_eq!(read(&world, SERVER, "g").as_deref(), Some("from a client"));
    assert!(refused < 40, "asked {refused} times in 10 s");
    world.nodes[SERVER].disk.refuses_file = None;
    world.now += 60_000;
    settle(&mut world);
    everywhere(&world, "f", Some("one"));
}

#[test]
fn records_that_came_during_a_sync_are_read_before_the_next_one_begins() {
    let mut world = closed_and_not_read(1);
    store(&mut world, SERVER, "g", "beside it");
    world.read_journal(SERVER, 8);
    store(&mut world, SERVER, "f", "two, longer");
    let made = create(&mut world, SERVER, "h");
    world.read_journal(SERVER, 8);
    for _ in 0..30 {
        world.now += 200;
        world.timeout(SERVER);
        while world.run_read(SERVER, true) {}
    }
    let is_known = |world: &World| Volume::object_of(&world.nodes[SERVER].store, made).unwrap().is_some();
    assert!(!is_known(&world), "the sync runs");
    assert!(world.run_read(SERVER, false));
    assert!(is_known(&world));
    settle(&mut world);
    everywhere(&world, "f", Some("two, longer"));
}

#[test]
fn a_file_that_is_one_with_the_servers_stays_until_what_was_stored_in_it_is_told() {
    let mut world = world(1);
    world.conflicts.policy = Policy::ClientWins;
    world.give(SERVER, Input::Conflicts(world.conflicts));
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "theirs");
    link(&mut world, SERVER, "f", "g");
    create(&mut world, CLIENT, "f");
    world.read_journal(CLIENT, 8);
    world.connect(CLIENT);
    // The empty file is on its way when it is stored into, and the server's is here as `g` when its verdict comes.
    for round in 0..200 {
        world.now += 20;
        if round == 20 {
            store(&mut world, CLIENT, "f", "mine");
        }
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job_except(node, if node == CLIENT { is_read } else { |_| false }) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) {}
        let verdict = |world: &World| match world.next_message(SERVER, CLIENT) {
            Some(Message::Records { records, .. }) => {
                records.iter().any(|record| matches!(record.what, LogWhat::Verdict(Verdict::Unified(_))))
            }
            _ => false,
        };
        while (round > 20 || !verdict(&world)) && world.deliver(SERVER, CLIENT) {}
    }
    assert_eq!(read(&world, CLIENT, "g").as_deref(), Some("theirs"));
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("mine"), "it went before it was read");
    settle(&mut world);
    everywhere(&world, "f", Some("mine"));
    assert!(is_kept(&world, "theirs"));
}
