//! Commands that need no agent: pki, kml, completions, help, and fleets that cannot be.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use std::sync::Arc;

use common::intermezzo;
use intermezzo_kml::{Class, Config, Intent, Journal, Opcode, Outcome};

fn journal(dir: &std::path::Path) {
    let config = Config { volume: 7, ..Config::default() };
    let (journal, _) = Journal::open(Arc::new(intermezzo_kml::fs::Os), &dir.join("kml"), config).unwrap();
    for name in [&b"plain"[..], b"with\nnewline", b"\xff\xfe"] {
        let intent = Intent { opcode: Some(Opcode::Create), name: name.to_vec(), ..Intent::default() };
        journal.append(Class::User, &intent, &Outcome::default()).unwrap();
    }
    let ticket =
        journal.begin(Class::User, &Intent { opcode: Some(Opcode::Mkdir), ..Intent::default() }).unwrap();
    journal.failed(ticket);
    journal.sync().unwrap();
}

#[test]
fn kml_is_dumped_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("kml")).unwrap();
    journal(dir.path());
    let path = dir.path().to_str().unwrap();
    insta::assert_snapshot!(intermezzo(["kml", "dump", path]).out, @r#"
           1 create    name="plain"
           2 create    name="with\nnewline"
           3 create    name="\xff\xfe"
           4 mkdir     failed
    "#);
    let json = intermezzo(["kml", "dump", path, "-o", "json", "--from", "2", "--limit", "1"]).out;
    let record: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&record["recno"], &record["name"]), (&2.into(), &"with\\nnewline".into()));
    let verify = intermezzo(["kml", "verify", path]);
    assert_eq!(verify.code, 0, "{}", verify.err);
    insta::assert_snapshot!(verify.out, @r#"
    records 1..4: 3 done, 1 failed; every checksum is right, no gaps
    create 3
    "#);
}

#[test]
fn a_damaged_journal_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("kml")).unwrap();
    journal(dir.path());
    let segment = std::fs::read_dir(dir.path().join("kml"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read(path).unwrap().windows(5).any(|window| window == b"plain"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let place = bytes.windows(5).position(|window| window == b"plain").unwrap();
    bytes[place] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let verify = intermezzo(["kml", "verify", dir.path().to_str().unwrap()]);
    assert_eq!(verify.code, 3, "{}{}", verify.out, verify.err);
}

#[test]
fn certificates_are_made_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(intermezzo(["pki", "ca", "--out", path]).code, 0);
    let run = intermezzo(["pki", "node", "--ca", path, "--out", path, "a", "b"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("a.node.intermezzo.internal"), "{}", run.out);
    let again = intermezzo(["pki", "ca", "--out", path]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("ca.key is there already"), "{}", again.err);
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(intermezzo(["completions", shell]).out.contains("intermezzo"));
    }
}

#[test]
fn every_command_explains_itself() {
    for words in [
        &["dev", "up"][..],
        &["dev", "down"],
        &["status"],
        &["wait"],
        &["kml", "dump"],
        &["kml", "verify"],
        &["cml", "list"],
        &["conflicts", "list"],
        &["pki", "ca"],
        &["pki", "node"],
        &["pki", "archive"],
        &["initramfs"],
        &["completions"],
    ] {
        let run = intermezzo(words.iter().copied().chain(["--help"]));
        assert_eq!(run.code, 0);
        assert!(run.out.contains("Example"), "{words:?} shows no example:\n{}", run.out);
    }
    assert_eq!(intermezzo(["no-such-command"]).code, 2);
}

#[test]
fn a_fleet_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = intermezzo(["dev", "down", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("holds no fleet"), "{}", run.err);
}
