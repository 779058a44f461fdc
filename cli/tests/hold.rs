//! `intermezzo hold` against a stand-in agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use std::sync::Arc;

use common::{Agent, Script, ask};
use intermezzo_proto::v1::{HeldRemoval, StatusReply, VolumeStatus};
use tokio::sync::Mutex;

fn agent(role: &str) -> (Agent, Arc<Mutex<Vec<String>>>) {
    let held = HeldRemoval {
        node: "b".into(),
        removals: 4200,
        objects: 5000,
        paths: vec!["/home/anna".into(), "/home/ben".into()],
    };
    let volume = VolumeStatus {
        name: "default/demo".into(),
        role: role.into(),
        server: "a".into(),
        held: vec![held],
        ..VolumeStatus::default()
    };
    let judged = Arc::default();
    let status = StatusReply { volumes: vec![volume], ..StatusReply::default() };
    (Agent::start(Script { status, judged: Arc::clone(&judged), ..Script::default() }), judged)
}

#[test]
fn what_waits_is_listed_and_decided_on_the_server() {
    let (agent, judged) = agent("Server");
    insta::assert_snapshot!(ask(&agent.socket(), &["hold", "list", "--volume", "demo"]).out, @r#"
    NODE  REMOVES  OF    SOME OF THEM
    b     4200     5000  /home/anna /home/ben
    "#);
    let run = ask(&agent.socket(), &["hold", "refuse", "b", "--volume", "demo"]);
    assert!(run.code == 0 && run.err.contains("it gets back what it has removed"), "{}", run.err);
    let run = ask(&agent.socket(), &["hold", "approve", "b", "--volume", "demo"]);
    assert!(run.code == 0 && run.err.contains("are approved"), "{}", run.err);
    assert_eq!(*judged.blocking_lock(), ["default/demo b Refuse", "default/demo b Approve"]);
}

#[test]
fn elsewhere_nothing_is_decided() {
    let (agent, judged) = agent("Client");
    let run = ask(&agent.socket(), &["hold", "approve", "b", "--volume", "demo"]);
    assert!(run.code != 0 && run.err.contains("node a: run it there"), "{}", run.err);
    assert!(judged.blocking_lock().is_empty());
}
