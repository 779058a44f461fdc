//! The end of a Volume: agents let go of it (and with `deletionPolicy: Delete` remove their data), then it may vanish.
//! Nodes that do not answer delay that, but not for ever.

use std::collections::BTreeSet;

use intermezzo_api::{DeletionPolicy, Volume};
use jiff::Timestamp;
use std::time::Duration;

use crate::control::NodeName;
use crate::volume::dereference::Seen;

/// How far the end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// These nodes are not done.
    Waits {
        /// One word for programs.
        reason: &'static str,
        /// Which.
        nodes: BTreeSet<NodeName>,
    },
    /// It may vanish. Nodes on which data was to be removed and was not.
    Done {
        /// Which.
        left: BTreeSet<NodeName>,
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
pub fn end(seen: &Seen<'_>, deadline: Duration, now: Timestamp) -> End {
    let deletes = seen.volume.spec.deletion_policy == DeletionPolicy::Delete;
    let busy = |node: &NodeName| match seen.reports.get(node) {
        Some(report) if deletes => !report.discarded.contains(&seen.id),
        Some(report) => report.volume(&seen.id).is_some(),
        None => deletes && seen.nodes.contains_key(node),
    };
    let nodes: BTreeSet<NodeName> = members(seen.volume).into_iter().filter(busy).collect();
    let since = seen.volume.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    if nodes.is_empty() || now.duration_since(since).unsigned_abs() > deadline {
        let gone = |node: &NodeName| !seen.nodes.contains_key(node) && !seen.reports.contains_key(node);
        let left = members(seen.volume).into_iter().filter(|node| nodes.contains(node) || gone(node));
        return End::Done { left: left.filter(|_| deletes).collect() };
    }
    End::Waits { reason: if deletes { "Discarding" } else { "Unmounting" }, nodes }
}
