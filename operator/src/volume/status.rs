//! A Volume's status, from the judgement and from what agents say.

use std::collections::BTreeSet;

use intermezzo_api::VolumeStatus;
use intermezzo_api::condition::{ACCEPTED, CONNECTED, DEGRADED, IN_SYNC, READY, SERVING};
use intermezzo_api::volume::Position;
use intermezzo_api::wait::Ask;
use intermezzo_proto::v1;
use jiff::Timestamp;

use super::dereference::Seen;
use super::validate::{CLAIMS_DISABLED, Judged, Problem};
use crate::conditions::{Conditions, Truth};
use crate::control::Report;
use crate::replicator;

/// The status as it is now.
#[must_use]
pub fn status(seen: &Seen<'_>, judged: &Judged, now: Timestamp) -> VolumeStatus {
    let before = seen.volume.status.clone().unwrap_or_default();
    let list = replication_list(seen, judged);
    let report = judged.server.as_ref().and_then(|server| seen.report(server));
    let said = report.and_then(|report| report.volume(&seen.id));
    let generation = seen.volume.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);

    let accepted = accepted(judged, &mut conditions);
    let serving = serving(seen, judged, report, said, &mut conditions);
    connected(&list, said, &mut conditions);
    in_sync(&list, said, &mut conditions);
    degraded(seen, judged, report, said, &mut conditions);
    let (ready, reason, why) = match (accepted, serving) {
        (true, true) => (true, "Ready", "the volume is served as its spec asks"),
        (false, true) => {
            (false, "NotAccepted", "the volume is served, but not as its spec asks: see Accepted")
        }
        (false, false) => (false, "NotAccepted", "see Accepted"),
        (true, false) => (false, "NotServing", "see Serving"),
    };
    conditions.set(READY, Truth::of(ready), reason, why);

    let position = said.and_then(|said| said.position.as_ref()).map(position);
    VolumeStatus {
        observed_generation: generation,
        server: judged.server.clone(),
        claim: seen
            .volume
            .claim_name()
            .filter(|_| judged.problems.iter().all(|p| p.reason != CLAIMS_DISABLED)),
        position: position.or(before.position),
        replicators: i64::try_from(list.len()).ok(),
        replication_list: list.into_iter().collect(),
        conflicts: said.map(|said| count(said.conflicts)).or(before.conflicts),
        reached: reached(said).or(before.reached),
        conditions: conditions.done(),
    }
}

/// Nodes with an accepted Replicator.
fn replication_list(seen: &Seen<'_>, judged: &Judged) -> BTreeSet<String> {
    let Some(server) = &judged.server else { return BTreeSet::new() };
    let taken =
        seen.replicators.iter().filter(|r| replicator::validate::takes_part(r, &seen.replicators, server));
    taken.map(|replicator| replicator.spec.node_name.clone()).collect()
}

fn accepted(judged: &Judged, conditions: &mut Conditions) -> bool {
    match judged.problems.as_slice() {
        [] => conditions.set(ACCEPTED, Truth::Yes, "Accepted", "the spec is right and carried out"),
        [first, ..] => {
            let mut message = sentences(&judged.problems);
            if judged.server.is_some() {
                message.push_str("; until then the volume goes on as before");
            }
            conditions.set(ACCEPTED, Truth::No, first.reason, message);
        }
    }
    judged.problems.is_empty()
}

fn serving(
    seen: &Seen<'_>,
    judged: &Judged,
    report: Option<&Report>,
    said: Option<&v1::VolumeStatus>,
    conditions: &mut Conditions,
) -> bool {
    let (truth, reason, message) = match (&judged.server, report, said) {
        (None, ..) => (Truth::No, "NoServer", "no node serves it yet: see Accepted".to_owned()),
        (Some(server), None, _) if !seen.nodes.contains_key(server) => {
            let what = format!(
                "node {server} is gone from the cluster; its data is on its disk, and Replicators keep theirs. Bring the node back under the same name"
            );
            (Truth::No, "ServerGone", what)
        }
        (Some(server), None, _) => (
            Truth::Unknown,
            "AgentAway",
            format!("the agent on node {server} is not attached to the operator"),
        ),
        (Some(server), Some(report), _) if !report.presto_connected => {
            (Truth::No, "PrestoAway", format!("presto does not run on node {server}"))
        }
        (Some(server), Some(_), None) => {
            (Truth::No, "Starting", format!("the agent on node {server} has not begun with it"))
        }
        (Some(_), Some(_), Some(said)) if !said.fault.is_empty() => (Truth::No, "Fault", said.fault.clone()),
        (Some(server), Some(_), Some(said)) if said.role != "Server" => {
            (Truth::No, "Starting", format!("node {server} is not its server yet"))
        }
        (Some(server), ..) => (Truth::Yes, "Serving", format!("node {server} serves it")),
    };
    conditions.set(SERVING, truth, reason, message);
    truth == Truth::Yes
}

fn connected(list: &BTreeSet<String>, said: Option<&v1::VolumeStatus>, conditions: &mut Conditions) {
    let Some(said) = said else {
        return conditions.set(CONNECTED, Truth::Unknown, "AgentAway", "the server's agent does not say");
    };
    let there = |node: &&String| said.replicators.iter().any(|r| r.node == **node && r.connected);
    let away: Vec<&str> = list.iter().filter(|node| !there(node)).map(String::as_str).collect();
    if away.is_empty() {
        conditions.set(CONNECTED, Truth::Yes, "Connected", "every Replicator is connected to the server");
    } else {
        conditions.set(CONNECTED, Truth::No, "ReplicatorsAway", format!("not connected: {}", names(&away)));
    }
}

fn in_sync(list: &BTreeSet<String>, said: Option<&v1::VolumeStatus>, conditions: &mut Conditions) {
    let Some(said) = said else {
        return conditions.set(IN_SYNC, Truth::Unknown, "AgentAway", "the server's agent does not say");
    };
    let there = |node: &&String| {
        said.replicators.iter().any(|r| r.node == **node && r.connected && !r.syncing && r.lag_records == 0)
    };
    let behind: Vec<&str> = list.iter().filter(|node| !there(node)).map(String::as_str).collect();
    if behind.is_empty() {
        conditions.set(IN_SYNC, Truth::Yes, "InSync", "every Replicator has what the server has");
    } else {
        conditions.set(IN_SYNC, Truth::No, "ReplicatorsBehind", format!("behind: {}", names(&behind)));
    }
}

fn degraded(
    seen: &Seen<'_>,
    judged: &Judged,
    report: Option<&Report>,
    said: Option<&v1::VolumeStatus>,
    conditions: &mut Conditions,
) {
    let mut worse = judged.warnings.clone();
    for problem in report.iter().flat_map(|report| &report.problems).filter(|p| p.volume == seen.id) {
        let field = if problem.field.is_empty() { "spec" } else { &problem.field };
        worse.push(Problem::new("AgentRefuses", field, &problem.reason));
    }
    if let Some(said) = said {
        if !said.fault.is_empty() {
            worse.push(Problem { reason: "Fault", message: said.fault.clone() });
        }
        for held in &said.held {
            let message = format!(
                "node {} is about to remove {} of {} files and directories: approve or refuse it on the server \
                 (`kubectl exec` into its agent: `intermezzo hold`)",
                held.node, held.removals, held.objects
            );
            worse.push(Problem { reason: "RemovalsHeld", message });
        }
        if said.conflicts > 0 {
            let message =
                format!("{} conflicts are kept; `kubectl get conflicts` lists them", said.conflicts);
            worse.push(Problem { reason: "Conflicts", message });
        }
    }
    match worse.first() {
        None => conditions.set(DEGRADED, Truth::No, "Well", "nothing is known to work worse than asked"),
        Some(first) => conditions.set(DEGRADED, Truth::Yes, first.reason, sentences(&worse)),
    }
}

pub(crate) fn sentences(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// At most ten names: a condition is read by people.
fn names(all: &[&str]) -> String {
    let shown = all.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if all.len() > 10 { format!("{shown} and {} more", all.len() - 10) } else { shown }
}

/// The question that an agent has answered.
pub(crate) fn reached(said: Option<&v1::VolumeStatus>) -> Option<String> {
    said.and_then(|said| Ask::parse(&said.reached)).map(|ask| ask.to_string())
}

/// As Kubernetes can hold it: its integers end at 2^63.
pub(crate) fn position(from: &v1::Position) -> Position {
    Position { epoch: from.epoch.min(i64::MAX as u64), number: from.number.min(i64::MAX as u64) }
}

pub(crate) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
