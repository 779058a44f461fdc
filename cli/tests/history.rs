//! `intermezzo history` and `intermezzo restore` against a stand-in agent and a plain directory in the place of the mount.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use common::{Agent, Run, Script, ask};
use intermezzo_proto::v1::*;

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

struct World {
    mount: tempfile::TempDir,
    agent: Agent,
}

/// A condition; what a file holds is its seal, in this world.
fn condition(mode: u32, text: &str) -> Condition {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mtime = Some(Time { sec: 1_000_000, nsec: 7 });
    let content = (mode & 0o170_000 == FILE).then(|| FormerContent {
        size: text.len() as u64,
        seal: text.as_bytes().to_vec().into(),
        kept: text != "missing",
        ..FormerContent::default()
    });
    let symlink = if mode & 0o170_000 == LINK { text.as_bytes().to_vec().into() } else { Default::default() };
    let attributes = Some(Attributes { mode, uid, gid, mtime, rdev: 0 });
    Condition { attributes, symlink, content, ..Condition::default() }
}

fn node(path: &str, object: u64, mode: u32, text: &str) -> PastNode {
    PastNode {
        path: path
            .split('/')
            .filter(|name| !name.is_empty())
            .map(|name| name.as_bytes().to_vec().into())
            .collect(),
        object: Some(Tag { replica: 1, incarnation: 1, number: object }),
        condition: Some(condition(mode, text)),
        is_there: false,
    }
}

fn world() -> World {
    let mount = tempfile::tempdir().unwrap();
    let tree = vec![
        node("", 1, DIR | 0o750, ""),
        node("f", 2, FILE | 0o640, "as it was"),
        node("hard", 2, FILE | 0o640, "as it was"),
        node("lost", 3, FILE | 0o644, "missing"),
        node("s", 4, LINK | 0o777, "f"),
        node("sub", 5, DIR | 0o700, ""),
        node("sub/g", 6, FILE | 0o600, ""),
    ];
    let past = BTreeMap::from([
        (b"dir".to_vec(), tree),
        (b"f".to_vec(), vec![node("", 9, FILE | 0o644, "f of then")]),
    ]);
    let line = |position, what: &str, path: &str, after: Option<Condition>| HistoryLine {
        position,
        time: Some(Time { sec: 1_800_000_000, nsec: 5 }),
        node: "b".into(),
        what: what.into(),
        path: vec![path.as_bytes().to_vec().into()],
        after,
        ..HistoryLine::default()
    };
    let moved = HistoryLine {
        from: vec![b"old\nname".to_vec().into()],
        ..line(7, "renamed", "f", Some(condition(FILE, "four")))
    };
    let history =
        vec![line(9, "removed", "f", None), moved, line(5, "written", "f", Some(condition(FILE, "missing")))];
    let volume = VolumeStatus {
        name: "default/demo".into(),
        role: "Client".into(),
        server: "a".into(),
        mountpoint: mount.path().display().to_string(),
        ..VolumeStatus::default()
    };
    let status = StatusReply { volumes: vec![volume], ..StatusReply::default() };
    World { mount, agent: Agent::start(Script { status, history, past, ..Script::default() }) }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    fn run(&self, verb: &str, name: &str, words: &[&str]) -> Run {
        let path = self.path(name).display().to_string();
        ask(&self.agent.socket(), &[&[verb, &path], words].concat())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

#[test]
fn a_history_is_a_table() {
    let world = world();
    let run = world.run("history", "f", &[]);
    assert_eq!(run.code, 0, "{}", run.err);
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines[1], "9         2027-01-15T08:00:00Z  b     removed  -     -        /f");
    assert!(lines[2].ends_with("renamed  4 B   kept     /f (from /old\\nname)"), "{}", run.out);
    assert!(lines[3].ends_with("written  7 B   missing  /f"), "{}", run.out);
    let json = world.run("history", "f", &["-o", "json"]);
    assert!(json.out.contains("\"position\": 7"), "{}", json.out);
    let other = ask(&world.agent.socket(), &["history", "/etc/passwd"]);
    assert_ne!(other.code, 0);
    assert!(other.err.contains("on no volume of this node"), "{}", other.err);
}

#[test]
fn a_content_of_then_goes_to_standard_output() {
    let world = world();
    let run = world.run("history", "f", &["--at", "2h", "--content"]);
    assert_eq!((run.code, run.out.as_str()), (0, "f of then"), "{}", run.err);
    let run = world.run("history", "f", &["--content"]);
    assert!(run.code != 0 && run.err.contains("--at"), "{}", run.err);
    let run = ask(&world.agent.socket(), &["history", "/dir", "--volume", "demo", "--at", "7"]);
    assert!(run.out.contains("symlink") && run.out.contains("/dir/s -> f"), "{}", run.out);
}

#[test]
fn a_directory_comes_back_and_what_came_later_stays() {
    let world = world();
    let dry = world.run("restore", "dir", &["--at", "7", "--dry-run"]);
    assert_eq!(dry.code, 3, "something is missing: {}", dry.err);
    assert!(!world.path("dir").exists(), "it was only said");
    fs::create_dir(world.path("dir")).unwrap();
    fs::write(world.path("dir/f"), "of now").unwrap();
    fs::write(world.path("dir/later"), "made since").unwrap();
    let run = world.run("restore", "dir", &["--at", "7"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.out.contains("! ") && run.out.contains("dir/lost"), "{}", run.out);
    assert_eq!((world.read("dir/f").as_str(), world.read("dir/later").as_str()), ("as it was", "made since"));
    let (f, hard) =
        (fs::metadata(world.path("dir/f")).unwrap(), fs::metadata(world.path("dir/hard")).unwrap());
    assert_eq!((f.ino(), f.nlink()), (hard.ino(), 2), "one file under two names");
    assert_eq!((f.mode() & 0o7777, f.mtime(), f.mtime_nsec()), (0o640, 1_000_000, 7));
    assert_eq!(fs::read_link(world.path("dir/s")).unwrap(), PathBuf::from("f"));
    let sub = fs::metadata(world.path("dir/sub")).unwrap();
    assert_eq!((sub.permissions().mode() & 0o777, sub.mtime()), (0o700, 1_000_000));
    assert!(!world.path("dir/lost").exists());
    let left: Vec<_> = fs::read_dir(world.path("dir")).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "nothing half made stays: {left:?}");
}

#[test]
fn exact_removes_what_came_later_and_what_is_in_the_way() {
    let world = world();
    fs::create_dir_all(world.path("dir/f/deep/er")).unwrap();
    fs::write(world.path("dir/f/deep/er/x"), "x").unwrap();
    fs::create_dir_all(world.path("dir/later/on")).unwrap();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("stays"), "").unwrap();
    symlink(&outside, world.path("dir/link-out")).unwrap();
    let run = world.run("restore", "dir", &["--at", "7"]);
    assert!(run.code == 3 && run.out.contains("another kind"), "{} {}", run.out, run.err);
    assert!(world.path("dir/f/deep/er/x").exists() && world.path("dir/later").exists());
    let dry = world.run("restore", "dir", &["--at", "7", "--exact", "--dry-run"]);
    assert!(dry.out.contains("- ") && world.path("dir/later/on").exists(), "{}", dry.out);
    let run = world.run("restore", "dir", &["--at", "7", "--exact"]);
    assert_eq!(world.read("dir/f"), "as it was", "{} {}", run.out, run.err);
    assert!(!world.path("dir/later").exists() && !world.path("dir/link-out").is_symlink());
    assert!(outside.join("stays").exists(), "a link is removed and not followed");
}

#[test]
fn another_path_leaves_what_is_there_alone() {
    let world = world();
    fs::write(world.path("f"), "of now").unwrap();
    let to = world.path("new/place/f").display().to_string();
    let run = world.run("restore", "f", &["--before", "8", "--to", &to]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!((world.read("f").as_str(), world.read("new/place/f").as_str()), ("of now", "f of then"));
    let again = world.run("restore", "f", &["--before", "8", "--to", &to]);
    assert!(again.code != 0 && again.err.contains("nothing is yet"), "{}", again.err);
    let nothing = world.run("restore", "no-such", &["--at", "7"]);
    assert!(nothing.code != 0 && nothing.err.contains("nothing stood at"), "{}", nothing.err);
    let when = world.run("restore", "f", &[]);
    assert!(when.code != 0 && when.err.contains("--at or --before"), "{}", when.err);
}
