//! Whether a Replicator can be carried out.

use intermezzo_api::{Replicator, Volume};
use kube_client::{Resource, ResourceExt};

use crate::volume::dereference::server;
use crate::volume::validate::Problem;
use crate::world::{Snapshot, age};

/// Why it is not carried out as written; empty: it is.
#[must_use]
pub fn validate(replicator: &Replicator, world: &Snapshot) -> Vec<Problem> {
    let mut problems = Vec::new();
    let (volume, node) = (replicator.volume_id(), &replicator.spec.node_name);
    let Some(found) = world.volumes.get(&volume) else {
        let what = format!("there is no Volume {volume}; make it, or delete this Replicator");
        return vec![Problem::new("VolumeMissing", "spec.volume", what)];
    };
    match server(found) {
        None => {
            let what = format!("Volume {volume} has no server yet: see its conditions");
            problems.push(Problem::new("VolumeNotAccepted", "spec.volume", what));
        }
        Some(server) if server == node => {
            let what =
                format!("node {node} is the server of {volume} and has all of it; delete this Replicator");
            problems.push(Problem::new("NodeIsServer", "spec.nodeName", what));
        }
        Some(_) => {}
    }
    let others = world.replicators_of(&volume);
    if let Some(first) =
        first_of(replicator, &others).filter(|first| first.name_any() != replicator.name_any())
    {
        let what =
            format!("node {node} already has Replicator {} of this Volume; delete one", first.name_any());
        problems.push(Problem::new("NodeTaken", "spec.nodeName", what));
    }
    problems
}

/// Whether it is handed to the agents.
#[must_use]
pub fn takes_part(replicator: &Replicator, of_volume: &[&Replicator], server: &str) -> bool {
    replicator.spec.node_name != server
        && first_of(replicator, of_volume).is_some_and(|first| first.name_any() == replicator.name_any())
}

/// Whether its Volume can be served at all to this node.
#[must_use]
pub fn served(volume: &Volume) -> bool {
    server(volume).is_some() && volume.meta().deletion_timestamp.is_none()
}

/// Of all Replicators on its node the one that counts: none that is being deleted while there is another; the oldest.
fn first_of<'a>(replicator: &Replicator, of_volume: &[&'a Replicator]) -> Option<&'a Replicator> {
    let same = of_volume.iter().copied().filter(|other| other.spec.node_name == replicator.spec.node_name);
    same.min_by_key(|other| (other.meta().deletion_timestamp.is_some(), age(*other)))
}
