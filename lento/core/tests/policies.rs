//! What becomes of updates that exclude each other, by what the volume's owner wants, as users see it.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::ConflictRow;
use lento_core::Kept;
use lento_core::Standing;
use lento_core::State;
use lento_core::Volume;
use lento_core::io::ConflictOptions;
use lento_core::io::Input;
use lento_core::io::Policy;
use lento_core::message::Message;
use lento_core::types::ConflictKind;
use lento_core::types::Hash;
use lento_core::types::OpId;
use lento_core::types::Position;
use lento_core::volume::Status;
use sim::steps::*;
use sim::world::World;

fn with(policy: Policy, clients: usize) -> World {
    let mut world = world(clients);
    options(&mut world, ConflictOptions { policy, ..ConflictOptions::default() });
    world
}

fn options(world: &mut World, options: ConflictOptions) {
    world.conflicts = options;
    world.give(SERVER, Input::Conflicts(options));
}

fn listed(world: &World) -> Vec<(Position, ConflictRow, Standing)> {
    let store = &world.nodes[SERVER].store;
    let rows = Volume::conflicts(store, 1000).unwrap();
    rows.into_iter()
        .map(|(at, row)| {
            let standing = Volume::standing(store, at).unwrap();
            (at, row, standing)
        })
        .collect()
}

fn status(world: &World) -> Status {
    let node = &world.nodes[SERVER];
    node.volume.as_ref().unwrap().status(&node.store).unwrap()
}

/// While the client is away both do something.
fn apart(world: &mut World, server: impl Fn(&mut World), client: impl Fn(&mut World)) {
    world.cut(CLIENT);
    world.rest_without(&[CLIENT]);
    client(world);
    server(world);
    settle(world);
}

/// Two stores of one file.
fn clash(world: &mut World, path: &str) {
    let of = |who| format!("{path} of the {who}");
    apart(
        world,
        |world| store(world, SERVER, path, &of("server")),
        |world| store(world, CLIENT, path, &of("client")),
    );
}

#[test]
fn by_default_the_server_stays_and_a_person_decides_about_the_other() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    clash(&mut world, "f");
    everywhere(&world, "f", Some("f of the server"));
    assert!(is_kept(&world, "f of the client"));
    let all = listed(&world);
    let [(_, row, standing)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((row.path.as_str(), row.kind), ("/f", ConflictKind::StoreStore));
    assert_eq!((standing.state, standing.kept, standing.size), (State::Open, Kept::Update, 15));
    world.now += 10 * ConflictOptions::KEEP_FOR;
    world.rest();
    assert_eq!((listed(&world).len(), status(&world).conflicts, world.dropped), (1, 1, 0), "nobody drops it");
}

#[test]
fn where_the_server_wins_what_lost_is_kept_for_a_while() {
    let mut world = with(Policy::ServerWins, 2);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    clash(&mut world, "f");
    everywhere(&world, "f", Some("f of the server"));
    assert!(is_kept(&world, "f of the client"));
    assert_eq!(listed(&world)[0].2.state, State::Decided);
    assert_eq!((status(&world).conflicts, status(&world).conflicts_decided), (0, 1));
    world.now += ConflictOptions::KEEP_FOR - 100_000;
    world.rest();
    assert_eq!(listed(&world).len(), 1);
    world.now += 100_000;
    world.rest();
    assert!(listed(&world).is_empty() && !is_kept(&world, "f of the client"));
    assert_eq!(world.dropped, 1, "and it is told");
}

#[test]
fn time_in_which_the_server_is_off_does_not_count() {
    let mut world = with(Policy::ServerWins, 1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    clash(&mut world, "f");
    let keep_for = ConflictOptions::KEEP_FOR;
    world.now += keep_for / 2;
    world.rest();
    world.kill(SERVER);
    world.now += 10 * keep_for;
    world.start(SERVER, false);
    settle(&mut world);
    assert_eq!(listed(&world).len(), 1, "it was off for most of that");
    world.now += keep_for / 2;
    world.rest();
    assert!(listed(&world).is_empty());
}

#[test]
fn of_what_is_decided_the_oldest_goes_where_there_is_too_much() {
    let mut world = with(Policy::ServerWins, 1);
    for path in ["f", "g", "h"] {
        store(&mut world, CLIENT, path, "old");
    }
    settle(&mut world);
    let policy = Policy::ServerWins;
    options(&mut world, ConflictOptions { policy, keep_bytes: 32, ..ConflictOptions::default() });
    for path in ["f", "g", "h"] {
        clash(&mut world, path);
    }
    let left: Vec<String> = listed(&world).into_iter().map(|(_, row, _)| row.path).collect();
    assert_eq!(left, ["/g", "/h"], "two of 15 bytes each");
    assert_eq!((world.dropped, status(&world).conflict_bytes), (1, (0, 30)));
    // The same without a policy that decides: everything waits.
    options(&mut world, ConflictOptions { keep_bytes: 1, ..ConflictOptions::default() });
    for path in ["i", "j", "k"] {
        store(&mut world, CLIENT, path, "old");
        settle(&mut world);
        clash(&mut world, path);
    }
    world.rest();
    assert_eq!(status(&world).conflicts, 3, "{:?}", listed(&world));
    assert!(["i", "j", "k"].iter().all(|path| is_kept(&world, &format!("{path} of the client"))));
}

#[test]
fn where_clients_win_what_the_server_had_is_kept() {
    for large in [false, true] {
        let mut world = with(Policy::ClientWins, 2);
        let [old, server, client] = ["old", "server", "client"].map(|text| match large {
            true => text.repeat(50_000),
            false => text.to_owned(),
        });
        store(&mut world, CLIENT, "f", &old);
        settle(&mut world);
        apart(
            &mut world,
            |world| store(world, SERVER, "f", &server),
            |world| store(world, CLIENT, "f", &client),
        );
        everywhere(&world, "f", Some(&client));
        assert!(is_kept(&world, &server));
        let all = listed(&world);
        let [(_, row, standing)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((row.path.as_str(), row.kind), ("/f", ConflictKind::StoreStore));
        assert_eq!((standing.state, standing.kept), (State::Decided, Kept::Tree));
        assert_eq!(row.hash, Some(Hash::of(server.as_bytes())));
    }
}

#[test]
fn where_clients_win_a_removal_is_done_and_what_it_took_is_kept() {
    let mut world = with(Policy::ClientWins, 2);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    apart(&mut world, |world| store(world, SERVER, "f", "newer"), |world| remove(world, CLIENT, "f"));
    everywhere(&world, "f", None);
    assert!(is_kept(&world, "newer"));
    assert_eq!(listed(&world)[0].1.kind, ConflictKind::RemoveUpdate);
}

#[test]
fn where_clients_win_a_file_made_twice_is_one_with_the_clients_content() {
    let mut world = with(Policy::ClientWins, 2);
    clash(&mut world, "new");
    everywhere(&world, "new", Some("new of the client"));
    assert!(is_kept(&world, "new of the server"));
    assert_eq!(listed(&world)[0].1.kind, ConflictKind::NameName);
    // It is one file to both from then on.
    store(&mut world, CLIENT, "new", "next");
    settle(&mut world);
    store(&mut world, SERVER, "new", "last");
    settle(&mut world);
    everywhere(&world, "new", Some("last"));
    assert_eq!(listed(&world).len(), 1);
}

#[test]
fn where_clients_win_a_save_by_rename_goes_over_what_stands_there() {
    for by_rename in [false, true] {
        let mut world = with(Policy::ClientWins, 2);
        store(&mut world, CLIENT, "f", "old");
        settle(&mut world);
        let save = |world: &mut World, node, text: &str| {
            store(world, node, "tmp", text);
            rename(world, node, "tmp", "f");
        };
        apart(
            &mut world,
            |world| match by_rename {
                true => save(world, SERVER, "the server's"),
                false => store(world, SERVER, "f", "the server's"),
            },
            |world| save(world, CLIENT, "the client's"),
        );
        everywhere(&world, "f", Some("the client's"));
        everywhere(&world, "tmp", None);
        assert!(is_kept(&world, "the server's"), "by rename: {by_rename}");
    }
}

#[test]
fn where_clients_win_and_there_is_nothing_to_win_over_a_person_decides() {
    let mut world = with(Policy::ClientWins, 1);
    store(&mut world, CLIENT, "f", "old");
    mkdir(&mut world, CLIENT, "d");
    settle(&mut world);
    apart(
        &mut world,
        |world| {
            remove(world, SERVER, "f");
            store(world, SERVER, "d/kept", "the server's");
        },
        |world| {
            store(world, CLIENT, "f", "the client's");
            remove(world, CLIENT, "d");
        },
    );
    everywhere(&world, "d/kept", Some("the server's"));
    assert!(is_kept(&world, "the client's"));
    let all = listed(&world);
    let seen: Vec<_> =
        all.iter().map(|(_, row, standing)| (row.kind, row.path.as_str(), standing.state)).collect();
    let expected =
        [(ConflictKind::StoreRemove, "/f", State::Open), (ConflictKind::RemoveUpdate, "/d", State::Open)];
    assert_eq!(seen, expected);
}

#[test]
fn a_torn_file_never_wins() {
    let mut world = with(Policy::ClientWins, 1);
    store(&mut world, CLIENT, "f", "good");
    settle(&mut world);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    world.tears = true;
    for _ in 0..8 {
        let file = at(&world, CLIENT, "f").unwrap();
        world.open_and_store(CLIENT, file, b"half of something else");
        world.power(CLIENT);
        settle(&mut world);
        everywhere(&world, "f", Some("good"));
    }
}

#[test]
fn what_a_person_has_to_decide_about_first_is_not_changed_by_other_nodes() {
    let mut world = with(Policy::Manual, 2);
    store(&mut world, CLIENT, "f", "old");
    store(&mut world, CLIENT, "other", "old");
    settle(&mut world);
    clash(&mut world, "f");
    assert!(matches!(listed(&world)[0].2.state, State::Held(_)));
    let held = Some("f of the server");
    // Whoever has seen what is there may not either.
    store(&mut world, OTHER, "f", "of a third");
    store(&mut world, OTHER, "other", "new");
    settle(&mut world);
    everywhere(&world, "f", held);
    everywhere(&world, "other", Some("new"));
    remove(&mut world, OTHER, "f");
    settle(&mut world);
    store(&mut world, OTHER, "tmp", "saved");
    rename(&mut world, OTHER, "tmp", "f");
    settle(&mut world);
    everywhere(&world, "f", held);
    assert!(is_kept(&world, "of a third"));
    for (position, ..) in listed(&world) {
        world.give(SERVER, Input::Resolved(position));
        world.rest();
    }
    store(&mut world, OTHER, "f", "free again");
    settle(&mut world);
    everywhere(&world, "f", Some("free again"));
    assert_eq!(listed(&world).len(), 0);
}

#[test]
fn what_was_made_in_a_directory_that_was_removed_is_one_conflict() {
    let mut world = world(2);
    mkdir(&mut world, CLIENT, "top");
    mkdir(&mut world, CLIENT, "top/gone");
    settle(&mut world);
    apart(
        &mut world,
        |world| remove(world, SERVER, "top/gone"),
        |world| {
            store(world, CLIENT, "top/gone/a", "content of a");
            mkdir(world, CLIENT, "top/gone/sub");
            store(world, CLIENT, "top/gone/sub/b", "content of b");
            mkdir(world, CLIENT, "top/gone/sub/deep");
            store(world, CLIENT, "top/gone/sub/deep/c", "content of c");
            store(world, CLIENT, "top/beside", "no part of it");
        },
    );
    everywhere(&world, "top/gone", None);
    everywhere(&world, "top/beside", Some("no part of it"));
    let all = listed(&world);
    let head = all[0].0;
    assert_eq!(all[0].2.group, None);
    assert!(all[1..].iter().all(|(_, _, standing)| standing.group.map(|at| at.0) == Some(head.0)), "{all:?}");
    let paths: Vec<&str> = all.iter().map(|(_, row, _)| row.path.as_str()).collect();
    for path in ["/top/gone/a", "/top/gone/sub", "/top/gone/sub/b", "/top/gone/sub/deep/c"] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
    assert_eq!(status(&world).conflicts, 1, "{paths:?}");
    // What is made there later, before its maker has heard of it, and a restart, change nothing of that.
    world.kill(SERVER);
    world.start(SERVER, false);
    settle(&mut world);
    assert_eq!((status(&world).conflicts, listed(&world).len()), (1, all.len()));
    // Any of them stands for all.
    world.give(SERVER, Input::Resolved(all[2].0));
    world.rest();
    assert!(listed(&world).is_empty(), "{:?}", listed(&world));
    assert!(["a", "b", "c"].iter().all(|name| !is_kept(&world, &format!("content of {name}"))));
}

#[test]
fn what_waits_for_a_person_is_no_part_of_what_a_policy_has_decided() {
    let mut world = with(Policy::ServerWins, 1);
    mkdir(&mut world, CLIENT, "gone");
    settle(&mut world);
    world.cut(CLIENT);
    world.rest_without(&[CLIENT]);
    store(&mut world, CLIENT, "gone/a", "a");
    remove(&mut world, SERVER, "gone");
    // Its maker does not hear of the verdict, and makes something else beside it when another policy is in force.
    world.mangle = Some(Box::new(|from, _, message| match message {
        Message::Records { upto, .. } if from == SERVER && upto > Position(2) => Some(vec![]),
        other => Some(vec![other]),
    }));
    world.rest();
    assert_eq!((status(&world).conflicts, status(&world).conflicts_decided), (0, 1));
    options(&mut world, ConflictOptions::default());
    store(&mut world, CLIENT, "gone/b", "b");
    world.rest();
    world.mangle = None;
    world.cut(CLIENT);
    settle(&mut world);
    assert_eq!((status(&world).conflicts, status(&world).conflicts_decided), (1, 1));
    world.now += ConflictOptions::KEEP_FOR + 1;
    world.rest();
    let paths: Vec<String> = listed(&world).into_iter().map(|(_, row, _)| row.path).collect();
    assert_eq!(paths, ["/gone/b"], "what nobody has decided about goes with the other");
    assert!(is_kept(&world, "b") && !is_kept(&world, "a"));
}

#[test]
fn a_resolution_survives_a_power_cut_and_a_client_does_not_bring_the_loser_back() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.back_up();
    clash(&mut world, "f");
    let (position, row, _) = listed(&world).remove(0);
    world.give(SERVER, Input::Resolved(position));
    world.rest();
    assert!(listed(&world).is_empty());
    let struck: OpId = row.record;
    world.power(SERVER);
    settle(&mut world);
    assert!(listed(&world).is_empty(), "it was durable");
    // The backup is older than the conflict: what was resolved is not told again.
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("f of the server"));
    assert!(listed(&world).iter().all(|(_, row, _)| row.record != struck), "{:?}", listed(&world));
}

#[test]
fn where_clients_win_nothing_goes_over_another_name_of_itself() {
    let mut world = with(Policy::ClientWins, 2);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    apart(&mut world, |world| link(world, SERVER, "f", "e"), |world| rename(world, CLIENT, "f", "e"));
    everywhere(&world, "e", Some("old"));
}

#[test]
fn where_clients_win_two_things_that_a_client_has_made_stay_two() {
    let mut world = with(Policy::ClientWins, 2);
    store(&mut world, CLIENT, "tmp", "made first");
    settle(&mut world);
    apart(
        &mut world,
        |world| link(world, SERVER, "tmp", "a"),
        |world| {
            store(world, CLIENT, "a", "made then");
            rename(world, CLIENT, "tmp", "a");
        },
    );
    everywhere(&world, "a", Some("made first"));
    everywhere(&world, "tmp", Some("made first"));
    assert!(is_kept(&world, "made then"));
}
