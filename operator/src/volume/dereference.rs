//! What a Volume refers to.

use intermezzo_api::{Replicator, Volume};
use kube_client::ResourceExt;

use crate::control::{NodeName, Report, Reports};
use crate::world::{NodeFacts, Objects, Snapshot};

/// A Volume and what it refers to.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The Volume.
    pub volume: &'a Volume,
    /// `namespace/name`.
    pub id: String,
    /// All Volumes, this one among them.
    pub volumes: &'a Objects<Volume>,
    /// Its Replicators, the oldest first.
    pub replicators: Vec<&'a Replicator>,
    /// All Replicators.
    pub all_replicators: &'a Objects<Replicator>,
    /// All nodes.
    pub nodes: &'a Objects<NodeFacts>,
    /// Attached agents.
    pub reports: &'a Reports,
}

impl<'a> Seen<'a> {
    /// Looks it up.
    #[must_use]
    pub fn new(volume: &'a Volume, world: &'a Snapshot) -> Seen<'a> {
        let id = volume.id();
        Seen {
            volume,
            volumes: &world.volumes,
            replicators: world.replicators_of(&id),
            all_replicators: &world.replicators,
            nodes: &world.nodes,
            reports: &world.reports,
            id,
        }
    }

    /// The server that was chosen for it.
    #[must_use]
    pub fn server(&self) -> Option<&'a NodeName> {
        server(self.volume)
    }

    /// What the server's agent says, while it is attached.
    #[must_use]
    pub fn report(&self, server: &str) -> Option<&'a Report> {
        self.reports.get(server)
    }

    /// Whether the operator made this Replicator from the Volume's selector.
    #[must_use]
    pub fn is_ours(&self, replicator: &Replicator) -> bool {
        let uid = self.volume.uid();
        uid.is_some()
            && replicator
                .owner_references()
                .iter()
                .any(|owner| owner.controller == Some(true) && Some(&owner.uid) == uid.as_ref())
    }
}

/// The server that was chosen for a Volume: only what is written in its status counts, so that all operators and all their
/// starts agree.
#[must_use]
pub fn server(volume: &Volume) -> Option<&NodeName> {
    volume.status.as_ref()?.server.as_ref()
}
