//! The claim of a Volume, what it is bound to, and the labels of nodes.

use std::collections::BTreeMap;

use intermezzo_api::Volume;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube_client::api::{Patch, PatchParams};
use kube_client::{Api, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use crate::apply;
use crate::context::{Context, ReconcileError};
use crate::control::NodeName;
use crate::names::MANAGER;
use crate::volume::build::claim::{self, Claim};

/// Makes what is missing, and takes away the claim that is no longer asked for.
///
/// # Errors
/// The API server's.
pub async fn claim(context: &Context, volume: &Volume, wanted: Option<&Claim>) -> Result<(), ReconcileError> {
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &volume.namespace().unwrap_or_default());
    let before = volume.status.as_ref().and_then(|status| status.claim.as_ref());
    let other = before.filter(|before| wanted.is_none_or(|wanted| wanted.claim.name_any() != **before));
    if let Some(other) = other {
        remove(context, volume, &claims, other).await?;
    }
    let Some(wanted) = wanted else { return Ok(()) };
    let (uid, digest) = (volume.uid().unwrap_or_default(), vec![wanted.digest()]);
    if !context.claims.is_due(&uid, &digest, Instant::now()) {
        return Ok(());
    }
    let name = wanted.claim.name_any();
    if let Some(there) = claims.get_opt(&name).await?
        && !is_of(&there, volume)
    {
        let note = format!(
            "spec.claim: a PersistentVolumeClaim {name} is there already and not this Volume's; write another name"
        );
        context.events.warning(volume, "ClaimTaken", &note).await;
        return Ok(());
    }
    let made = apply::object(&claims, &wanted.claim).await?;
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut bound = wanted.volume.clone();
    // A claim that was deleted and made anew is another one, to which nothing is bound by itself.
    if let Some(claim) = bound.spec.as_mut().and_then(|spec| spec.claim_ref.as_mut()) {
        claim.uid = made.uid();
    }
    apply::object(&volumes, &bound).await?;
    context.claims.note(&uid, digest, Instant::now());
    Ok(())
}

/// What is left of a Volume that goes. Its claim goes with it, as an object that it owns.
///
/// # Errors
/// The API server's.
pub async fn end(context: &Context, volume: &Volume, labelled: Vec<NodeName>) -> Result<(), ReconcileError> {
    let changes = labelled.into_iter().map(|node| (node, None)).collect();
    labels(context, volume, &changes).await?;
    if volume.spec.claim.is_some() || volume.status.as_ref().is_some_and(|status| status.claim.is_some()) {
        remove_bound(context, volume).await?;
    }
    context.claims.forget(&volume.uid().unwrap_or_default());
    Ok(())
}

async fn remove(
    context: &Context,
    volume: &Volume,
    claims: &Api<PersistentVolumeClaim>,
    name: &str,
) -> Result<(), ReconcileError> {
    if claims.get_opt(name).await?.is_some_and(|there| is_of(&there, volume)) {
        apply::delete(claims, name).await?;
        info!(target: "volume", volume = volume.id(), claim = name, "the claim is no longer asked for: deleted");
    }
    remove_bound(context, volume).await?;
    context.claims.forget(&volume.uid().unwrap_or_default());
    Ok(())
}

async fn remove_bound(context: &Context, volume: &Volume) -> Result<(), ReconcileError> {
    let Some(name) = claim::volume_name(volume) else { return Ok(()) };
    apply::delete(&Api::<PersistentVolume>::all(context.client.clone()), &name).await
}

/// Whether the Volume owns it.
fn is_of(there: &PersistentVolumeClaim, volume: &Volume) -> bool {
    let uid = volume.uid();
    uid.is_some() && there.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

/// Changes labels of nodes. One that is gone needs none.
///
/// # Errors
/// The API server's.
pub async fn labels(
    context: &Context,
    volume: &Volume,
    changes: &BTreeMap<NodeName, Option<&'static str>>,
) -> Result<(), ReconcileError> {
    let Some(key) = claim::label(volume) else { return Ok(()) };
    let nodes: Api<Node> = Api::all(context.client.clone());
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    for (node, value) in changes {
        let patch = json!({"metadata": {"labels": {&key: value}}});
        match nodes.patch_metadata(node, &params, &Patch::Merge(patch)).await {
            Ok(_) => {
                let mounted = value.is_some();
                info!(target: "volume", volume = volume.id(), node, mounted, "whether pods with its claim are placed here");
            }
            Err(kube_client::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
