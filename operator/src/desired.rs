//! What each node shall do, from all objects: pure. A Volume counts once a server is written in its status, so that every
//! operator hands out the same.

use std::collections::{BTreeMap, BTreeSet};

use intermezzo_api::wait::Ask;
use intermezzo_api::{DeletionPolicy, Replicator, ReplicatorSpec, Volume, VolumeSpec};
use kube_client::Resource;

use crate::control::{NodeDesired, NodeName};
use crate::replicator::terminate::is_discarding;
use crate::replicator::validate::takes_part;
use crate::volume::dereference::server;
use crate::volume::terminate::members;
use crate::world::Snapshot;

/// What each node shall do. Every node that is known has an entry, if an empty one.
#[must_use]
pub fn desired(world: &Snapshot) -> BTreeMap<NodeName, NodeDesired> {
    let known = world.nodes.keys().chain(world.reports.keys());
    let mut all: BTreeMap<NodeName, NodeDesired> =
        known.map(|node| (node.clone(), NodeDesired::default())).collect();
    // Nobody may take what cannot be read for gone: an agent cannot read these either, and of such an object it keeps the
    // version that it has.
    let placeholders = (
        world.unreadable.volumes.iter().map(|id| named(id, Volume::new("", VolumeSpec::default()))),
        world
            .unreadable
            .replicators
            .iter()
            .map(|id| named(id, Replicator::new("", ReplicatorSpec::default()))),
    );
    let (volumes, replicators): (Vec<Volume>, Vec<Replicator>) =
        (placeholders.0.collect(), placeholders.1.collect());
    for desired in all.values_mut() {
        desired.volumes.extend(volumes.iter().cloned());
        desired.replicators.extend(replicators.iter().cloned());
    }
    for (id, volume) in &world.volumes {
        if volume.meta().deletion_timestamp.is_none() {
            add(&mut all, world, id, volume);
        } else if volume.spec.deletion_policy == DeletionPolicy::Delete {
            for node in members(volume) {
                all.entry(node).or_default().discard.insert(id.clone());
            }
        }
    }
    all
}

fn named<K: Resource>(id: &str, mut object: K) -> K {
    let (namespace, name) = id.split_once('/').unwrap_or_default();
    object.meta_mut().namespace = Some(namespace.to_owned());
    object.meta_mut().name = Some(name.to_owned());
    object
}

fn add(all: &mut BTreeMap<NodeName, NodeDesired>, world: &Snapshot, id: &str, volume: &Volume) {
    let Some(server) = server(volume) else { return };
    let replicators = world.replicators_of(id);
    let (ending, taking): (Vec<&Replicator>, Vec<&Replicator>) = replicators
        .iter()
        .copied()
        .filter(|replicator| takes_part(replicator, &replicators, server))
        .partition(|replicator| is_discarding(replicator));
    let volume = handed_out(volume, server);
    let address = world.reports.get(server).map(|report| report.advertise.clone());

    let at_server = all.entry(server.clone()).or_default();
    at_server.volumes.push(volume.clone());
    at_server.replicators.extend(taking.iter().map(|replicator| stripped(replicator)));
    for replicator in taking {
        let client = all.entry(replicator.spec.node_name.clone()).or_default();
        client.volumes.push(volume.clone());
        client.replicators.push(stripped(replicator));
        if let Some(address) = address.as_ref().filter(|address| !address.is_empty()) {
            client.peers.insert(server.clone(), address.clone());
        }
    }
    let busy: BTreeSet<NodeName> =
        all.iter().filter(|(_, d)| d.volumes.iter().any(|v| v.id() == id)).map(|(n, _)| n.clone()).collect();
    for replicator in ending.into_iter().filter(|replicator| !busy.contains(&replicator.spec.node_name)) {
        all.entry(replicator.spec.node_name.clone()).or_default().discard.insert(id.to_owned());
    }
}

/// The Volume as agents get it: the server by name, selectors resolved, and without what only the operator does.
fn handed_out(volume: &Volume, server: &str) -> Volume {
    let mut spec = volume.spec.clone();
    spec.server.node_name = Some(server.to_owned());
    spec.server.node_selector = None;
    spec.replication.node_selector = None;
    spec.deletion_policy = DeletionPolicy::default();
    spec.claim = None;
    let mut handed_out = Volume::new(&kube_client::ResourceExt::name_any(volume), spec);
    handed_out.metadata.namespace = volume.metadata.namespace.clone();
    handed_out.metadata.uid = volume.metadata.uid.clone();
    if let Some(ask) = Ask::of(volume) {
        ask.put(&mut handed_out);
    }
    handed_out
}

fn stripped(replicator: &Replicator) -> Replicator {
    let mut stripped =
        Replicator::new(&kube_client::ResourceExt::name_any(replicator), replicator.spec.clone());
    stripped.metadata.namespace = replicator.metadata.namespace.clone();
    stripped.metadata.uid = replicator.metadata.uid.clone();
    stripped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deleted, replicator, report, seconds_ago, served, volume, world};
    use intermezzo_api::manifest::{Manifests, Object, Role};
    use serde_json::json;

    fn names(desired: &NodeDesired) -> Vec<String> {
        desired.volumes.iter().map(Volume::id).collect()
    }

    #[test]
    fn each_node_gets_what_concerns_it_and_nothing_else() {
        let v = served(
            volume("v", json!({"server": {"nodeSelector": {}}, "deletionPolicy": "Delete"})),
            "a",
            &[],
        );
        let new = volume("new", json!({"server": {"nodeName": "a"}}));
        let mut all =
            world(vec![v, new], vec![replicator("v", "b"), replicator("v", "c"), replicator("new", "b")]);
        all.reports.insert("a".into(), report(vec![]));
        let desired = desired(&all);
        assert_eq!(names(&desired["a"]), ["ns/v"], "a Volume counts once its server is written down");
        assert_eq!(desired["a"].replicators.len(), 2);
        assert_eq!(names(&desired["b"]), ["ns/v"]);
        assert_eq!(desired["b"].replicators.len(), 1, "a node hears of itself only");
        assert_eq!(desired["b"].peers["a"], "10.0.0.1:7430");
        assert_eq!(desired["d"], NodeDesired::default(), "and whoever has no part gets nothing");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_from_a_node_that_has_it() {
        let mut all = world(
            vec![served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &[])],
            vec![replicator("v", "b")],
        );
        let texts = |all: &Snapshot, node: &str| -> Vec<String> {
            let desired = desired(all)[node].clone();
            let message = intermezzo_control::Desired::new(
                &desired.volumes,
                &desired.replicators,
                &BTreeMap::new(),
                &BTreeSet::new(),
            );
            message.unwrap().objects()
        };
        let read = |texts: &[String], before: &Manifests| {
            Manifests::read_each(texts.iter().map(String::as_str), before).0
        };
        let before = read(&texts(&all, "b"), &Manifests::default());
        assert_eq!(before.role("ns/v", "b"), Some(Role::Client));
        // An operator begins anew, and neither can be read.
        all.unreadable.volumes.insert("ns/v".into());
        all.unreadable.replicators.insert("ns/v-b".into());
        all.volumes.clear();
        all.replicators.clear();
        assert_eq!(read(&texts(&all, "b"), &before), before);
        let stranger = read(&texts(&all, "c"), &Manifests::default());
        assert!(stranger.volumes.is_empty() && stranger.replicators.is_empty());
    }

    #[test]
    fn agents_read_it_as_manifests_without_a_complaint() {
        let spec = json!({"server": {"nodeSelector": {}}, "replication": {"nodeSelector": {}, "mode": "OnDemand"},
            "writes": "Permits", "deletionPolicy": "Delete", "claim": {}});
        let all = world(vec![served(volume("v", spec), "a", &[])], vec![replicator("v", "b")]);
        for (node, role) in [("a", Role::Server), ("b", Role::Client)] {
            let mut manifests = Manifests::default();
            let desired = &desired(&all)[node];
            desired.volumes.iter().for_each(|v| manifests.insert(Object::Volume(Box::new(v.clone()))));
            desired
                .replicators
                .iter()
                .for_each(|r| manifests.insert(Object::Replicator(Box::new(r.clone()))));
            let again = manifests.to_yaml().unwrap();
            let read = Manifests::read_text(std::path::Path::new("desired"), &again).unwrap();
            assert_eq!(read.role("ns/v", node), Some(role));
        }
    }

    #[test]
    fn what_is_deleted_is_dropped_or_discarded() {
        let gone = |policy| {
            let spec = json!({"server": {"nodeName": "a"}, "deletionPolicy": policy});
            let mut v = served(volume("v", spec), "a", &["b"]);
            v.metadata.deletion_timestamp = deleted(seconds_ago(1));
            desired(&world(vec![v], vec![replicator("v", "b")]))
        };
        assert!(gone("Retain").values().all(|d| *d == NodeDesired::default()));
        let removed = gone("Delete");
        for node in ["a", "b"] {
            assert!(removed[node].discard.contains("ns/v") && removed[node].volumes.is_empty());
        }
        assert!(removed["c"].discard.is_empty());
    }
}
