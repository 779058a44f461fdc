//! The end of a Replicator: its node sends what it still has, then (with `deletionPolicy: Delete`) removes its data.

use intermezzo_api::condition::TERMINATING;
use intermezzo_api::{DeletionPolicy, Replicator};

use crate::conditions::find;
use crate::context::Deadline;
use crate::world::Snapshot;

/// Reason of the condition `Terminating` while the node removes its data: from then on it has no part in the volume.
pub const DISCARDING: &str = "Discarding";
/// Reason while the node sends what it has.
pub const DRAINING: &str = "Draining";

/// How far the end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Not yet: one word and a sentence.
    Waits(&'static str, String),
    /// It may vanish. What stays on the node that somebody may miss.
    Done(Option<String>),
}

/// How far it is.
#[must_use]
pub fn end(replicator: &Replicator, world: &Snapshot, deadline: Deadline) -> End {
    let (id, node) = (replicator.volume_id(), &replicator.spec.node_name);
    let Some(volume) = world.volumes.get(&id).filter(|volume| super::validate::served(volume)) else {
        return End::Done(None); // The Volume's own end looks after the nodes.
    };
    let others = world.replicators_of(&id);
    if others.iter().any(|other| other.spec.node_name == *node && other.id() != replicator.id()) {
        return End::Done(None);
    }
    let late = deadline == Deadline::Over;
    let report = world.reports.get(node);
    let discards = volume.spec.deletion_policy == DeletionPolicy::Delete;
    let pending = match report.map(|report| report.volume(&id)) {
        Some(Some(said)) => Some(said.pending),
        Some(None) => Some(0), // It never began, or is done.
        None => None,
    };
    if is_discarding(replicator) || (discards && pending == Some(0)) {
        let said = report.and_then(|report| report.problems.iter().find(|problem| problem.volume == id));
        let said = said.map_or_else(String::new, |problem| format!(": {}", problem.reason));
        return match report {
            Some(report) if report.discarded.contains(&id) => End::Done(None),
            _ if late => {
                End::Done(Some(format!("node {node} did not say that it has removed its data of {id}{said}")))
            }
            _ => End::Waits(DISCARDING, format!("node {node} removes its data{said}")),
        };
    }
    match pending {
        Some(0) => End::Done(None),
        Some(count) if late => End::Done(Some(format!(
            "{count} updates made on node {node} never reached the server; they stay on its disk"
        ))),
        None if late => {
            End::Done(Some(format!("node {node} is not attached; what it had not sent stays on its disk")))
        }
        Some(count) => End::Waits(DRAINING, format!("node {node} sends {count} updates first")),
        None => End::Waits(DRAINING, format!("node {node} is not attached; it may have updates to send")),
    }
}

/// Whether its node has begun to remove its data.
#[must_use]
pub fn is_discarding(replicator: &Replicator) -> bool {
    let conditions =
        replicator.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    find(conditions, TERMINATING).is_some_and(|condition| condition.reason == DISCARDING)
}
