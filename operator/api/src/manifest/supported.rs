//! What a manifest may ask for without Kubernetes. A setting that would be ignored is refused, never accepted silently.

use super::Manifests;
use super::error::{Problem, Problems};
use crate::{DeletionPolicy, Volume};

impl Manifests {
    /// Refuses settings that only the operator can carry out.
    pub fn check_supported(&self, problems: &mut Problems) {
        for (id, volume) in &self.volumes {
            let file = self.file("Volume", id);
            for (field, why) in volume_settings(volume) {
                problems.push(Problem::object(file, "Volume", id, field, why));
            }
        }
    }
}

pub(super) fn volume_settings(volume: &Volume) -> Vec<(&'static str, String)> {
    let spec = &volume.spec;
    let mut refused = Vec::new();
    let mut kubernetes = |fine: bool, field: &'static str, why: &str| {
        if !fine {
            refused.push((field, why.to_owned()));
        }
    };
    kubernetes(
        spec.server.node_selector.is_none(),
        "spec.server.nodeSelector",
        "a selector: needs Kubernetes; without it name nodes",
    );
    kubernetes(
        spec.replication.node_selector.is_none(),
        "spec.replication.nodeSelector",
        "a selector: needs Kubernetes; without it add a Replicator for each node",
    );
    kubernetes(
        spec.deletion_policy == DeletionPolicy::Retain,
        "spec.deletionPolicy",
        "Delete: needs Kubernetes; without it remove the data by hand",
    );
    kubernetes(
        spec.claim.is_none(),
        "spec.claim",
        "a claim: needs Kubernetes; without it programs use the mount",
    );
    refused
}
