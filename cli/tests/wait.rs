//! `intermezzo wait` against a stand-in agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use common::{Agent, Script, ask};
use intermezzo_proto::v1::WaitProgress;

fn progress(done: bool, pending: u64, waiting: &str) -> WaitProgress {
    WaitProgress { done, pending, waiting: waiting.into() }
}

#[test]
fn it_ends_when_the_agent_says_so() {
    let wait = vec![progress(false, 3, "verdicts"), progress(true, 0, "")];
    let agent = Agent::start(Script { wait, ..Script::default() });
    let run = ask(&agent.socket(), &["wait", "--volume", "demo", "--all"]);
    assert_eq!(run.code, 0, "{}", run.err);
}

#[test]
fn late_is_code_3_and_names_who_is_behind() {
    let agent =
        Agent::start(Script { wait: vec![progress(false, 3, "c is away")], hang: true, ..Script::default() });
    let run = ask(&agent.socket(), &["wait", "--volume", "demo", "--timeout", "0.5"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.err.contains("default/demo is not safe yet"), "{}", run.err);
    assert!(run.err.contains("3 records pending, c is away"), "{}", run.err);
}

#[test]
fn an_end_without_done_is_not_success() {
    let agent = Agent::start(Script { wait: vec![progress(false, 1, "b")], ..Script::default() });
    assert_eq!(ask(&agent.socket(), &["wait", "--volume", "demo"]).code, 3);
}

#[test]
fn an_agents_refusal_is_passed_on() {
    let agent =
        Agent::start(Script { wait_error: Some("the volume has stopped".into()), ..Script::default() });
    let run = ask(&agent.socket(), &["wait", "--volume", "demo"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("the volume has stopped"), "{}", run.err);
    let run = ask(&agent.socket(), &["wait", "--volume", "other/one"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("there is no volume other/one here"), "{}", run.err);
}

#[test]
fn names_are_checked_before_anybody_is_asked() {
    let run = ask(std::path::Path::new("/nowhere"), &["wait", "--volume", "A_b"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("volume A_b"), "{}", run.err);
}
