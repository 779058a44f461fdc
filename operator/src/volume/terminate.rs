//! The end of a Volume: agents let go of it (and with `deletionPolicy: Delete` remove their data), then it may vanish.
//! Nodes that do not answer delay that, but not for ever.

use std::collections::{BTreeMap, BTreeSet};

use intermezzo_api::{DeletionPolicy, Volume};

use crate::context::Deadline;
use crate::control::NodeName;
use crate::volume::dereference::Seen;

/// How far the end is. Nodes with what each says, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// These nodes are not done.
    Waits {
        /// One word for programs.
        reason: &'static str,
        /// Which, and why.
        nodes: BTreeMap<NodeName, String>,
    },
    /// It may vanish.
    Done {
        /// Nodes where nothing is left.
        removed: BTreeSet<NodeName>,
        /// Nodes on which data was to be removed and was not, and why.
        left: BTreeMap<NodeName, String>,
    },
}

/// Nodes that have, or may have, something of a Volume.
#[must_use]
pub fn members(volume: &Volume) -> BTreeSet<NodeName> {
    let status = volume.status.as_ref();
    let list = status.into_iter().flat_map(|status| status.replication_list.iter().chain(&status.server));
    list.cloned().collect()
}

/// How far the end of this one is.
#[must_use]
pub fn end(seen: &Seen<'_>, deadline: Deadline) -> End {
    let deletes = seen.volume.spec.deletion_policy == DeletionPolicy::Delete;
    let busy = |node: &NodeName| match seen.reports.get(node) {
        Some(report) if deletes => !report.discarded.contains(&seen.id),
        Some(report) => report.volume(&seen.id).is_some(),
        None => deletes && seen.nodes.contains_key(node),
    };
    let (waits, others): (BTreeSet<NodeName>, BTreeSet<NodeName>) =
        members(seen.volume).into_iter().partition(busy);
    let why = |nodes: BTreeSet<NodeName>| -> BTreeMap<NodeName, String> {
        nodes.into_iter().map(|node| (node.clone(), reason(seen, &node))).collect()
    };
    if !waits.is_empty() && deadline == Deadline::Ahead {
        return End::Waits { reason: if deletes { "Discarding" } else { "Unmounting" }, nodes: why(waits) };
    }
    if !deletes {
        return End::Done { removed: BTreeSet::new(), left: BTreeMap::new() };
    }
    let (gone, removed): (BTreeSet<NodeName>, BTreeSet<NodeName>) =
        others.into_iter().partition(|node| !seen.reports.contains_key(node));
    End::Done { removed, left: why(waits.into_iter().chain(gone).collect()) }
}

/// What a node says of the end, or why it says nothing.
fn reason(seen: &Seen<'_>, node: &str) -> String {
    match seen.reports.get(node) {
        None if seen.nodes.contains_key(node) => "its agent is not attached".to_owned(),
        None => "there is no such node any more".to_owned(),
        Some(report) => {
            let said = report.problems.iter().find(|problem| problem.volume == seen.id);
            said.map_or_else(|| "it has not answered yet".to_owned(), |problem| problem.reason.clone())
        }
    }
}

/// `a: why; b: why`.
#[must_use]
pub fn listed(nodes: &BTreeMap<NodeName, String>) -> String {
    nodes.iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>().join("; ")
}
