//! The history of a volume: what happened to a path, what the tree was like, and how long that is kept.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::history::HistoryError;
use lento_core::history::HistoryOptions;
use lento_core::history::Line;
use lento_core::history::Mentioned;
use lento_core::history::Past;
use lento_core::history::Wanted;
use lento_core::history::position_at;
use lento_core::history::story;
use lento_core::store::Store;
use lento_core::store::Table;
use lento_core::types::Hash;
use lento_core::types::Name;
use lento_core::types::Position;
use sim::past::EVERYTHING;
use sim::past::tree_of;
use sim::steps::*;
use sim::world::World;

fn keeping() -> World {
    let mut world = world(1);
    world.keep_history(Some(EVERYTHING));
    world
}

fn names(path: &str) -> Vec<Name> {
    path.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect()
}

fn lines(world: &World, path: &str) -> Vec<Line> {
    let wanted = Wanted { path: names(path), attributes: Mentioned::No, limit: 100, before: None };
    story(&world.nodes[SERVER].store, &wanted).unwrap()
}

fn text(path: &[Name]) -> String {
    path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
}

/// Word, path, and the content by what it is.
fn told(world: &World, path: &str) -> Vec<String> {
    let all = ["one", "two", "three", "four", "other"];
    let known = |hash: Option<Hash>| {
        let of = all.iter().find(|text| hash == Some(Hash::of(text.as_bytes())));
        of.map_or("?", |text| text)
    };
    let line = |line: Line| {
        let content = line.after.and_then(|after| after.content).map(|content| known(content.hash));
        let from = line.from.map(|from| format!(" from {}", text(&from))).unwrap_or_default();
        format!("{} {}{from} {}", line.what, text(&line.path), content.unwrap_or("-"))
    };
    lines(world, path).into_iter().map(line).collect()
}

/// What a path held at a position.
fn held(world: &World, position: Position, path: &str) -> Option<Hash> {
    let past = Past::at(&world.nodes[SERVER].store, position).unwrap();
    let tree = tree_of(&past);
    tree.get(&names(path))?.condition.content?.hash
}

#[test]
fn a_path_is_followed_through_saves_removals_and_moves() {
    let mut world = keeping();
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    store(&mut world, CLIENT, "f", "two");
    settle(&mut world);
    // As editors save.
    store(&mut world, SERVER, "f.new", "three");
    rename(&mut world, SERVER, "f.new", "f");
    settle(&mut world);
    mkdir(&mut world, SERVER, "d");
    rename(&mut world, SERVER, "f", "d/g");
    settle(&mut world);
    remove(&mut world, CLIENT, "d/g");
    settle(&mut world);
    let all = [
        "removed /d/g -",
        "renamed /d/g from /f three",
        "renamed /f from /f.new three",
        "written /f two",
        "made /f one",
    ];
    assert_eq!(told(&world, "d/g"), all, "also where it no longer is");
    assert_eq!(told(&world, "f"), all[1..], "and where it was");
    // Brought back by a rename, the path has the same past as before.
    store(&mut world, SERVER, "d/g.new", "four");
    rename(&mut world, SERVER, "d/g.new", "d/g");
    settle(&mut world);
    let back = told(&world, "d/g");
    assert_eq!(back[0], "renamed /d/g from /d/g.new four");
    assert_eq!(back[2..], all, "{back:?}");
    remove(&mut world, CLIENT, "d/g");
    settle(&mut world);
    let nodes: Vec<u64> = lines(&world, "d/g").iter().map(|line| line.origin.0.replica).collect();
    assert_eq!(nodes, [101, 100, 100, 101, 100, 100, 101, 100], "who did it");
}

#[test]
fn a_directory_tells_what_happened_in_it_also_when_it_is_gone() {
    let mut world = keeping();
    mkdir(&mut world, SERVER, "d");
    mkdir(&mut world, SERVER, "d/e");
    store(&mut world, SERVER, "d/e/f", "one");
    store(&mut world, SERVER, "other", "other");
    settle(&mut world);
    rename(&mut world, CLIENT, "d/e/f", "d/f");
    settle(&mut world);
    remove(&mut world, CLIENT, "d/f");
    remove(&mut world, CLIENT, "d/e");
    remove(&mut world, CLIENT, "d");
    settle(&mut world);
    let all = told(&world, "d");
    let words: Vec<&str> = all.iter().map(String::as_str).collect();
    let begin = ["removed /d -", "removed /d/e -", "removed /d/f -", "renamed /d/f from /d/e/f one"];
    assert_eq!(words[..4], begin, "{words:?}");
    assert!(!words.iter().any(|line| line.contains("other")), "{words:?}");
    // A new directory of that name is another one, with the same past.
    mkdir(&mut world, SERVER, "d");
    settle(&mut world);
    let again = told(&world, "d");
    assert_eq!((again[0].as_str(), &again[1..]), ("made /d -", &all[..]));
}

#[test]
fn the_tree_of_a_position_is_what_it_was() {
    let mut world = keeping();
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    let one = lines(&world, "f")[0].position;
    store(&mut world, CLIENT, "f", "two");
    settle(&mut world);
    let two = lines(&world, "f")[0].position;
    remove(&mut world, SERVER, "f");
    settle(&mut world);
    assert_eq!(held(&world, one, "f"), Some(Hash::of(b"one")));
    assert_eq!(held(&world, two, "f"), Some(Hash::of(b"two")));
    let removed = lines(&world, "f")[0].position;
    assert_eq!(held(&world, removed, "f"), None);
    assert_eq!(held(&world, Position(removed.0 - 1), "f"), Some(Hash::of(b"two")));
    let store = &world.nodes[SERVER].store;
    let newest = Past::present(store).unwrap().position();
    let later = Position(newest.0 + 1);
    assert_eq!(Past::at(store, later).err(), Some(HistoryError::NotYet { newest, asked: later }));
}

#[test]
fn a_time_means_what_was_there_then() {
    let mut world = keeping();
    world.nodes[SERVER].disk.clock = 1000;
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    world.nodes[SERVER].disk.clock = 2000;
    store(&mut world, SERVER, "f", "two");
    settle(&mut world);
    let lines = lines(&world, "f");
    let at = |time| position_at(&world.nodes[SERVER].store, time).unwrap();
    assert!(at(lines[0].time) >= lines[0].position);
    let between = lento_core::types::Time { sec: 1900, nsec: 0 };
    assert_eq!(held(&world, at(between), "f"), Some(Hash::of(b"one")));
    let long_ago = lento_core::types::Time { sec: 1, nsec: 0 };
    let before_all = position_at(&world.nodes[SERVER].store, long_ago);
    assert!(matches!(before_all, Err(HistoryError::BeforeAll(_))), "{before_all:?}");
}

#[test]
fn none_is_kept_unless_it_is_wanted_and_what_was_kept_goes_with_the_wish() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    assert_eq!(Past::present(&world.nodes[SERVER].store).err(), Some(HistoryError::Off));
    world.keep_history(Some(EVERYTHING));
    let from = Past::present(&world.nodes[SERVER].store).unwrap().position();
    store(&mut world, SERVER, "f", "two");
    settle(&mut world);
    let asked = Position(from.0 - 1);
    let too_old = Past::at(&world.nodes[SERVER].store, asked).err();
    assert_eq!(too_old, Some(HistoryError::TooOld { from, asked }), "it begins where it was wished for");
    assert_eq!(held(&world, from, "f"), Some(Hash::of(b"one")), "what was there by then is known");
    world.keep_history(None);
    settle(&mut world);
    assert_eq!(world.nodes[SERVER].store.len(Table::History).unwrap(), 0);
    assert_eq!(Past::present(&world.nodes[SERVER].store).err(), Some(HistoryError::Off));
}

#[test]
fn rows_go_when_they_are_old_or_too_many_and_the_rest_stays_true() {
    let mut world = world(1);
    world.keep_history(Some(HistoryOptions { keep_for: u64::MAX, row_bytes: 20_000 }));
    let mut first = None;
    for round in 0..400 {
        store(&mut world, SERVER, &format!("f{}", round % 7), &format!("{round}"));
        if round % 20 == 0 {
            settle(&mut world);
            world.remember();
            first.get_or_insert(Past::present(&world.nodes[SERVER].store).unwrap().position());
        }
    }
    settle(&mut world);
    let store = &world.nodes[SERVER].store;
    let bytes: usize =
        store.scan(Table::History, &[], 10_000).unwrap().iter().map(|(_, row)| row.len()).sum();
    assert!(bytes <= 20_000, "{bytes}");
    assert!(matches!(Past::at(store, first.unwrap()), Err(HistoryError::TooOld { .. })));
    world.check_past().unwrap();
    assert!(world.remembered.compared > 0);
    // A month later.
    world.keep_history(Some(HistoryOptions { keep_for: 1000, row_bytes: 20_000 }));
    world.now += 2000;
    settle(&mut world);
    assert_eq!(world.nodes[SERVER].store.len(Table::History).unwrap(), 0);
    assert!(Past::present(&world.nodes[SERVER].store).is_ok(), "it goes on from here");
}
