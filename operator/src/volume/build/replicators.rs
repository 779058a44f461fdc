//! Replicators from the Volume's selector.

use std::collections::BTreeSet;
use std::time::Duration;

use intermezzo_api::names::MAX;
use intermezzo_api::{Replicator, ReplicatorSpec};
use jiff::Timestamp;
use kube_client::{Resource, ResourceExt};

use crate::conditions::{elapsed, find};
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
        Some(gone) => elapsed(gone.last_transition_time.0, now) < grace,
        None => true, // Its status has not told yet.
    }
}

fn replicator(seen: &Seen<'_>, node: &str) -> Replicator {
    let spec = ReplicatorSpec {
        volume: seen.volume.name_any(),
        node_name: node.to_owned(),
        ..ReplicatorSpec::default()
    };
    let mut replicator = Replicator::new(&name_for(seen, node), spec);
    replicator.metadata.namespace = seen.volume.namespace();
    replicator.metadata.owner_references = seen.volume.controller_owner_ref(&()).map(|owner| vec![owner]);
    let mut labels = names::labels("replicator");
    labels.insert(names::VOLUME_LABEL.into(), seen.volume.name_any());
    labels.insert(names::NODE_LABEL.into(), node.to_owned());
    replicator.metadata.labels = Some(labels);
    replicator
}

/// The name that the node's Replicator has; else `VOLUME-NODE`, unless somebody has that: volume `a-b` on node `c`, volume `a`
/// on node `b-c`, or one that was made by hand for another node.
fn name_for(seen: &Seen<'_>, node: &str) -> String {
    let ours = |one: &&&Replicator| seen.is_ours(one) && one.spec.node_name == node;
    if let Some(there) = seen.replicators.iter().find(ours) {
        return there.name_any();
    }
    let volume = seen.volume.name_any();
    let plain = format!("{volume}-{node}");
    let id = format!("{}/{plain}", seen.volume.namespace().unwrap_or_default());
    if plain.len() > MAX || seen.all_replicators.contains_key(&id) { hashed(&volume, node) } else { plain }
}

/// `VOLUME-NODE`, cut, with a hash at its end.
fn hashed(volume: &str, node: &str) -> String {
    // No name has a slash.
    let hash = names::hash(format!("{volume}/{node}").as_bytes());
    let cut: String = format!("{volume}-{node}").chars().take(MAX - 17).collect();
    format!("{cut}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{replicator, served, volume, world};
    use intermezzo_api::names::dns_label;
    use serde_json::json;

    #[test]
    fn names_stay_labels_and_apart() {
        let (long, a) = ("v".repeat(63), "n".repeat(63));
        let (one, two) = (hashed(&long, &a), hashed(&long, &format!("{a}2")));
        assert_eq!(dns_label(&one), Ok(()));
        assert_ne!(one, two);
        assert_ne!(hashed("a-b", "c"), hashed("a", "b-c"));
    }

    #[test]
    fn a_name_that_somebody_else_has_is_left_to_him() {
        let v = served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &[]);
        let mut all = world(vec![v.clone()], vec![]);
        assert_eq!(name_for(&Seen::new(&v, &all), "b"), "v-b");
        let mut other = replicator("v", "c");
        other.metadata.name = Some("v-b".into());
        all.replicators.insert("ns/v-b".into(), other.into());
        let hashed = name_for(&Seen::new(&v, &all), "b");
        assert!(hashed.starts_with("v-b-") && hashed.len() > 10, "{hashed}");
        // One that is there keeps its name, whoever comes later.
        let mut ours = super::replicator(&Seen::new(&v, &all), "b");
        ours.metadata.name = Some("v-b-old".into());
        all.replicators.insert("ns/v-b-old".into(), ours.into());
        assert_eq!(name_for(&Seen::new(&v, &all), "b"), "v-b-old");
    }
}
