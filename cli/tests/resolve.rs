//! `intermezzo conflicts resolve` against a stand-in agent and a plain directory in the place of the mount.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use common::{Agent, Run, Script, ask};
use intermezzo_proto::v1::{ConflictRecord, StatusReply, VolumeStatus};
use tokio::sync::Mutex;

struct World {
    mount: tempfile::TempDir,
    _kept: tempfile::TempDir,
    agent: Agent,
    resolved: Arc<Mutex<Vec<u64>>>,
}

fn world(role: &str) -> World {
    let (mount, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(mount.path().join("notes.txt"), "what is in the tree, and longer").unwrap();
    fs::write(kept.path().join("41"), "what was kept").unwrap();
    let conflict = |position, kind: &str, path: &str, content: Option<&str>| ConflictRecord {
        position,
        kind: kind.into(),
        path: path.into(),
        content: content.map(|name| kept.path().join(name).display().to_string()).unwrap_or_default(),
        ..ConflictRecord::default()
    };
    fs::write(kept.path().join("51"), "of a").unwrap();
    fs::write(kept.path().join("53"), "of b").unwrap();
    let tree = |position, content| ConflictRecord {
        kept: "Tree".into(),
        state: "Decided".into(),
        ..conflict(position, "StoreStore", "/notes.txt", Some(content))
    };
    let part = |position, group, mode, path: &str, content| ConflictRecord {
        group,
        mode,
        operation: "create".into(),
        ..conflict(position, "ParentGone", path, content)
    };
    let parts = [
        part(51, 0, 0o100_640, "/gone/deep/a", Some("51")),
        part(52, 51, 0o040_700, "/gone/deep/sub", None),
        part(53, 51, 0o100_644, "/gone/deep/sub/b", None),
        ConflictRecord { operation: "close".into(), ..part(54, 51, 0, "/gone/deep/sub/b", Some("53")) },
        ConflictRecord { target: "b".into(), ..part(55, 51, 0o120_777, "/gone/deep/sub/link", None) },
    ];
    let mut conflicts = vec![
        tree(48, "41"),
        conflict(41, "StoreStore", "/notes.txt", Some("41")),
        conflict(42, "StoreRemove", "/removed.txt", Some("41")),
        conflict(43, "RemoveUpdate", "/notes.txt", None),
        conflict(44, "NameName", "/dir", None),
        conflict(45, "StoreStore", "/na\u{fffd}me", Some("41")),
        conflict(46, "StoreStore", "/../escaped", Some("41")),
        conflict(47, "StoreStore", "/linked/x", Some("41")),
    ];
    conflicts.extend(parts);
    let volume = VolumeStatus {
        name: "default/demo".into(),
        role: role.into(),
        server: "a".into(),
        mountpoint: mount.path().display().to_string(),
        ..VolumeStatus::default()
    };
    let status = StatusReply { volumes: vec![volume], ..StatusReply::default() };
    let resolved = Arc::default();
    let script = Script { status, conflicts, resolved: Arc::clone(&resolved), ..Script::default() };
    World { mount, _kept: kept, agent: Agent::start(script), resolved }
}

impl World {
    fn resolve(&self, position: &str, words: &[&str]) -> Run {
        let begin = ["conflicts", "resolve", position, "--volume", "demo"];
        ask(&self.agent.socket(), &[&begin[..], words].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn resolved(&self) -> Vec<u64> {
        self.resolved.blocking_lock().clone()
    }
}

#[test]
fn theirs_leaves_the_tree_as_it_is() {
    let world = world("Server");
    let run = world.resolve("41", &["--take", "theirs"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(world.read("notes.txt").starts_with("what is in the tree"));
    assert_eq!(world.resolved(), [41]);
}

#[test]
fn mine_does_what_lost() {
    let world = world("Server");
    for position in ["41", "42"] {
        let run = world.resolve(position, &["--take", "mine"]);
        assert_eq!(run.code, 0, "{}", run.err);
    }
    assert_eq!(
        (world.read("notes.txt").as_str(), world.read("removed.txt").as_str()),
        ("what was kept", "what was kept")
    );
    assert_eq!(world.resolve("43", &["--take", "mine"]).code, 0);
    assert!(!world.path("notes.txt").exists(), "it wanted to remove it");
    assert_eq!(world.resolved(), [41, 42, 43]);
}

#[test]
fn both_puts_what_was_kept_beside() {
    let world = world("Server");
    let run = world.resolve("41", &["--take", "both", "--name", "notes-of-b.txt"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(world.read("notes-of-b.txt"), "what was kept");
    assert!(world.read("notes.txt").starts_with("what is in the tree"));
    assert_eq!(world.resolved(), [41]);
}

#[test]
fn what_gave_way_to_an_update_is_put_back_or_dropped() {
    let world = world("Server");
    for take in ["mine", "drop"] {
        assert_eq!(world.resolve("48", &["--take", take]).code, 0);
        assert!(world.read("notes.txt").starts_with("what is in the tree"));
    }
    let run = world.resolve("48", &["--take", "theirs"]);
    assert!(run.code == 0 && run.err.contains("is as it was before the update"), "{}", run.err);
    assert_eq!(world.read("notes.txt"), "what was kept");
    let run = world.resolve("41", &["--take", "drop"]);
    assert!(run.code == 0 && run.err.contains("the tree stays as it is"), "{}", run.err);
    assert_eq!(world.resolved(), [48, 48, 48, 41]);
}

#[test]
fn a_tree_made_in_a_removed_directory_is_made_again_as_a_whole() {
    for (words, dir) in
        [(&["--take", "mine"][..], "gone/deep"), (&["--take", "both", "--name", "back"], "gone/back")]
    {
        let world = world("Server");
        let run = world.resolve("51", words);
        assert_eq!(run.code, 0, "{}", run.err);
        let read = |name: &str| world.read(&format!("{dir}/{name}"));
        assert_eq!((read("a").as_str(), read("sub/b").as_str()), ("of a", "of b"));
        assert_eq!(fs::read_link(world.path(&format!("{dir}/sub/link"))).unwrap(), PathBuf::from("b"));
        let mode =
            |name: &str| fs::metadata(world.path(&format!("{dir}/{name}"))).unwrap().permissions().mode();
        assert_eq!((mode("a") & 0o777, mode("sub") & 0o777), (0o640, 0o700));
        assert_eq!(world.resolved(), [51]);
    }
    let world = world("Server");
    let run = world.resolve("53", &["--take", "mine"]);
    assert!(run.err.contains("is a part of conflict 51"), "{}", run.err);
    assert!(world.resolved().is_empty() && !world.path("gone").exists());
    // Parts are one in the list, and told in full by `show`.
    let run = ask(&world.agent.socket(), &["conflicts", "list", "--volume", "demo"]);
    assert!(run.out.contains("/gone/deep/a (+4)") && !run.out.contains("/sub/b"), "{}", run.out);
    let run = ask(&world.agent.socket(), &["conflicts", "show", "51", "--volume", "demo"]);
    assert!(run.out.contains("54 close /gone/deep/sub/b"), "{}", run.out);
}

#[test]
fn symbolic_links_lead_nowhere() {
    let world = world("Server");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("x"), "not the volume's").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), world.path("linked")).unwrap();
    fs::remove_file(world.path("notes.txt")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("x"), world.path("notes.txt")).unwrap();
    for (position, words) in [
        ("41", &["--take", "mine"][..]),
        ("47", &["--take", "mine"]),
        ("47", &["--take", "both", "--name", "y"]),
    ] {
        assert_ne!(world.resolve(position, words).code, 0);
    }
    assert_eq!(fs::read_to_string(elsewhere.path().join("x")).unwrap(), "not the volume's");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    assert!(world.resolved().is_empty());
}

#[test]
fn what_cannot_be_done_resolves_nothing() {
    let on_server = world("Server");
    fs::write(on_server.path("taken"), "somebody's").unwrap();
    for (position, words, said) in [
        ("41", &["--take", "both", "--name", "taken"][..], "cannot write"),
        ("41", &["--take", "both", "--name", "a/b"], "is no name of a file"),
        ("41", &["--take", "both"], "--name"),
        ("44", &["--take", "mine"], "keeps no content"),
        ("45", &["--take", "mine"], "no name that can be written here"),
        ("46", &["--take", "mine"], "no name that can be written here"),
        ("77", &["--take", "theirs"], "no conflict at position 77"),
    ] {
        let run = on_server.resolve(position, words);
        assert!(run.code != 0 && run.err.contains(said), "{words:?}: {} {}", run.code, run.err);
    }
    assert_eq!(on_server.read("taken"), "somebody's");
    let on_client = world("Client");
    let run = on_client.resolve("41", &["--take", "theirs"]);
    assert!(run.err.contains("is for the server of volume default/demo, node a"), "{}", run.err);
    assert!(on_server.resolved().is_empty() && on_client.resolved().is_empty());
}
