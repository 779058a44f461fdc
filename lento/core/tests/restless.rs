//! Files that change whenever they are read: nobody waits for them, and in the end their content is everywhere.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use sim::steps::*;
use sim::world::World;

/// A program writes to `f` all the time, which is journaled now and then; others work beside it.
fn written_on_and_on(node: usize, begin: impl Fn(&mut World)) -> World {
    let mut world = world(2);
    begin(&mut world);
    settle(&mut world);
    if at(&world, node, "f").is_none() {
        create(&mut world, node, "f");
    }
    let file = at(&world, node, "f").unwrap();
    world.restless.insert((node, file));
    for round in 0..4 {
        store(&mut world, node, "f", &format!("round {round}"));
        store(&mut world, node, &format!("beside {round}"), "quiet");
        go_on(&mut world, 100);
    }
    world
}

fn others_pass(node: usize, begin: impl Fn(&mut World), meanwhile: &str) {
    let mut world = written_on_and_on(node, begin);
    for round in 0..3 {
        everywhere(&world, &format!("beside {round}"), Some("quiet"));
    }
    assert_eq!(read(&world, OTHER, "f").as_deref(), Some(meanwhile), "what others have of it meanwhile");
    assert!(waiting(&world, node).iter().any(|why| why.contains('f')), "status says what is not quiet");
    world.restless.clear();
    settle(&mut world);
    everywhere(&world, "f", Some("round 3"));
    everywhere(&world, "beside 3", Some("quiet"));
    assert!(world.nodes[SERVER].kept.is_empty(), "no conflict");
}

#[test]
fn updates_of_a_client_pass_its_file_that_is_never_quiet() {
    others_pass(CLIENT, |world| store(world, CLIENT, "f", "before"), "before");
}

#[test]
fn updates_of_a_client_pass_its_new_file_that_is_never_quiet() {
    others_pass(CLIENT, |_| {}, "");
}

#[test]
fn updates_of_the_server_pass_its_file_that_is_never_quiet() {
    others_pass(SERVER, |world| store(world, SERVER, "f", "before"), "before");
}

#[test]
fn updates_of_the_server_pass_its_new_file_that_is_never_quiet() {
    others_pass(SERVER, |_| {}, "");
}

#[test]
fn what_an_fsync_promised_is_an_update_also_if_the_file_was_never_quiet() {
    let mut world = written_on_and_on(CLIENT, |world| store(world, CLIENT, "f", "before"));
    // A power cut leaves what the last sync has.
    world.nodes[CLIENT].disk.make_durable();
    world.power(CLIENT);
    world.restless.clear();
    settle(&mut world);
    everywhere(&world, "f", Some("round 3"));
}

#[test]
fn whoever_changes_it_meanwhile_gets_a_conflict_and_nothing_is_lost() {
    let mut world = written_on_and_on(CLIENT, |world| store(world, CLIENT, "f", "before"));
    store(&mut world, OTHER, "f", "of another");
    for _ in 0..400 {
        world.step();
    }
    world.restless.clear();
    settle(&mut world);
    let shown = read(&world, SERVER, "f").unwrap();
    everywhere(&world, "f", Some(&shown));
    for text in ["round 3", "of another"] {
        assert!(shown == text || is_kept(&world, text), "{text} is lost, {shown} stands there");
    }
}
