//! One turn for one Volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use intermezzo_api::condition::READY;
use intermezzo_api::volume::Source;
use intermezzo_api::{Conflict, DeletionPolicy, Volume, VolumeStatus};
use jiff::Timestamp;
use kube_client::core::DeserializeGuard;
use kube_client::{Api, Resource, ResourceExt};
use kube_runtime::controller::Action;
use kube_runtime::finalizer::{Event, finalizer};
use tokio::time::Instant;
use tracing::{info, warn};

use super::dereference::Seen;
use super::terminate::{End, end, listed};
use super::{apply, build, status, validate};
use crate::apply::Version;
use crate::conditions::terminating;
use crate::context::{Context, ReconcileError, ends, unreadable};
use crate::control::NodeName;
use crate::names::FINALIZER;
use crate::rate::Write;

/// Another look without any news, for what was missed.
const CALM: Duration = Duration::from_secs(60);
/// While something is wrong, or ends.
const SOON: Duration = Duration::from_secs(5);

/// One turn.
///
/// # Errors
/// Whatever is to be tried again.
pub async fn reconcile(
    guard: Arc<DeserializeGuard<Volume>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let volume = match &guard.0 {
        Ok(volume) => Arc::new(volume.clone()),
        Err(broken) => {
            let object = format!(
                "Volume {}/{}",
                broken.metadata.namespace.as_deref().unwrap_or_default(),
                guard.name_any()
            );
            context.events.warning(guard.as_ref(), "Unreadable", &unreadable(broken)).await;
            return Err(ReconcileError::Broken { object, reason: broken.error.clone() });
        }
    };
    let api: Api<Volume> = Api::namespaced(context.client.clone(), &volume.namespace().unwrap_or_default());
    // Asked before: kube takes any cleanup without an error for a finished one.
    let ended = if ends(volume.meta()) { Some(end_of(&volume, &context)?) } else { None };
    if let Some(End::Waits { reason, nodes }) = &ended {
        return wait(&volume, reason, nodes, &context, &api).await;
    }
    let turn = |event| turn(event, ended, &context, &api);
    Ok(finalizer(&api, FINALIZER, volume, turn).await?)
}

async fn turn(
    event: Event<Volume>,
    ended: Option<End>,
    context: &Context,
    api: &Api<Volume>,
) -> Result<Action, ReconcileError> {
    match event {
        Event::Apply(volume) => carry_out(&volume, context, api).await,
        Event::Cleanup(volume) => {
            let claims = context.settings.borrow().claims;
            if claims && let Some(world) = context.world.now() {
                let labelled = build::claim::labelled(&Seen::new(&volume, &world));
                apply::claim::end(context, &volume, labelled).await?;
            }
            if let Some(End::Done { removed, left }) = ended {
                tell_end(&volume, &removed, &left, context).await;
            }
            context.writes.forget(&volume.uid().unwrap_or_default());
            context.conflicts.forget(&volume.uid().unwrap_or_default());
            Ok(Action::await_change())
        }
    }
}

async fn carry_out(volume: &Volume, context: &Context, api: &Api<Volume>) -> Result<Action, ReconcileError> {
    let world = context.world.now().ok_or(ReconcileError::NotListed)?;
    let settings = context.settings.borrow().clone();
    let now = Timestamp::now();

    let seen = Seen::new(volume, &world);
    let judged = validate::validate(&seen, &settings);
    let plan = build::replicators::build(&seen, &judged, &settings, now);
    let conflicts =
        build::conflicts::build(&seen).filter(|wanted| !wanted.is_empty() || had_conflicts(volume));
    let status = status::status(&seen, &judged, now);

    // What is no longer asked for is known by the status before. What keeps a claim from being made keeps nothing else.
    if settings.claims
        && let Err(error) = apply::claim::claim(context, volume, build::claim::build(volume).as_ref()).await
    {
        let note = format!("spec.claim: {error}; tried again later");
        context.events.warning(volume, "ClaimNotMade", &note).await;
    }
    // The choice of a server is written before anything follows from it.
    let action = write(volume, &status, context, api).await?;
    apply::replicators(context, &seen, &plan).await?;
    if settings.claims
        && let Err(error) = apply::claim::labels(context, volume, &build::claim::labels(&seen)).await
    {
        let note = format!("spec.claim: nodes cannot be labelled: {error}; tried again later");
        context.events.warning(volume, "ClaimNotPlaced", &note).await;
    }
    if let Some(conflicts) = conflicts {
        let (uid, positions) = (volume.uid().unwrap_or_default(), positions(&conflicts));
        // Agents report often, and to compare takes a list.
        if context.conflicts.is_due(&uid, &positions, Instant::now()) {
            apply::conflicts(context, volume, &conflicts).await?;
            context.conflicts.note(&uid, positions, Instant::now());
        }
    }
    let well = crate::conditions::holds(&status.conditions, READY);
    Ok(action.unwrap_or_else(|| Action::requeue(if well { CALM } else { SOON })))
}

fn had_conflicts(volume: &Volume) -> bool {
    volume.status.as_ref().is_some_and(|status| status.conflicts != Some(0))
}

fn positions(conflicts: &[Conflict]) -> Vec<u64> {
    conflicts.iter().map(|conflict| conflict.spec.position).collect()
}

async fn write(
    volume: &Volume,
    status: &VolumeStatus,
    context: &Context,
    api: &Api<Volume>,
) -> Result<Option<Action>, ReconcileError> {
    let before = volume.status.clone().unwrap_or_default();
    let uid = volume.uid().unwrap_or_default();
    let (old, new) = (before.conditions.clone(), &status.conditions);
    match context.writes.decide(&uid, (&before, &old), (status, new), Instant::now()) {
        Write::Never => Ok(None),
        // Somebody waits for this answer.
        Write::In(wait) if before.reached == status.reached => Ok(Some(Action::requeue(wait))),
        Write::Now | Write::In(_) => {
            // Of two turns that choose a server at the same time, one is refused.
            let version = if before.server == status.server { Version::Any } else { Version::Read };
            crate::apply::status(api, volume, status, version).await?;
            context.events.transitions(volume, &old, new).await;
            Ok(None)
        }
    }
}

fn end_of(volume: &Volume, context: &Context) -> Result<End, ReconcileError> {
    let world = context.world.now().ok_or(ReconcileError::NotListed)?;
    Ok(end(&Seen::new(volume, &world), context.deadline_of(volume.meta())))
}

async fn wait(
    volume: &Volume,
    reason: &str,
    nodes: &BTreeMap<NodeName, String>,
    context: &Context,
    api: &Api<Volume>,
) -> Result<Action, ReconcileError> {
    let deadline = context.settings.borrow().deletion_deadline();
    let mut status = volume.status.clone().unwrap_or_default();
    let message = format!("waiting, {} s at most, for {}", deadline.as_secs(), listed(nodes));
    status.conditions = terminating(&status.conditions, volume.meta().generation, reason, message);
    write(volume, &status, context, api).await?;
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// What becomes of the data, for those who look at events: the object itself is about to go.
async fn tell_end(
    volume: &Volume,
    removed: &BTreeSet<NodeName>,
    left: &BTreeMap<NodeName, String>,
    context: &Context,
) {
    let id = volume.id();
    if volume.spec.deletion_policy == DeletionPolicy::Retain {
        info!(target: "volume", volume = id, "deleted; its data stays on the nodes");
        return;
    }
    if !removed.is_empty() {
        let nodes: Vec<&str> = removed.iter().map(String::as_str).collect();
        info!(target: "volume", volume = id, nodes = nodes.join(","), "deleted; its data is removed");
        let note = format!("the data is removed from nodes {}", nodes.join(", "));
        context.events.normal(volume, "DataRemoved", &note).await;
    }
    if let Some(Source::HostPath(at)) = &volume.spec.source {
        let note = format!(
            "the directory {} stays as it is; remove .intermezzo in it before another Volume adopts it",
            at.path
        );
        context.events.normal(volume, "SourceKept", &note).await;
    }
    if !left.is_empty() {
        let place = context.settings.borrow().host_directory.display().to_string();
        let note = format!("data stays in {place}/cache/{0} and {place}/state/{0}.*: {1}", id, listed(left));
        warn!(target: "volume", volume = id, note, "deleted; data stays on nodes");
        context.events.warning(volume, "DataLeft", &note).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{context, deleted, report, seconds_ago, served, volume, world};
    use serde_json::json;

    #[tokio::test]
    async fn the_choice_of_a_server_is_written_once_and_before_what_follows_from_it() {
        let spec = json!({"server": {"nodeName": "a"}, "replication": {"nodeSelector": {"matchLabels": {"node": "b"}}}});
        let mut new = volume("v", spec);
        new.metadata.finalizers = Some(vec![FINALIZER.into()]);
        new.metadata.resource_version = Some("7".into());
        let (context, asked) = context(world(vec![new.clone()], vec![]));
        reconcile(Arc::new(DeserializeGuard(Ok(new))), context).await.unwrap();

        let asked = asked.lock().clone();
        let patches: Vec<_> = asked.iter().filter(|(method, ..)| method == "PATCH").collect();
        let [(_, first, status), (_, second, replicator)] = patches.as_slice() else { panic!("{asked:?}") };
        assert!(first.ends_with("/namespaces/ns/volumes/v/status"), "{first}");
        assert_eq!(status.pointer("/status/server"), Some(&json!("a")));
        // Somebody who has chosen meanwhile is not overruled.
        assert_eq!(status.pointer("/metadata/resourceVersion"), Some(&json!("7")));
        assert!(second.ends_with("/namespaces/ns/replicators/v-b"), "{second}");
        assert_eq!(replicator.pointer("/spec/nodeName"), Some(&json!("b")));
    }

    #[tokio::test]
    async fn a_deleted_volume_stays_until_its_nodes_are_done_or_its_time_is_over() {
        let turn = |age: u64, leads: u64, discarded: bool| async move {
            let spec = json!({"server": {"nodeName": "a"}, "deletionPolicy": "Delete"});
            let mut ends = served(volume("v", spec), "a", &[]);
            ends.metadata.finalizers = Some(vec![FINALIZER.into()]);
            ends.metadata.deletion_timestamp = deleted(seconds_ago(age));
            let mut world = world(vec![ends.clone()], vec![]);
            if discarded {
                let mut report = report(vec![]);
                report.discarded.insert(ends.id());
                world.reports.insert("a".into(), report);
            }
            let (mut context, asked) = context(world);
            Arc::get_mut(&mut context).unwrap().began = seconds_ago(leads);
            reconcile(Arc::new(DeserializeGuard(Ok(ends))), context).await.unwrap();
            let asked = asked.lock();
            let patched =
                |end: &str| asked.iter().any(|(method, path, _)| method == "PATCH" && path.ends_with(end));
            let event = asked.iter().find_map(|(_, _, body)| body.get("reason").and_then(|it| it.as_str()));
            (patched("/volumes/v/status"), patched("/volumes/v"), event.map(str::to_owned))
        };
        assert_eq!(turn(1, 3600, false).await, (true, false, Some("Discarding".into())));
        assert_eq!(turn(1, 3600, true).await, (false, true, Some("DataRemoved".into())));
        assert_eq!(turn(100_000, 3600, false).await, (false, true, Some("DataLeft".into())));
        // The nodes may have done it long ago, and have not yet come to this operator.
        assert_eq!(turn(100_000, 1, false).await, (true, false, Some("Discarding".into())));
    }
}
