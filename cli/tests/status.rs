//! `intermezzo status` against a stand-in agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use common::{Agent, Script, ask};
use intermezzo_proto::v1::{Position, ReplicatorStatus, StatusReply, VolumeStatus};

fn position(number: u64) -> Option<Position> {
    Some(Position { epoch: 1, number })
}

fn server() -> Script {
    server_with(|_| ())
}

/// The same, and something about the Replicator on c.
fn server_with(about: impl Fn(&mut ReplicatorStatus)) -> Script {
    let replicator = |node: &str, connected, number, lag_records| ReplicatorStatus {
        node: node.into(),
        connected,
        applied: position(number),
        durable: position(number),
        lag_records,
        lag_seconds: Some(lag_records as f64 / 10.0),
        lag_bytes: Some(lag_records * 100_000),
        syncing: false,
        must_resync: false,
        other_history: false,
    };
    let mut late = replicator("c", false, 100, 20);
    about(&mut late);
    let volume = VolumeStatus {
        name: "team/home".into(),
        role: "Server".into(),
        server: "a".into(),
        position: position(120),
        applied: position(120),
        connected: true,
        replicators: vec![replicator("b", true, 120, 0), late],
        conflicts: 1,
        mountpoint: "/mnt/team/home".into(),
        cache: "/cache/team/home".into(),
        kml_first: 1,
        kml_last: 130,
        waiting: vec!["c is not connected".into()],
        ..VolumeStatus::default()
    };
    let (node, version) = ("a".into(), "0.1.0".into());
    let status =
        StatusReply { node, version, volumes: vec![volume], presto_connected: true, ..Default::default() };
    Script { status, ..Script::default() }
}

fn client() -> Script {
    let volume = VolumeStatus {
        name: "team/home".into(),
        role: "Client".into(),
        server: "a".into(),
        position: position(120),
        applied: position(118),
        pending: 3,
        pending_bytes: 5 << 20,
        pending_seconds: 12.25,
        dirty: 2,
        mountpoint: "/mnt/team/home".into(),
        ..VolumeStatus::default()
    };
    let (node, version) = ("b".into(), "0.1.0".into());
    let status =
        StatusReply { node, version, volumes: vec![volume], presto_connected: true, ..Default::default() };
    Script { status, ..Script::default() }
}

#[test]
fn a_client_says_how_much_waits_and_for_how_long() {
    let agent = Agent::start(client());
    insta::assert_snapshot!(ask(&agent.socket(), &["status"]).out, @r"
    VOLUME     NODE  ROLE    CONNECTED  POSITION  PENDING               LAG  CONFLICTS
    team/home  b     Client  no         1.120     3 (5.00 MiB, 12.2 s)  -    0
    ");
    let json = ask(&agent.socket(), &["status", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let volume = &json[0]["volumes"][0];
    assert_eq!((&volume["pendingBytes"], &volume["pendingSeconds"]), (&(5 << 20).into(), &12.25.into()));
}

#[test]
fn tables_show_volumes_and_replicators() {
    let agent = Agent::start(server());
    insta::assert_snapshot!(ask(&agent.socket(), &["status"]).out, @r#"
    VOLUME     NODE  ROLE        CONNECTED  POSITION  PENDING  LAG                   CONFLICTS
    team/home  a     Server      1/2        1.120     0        -                     1
    team/home  └ b   Replicator  yes        1.120     -        0                     -
    team/home  └ c   Replicator  no         1.100     -        20 (1.91 MiB, 2.0 s)  -
    team/home on a waits: c is not connected
    "#);
    insta::assert_snapshot!(ask(&agent.socket(), &["status", "-o", "wide"]).out, @r#"
    VOLUME     NODE  ROLE        CONNECTED  POSITION  PENDING  LAG                   CONFLICTS  APPLIED  DIRTY  KML     MOUNTED AT
    team/home  a     Server      1/2        1.120     0        -                     1          1.120    0      1..130  /mnt/team/home
    team/home  └ b   Replicator  yes        1.120     -        0                     -
    team/home  └ c   Replicator  no         1.100     -        20 (1.91 MiB, 2.0 s)  -
    team/home on a waits: c is not connected
    "#);
}

#[test]
fn a_replicator_that_must_resync_or_has_another_history_says_so() {
    let line = |about: fn(&mut ReplicatorStatus)| {
        let agent = Agent::start(server_with(about));
        let out = ask(&agent.socket(), &["status"]).out;
        out.lines().find(|line| line.contains("└ c")).unwrap_or_default().to_owned()
    };
    assert!(line(|late| late.must_resync = true).contains("  must resync  1.100"));
    assert!(line(|late| late.other_history = true).contains("  other history  1.100"));
}

#[test]
fn json_and_yaml_say_the_same() {
    let agent = Agent::start(server());
    let json = ask(&agent.socket(), &["status", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json[0]["volumes"][0]["replicators"][1]["lagRecords"], 20);
    assert_eq!(json[0]["volumes"][0]["replicators"][1]["lagBytes"], 2_000_000);
    assert_eq!(json[0]["volumes"][0]["position"]["number"], 120);
    let yaml = ask(&agent.socket(), &["status", "-o", "yaml"]).out;
    assert!(yaml.contains("lagRecords: 20"), "{yaml}");
}

#[test]
fn no_agent_has_its_own_exit_code() {
    let run = ask(std::path::Path::new("/nowhere/admin.sock"), &["status"]);
    assert_eq!(run.code, 4, "{}", run.err);
    assert!(run.err.contains("no agent answers at /nowhere/admin.sock"), "{}", run.err);
}
