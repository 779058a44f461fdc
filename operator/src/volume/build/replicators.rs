//! Replicators from the Volume's selector.

use std::collections::BTreeSet;
use std::time::Duration;

use intermezzo_api::names::MAX;
use intermezzo_api::{Replicator, ReplicatorSpec};
use jiff::Timestamp;
use kube_client::{Resource, ResourceExt};

use crate::conditions::find;
use crate::names;
use crate::replicator::status::NODE_GONE;
use crate::settings::Settings;
use crate::volume::dereference::Seen;
use crate::volume::validate::Judged;

/// What shall be there, and what of ours no longer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be applied.
    pub apply: Vec<Replicator>,
    /// Names to be deleted.
    pub delete: Vec<String>,
}

/// Builds them. Without a server there is nothing to replicate, and what is there stays.
#[must_use]
pub fn build(seen: &Seen<'_>, judged: &Judged, settings: &Settings, now: Timestamp) -> Plan {
    if judged.server.is_none() {
        return Plan::default();
    }
    let ours: Vec<&Replicator> = seen.replicators.iter().copied().filter(|r| seen.is_ours(r)).collect();
    let mut wanted: BTreeSet<&str> = judged.wanted.iter().map(String::as_str).collect();
    let grace = Duration::from_secs(settings.node_gone_grace_seconds.into());
    wanted.extend(
        ours.iter().filter(|r| waits_for_node(seen, r, grace, now)).map(|r| r.spec.node_name.as_str()),
    );
    let delete = ours.iter().filter(|r| !wanted.contains(r.spec.node_name.as_str()));
    Plan {
        delete: delete.filter(|r| r.meta().deletion_timestamp.is_none()).map(|r| r.name_any()).collect(),
        apply: wanted.iter().map(|node| replicator(seen, node)).collect(),
    }
}

/// A node may be registered anew: its Replicator, and with it the server's memory of how far it is, stays for a while.
fn waits_for_node(seen: &Seen<'_>, replicator: &Replicator, grace: Duration, now: Timestamp) -> bool {
    if seen.nodes.contains_key(&replicator.spec.node_name) {
        return false;
    }
    let conditions =
        replicator.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match find(conditions, intermezzo_api::condition::READY).filter(|ready| ready.reason == NODE_GONE) {
        Some(gone) => now.duration_since(gone.last_transition_time.0).unsigned_abs() < grace,
        None => true, // Its status has not told yet.
    }
}

fn replicator(seen: &Seen<'_>, node: &str) -> Replicator {
    let spec = ReplicatorSpec {
        volume: seen.volume.name_any(),
        node_name: node.to_owned(),
        ..ReplicatorSpec::default()
    };
    let mut replicator = Replicator::new(&name(&seen.volume.name_any(), node), spec);
    replicator.metadata.namespace = seen.volume.namespace();
    replicator.metadata.owner_references = seen.volume.controller_owner_ref(&()).map(|owner| vec![owner]);
    let mut labels = names::labels("replicator");
    labels.insert(names::VOLUME_LABEL.into(), seen.volume.name_any());
    labels.insert(names::NODE_LABEL.into(), node.to_owned());
    replicator.metadata.labels = Some(labels);
    replicator
}

/// `VOLUME-NODE`; too long a name is cut and ends in a hash of the whole.
fn name(volume: &str, node: &str) -> String {
    let whole = format!("{volume}-{node}");
    if whole.len() <= MAX {
        return whole;
    }
    // FNV-1a: the same on every operator and after each of its updates.
    let hash = whole.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let cut: String = whole.chars().take(MAX - 17).collect();
    format!("{cut}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use intermezzo_api::names::dns_label;

    #[test]
    fn names_stay_labels_and_apart() {
        assert_eq!(name("home", "node-1"), "home-node-1");
        let (long, a) = ("v".repeat(63), "n".repeat(63));
        let (one, two) = (name(&long, &a), name(&long, &format!("{a}2")));
        assert_eq!(dns_label(&one), Ok(()));
        assert_ne!(one, two);
    }
}
