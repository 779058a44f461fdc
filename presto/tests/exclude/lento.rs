//! What stays here and what Lento wants: scrubs, replays, recovery.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::{Flags, Intent, Opcode, State};
use intermezzo_kml::{Class, Config, Journal};
use presto::channel::Reply;
use presto::filter::NewMode;

use crate::ask::*;
use crate::world::*;

const NEW: NewMode = NewMode { mode: 0o755, umask: 0 };

fn excluding(patterns: &[&str]) -> World {
    world_with(tempfile::tempdir().unwrap(), |set| set.exclude = strings(patterns))
}

fn strings(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
}

fn set(w: &World, patterns: &[&str]) -> Reply {
    let set = v1::SetVolume {
        uid: 7,
        cache: w.cache.display().to_string(),
        mountpoint: w.cache.with_file_name("mnt").display().to_string(),
        log_max_bytes: 64 << 20,
        exclude: strings(patterns),
        ..Default::default()
    };
    w.call(Body::SetVolume(set))
}

fn listed(w: &World) -> Vec<String> {
    let entries = list(w, w.root(), 0).entries;
    let mut names: Vec<_> =
        entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
    names.sort();
    names
}

fn save_in(w: &World, dir: &str, name: &str) {
    let mode = NewMode { mode: 0o644, umask: 0 };
    let access = presto::filter::Access::Write;
    let made = w.volume.create(user(), w.id(dir), name.as_bytes(), mode, access).unwrap();
    w.write(&made.1, name);
    w.close(&made.1);
}

fn unlink(w: &World, at: &str) -> v1::ReplayItem {
    let (dir, expect) = (by(w.root()), by(w.id(at)));
    item(Op::Unlink(v1::Unlink { dir, name: name(at), expect, ..Default::default() }))
}

#[test]
fn a_scrub_passes_over_it() {
    let w = excluding(&["*.o"]);
    w.save("a.o", "local");
    w.save("a.c", "replicated");
    assert_eq!(listed(&w), ["a.c"]);
    // Made behind presto's back, by an excluded name: it stays here as well, once somebody has looked.
    fs::write(w.path("b.o"), "behind").unwrap();
    assert_eq!(listed(&w), ["a.c", "b.o"]);
    same(&w, What::Entry(entry(&w, "b.o")));
    assert_eq!(listed(&w), ["a.c"]);
}

#[test]
fn a_scrub_finds_what_is_no_longer_excluded() {
    let w = excluding(&["build/", "*.o"]);
    w.user_mkdir("build");
    save_in(&w, "build", "x.o");
    w.save("a.o", "local");
    assert!(matches!(set(&w, &["build/"]).body, Body::VolumeInfo(_)));
    assert_eq!(listed(&w), ["a.o"]);
    let records = found(&w, "new", What::Entry(entry(&w, "a.o")));
    assert_eq!(
        records.iter().map(|record| record.opcode).collect::<Vec<_>>(),
        [Opcode::Create, Opcode::Close]
    );
    w.volume.unlink(user(), w.root(), b"a.o").unwrap();
    assert!(!w.record(w.last()).intent.flags.contains(Flags::LOCAL), "it is replicated now");
}

#[test]
fn what_stays_here_does_so_after_a_restart() {
    let w = excluding(&["*.o"]);
    w.save("a.o", "local");
    set(&w, &[]);
    let w = w.restart(|_| {});
    w.save("b.o", "replicated");
    for (name, local) in [(&b"a.o"[..], true), (b"b.o", false)] {
        w.volume.unlink(user(), w.root(), name).unwrap();
        assert_eq!(w.record(w.last()).intent.flags.contains(Flags::LOCAL), local);
    }
}

#[test]
fn a_pattern_that_is_none_changes_nothing() {
    let w = excluding(&["*.o"]);
    let Body::Failure(failure) = set(&w, &["*.a", "[z-a]"]).body else { panic!() };
    assert!(
        failure.message.contains("test/replay") && failure.message.contains("[z-a]"),
        "{}",
        failure.message
    );
    w.save("a.o", "local");
    w.save("b.a", "replicated");
    assert_eq!(listed(&w), ["b.a"]);
}

#[test]
fn a_directory_that_others_remove_stays_for_what_stays_here() {
    let w = excluding(&["*.o"]);
    w.user_mkdir("src");
    save_in(&w, "src", "a.o");
    applied(&w.one(unlink(&w, "src")));
    assert_eq!(w.read("src/a.o"), "a.o");
    assert_eq!(listed(&w), Vec::<String>::new());
    already(&w.one(unlink(&w, "src")));
    save_in(&w, "src", "b.o");
    assert_eq!(listed(&w), Vec::<String>::new());
    // Something else is made in it: there is such a directory again, and Lento finds it.
    save_in(&w, "src", "b.c");
    assert!(!w.record(w.last()).intent.flags.contains(Flags::LOCAL));
    assert_eq!(listed(&w), ["src"]);
    assert_eq!(found(&w, "new", What::Entry(entry(&w, "src")))[0].opcode, Opcode::Mkdir);
}

#[test]
fn a_directory_that_others_have_removed_goes_when_its_user_says_so() {
    let w = excluding(&["*.o"]);
    w.user_mkdir("src");
    save_in(&w, "src", "a.o");
    applied(&w.one(unlink(&w, "src")));
    w.volume.unlink(user(), w.id("src"), b"a.o").unwrap();
    w.volume.rmdir(user(), w.root(), b"src").unwrap();
    assert!(w.record(w.last()).intent.flags.contains(Flags::LOCAL));
}

#[test]
fn a_directory_with_something_else_in_it_is_not_removed() {
    let w = excluding(&["*.o"]);
    w.user_mkdir("src");
    save_in(&w, "src", "a.o");
    save_in(&w, "src", "a.c");
    stale(&w.one(unlink(&w, "src")));
    assert_eq!(listed(&w), ["src"]);
}

#[test]
fn a_name_that_others_need_becomes_this_nodes_update() {
    let w = excluding(&["*.o"]);
    w.save("a.o", "local");
    stale(&w.one(tagged(1, Op::Make(make(by(w.root()), "a.o", FILE, "theirs")))));
    assert_eq!(w.read("a.o"), "local");
    // Found now, whatever its name: the server decides between the two.
    assert_eq!(listed(&w), ["a.o"]);
    let records = found(&w, "new", What::Entry(entry(&w, "a.o")));
    assert_eq!(records[0].opcode, Opcode::Create);
    applied(&w.one(unlink(&w, "a.o")));
}

#[test]
fn what_a_kill_left_unmarked_is_marked() {
    let w = excluding(&["*.o"]);
    let root = w.root();
    let w = w.restart(|cache| {
        interrupted(
            cache,
            &Intent {
                opcode: Some(Opcode::Mkdir),
                parent: root,
                name: b"d.o".to_vec(),
                flags: Flags::LOCAL,
                ..Intent::default()
            },
        );
        fs::create_dir(cache.join("tree/d.o")).unwrap();
    });
    assert_eq!(w.record(w.last()).state, State::Done);
    assert_eq!(listed(&w), Vec::<String>::new());
    w.volume.mkdir(user(), w.id("d.o"), b"below", NEW).unwrap();
    assert!(w.record(w.last()).intent.flags.contains(Flags::LOCAL));
}

/// Killed after the intent.
fn interrupted(cache: &Path, intent: &Intent) {
    let since = std::time::Instant::now();
    let journal = loop {
        // The last holder of the volume may still be closing it.
        let config = Config { volume: 7, ..Config::default() };
        match Journal::open(Arc::new(intermezzo_kml::fs::Os), &cache.join("kml"), config) {
            Ok((journal, _)) => break journal,
            Err(error) => assert!(since.elapsed() < std::time::Duration::from_secs(10), "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    std::mem::forget(journal.begin(Class::User, intent).unwrap());
}
