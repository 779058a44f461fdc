//! `intermezzo cml list` and `conflicts list` against a stand-in agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use common::{Agent, Script, ask};
use intermezzo_proto::v1::{CmlRecord, ConflictRecord, Time};

#[test]
fn cml() {
    let cml = vec![
        CmlRecord {
            recno: 7,
            operation: "close".into(),
            path: "a/b".into(),
            state: "Sent".into(),
            size: 4096,
        },
        CmlRecord {
            recno: 9,
            operation: "unlink".into(),
            path: "a/c".into(),
            state: "Waiting".into(),
            size: 0,
        },
    ];
    let agent = Agent::start(Script { cml, ..Script::default() });
    insta::assert_snapshot!(ask(&agent.socket(), &["cml", "list", "--volume", "demo"]).out, @r#"
    NODE  RECNO  OPERATION  STATE    SIZE     PATH
    -     7      close      Sent     4.0 KiB  a/b
    -     9      unlink     Waiting  0 B      a/c
    "#);
    let json = ask(&agent.socket(), &["cml", "list", "--volume", "demo", "-o", "json"]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["operation"], "unlink");
}

#[test]
fn conflicts() {
    let record = ConflictRecord {
        position: 41,
        kind: "StoreStore".into(),
        path: "notes.txt".into(),
        node: "b".into(),
        time: Some(Time { sec: 1_800_000_000, nsec: 5 }),
        size: 12,
        content: "/cache/conflicts/41".into(),
        state: "Open".into(),
        ..ConflictRecord::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("41");
    std::fs::write(&kept, "the other one").unwrap();
    let second = ConflictRecord {
        position: 42,
        path: "other.txt".into(),
        content: kept.display().to_string(),
        ..record.clone()
    };
    let elsewhere = ConflictRecord { content: String::new(), ..record.clone() };
    let agent = Agent::start(Script { conflicts: vec![elsewhere, record], ..Script::default() });
    let words = ["conflicts", "list", "--volume", "demo", "-o", "wide"];
    insta::assert_snapshot!(ask(&agent.socket(), &words).out, @r#"
    POSITION  KIND        STATE  FROM  TIME                            SIZE  PATH       CONTENT
    41        StoreStore  Open   b     2027-01-15T08:00:00.000000005Z  12 B  notes.txt  /cache/conflicts/41
    "#);
    insta::assert_snapshot!(ask(&agent.socket(), &["conflicts", "show", "41", "--volume", "demo"]).out, @r#"
    Path:     notes.txt
    Kind:     StoreStore
    State:    Open: waits for a person; kept is the update
    Position: 41
    From:     b
    Time:     2027-01-15T08:00:00.000000005Z
    Size:     12 B
    Content:  /cache/conflicts/41
    "#);
    let none = ask(&agent.socket(), &["conflicts", "show", "7", "--volume", "demo"]);
    assert!(none.err.contains("volume demo has no conflict at position 7"), "{}", none.err);

    let agent = Agent::start(Script { conflicts: vec![second], ..Script::default() });
    let content = ask(&agent.socket(), &["conflicts", "show", "42", "--content", "--volume", "demo"]).out;
    assert_eq!(content, "the other one");
}
