//! Contents that somebody waits for and that do not come.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Demanded;
use lento_core::io::FetchResult;
use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::keeping::Keeping;
use lento_core::types::FileId;
use lento_core::types::Ticket;
use sim::steps::*;
use sim::world::World;

/// A client that has the tree and no contents.
fn on_demand() -> (World, FileId) {
    let mut world = world(1);
    world.keep(CLIENT, Keeping::OnDemand { pins: vec![] });
    settle(&mut world);
    store(&mut world, SERVER, "f", "a content");
    settle(&mut world);
    let file = at(&world, CLIENT, "f").unwrap();
    assert!(world.nodes[CLIENT].disk.inodes[&file].missing.is_some());
    (world, file)
}

/// What the client asks of the server for its users, and what it tells them; everything else is done.
fn asked(world: &mut World) -> (Vec<Ticket>, Vec<(u64, Demanded)>) {
    let (mut fetches, mut told) = (Vec::new(), Vec::new());
    world.timeout(CLIENT);
    while let Some(job) = world.nodes[CLIENT].jobs.front() {
        match job {
            Output::Fetch { ticket, .. } => fetches.push(*ticket),
            Output::Demanded(id, answer) => told.push((*id, answer.clone())),
            _ => {
                world.run_job(CLIENT);
                continue;
            }
        }
        world.nodes[CLIENT].jobs.pop_front();
    }
    (fetches, told)
}

fn fail(world: &mut World, ticket: Ticket) {
    world.give(CLIENT, Input::Fetched { ticket, results: vec![FetchResult::Failed("no".into())] });
}

#[test]
fn who_asks_again_and_again_is_told_after_a_minute_that_it_does_not_come() {
    let (mut world, file) = on_demand();
    let begin = world.now;
    let mut id = 1;
    world.give(CLIENT, Input::Demand { id, file });
    loop {
        world.now += 50;
        assert!(world.now - begin < 90_000, "still waiting, at question {id}");
        let (fetches, told) = asked(&mut world);
        fetches.into_iter().for_each(|ticket| fail(&mut world, ticket));
        match told.last() {
            None => {}
            // As presto does, a moment later.
            Some((_, Demanded::Coming)) => {
                world.now += 5;
                world.timeout(CLIENT);
                id += 1;
                world.give(CLIENT, Input::Demand { id, file });
            }
            Some((_, Demanded::Failed { why, .. })) => {
                assert_eq!(why, "no");
                break;
            }
            Some((_, other)) => panic!("{other:?}"),
        }
    }
    assert!(id > 3, "it was told in between that it comes");
}

#[test]
fn a_late_failure_of_an_earlier_fetch_means_nothing() {
    let (mut world, file) = on_demand();
    world.give(CLIENT, Input::Demand { id: 1, file });
    let (first, _) = asked(&mut world);
    assert_eq!(first.len(), 1);
    // Given up for so long that it is forgotten, and asked for once more.
    world.give(CLIENT, Input::Undemand(1));
    world.timeout(CLIENT);
    world.now += 60_000;
    world.timeout(CLIENT);
    world.give(CLIENT, Input::Demand { id: 2, file });
    let (second, _) = asked(&mut world);
    assert_eq!(second.len(), 1);
    fail(&mut world, first[0]);
    world.now += 500;
    let (third, told) = asked(&mut world);
    assert!(third.is_empty(), "a fetch is under way already");
    assert_eq!(told, []);
}
