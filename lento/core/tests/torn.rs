//! A power cut of the server tears its files: what it brings back, from whom, and what it says meanwhile.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::message::Holds;
use lento_core::message::Message;
use lento_core::message::Stored;
use lento_core::types::Content;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use sim::disk::ROOT;
use sim::steps::*;
use sim::world::Dice;
use sim::world::World;

/// A world at rest, whose power cuts tear.
fn world(seed: u64, clients: usize) -> World {
    let mut world = World::new(seed, clients);
    world.tears = true;
    world.rest();
    world
}

/// Somebody is in the middle of writing to it at the server when the current goes.
fn tear(world: &mut World, name: &str) -> String {
    let file = at(world, SERVER, name).unwrap();
    world.nodes[SERVER].disk.user_store(file, b"being written over it");
    world.power(SERVER);
    read(world, SERVER, name).unwrap()
}

/// The same, where something else than the old content is left.
fn tear_for_sure(world: &mut World, name: &str) -> String {
    let good = read(world, SERVER, name).unwrap();
    for dice in 1..100 {
        world.dice = Dice(dice);
        let (disk, store) = (world.nodes[SERVER].disk.clone(), world.nodes[SERVER].store.clone());
        let left = tear(world, name);
        if left != good {
            return left;
        }
        (world.nodes[SERVER].disk, world.nodes[SERVER].store) = (disk, store);
    }
    panic!("nothing was torn");
}

fn rest(world: &mut World) {
    world.rest();
    if let Err(why) = world.check_agreement() {
        panic!("{why}\n{:?}\n{}", waiting(world, SERVER), world.log.join("\n"));
    }
}

#[test]
fn a_file_torn_at_the_server_gets_its_good_content_back_from_a_replicator() {
    for seed in 0..12 {
        let mut world = world(seed, 2);
        store(&mut world, OTHER, "f", "good and whole");
        rest(&mut world);
        let left = tear(&mut world, "f");
        rest(&mut world);
        everywhere(&world, "f", Some("good and whole"));
        assert!(left == "good and whole" || is_kept(&world, &left), "seed {seed}: {left} is nowhere");
    }
}

#[test]
fn a_large_content_comes_back_by_the_stage() {
    let good = "good and whole ".repeat(10_000);
    let mut world = world(3, 2);
    store(&mut world, SERVER, "f", &good);
    rest(&mut world);
    let left = tear_for_sure(&mut world, "f");
    rest(&mut world);
    everywhere(&world, "f", Some(&good));
    assert!(is_kept(&world, &left));
}

#[test]
fn while_the_one_who_has_it_is_away_nobody_is_given_what_is_torn_and_the_others_go_on() {
    let mut world = world(3, 2);
    world.cut(OTHER);
    store(&mut world, SERVER, "f", "good and whole");
    world.rest_without(&[OTHER]);
    world.cut(CLIENT);
    let left = tear_for_sure(&mut world, "f");
    store(&mut world, SERVER, "g", "beside it");
    for _ in 0..10 {
        world.now += 60_000;
        world.rest_without(&[CLIENT]);
    }
    assert_eq!(read(&world, OTHER, "g").as_deref(), Some("beside it"));
    assert_eq!(read(&world, OTHER, "f"), None);
    assert_eq!(read(&world, SERVER, "f").as_ref(), Some(&left));
    assert!(is_kept(&world, &left));
    let waiting = waiting(&world, SERVER);
    let told =
        |why: &&String| why.contains("/f") && why.contains("torn by a power cut") && why.contains("n1");
    assert!(waiting.iter().any(|why| told(&why)), "{waiting:?}");
    assert!(world.log.iter().any(|line| line.contains("Torn { path: \"/f\"")));
    world.give(SERVER, Input::Barrier { id: 7, upto: world.nodes[SERVER].disk.last(), all: false });
    world.rest_without(&[CLIENT]);
    assert!(!world.nodes[SERVER].barriers.contains(&7), "it is not safe");

    world.connect(CLIENT);
    world.rest();
    world.now += 10_000;
    rest(&mut world);
    everywhere(&world, "f", Some("good and whole"));
    assert!(world.nodes[SERVER].barriers.contains(&7));
    assert!(!world.is_torn());
}

/// The server's disk knows that `f` was closed, and not any more what was in it: that was told, and not written down.
fn told_and_not_written_down(world: &mut World, text: &str) {
    store(world, SERVER, "f", text);
    while world.read_journal(SERVER, 100) {}
    while world.run_job_except(SERVER, |job| matches!(job, Output::ReadContent { .. })) {}
    for _ in 0..200 {
        world.now += 20;
        for node in 0..world.nodes.len() {
            world.read_journal(node, 100);
            world.run_job_except(node, |job| matches!(job, Output::Sync { .. }));
            world.deliver(SERVER, node);
            world.deliver(node, SERVER);
            world.timeout(node);
        }
    }
    everywhere(world, "f", Some(text));
}

#[test]
fn what_the_server_has_forgotten_a_replicator_tells() {
    for text in ["good and whole".to_owned(), "good and whole ".repeat(10_000)] {
        let mut world = world(3, 2);
        store(&mut world, SERVER, "f", "an older one");
        rest(&mut world);
        told_and_not_written_down(&mut world, &text);
        let left = tear_for_sure(&mut world, "f");
        store(&mut world, SERVER, "g", "behind it");
        rest(&mut world);
        everywhere(&world, "f", Some(&text));
        everywhere(&world, "g", Some("behind it"));
        assert!(is_kept(&world, &left));
    }
}

#[test]
fn the_log_does_not_wait_for_ever_for_somebody_who_knows() {
    let mut world = world(3, 2);
    store(&mut world, SERVER, "f", "an older one");
    rest(&mut world);
    world.cut(OTHER);
    let two = world.nodes.pop().unwrap();
    told_and_not_written_down(&mut world, "good and whole");
    world.nodes.push(two);
    world.cut(CLIENT);
    tear_for_sure(&mut world, "f");
    store(&mut world, SERVER, "g", "behind it");
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, OTHER, "g"), None, "it waits for n1");
    world.now += 40_000;
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, OTHER, "g").as_deref(), Some("behind it"));
    rest(&mut world);
}

/// What n1 says of contents that it is asked for becomes something else.
fn instead(world: &mut World, say: impl Fn(ObjectId) -> Vec<Holds> + 'static) {
    world.mangle = Some(Box::new(move |from, _, message| match message {
        Message::Backfetched { object, .. } if from == CLIENT => {
            Some(say(object).into_iter().map(|holds| Message::Backfetched { object, holds }).collect())
        }
        other => Some(vec![other]),
    }));
}

#[test]
fn who_lies_or_is_silent_is_passed_over() {
    let content = |hash: &[u8], bytes: Option<&[u8]>| Content {
        hash: Hash::of(hash),
        size: 14,
        inline: bytes.map(<[u8]>::to_vec),
    };
    let good: &[u8] = b"good and whole";
    let evil: &[u8] = b"evil and whole";
    let lies = [
        vec![],
        vec![Holds::Whole(content(evil, Some(evil)))],
        vec![Holds::Whole(content(good, Some(evil)))],
        // Nothing of the kind was staged.
        vec![Holds::Whole(content(good, None))],
        vec![Holds::NotNow],
        vec![Holds::Coming(Stored { hash: Hash::of(good), size: u64::MAX })],
        vec![Holds::Coming(Stored { hash: Hash::of(good), size: 1 << 20 })],
        vec![Holds::Named(Stored { hash: Hash::of(evil), size: 14 })],
    ];
    for said in lies {
        let mut world = world(3, 2);
        store(&mut world, SERVER, "f", "good and whole");
        rest(&mut world);
        let answer = said.clone();
        instead(&mut world, move |_| answer.clone());
        let left = tear_for_sure(&mut world, "f");
        for _ in 0..4 {
            world.rest();
            world.now += 4_000_000;
        }
        rest(&mut world);
        for node in [SERVER, OTHER] {
            assert_eq!(read(&world, node, "f").as_deref(), Some("good and whole"), "n{node}: {said:?}");
        }
        assert!(is_kept(&world, &left), "{said:?}");
    }
}

#[test]
fn what_is_written_over_a_torn_file_joins_its_conflict_unless_it_was_emptied_first() {
    for emptied in [false, true] {
        let mut world = world(3, 1);
        store(&mut world, SERVER, "f", "good and whole");
        rest(&mut world);
        world.cut(CLIENT);
        tear_for_sure(&mut world, "f");
        world.rest_without(&[CLIENT]);
        let torn = at(&world, SERVER, "f").unwrap();
        if emptied {
            world.nodes[SERVER].disk.user_empty(torn);
        }
        store(&mut world, SERVER, "f", "written since");
        world.rest_without(&[CLIENT]);
        assert_eq!(world.is_torn(), !emptied);
        rest(&mut world);
        everywhere(&world, "f", Some(if emptied { "written since" } else { "good and whole" }));
        assert!(emptied || is_kept(&world, "written since"));
    }
}

/// A file that both have, made by `maker`. The client, cut off, removes or replaces it; then it is torn at the server, where
/// this is left.
fn changed_while_torn(seed: u64, maker: usize, removes: bool) -> (World, String) {
    let mut world = world(seed, 1);
    store(&mut world, maker, "f", "good and whole");
    rest(&mut world);
    world.cut(CLIENT);
    if removes {
        world.nodes[CLIENT].disk.user_remove(ROOT, b"f").unwrap();
    } else {
        store(&mut world, CLIENT, "f", "the client's");
    }
    let left = tear_for_sure(&mut world, "f");
    (world, left)
}

#[test]
fn a_client_may_replace_or_remove_a_torn_file_and_what_was_left_is_kept() {
    for removes in [false, true] {
        let (mut world, left) = changed_while_torn(3, SERVER, removes);
        rest(&mut world);
        assert!(!world.is_torn());
        assert!(is_kept(&world, &left));
        assert_eq!(read(&world, SERVER, "f").as_deref(), (!removes).then_some("the client's"));
    }
}

#[test]
fn who_has_removed_or_replaced_a_file_need_not_have_seen_what_a_power_cut_left_of_it() {
    for seed in 0..200 {
        for removes in [false, true] {
            let (mut world, left) = changed_while_torn(seed, CLIENT, removes);
            world.dice = Dice(seed);
            world.connect(CLIENT);
            for _ in 0..4000 {
                world.step();
            }
            rest(&mut world);
            let there = read(&world, SERVER, "f");
            assert_eq!(there.as_deref(), (!removes).then_some("the client's"), "seed {seed}: {left}");
        }
    }
}

#[test]
fn what_cannot_be_kept_holds_up_nobody_for_long() {
    let mut world = world(3, 1);
    store(&mut world, SERVER, "f", "good and whole");
    rest(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "the client's");
    store(&mut world, CLIENT, "g", "behind it");
    let left = tear_for_sure(&mut world, "f");
    let torn = at(&world, SERVER, "f").unwrap();
    world.nodes[SERVER].unreadable.insert(torn, 1_000_000);
    let until = world.now + 11_000;
    while world.now < until {
        world.now += 100;
        assert_eq!(read(&world, SERVER, "g"), None, "it waits a little");
        for _ in 0..20 {
            world.connect(CLIENT);
            for node in [SERVER, CLIENT] {
                world.read_journal(node, 100);
                world.run_job(node);
                world.timeout(node);
            }
            world.deliver(SERVER, CLIENT);
            world.deliver(CLIENT, SERVER);
            if read(&world, SERVER, "g").is_some() {
                break;
            }
        }
        if read(&world, SERVER, "g").is_some() {
            break;
        }
    }
    assert_eq!(read(&world, SERVER, "g").as_deref(), Some("behind it"));
    assert_eq!(read(&world, SERVER, "f"), Some(left), "nothing of it is lost");
    assert!(is_kept(&world, "the client's"));
}

#[test]
fn a_server_alone_keeps_what_is_left_and_says_so() {
    let mut world = world(3, 0);
    store(&mut world, SERVER, "f", "nobody has it");
    rest(&mut world);
    let left = tear_for_sure(&mut world, "f");
    rest(&mut world);
    everywhere(&world, "f", Some(&left));
    assert!(!world.is_torn());
    assert!(world.log.iter().any(|line| line.contains("TornTaken { path: \"/f\"")));
}

#[test]
fn a_torn_file_that_nobody_else_has_stays_as_it_is() {
    for seed in 0..12 {
        let mut world = world(seed, 2);
        world.cut(CLIENT);
        world.cut(OTHER);
        store(&mut world, SERVER, "f", "nobody has it");
        world.rest_without(&[CLIENT, OTHER]);
        let left = tear(&mut world, "f");
        rest(&mut world);
        everywhere(&world, "f", Some(&left));
    }
}
