//! What one node shall do, as the operator says it.

use intermezzo_api::Replicator;
use intermezzo_api::Volume;
use intermezzo_api::wait::ANNOTATION;
use intermezzo_proto::v1;
use serde_json::Map;
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// A node's name.
pub type NodeName = String;

/// What one node shall do. Two of them are equal when their revisions are.
#[derive(Clone, Debug)]
pub struct Desired {
    message: v1::Desired,
    volumes: BTreeSet<String>,
}

impl Desired {
    /// From the objects that concern the node. Each Volume names its server in `spec.server.nodeName`, chosen by the
    /// operator where a selector asks for it; the Replicators are all of the Volume where the node is its server, else
    /// the node's own. `peers`: where other nodes listen; an agent keeps what it knows of those that are not named.
    /// `discard`: volumes (`namespace/name`) whose data on the node is to be removed; one that is also among `volumes` stays.
    ///
    /// # Errors
    /// An object that does not become JSON (none known).
    pub fn new<'a>(
        volumes: impl IntoIterator<Item = &'a Volume>,
        replicators: impl IntoIterator<Item = &'a Replicator>,
        peers: &BTreeMap<NodeName, String>,
        discard: &BTreeSet<String>,
    ) -> Result<Desired, serde_json::Error> {
        let mut objects = Vec::new();
        let mut names = BTreeSet::new();
        for volume in volumes {
            names.insert(volume.id());
            objects.push(essence(serde_json::to_value(volume)?).to_string());
        }
        for replicator in replicators {
            objects.push(essence(serde_json::to_value(replicator)?).to_string());
        }
        objects.sort();
        let peer =
            |(node, address): (&NodeName, &String)| v1::Peer { node: node.clone(), address: address.clone() };
        let mut message = v1::Desired {
            revision: String::new(),
            objects,
            peers: peers.iter().map(peer).collect(),
            discard: discard.difference(&names).cloned().collect(),
        };
        message.revision = revision(&message);
        names.extend(message.discard.iter().cloned());
        Ok(Desired { message, volumes: names })
    }

    /// Names this state: the same on every operator and after each of its starts.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.message.revision
    }

    /// Whether the node has to do with this volume (`namespace/name`).
    #[must_use]
    pub fn concerns(&self, volume: &str) -> bool {
        self.volumes.contains(volume)
    }

    /// The objects, as an agent gets them.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        self.message.objects.clone()
    }

    pub(crate) fn message(&self) -> v1::Desired {
        self.message.clone()
    }
}

impl PartialEq for Desired {
    fn eq(&self, other: &Desired) -> bool {
        self.message.revision == other.message.revision
    }
}

impl Eq for Desired {}

/// The object without what changes while nothing changes for the agent, and without the selectors that the operator has
/// carried out.
fn essence(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata
                .retain(|field, _| matches!(field.as_str(), "name" | "namespace" | "uid" | "annotations"));
            // A question to the agents; whatever else is annotated is not theirs.
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|name, _| name == ANNOTATION);
                if annotations.is_empty() {
                    metadata.remove("annotations");
                }
            }
        }
        for part in ["server", "replication"] {
            let spec =
                fields.get_mut("spec").and_then(|spec| spec.get_mut(part)).and_then(Value::as_object_mut);
            let carried_out =
                |spec: &&mut Map<String, Value>| part != "server" || spec.contains_key("nodeName");
            if let Some(spec) = spec.filter(carried_out) {
                spec.remove("nodeSelector");
            }
        }
    }
    object
}

fn revision(message: &v1::Desired) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for object in &message.objects {
        add("object");
        add(object);
    }
    for peer in &message.peers {
        add("peer");
        add(&peer.node);
        add(&peer.address);
    }
    for volume in &message.discard {
        add("discard");
        add(volume);
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Volume {
        let mut volume = Volume::new(name, Default::default());
        volume.metadata.namespace = Some("team".to_owned());
        volume.spec.server.node_name = Some("a".to_owned());
        volume
    }

    fn desired(volumes: &[Volume], discard: &[&str]) -> Desired {
        let discard = discard.iter().map(|&name| name.to_owned()).collect();
        Desired::new(volumes, [], &BTreeMap::new(), &discard).unwrap()
    }

    #[test]
    fn a_revision_changes_with_the_spec_and_not_with_status_metadata_or_order() {
        let (one, two) = (volume("one"), volume("two"));
        let before = desired(&[one.clone(), two.clone()], &[]);
        let mut touched = one.clone();
        touched.metadata.resource_version = Some("7".to_owned());
        touched.metadata.annotations = Some(BTreeMap::from([("x".to_owned(), "y".to_owned())]));
        touched.status = Some(Default::default());
        assert_eq!(desired(&[two.clone(), touched], &[]).revision(), before.revision());
        let mut moved = one;
        moved.spec.server.node_name = Some("b".to_owned());
        assert_ne!(desired(&[moved, two], &[]).revision(), before.revision());
    }

    #[test]
    fn a_volume_that_is_in_use_is_never_discarded() {
        let both = desired(&[volume("one")], &["team/one", "team/gone"]);
        assert_eq!(both.message().discard, ["team/gone"]);
        assert!(both.concerns("team/one") && both.concerns("team/gone") && !both.concerns("team/else"));
    }
}
