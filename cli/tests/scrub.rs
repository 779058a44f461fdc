//! `intermezzo scrub` against a stand-in agent.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod common;

use common::{Agent, Script, ask};
use intermezzo_proto::v1::{ScrubFinding, ScrubProgress};

fn found() -> Vec<ScrubProgress> {
    let findings = vec![ScrubFinding { path: "/a/b".into(), what: "content".into() }];
    let half = ScrubProgress { done: 0.5, looked: 10, ..ScrubProgress::default() };
    let end = ScrubProgress {
        finished: true,
        done: 1.0,
        looked: 20,
        found: 1,
        findings,
        ..ScrubProgress::default()
    };
    vec![half, end]
}

#[test]
fn what_is_found_is_shown_and_not_success() {
    let agent = Agent::start(Script { scrub: found(), ..Script::default() });
    let run = ask(&agent.socket(), &["scrub", "--volume", "demo"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.out.contains("content") && run.out.contains("/a/b"), "{}", run.out);
    assert!(run.err.contains("20 names looked at, 1 not as known"), "{}", run.err);
}

#[test]
fn what_is_taken_is_settled() {
    let agent = Agent::start(Script { scrub: found(), ..Script::default() });
    let run = ask(&agent.socket(), &["scrub", "--volume", "demo", "--take", "-o", "json"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let findings: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((&findings[0]["path"], &findings[0]["taken"]), (&"/a/b".into(), &true.into()));
}

#[test]
fn an_end_in_the_middle_is_a_failure() {
    let agent = Agent::start(Script { scrub: found()[..1].to_vec(), ..Script::default() });
    let run = ask(&agent.socket(), &["scrub", "--volume", "demo"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("ended before it was finished"), "{}", run.err);
}
