//! A Replicator's status, from the judgement and from what the server's agent and its own say.

use intermezzo_api::condition::{ACCEPTED, CONNECTED, DEGRADED, IN_SYNC, READY};
use intermezzo_api::{Access, Replicator, ReplicatorStatus};
use jiff::Timestamp;

use crate::conditions::{Conditions, Truth};
use crate::volume::dereference::server;
use crate::volume::status::{count, position, reached, sentences};
use crate::volume::validate::Problem;
use crate::world::Snapshot;

/// Reason of `Ready` while the Node object is missing.
pub const NODE_GONE: &str = "NodeGone";

/// Reason of `InSync` while others' updates are kept out of the tree.
pub const HELD_BACK: &str = "HeldBack";

fn is_held_back(replicator: &Replicator, world: &Snapshot) -> bool {
    let volume = world.volumes.get(&replicator.volume_id());
    volume.is_some_and(|volume| replicator.lento_access(volume) == Access::ReadOnly)
}

/// The status as it is now.
#[must_use]
pub fn status(
    replicator: &Replicator,
    problems: &[Problem],
    world: &Snapshot,
    now: Timestamp,
) -> ReplicatorStatus {
    let before = replicator.status.clone().unwrap_or_default();
    let (id, node) = (replicator.volume_id(), &replicator.spec.node_name);
    let own_report = world.reports.get(node);
    let own = own_report.and_then(|report| report.volume(&id)).filter(|said| said.role == "Client");
    let at_server = world.volumes.get(&id).and_then(|volume| server(volume)).and_then(|server| {
        let said = world.reports.get(server)?.volume(&id)?;
        said.replicators.iter().find(|replicator| replicator.node == *node)
    });
    let generation = replicator.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);

    match problems.first() {
        None => conditions.set(ACCEPTED, Truth::Yes, "Accepted", "the spec is right and carried out"),
        Some(first) => conditions.set(ACCEPTED, Truth::No, first.reason, sentences(problems)),
    }
    let connected = match (at_server, own) {
        (Some(said), _) => Truth::of(said.connected),
        (None, Some(said)) => Truth::of(said.connected),
        (None, None) => Truth::Unknown,
    };
    let (reason, message) = match connected {
        Truth::Yes => ("Connected", "connected to the server"),
        Truth::No => ("Away", "not connected to the server; updates wait on the node"),
        Truth::Unknown => ("AgentAway", "neither the server's agent nor the node's says"),
    };
    conditions.set(CONNECTED, connected, reason, message);
    let (in_sync, reason, message) = match at_server {
        None => (Truth::Unknown, "AgentAway", "the server's agent does not say".to_owned()),
        Some(said) if said.syncing => (Truth::No, "Resync", "the whole tree is being compared".to_owned()),
        Some(said) if said.lag_records > 0 && is_held_back(replicator, world) => {
            let behind = said.lag_records;
            (
                Truth::No,
                HELD_BACK,
                format!("lentoAccess is ReadOnly: {behind} of others' updates are held back"),
            )
        }
        Some(said) if said.lag_records > 0 => {
            (Truth::No, "Behind", format!("{} updates behind the server", said.lag_records))
        }
        Some(said) if !said.connected => (Truth::Unknown, "Away", "not connected to the server".to_owned()),
        Some(_) => (Truth::Yes, "InSync", "it has what the server has".to_owned()),
    };
    conditions.set(IN_SYNC, in_sync, reason, message);
    let mut worse: Vec<String> = Vec::new();
    if let Some(report) = own_report {
        let here = report.problems.iter().filter(|problem| problem.volume == id);
        worse.extend(here.map(|problem| format!("{}: {}", problem.field, problem.reason)));
    }
    worse.extend(own.map(|said| said.fault.clone()).filter(|fault| !fault.is_empty()));
    let fault = !worse.is_empty();
    match fault {
        true => conditions.set(DEGRADED, Truth::Yes, "AgentRefuses", worse.join("; ")),
        false => conditions.set(DEGRADED, Truth::No, "Well", "nothing is known to work worse than asked"),
    }
    ready(replicator, problems, world, own.is_some() && !fault, &mut conditions);

    ReplicatorStatus {
        observed_generation: generation,
        position: at_server.and_then(|said| said.durable.as_ref()).map(position).or(before.position),
        pending: own.map(|said| count(said.pending)).or(before.pending),
        lag_seconds: at_server.and_then(|said| said.lag_seconds).map(|lag| (lag * 10.0).round() / 10.0),
        reached: reached(own).or(before.reached),
        conditions: conditions.done(),
    }
}

fn ready(
    replicator: &Replicator,
    problems: &[Problem],
    world: &Snapshot,
    mounted: bool,
    conditions: &mut Conditions,
) {
    let node = &replicator.spec.node_name;
    let attached = world.reports.contains_key(node);
    let (truth, reason, message) = if !attached && !world.nodes.contains_key(node) {
        let what = format!("there is no node {node}; what it had not sent is on its disk");
        (Truth::No, NODE_GONE, what)
    } else if !problems.is_empty() {
        (Truth::No, "NotAccepted", "see Accepted".to_owned())
    } else if !attached {
        (Truth::Unknown, "AgentAway", format!("the agent on node {node} is not attached to the operator"))
    } else if !mounted {
        (
            Truth::No,
            "Starting",
            format!("the agent on node {node} has not begun with it, or cannot: see Degraded"),
        )
    } else if replicator.spec.paused {
        (Truth::No, "Paused", "spec.paused: it neither sends nor receives".to_owned())
    } else {
        (Truth::Yes, "Ready", format!("node {node} holds the volume"))
    };
    conditions.set(READY, truth, reason, message);
}
