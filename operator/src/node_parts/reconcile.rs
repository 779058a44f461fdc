//! One turn for the node parts: whatever the Deployment, a DaemonSet or the settings say anew.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube_client::{Api, Resource};
use kube_runtime::controller::Action;

use super::{build, status};
use crate::apply;
use crate::context::{Context, ReconcileError};

const CALM: Duration = Duration::from_secs(300);

/// One turn.
///
/// # Errors
/// Whatever is to be tried again.
pub async fn reconcile(deployment: Arc<Deployment>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let Some(owner) = deployment.controller_owner_ref(&()) else { return Ok(Action::await_change()) };
    if deployment.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let settings = context.settings.borrow().clone();
    let sets: Api<DaemonSet> = Api::namespaced(context.client.clone(), &context.namespace);
    for wanted in build::build(&settings, &context.namespace, &owner) {
        let now = apply::object(&sets, &wanted).await?;
        context.metrics.part(&status::of(&now));
    }
    Ok(Action::requeue(CALM))
}
