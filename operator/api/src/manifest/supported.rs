//! What a manifest may ask for today. A setting that would be ignored is refused, never accepted silently.

use super::Manifests;
use super::error::{Problem, Problems};
use crate::volume::{Conflicts, Durability, Writes};
use crate::{Mode, Replicator, Volume};

const LATER: &str = "not supported yet";
const NEEDS_KUBERNETES: &str = "needs Kubernetes; without it name nodes";

impl Manifests {
    /// Refuses settings that agents do not carry out yet, and those that only the operator can.
    pub fn check_supported(&self, problems: &mut Problems) {
        for (id, volume) in &self.volumes {
            let file = self.file("Volume", id);
            for (field, why) in volume_settings(volume) {
                problems.push(Problem::object(file, "Volume", id, field, why));
            }
        }
        for (id, replicator) in &self.replicators {
            let file = self.file("Replicator", id);
            for (field, why) in replicator_settings(replicator) {
                problems.push(Problem::object(file, "Replicator", id, field, why));
            }
        }
    }
}

pub(super) fn volume_settings(volume: &Volume) -> Vec<(&'static str, String)> {
    let spec = &volume.spec;
    let mut refused = Vec::new();
    let mut unless = |fine: bool, field: &'static str, what: &str, why: &str| {
        if !fine {
            refused.push((field, format!("{what}: {why}")));
        }
    };
    unless(spec.server.node_selector.is_none(), "spec.server.nodeSelector", "a selector", NEEDS_KUBERNETES);
    unless(
        spec.replication.node_selector.is_none(),
        "spec.replication.nodeSelector",
        "a selector",
        "needs Kubernetes; without it add a Replicator for each node",
    );
    unless(spec.replication.mode == Mode::Full, "spec.replication.mode", "OnDemand", LATER);
    unless(spec.writes == Writes::Optimistic, "spec.writes", "Permits", LATER);
    unless(spec.conflicts == Conflicts::KeepBoth, "spec.conflicts", "any policy but KeepBoth", LATER);
    unless(spec.durability == Durability::Synced, "spec.durability", "Applied", LATER);
    unless(spec.exclude.is_empty(), "spec.exclude", "patterns", LATER);
    refused
}

pub(super) fn replicator_settings(replicator: &Replicator) -> Vec<(&'static str, String)> {
    let spec = &replicator.spec;
    let mut refused = Vec::new();
    let mut unless = |fine: bool, field: &'static str, what: &str| {
        if !fine {
            refused.push((field, format!("{what}: {LATER}")));
        }
    };
    unless(spec.mode != Some(Mode::OnDemand), "spec.mode", "OnDemand");
    unless(spec.pins.is_empty(), "spec.pins", "pins");
    refused
}
