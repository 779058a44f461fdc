//! The PersistentVolume and PersistentVolumeClaim by which pods use a Volume where they may not name a path of the node; and
//! the labels of the nodes on which it is mounted, which the PersistentVolume asks for.
//!
//! A PersistentVolume's node affinity cannot be changed while it is bound. A label can: so pods are placed only where the
//! volume is, also when nodes come and go.

use std::collections::BTreeMap;
use std::path::Path;

use intermezzo_api::Volume;
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
    VolumeNodeAffinity, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_client::{Resource, ResourceExt};

use crate::control::NodeName;
use crate::names;
use crate::node_parts::build::MOUNTS;
use crate::volume::dereference::Seen;
use crate::volume::terminate::members;

/// A claim asks for a size. It cannot be changed later, so it says nothing: `spec.limits.maxBytes` does.
const NOMINAL: &str = "1Gi";
/// Value of a node's label.
const MOUNTED: &str = "mounted";

/// What pods claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// In the Volume's namespace.
    pub claim: PersistentVolumeClaim,
    /// What it is bound to.
    pub volume: PersistentVolume,
}

/// What shall be there.
#[must_use]
pub fn build(volume: &Volume) -> Option<Claim> {
    let name = volume.claim_name()?;
    let namespace = volume.namespace()?;
    let storage = BTreeMap::from([("storage".to_owned(), Quantity(NOMINAL.to_owned()))]);
    let access = Some(vec!["ReadWriteMany".to_owned()]);
    let mut labels = names::labels("claim");
    labels.insert(names::VOLUME_LABEL.into(), volume.name_any());
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            labels: Some(labels.clone()),
            owner_references: volume.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: access.clone(),
            resources: Some(VolumeResourceRequirements { requests: Some(storage.clone()), limits: None }),
            // No class, not even the default one: nobody but us makes what it is bound to.
            storage_class_name: Some(String::new()),
            volume_name: Some(volume_name(volume)?),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    };
    let path = Path::new(MOUNTS).join(&namespace).join(volume.name_any());
    let placed = NodeSelectorRequirement {
        key: label(volume)?,
        operator: "In".to_owned(),
        values: Some(vec![MOUNTED.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![placed]), match_fields: None };
    let volume = PersistentVolume {
        metadata: ObjectMeta { name: volume_name(volume), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeSpec {
            access_modes: access,
            capacity: Some(storage),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectReference::default()
            }),
            // A directory that is not there is an error and never made: it is there only while the volume is mounted.
            local: Some(LocalVolumeSource { path: path.display().to_string(), fs_type: None }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some("Retain".to_owned()),
            storage_class_name: Some(String::new()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    };
    Some(Claim { claim, volume })
}

impl Claim {
    /// A number for all of it: whether it is what was applied before.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let text = serde_json::to_string(&(&self.claim, &self.volume)).unwrap_or_default();
        names::hash(text.as_bytes())
    }
}

/// Name of its PersistentVolume, which has no namespace.
#[must_use]
pub fn volume_name(volume: &Volume) -> Option<String> {
    Some(format!("intermezzo-{}", volume.uid()?))
}

/// Key of the label on nodes where it is mounted.
#[must_use]
pub fn label(volume: &Volume) -> Option<String> {
    Some(format!("mounts.intermezzo.dev/{}", volume.uid()?))
}

/// Nodes whose label is to be changed, with its value; `None` takes it away.
#[must_use]
pub fn labels(seen: &Seen<'_>) -> BTreeMap<NodeName, Option<&'static str>> {
    let Some(key) = label(seen.volume) else { return BTreeMap::new() };
    let members = members(seen.volume);
    let mut changes = BTreeMap::new();
    for (node, facts) in seen.nodes {
        let has = facts.labels.contains_key(&key);
        let wanted = seen.volume.spec.claim.is_some()
            && members.contains(node)
            // An agent that the operator cannot see goes on.
            && seen.reports.get(node).map_or(has, |report| {
                let said = report.volume(&seen.id);
                report.presto_connected && said.is_some_and(|said| said.fault.is_empty())
            });
        if wanted != has {
            changes.insert(node.clone(), wanted.then_some(MOUNTED));
        }
    }
    changes
}

/// Nodes that have the label of a volume that goes.
#[must_use]
pub fn labelled(seen: &Seen<'_>) -> Vec<NodeName> {
    let Some(key) = label(seen.volume) else { return Vec::new() };
    let has = seen.nodes.iter().filter(|(_, facts)| facts.labels.contains_key(&key));
    has.map(|(node, _)| node.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{at_client, at_server, report, served, volume, world};
    use serde_json::json;

    #[test]
    fn a_claim_is_bound_to_the_mount_and_to_nodes_that_have_it() {
        let spec = json!({"server": {"nodeName": "a"}, "claim": {}});
        let Claim { claim, volume: bound } = build(&volume("v", spec)).unwrap();
        assert_eq!(claim.name_any(), "v");
        assert_eq!(claim.owner_references().len(), 1);
        let (wants, gives) = (claim.spec.unwrap(), bound.spec.clone().unwrap());
        assert_eq!(wants.volume_name, bound.metadata.name);
        assert_eq!(gives.claim_ref.unwrap().name.as_deref(), Some("v"));
        assert_eq!(gives.local.unwrap().path, "/run/intermezzo-mounts/ns/v");
        let mut limited = volume("v", json!({"server": {"nodeName": "a"}, "claim": {}}));
        limited.spec.limits.max_bytes = Some(1000);
        assert_eq!(build(&limited).unwrap().claim.spec, Some(wants), "a claim's size cannot be changed");
        assert_eq!(build(&volume("v", json!({"server": {"nodeName": "a"}}))), None);
    }

    #[test]
    fn nodes_have_the_label_while_the_volume_is_mounted_there() {
        let spec = json!({"server": {"nodeName": "a"}, "claim": {"name": "data"}});
        let v = served(volume("v", spec), "a", &["b", "c", "d"]);
        let mut all = world(vec![v.clone()], vec![]);
        let key = label(&v).unwrap();
        all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![])]));
        let mut faulty = at_client("ns/v", 0);
        faulty.fault = "no disk".into();
        all.reports.insert("b".into(), report(vec![at_client("ns/v", 0)]));
        all.reports.insert("c".into(), report(vec![faulty]));
        let labelled = |all: &mut crate::world::Snapshot, node: &str| {
            let mut facts = (*all.nodes[node]).clone();
            facts.labels.insert(key.clone(), MOUNTED.into());
            all.nodes.insert(node.into(), Arc::new(facts));
        };
        labelled(&mut all, "c");
        labelled(&mut all, "d"); // Its agent is away, so nothing is known to have changed.
        labelled(&mut all, "e"); // No longer a member.
        let changes = labels(&Seen::new(&v, &all));
        let wanted = [("a", Some(MOUNTED)), ("b", Some(MOUNTED)), ("c", None), ("e", None)];
        assert_eq!(changes, wanted.map(|(node, value)| (node.to_owned(), value)).into());
    }
}
