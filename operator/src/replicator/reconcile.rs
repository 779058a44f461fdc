//! One turn for one Replicator.

use std::sync::Arc;
use std::time::Duration;

use intermezzo_api::condition::READY;
use intermezzo_api::{Replicator, ReplicatorStatus};
use jiff::Timestamp;
use kube_client::core::DeserializeGuard;
use kube_client::{Api, Resource, ResourceExt};
use kube_runtime::controller::Action;
use kube_runtime::finalizer::{Event, finalizer};
use tokio::time::Instant;

use super::terminate::{End, end};
use super::{status, validate};
use crate::apply::Version;
use crate::conditions::terminating;
use crate::context::{Context, ReconcileError, ends, unreadable};
use crate::names::FINALIZER;
use crate::rate::Write;
use crate::world::Snapshot;

const CALM: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(5);

/// One turn.
///
/// # Errors
/// Whatever is to be tried again.
pub async fn reconcile(
    guard: Arc<DeserializeGuard<Replicator>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let replicator = match &guard.0 {
        Ok(replicator) => Arc::new(replicator.clone()),
        Err(broken) => {
            let namespace = broken.metadata.namespace.as_deref().unwrap_or_default();
            let object = format!("Replicator {namespace}/{}", guard.name_any());
            context.events.warning(guard.as_ref(), "Unreadable", &unreadable(broken)).await;
            return Err(ReconcileError::Broken { object, reason: broken.error.clone() });
        }
    };
    let namespace = replicator.namespace().unwrap_or_default();
    let api: Api<Replicator> = Api::namespaced(context.client.clone(), &namespace);
    let world = context.world.now().ok_or(ReconcileError::NotListed)?;
    // Asked before: kube takes any cleanup without an error for a finished one.
    let left = if ends(replicator.meta()) {
        match end(&replicator, &world, context.deadline_of(replicator.meta())) {
            End::Waits(reason, message) => return wait(&replicator, reason, &message, &context, &api).await,
            End::Done(left) => left,
        }
    } else {
        None
    };
    let turn = |event| turn(event, left, &world, &context, &api);
    Ok(finalizer(&api, FINALIZER, replicator, turn).await?)
}

async fn turn(
    event: Event<Replicator>,
    left: Option<String>,
    world: &Snapshot,
    context: &Context,
    api: &Api<Replicator>,
) -> Result<Action, ReconcileError> {
    match event {
        Event::Apply(replicator) => {
            let problems = validate::validate(&replicator, world);
            let status = status::status(&replicator, &problems, world, Timestamp::now());
            let action = write(&replicator, &status, context, api).await?;
            let well = crate::conditions::holds(&status.conditions, READY);
            Ok(action.unwrap_or_else(|| Action::requeue(if well { CALM } else { SOON })))
        }
        Event::Cleanup(replicator) => {
            if let Some(left) = left {
                context.events.warning(replicator.as_ref(), "DataLeft", &left).await;
                if let Some(volume) = world.volumes.get(&replicator.volume_id()) {
                    context.events.warning(volume.as_ref(), "DataLeft", &left).await;
                }
            }
            context.writes.forget(&replicator.uid().unwrap_or_default());
            Ok(Action::await_change())
        }
    }
}

async fn wait(
    replicator: &Replicator,
    reason: &str,
    message: &str,
    context: &Context,
    api: &Api<Replicator>,
) -> Result<Action, ReconcileError> {
    let mut status = replicator.status.clone().unwrap_or_default();
    status.conditions = terminating(&status.conditions, replicator.meta().generation, reason, message);
    write(replicator, &status, context, api).await?;
    Ok(Action::requeue(Duration::from_secs(1)))
}

async fn write(
    replicator: &Replicator,
    status: &ReplicatorStatus,
    context: &Context,
    api: &Api<Replicator>,
) -> Result<Option<Action>, ReconcileError> {
    let before = replicator.status.clone().unwrap_or_default();
    let uid = replicator.uid().unwrap_or_default();
    let (old, new) = (before.conditions.clone(), &status.conditions);
    match context.writes.decide(&uid, (&before, &old), (status, new), Instant::now()) {
        Write::Never => Ok(None),
        // Somebody waits for this answer.
        Write::In(wait) if before.reached == status.reached => Ok(Some(Action::requeue(wait))),
        Write::Now | Write::In(_) => {
            crate::apply::status(api, replicator, status, Version::Any).await?;
            context.events.transitions(replicator, &old, new).await;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        at_client, context, deleted, replicator, report, seconds_ago, served, volume, world,
    };
    use serde_json::json;

    #[tokio::test]
    async fn a_deleted_replicator_stays_until_its_node_has_sent_everything() {
        let turn = |pending: u64| async move {
            let volume = served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &["b"]);
            let mut ends = replicator("v", "b");
            ends.metadata.finalizers = Some(vec![FINALIZER.into()]);
            ends.metadata.deletion_timestamp = deleted(seconds_ago(1));
            let mut world = world(vec![volume], vec![ends.clone()]);
            world.reports.insert("b".into(), report(vec![at_client("ns/v", pending)]));
            let (context, asked) = context(world);
            reconcile(Arc::new(DeserializeGuard(Ok(ends))), context).await.unwrap();
            let asked = asked.lock();
            let patched =
                |end: &str| asked.iter().any(|(method, path, _)| method == "PATCH" && path.ends_with(end));
            (patched("/replicators/v-b/status"), patched("/replicators/v-b"))
        };
        assert_eq!(turn(3).await, (true, false));
        assert_eq!(turn(0).await, (false, true));
    }
}
