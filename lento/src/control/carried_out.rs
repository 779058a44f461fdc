//! What the operator said last, on disk, and what this node makes of it.

use super::kept::Kind;
use crate::desired::Desired;
use crate::desired::desired;
use intermezzo_api::manifest::Manifests;
use intermezzo_api::manifest::ObjectProblem;
use intermezzo_api::wait::Ask;
use intermezzo_proto::v1;
use lento_core::io::NodeName;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

const KIND: Kind = Kind { file: "desired", name: "desired-state", version: 1 };

#[derive(Clone, Default, Serialize, Deserialize)]
struct Kept {
    revision: String,
    objects: Vec<String>,
    /// Earlier versions of objects that could not be carried out as they are now.
    standing: Vec<String>,
    peers: BTreeMap<NodeName, String>,
    discard: BTreeSet<String>,
}

pub(super) struct CarriedOut {
    dir: PathBuf,
    node: NodeName,
    kept: Kept,
    manifests: Manifests,
    problems: Vec<ObjectProblem>,
}

impl CarriedOut {
    pub(super) fn new(dir: &Path, node: &str) -> CarriedOut {
        let (kept, manifests, problems) = Default::default();
        CarriedOut { dir: dir.to_owned(), node: node.to_owned(), kept, manifests, problems }
    }

    /// Takes what is on disk; `None`: there is nothing.
    ///
    /// # Errors
    /// Text for people: there is something, and it cannot be used.
    pub(super) fn load(&mut self) -> Result<Option<()>, String> {
        let Some(kept): Option<Kept> = KIND.read(&self.dir)? else { return Ok(None) };
        let standing = Manifests::read_each(texts(&kept.standing), &Manifests::default()).0;
        (self.manifests, self.problems) = Manifests::read_each(texts(&kept.objects), &standing);
        self.kept = kept;
        Ok(Some(()))
    }

    /// Takes what the operator says now, which is on disk when this returns.
    ///
    /// # Errors
    /// It could not be written; what was before stays.
    pub(super) fn replace(&mut self, said: v1::Desired) -> Result<(), String> {
        let (manifests, problems) = Manifests::read_each(texts(&said.objects), &self.manifests);
        let standing = problems.iter().filter_map(|problem| version(&manifests, problem)).collect();
        // An operator that has just begun does not know yet where everybody is.
        let mut peers = self.kept.peers.clone();
        peers.extend(said.peers.into_iter().map(|peer| (peer.node, peer.address)));
        let discard = said.discard.into_iter().collect();
        let kept = Kept { revision: said.revision, objects: said.objects, standing, peers, discard };
        KIND.write(&self.dir, &kept)?;
        (self.kept, self.manifests, self.problems) = (kept, manifests, problems);
        Ok(())
    }

    /// Of what is carried out; empty: nothing is known.
    pub(super) fn revision(&self) -> &str {
        &self.kept.revision
    }

    pub(super) fn problems(&self) -> &[ObjectProblem] {
        &self.problems
    }

    pub(super) fn of_node(&self) -> Desired {
        desired(&self.manifests, &self.node)
    }

    /// Where nodes listen.
    pub(super) fn peers(&self) -> &BTreeMap<NodeName, String> {
        &self.kept.peers
    }

    /// Who wants to know whether a volume is safe.
    pub(super) fn asks(&self) -> BTreeMap<String, Ask> {
        let volumes = self.manifests.volumes.iter();
        volumes.filter_map(|(name, volume)| Some((name.clone(), Ask::of(volume)?))).collect()
    }

    /// Volumes whose data on this node is to be removed; never one that it takes part in.
    pub(super) fn discard(&self) -> impl Iterator<Item = &String> {
        let unused = |volume: &&String| self.manifests.role(volume, &self.node).is_none();
        self.kept.discard.iter().filter(unused)
    }
}

fn texts(objects: &[String]) -> impl Iterator<Item = &str> {
    objects.iter().map(String::as_str)
}

/// The version of a broken object that stays in force, JSON.
fn version(manifests: &Manifests, problem: &ObjectProblem) -> Option<String> {
    match problem.kind.as_str() {
        "Volume" => serde_json::to_string(manifests.volumes.get(&problem.object)?).ok(),
        "Replicator" => serde_json::to_string(manifests.replicators.get(&problem.object)?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(revision: &str, exclude: &str, peers: &[(&str, &str)]) -> v1::Desired {
        let object = format!(
            r#"{{"apiVersion":"intermezzo.dev/v1alpha1","kind":"Volume","metadata":{{"name":"v","namespace":"t"}},"spec":{{"server":{{"nodeName":"a"}},"exclude":["{exclude}"]}}}}"#
        );
        let peer = |&(node, address): &(&str, &str)| v1::Peer { node: node.into(), address: address.into() };
        v1::Desired {
            revision: revision.to_owned(),
            objects: vec![object],
            peers: peers.iter().map(peer).collect(),
            discard: vec!["t/v".to_owned(), "t/gone".to_owned()],
        }
    }

    #[test]
    fn what_worked_and_where_nodes_are_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = CarriedOut::new(dir.path(), "a");
        assert_eq!(first.load(), Ok(None));
        first.replace(said("1", "*.o", &[("b", "10.0.0.2:1")])).unwrap();
        first.replace(said("2", "[z-a]", &[("c", "10.0.0.3:1")])).unwrap();
        let mut second = CarriedOut::new(dir.path(), "a");
        assert_eq!(second.load(), Ok(Some(())));
        for carried_out in [&first, &second] {
            assert!(carried_out.of_node()["t/v"].is_server("a"), "the version that works stays");
            assert_eq!(carried_out.revision(), "2");
            assert_eq!(carried_out.problems()[0].field, "spec.exclude[0]");
            assert_eq!(carried_out.peers().keys().collect::<Vec<_>>(), ["b", "c"]);
            assert_eq!(carried_out.discard().collect::<Vec<_>>(), ["t/gone"], "never what is in use");
        }
    }
}
