//! What this node shall do, taken from the manifests: one entry for each volume in which it takes part.

use intermezzo_api::Access;
use intermezzo_api::Mode;
use intermezzo_api::Replicator;
use intermezzo_api::Volume;
use intermezzo_api::manifest::Manifests;
use intermezzo_api::manifest::Role;
use intermezzo_api::volume;
use intermezzo_api::volume::Conflicts;
use intermezzo_api::volume::Durability;
use intermezzo_api::volume::HistorySpec;
use intermezzo_api::volume::LimitsSpec;
use intermezzo_api::volume::MassAction;
use intermezzo_api::volume::Source;
use intermezzo_api::volume::WhenAlone;
use intermezzo_api::volume::WhenFull;
use lento_core::history::HistoryOptions;
use lento_core::io::Alone;
use lento_core::io::ConflictOptions;
use lento_core::io::MassOptions;
use lento_core::io::NodeName;
use lento_core::io::Policy;
use lento_core::io::Writes;
use lento_core::keeping::Keeping;
use lento_core::keeping::Pin;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// The part of `history.maxBytes` that its records may take in addition.
const ROWS: u64 = 10;

/// By `namespace/name`.
pub type Desired = BTreeMap<String, DesiredVolume>;

/// One volume, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredVolume {
    /// The server's node.
    pub server: NodeName,
    /// The nodes of the replication list, the server not among them.
    pub replication_list: BTreeSet<NodeName>,
    /// Those of them that neither send nor receive for now. The server keeps its log for them.
    pub paused: BTreeSet<NodeName>,
    /// What programs on this node may do.
    pub access: Access,
    /// What Lento may do with this node's tree.
    pub lento_access: Access,
    /// Limit of the KML; `None`: presto's default.
    pub log_max_bytes: Option<u64>,
    /// What writers meet when the KML is full.
    pub when_full: WhenFull,
    /// How users' updates are admitted.
    pub writes: Writes,
    /// What becomes of updates that exclude each other.
    pub conflicts: ConflictOptions,
    /// When a person is asked before one node's removals are done.
    pub mass: MassOptions,
    /// What is kept of what was; `None`: nothing.
    pub history: Option<HistorySpec>,
    /// A directory of the server's node that is the volume's tree.
    pub source: Option<String>,
    /// Names that stay on this node.
    pub exclude: Vec<String>,
    /// What the tree may hold.
    pub limits: LimitsSpec,
    /// What fsync waits for.
    pub durability: Durability,
    /// How much of it this node keeps; a server keeps all of it.
    pub keeping: Keeping,
}

impl DesiredVolume {
    /// For the core: how long, and how much of it may be its records.
    #[must_use]
    pub fn history_options(&self) -> Option<HistoryOptions> {
        let history = self.history?;
        let keep_for = u64::from(history.days()).saturating_mul(24 * 3600 * 1000);
        Some(HistoryOptions { keep_for, row_bytes: history.max_bytes() / ROWS })
    }

    /// Whether `node` serves it.
    #[must_use]
    pub fn is_server(&self, node: &str) -> bool {
        self.server == node
    }
}

/// What `node` shall do.
#[must_use]
pub fn desired(manifests: &Manifests, node: &str) -> Desired {
    let mut desired = Desired::new();
    for (name, volume) in &manifests.volumes {
        let (Some(role), Some(server)) = (manifests.role(name, node), volume.server_node()) else {
            continue;
        };
        let nodes = |wanted: &dyn Fn(&Replicator) -> bool| -> BTreeSet<NodeName> {
            let replicators = manifests.replicators_of(name).filter(|replicator| wanted(replicator));
            let nodes = replicators.map(|replicator| replicator.spec.node_name.clone());
            nodes.filter(|node| node != server).collect()
        };
        let lento_access = match (role, manifests.replicator_on(name, node)) {
            (Role::Client, Some(replicator)) => replicator.lento_access(volume),
            _ => Access::ReadWrite,
        };
        let access = match (role, manifests.replicator_on(name, node)) {
            // Who is let in by a permit has to see everything that was before.
            _ if lento_access == Access::ReadOnly && volume.spec.writes == volume::Writes::Permits => {
                Access::ReadOnly
            }
            (Role::Client, Some(replicator)) => replicator.access(volume),
            _ => Access::ReadWrite,
        };
        let keeping = match (role, manifests.replicator_on(name, node)) {
            (Role::Client, Some(replicator)) => keeping(replicator, volume),
            _ => Keeping::All,
        };
        let entry = DesiredVolume {
            server: server.to_owned(),
            replication_list: nodes(&|_| true),
            paused: nodes(&|replicator| replicator.spec.paused),
            access,
            lento_access,
            log_max_bytes: volume.spec.log.max_bytes,
            writes: writes(volume),
            conflicts: conflict_options(volume),
            mass: mass_options(volume),
            history: volume.spec.history,
            when_full: volume.spec.log.when_full,
            source: volume.spec.source.as_ref().map(|Source::HostPath(at)| at.path.clone()),
            exclude: volume.spec.exclude.clone(),
            limits: volume.spec.limits,
            durability: volume.spec.durability,
            keeping,
        };
        desired.insert(name.clone(), entry);
    }
    desired
}

fn writes(volume: &Volume) -> Writes {
    match (volume.spec.writes, volume.spec.when_alone) {
        (volume::Writes::Optimistic, _) => Writes::Optimistic,
        (volume::Writes::Permits, WhenAlone::Steal) => Writes::Permits(Alone::Steal),
        (volume::Writes::Permits, WhenAlone::ReadOnly) => Writes::Permits(Alone::ReadOnly),
    }
}

fn keeping(replicator: &Replicator, volume: &Volume) -> Keeping {
    match replicator.mode(volume) {
        Mode::Full => Keeping::All,
        Mode::OnDemand => {
            Keeping::OnDemand { pins: replicator.spec.pins.iter().map(|pattern| Pin::new(pattern)).collect() }
        }
    }
}

fn conflict_options(volume: &Volume) -> ConflictOptions {
    let retention = &volume.spec.conflict_retention;
    ConflictOptions {
        policy: match volume.spec.conflicts {
            Conflicts::KeepBoth => Policy::KeepBoth,
            Conflicts::ServerWins => Policy::ServerWins,
            Conflicts::ClientWins => Policy::ClientWins,
            Conflicts::Manual => Policy::Manual,
        },
        keep_for: retention
            .days
            .map_or(ConflictOptions::KEEP_FOR, |days| u64::from(days).saturating_mul(24 * 3600 * 1000)),
        keep_bytes: retention.max_bytes.unwrap_or(ConflictOptions::KEEP_BYTES),
    }
}

fn mass_options(volume: &Volume) -> MassOptions {
    let mass = &volume.spec.mass_removal;
    MassOptions {
        percent: match mass.action {
            MassAction::Hold => Some(mass.percent.unwrap_or(MassOptions::PERCENT)),
            MassAction::Allow => None,
        },
        minimum: mass.minimum.unwrap_or(MassOptions::MINIMUM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn on_b(volume: &str, replicator: &str) -> DesiredVolume {
        let text = format!(
            "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {{name: v, namespace: t}}\nspec: {volume}\n---\n\
             apiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\nmetadata: {{name: v-b, namespace: t}}\nspec: {replicator}\n"
        );
        let manifests = Manifests::read_text(Path::new("x.yaml"), &text).unwrap();
        assert_eq!(
            desired(&manifests, "a")["t/v"].lento_access,
            Access::ReadWrite,
            "the server's own tree is the volume"
        );
        desired(&manifests, "b").remove("t/v").unwrap()
    }

    #[test]
    fn who_may_change_the_tree_is_the_replicators_word_then_the_volumes() {
        let both = "{server: {nodeName: a}, replication: {lentoAccess: ReadOnly, access: ReadOnly}}";
        let plain = on_b(both, "{volume: v, nodeName: b}");
        assert_eq!((plain.lento_access, plain.access), (Access::ReadOnly, Access::ReadOnly));
        let own = on_b(both, "{volume: v, nodeName: b, lentoAccess: ReadWrite}");
        assert_eq!((own.lento_access, own.access), (Access::ReadWrite, Access::ReadOnly));
        let users = on_b("{server: {nodeName: a}}", "{volume: v, nodeName: b, lentoAccess: ReadOnly}");
        assert_eq!((users.lento_access, users.access), (Access::ReadOnly, Access::ReadWrite));
        let permits = "{server: {nodeName: a}, writes: Permits}";
        let permits = on_b(permits, "{volume: v, nodeName: b, lentoAccess: ReadOnly}");
        assert_eq!(permits.access, Access::ReadOnly, "who writes by a permit has to see what was before");
    }
}
