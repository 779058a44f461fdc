//! A node whose Lento may not change the tree: others' updates stay out of it, its own go out.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Input;
use sim::steps::*;
use sim::world::World;

fn a_while(world: &mut World) {
    go_on(world, 300);
}

#[test]
fn others_updates_stay_out_of_the_tree_and_its_own_go_out() {
    let mut world = world(2);
    store(&mut world, SERVER, "shared", "before");
    store(&mut world, SERVER, "gone", "still here");
    settle(&mut world);
    world.give(CLIENT, Input::HoldBack(true));

    store(&mut world, OTHER, "shared", "after");
    store(&mut world, OTHER, "new", "new");
    remove(&mut world, OTHER, "gone");
    store(&mut world, CLIENT, "own", "of the client");
    a_while(&mut world);
    for node in [SERVER, OTHER] {
        assert_eq!(read(&world, node, "own").as_deref(), Some("of the client"), "n{node}");
        assert_eq!(read(&world, node, "shared").as_deref(), Some("after"), "n{node}");
    }
    assert_eq!(read(&world, CLIENT, "shared").as_deref(), Some("before"));
    assert_eq!(read(&world, CLIENT, "gone").as_deref(), Some("still here"));
    assert_eq!(read(&world, CLIENT, "new"), None);
    assert!(
        waiting(&world, CLIENT).iter().any(|why| why.contains("held back")),
        "{:?}",
        waiting(&world, CLIENT)
    );

    world.give(CLIENT, Input::HoldBack(false));
    settle(&mut world);
    everywhere(&world, "shared", Some("after"));
    everywhere(&world, "new", Some("new"));
    everywhere(&world, "gone", None);
    everywhere(&world, "own", Some("of the client"));
}

#[test]
fn what_it_changes_meanwhile_is_judged_as_ever() {
    let mut world = world(2);
    store(&mut world, SERVER, "f", "before");
    settle(&mut world);
    world.give(CLIENT, Input::HoldBack(true));
    store(&mut world, OTHER, "f", "of another");
    a_while(&mut world);
    store(&mut world, CLIENT, "f", "of the client");
    a_while(&mut world);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("of the client"), "nobody takes it away");
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("of another"));
    assert!(is_kept(&world, "of the client"), "the server keeps what lost");
    world.give(CLIENT, Input::HoldBack(false));
    settle(&mut world);
    everywhere(&world, "f", Some("of another"));
}
