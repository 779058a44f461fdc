//! Brings the API server to what was built.

pub mod claim;

use intermezzo_api::{Conflict, Replicator, Volume};
use kube_client::api::ListParams;
use kube_client::{Api, ResourceExt};
use tracing::info;

use super::build::replicators::Plan;
use crate::apply;
use crate::context::{Context, ReconcileError};
use crate::names::{MANAGED_BY, MANAGER, VOLUME_LABEL};
use crate::volume::dereference::Seen;

/// Applies the Replicators that differ from what is there, deletes those that are no longer asked for.
pub async fn replicators(context: &Context, seen: &Seen<'_>, plan: &Plan) -> Result<(), ReconcileError> {
    let namespace = seen.volume.namespace().unwrap_or_default();
    let api: Api<Replicator> = Api::namespaced(context.client.clone(), &namespace);
    for wanted in &plan.apply {
        let there = seen.replicators.iter().find(|there| there.name_any() == wanted.name_any());
        if there.is_some_and(|there| is_as(there, wanted)) {
            continue;
        }
        apply::object(&api, wanted).await?;
        if there.is_none() {
            let node = &wanted.spec.node_name;
            info!(target: "volume", volume = seen.id, node, "Replicator made from the selector");
            context
                .events
                .normal(seen.volume, "ReplicatorMade", &format!("node {node} gets the volume"))
                .await;
        }
    }
    for name in &plan.delete {
        apply::delete(&api, name).await?;
        info!(target: "volume", volume = seen.id, replicator = name, "Replicator deleted: the selector takes its node no longer");
        let note = format!("Replicator {name}: spec.replication.nodeSelector takes its node no longer");
        context.events.normal(seen.volume, "ReplicatorDeleted", &note).await;
    }
    Ok(())
}

fn is_as(there: &Replicator, wanted: &Replicator) -> bool {
    there.spec.volume == wanted.spec.volume
        && there.spec.node_name == wanted.spec.node_name
        && wanted.labels().iter().all(|(key, value)| there.labels().get(key) == Some(value))
        && there.owner_references() == wanted.owner_references()
}

/// Makes the Conflict objects that are missing and deletes those whose conflict is gone.
pub async fn conflicts(
    context: &Context,
    volume: &Volume,
    wanted: &[Conflict],
) -> Result<(), ReconcileError> {
    let namespace = volume.namespace().unwrap_or_default();
    let api: Api<Conflict> = Api::namespaced(context.client.clone(), &namespace);
    let ours = format!("{MANAGED_BY}={MANAGER},{VOLUME_LABEL}={}", volume.name_any());
    let there = api.list_metadata(&ListParams::default().labels(&ours)).await?;
    for conflict in wanted {
        if !there.iter().any(|object| object.name_any() == conflict.name_any()) {
            apply::object(&api, conflict).await?;
            let note =
                format!("{} of node {}: {}", conflict.spec.kind, conflict.spec.node_name, conflict.spec.path);
            context.events.warning(volume, "Conflict", &note).await;
        }
    }
    for object in there.iter().filter(|o| !wanted.iter().any(|conflict| conflict.name_any() == o.name_any()))
    {
        apply::delete(&api, &object.name_any()).await?;
    }
    Ok(())
}
