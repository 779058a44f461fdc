//! The whole operator: it waits for its turn, then runs until that ends. One that has lost its turn ends the process, so that
//! nothing it had in mind survives.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt};
use intermezzo_api::{Replicator, Volume};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube_client::core::DeserializeGuard;
use kube_client::{Api, Client, Resource};
use kube_runtime::Controller;
use kube_runtime::controller::Action;
use kube_runtime::reflector::ObjectRef;
use kube_runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::authority_store::AuthorityStore;
use crate::context::{Context, ReconcileError, again};
use crate::control::{Ends, channels};
use crate::desired::desired;
use crate::events::Events;
use crate::far_side::{self, FarSide};
use crate::metrics::Metrics;
use crate::options::Run;
use crate::rate::{Applied, Writes};
use crate::review::TokenReviews;
use crate::settings::Settings;
use crate::world::World;
use crate::{election, http, names, node_parts, replicator, volume};

/// Objects change in bursts: one answer for all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// Agents report often; statuses follow this fast at most.
const LOOK: Duration = Duration::from_millis(500);
/// How often the settings are read again: a ConfigMap's file changes without a sign that always arrives.
const SETTINGS: Duration = Duration::from_secs(10);

/// Runs until told to stop. Agents are served when this operator's turn comes.
///
/// # Errors
/// What cannot be started, and the loss of the Lease.
pub async fn run(options: Run, stop: CancellationToken) -> anyhow::Result<()> {
    let settings = Arc::new(Settings::read(&options.settings)?);
    let metrics = Metrics::default();
    let client = Client::try_default().await.context("cannot find the API server")?;
    http::listen(metrics.clone(), options.metrics, stop.clone())
        .await
        .with_context(|| format!("listen for metrics at {}", options.metrics))?;

    // One that waits for its turn is ready to take it.
    metrics.listed(true);
    let mut leads = election::run(client.clone(), &options.namespace, options.identity.clone(), stop.clone());
    let Some(turn) = stop.run_until_cancelled(leads.wait_for(|leads| *leads)).await else { return Ok(()) };
    turn.context("the election ended")?;
    metrics.leads(true);
    metrics.listed(false);

    let (ends, far_ends) = channels();
    let running = stop.child_token();
    let far = tokio::spawn(far_side::serve(FarSide {
        ends: far_ends,
        reviews: TokenReviews::new(client.clone(), &options.namespace),
        store: AuthorityStore::new(&client, &options.namespace),
        listen: options.control,
        stop: running.clone(),
    }));
    let world = World::follow(&client, ends.reports.clone(), &running);
    let context = Arc::new(Context {
        events: Events::new(client.clone(), &options.identity),
        settings: follow_settings(options.settings, settings, running.clone()),
        client,
        world: world.clone(),
        writes: Writes::default(),
        conflicts: Applied::default(),
        claims: Applied::default(),
        metrics,
        namespace: options.namespace,
        began: jiff::Timestamp::now(),
        stop: running.clone(),
    });
    tokio::spawn(hand_out(world, ends, context.metrics.clone(), running.clone()));
    start_controllers(&context);

    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        _ = leads.wait_for(|leads| !*leads) => Err(anyhow::anyhow!("another operator has the Lease, or it could not be renewed")),
        ended = far => match ended {
            Ok(Ok(())) if stop.is_cancelled() => Ok(()),
            Ok(Ok(())) => Err(anyhow::anyhow!("the control server ended")),
            Ok(Err(error)) => Err(error.context("the control server")),
            Err(error) => Err(anyhow::anyhow!("the control server: {error}")),
        },
    };
    running.cancel();
    result
}

/// Keeps what agents shall do up to date.
async fn hand_out(mut world: World, ends: Ends, metrics: Metrics, stop: CancellationToken) {
    loop {
        if let Some(now) = world.now() {
            metrics.listed(true);
            metrics.objects("Volume", now.volumes.len());
            metrics.objects("Replicator", now.replicators.len());
            metrics.objects("Agent", now.reports.len());
            let all = Some(desired(&now));
            ends.desired.send_if_modified(|before| {
                let modified = *before != all;
                *before = all;
                modified
            });
        }
        match stop.run_until_cancelled(world.changed()).await {
            Some(Ok(())) => tokio::time::sleep(SETTLE).await,
            Some(Err(_)) | None => return,
        }
    }
}

fn follow_settings(
    path: std::path::PathBuf,
    first: Arc<Settings>,
    stop: CancellationToken,
) -> watch::Receiver<Arc<Settings>> {
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut said = String::new();
        while stop.run_until_cancelled(tokio::time::sleep(SETTINGS)).await.is_some() {
            match Settings::read(&path) {
                Ok(settings) => {
                    said.clear();
                    sender.send_if_modified(|before| {
                        let modified = **before != settings;
                        if modified {
                            info!(target: "settings", "new settings");
                            *before = Arc::new(settings);
                        }
                        modified
                    });
                }
                Err(error) if error.to_string() != said => {
                    said = error.to_string();
                    error!(target: "settings", %error, "wrong settings; the last good ones stay");
                }
                Err(_) => {}
            }
        }
    });
    receiver
}

/// Whenever the receiver changes, but not more often than every `pause`.
fn changes<T: Clone + Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
    pause: Duration,
) -> impl Stream<Item = ()> + Send + 'static {
    futures_util::stream::unfold(receiver, move |mut receiver| async move {
        receiver.changed().await.ok()?;
        tokio::time::sleep(pause).await;
        receiver.mark_unchanged();
        Some(((), receiver))
    })
}

fn start_controllers(context: &Arc<Context>) {
    let client = &context.client;
    let config = || watcher::Config::default().any_semantic();
    let volumes: Api<DeserializeGuard<Volume>> = Api::all(client.clone());
    let replicators: Api<DeserializeGuard<Replicator>> = Api::all(client.clone());

    let volume = Controller::new(volumes.clone(), config())
        .watches(replicators.clone(), config(), |replicator: DeserializeGuard<Replicator>| {
            replicator.0.ok().map(|r| ObjectRef::new(&r.spec.volume).within(&namespace(&r)))
        })
        .reconcile_all_on(changes(context.world.nodes(), LOOK))
        .reconcile_all_on(changes(context.world.reports(), LOOK))
        .reconcile_all_on(changes(context.settings.clone(), LOOK));
    spawn("Volume", volume, volume::reconcile::reconcile, context);

    let world = context.world.clone();
    let of_volume = move |volume: DeserializeGuard<Volume>| {
        let id = format!("{}/{}", namespace(&volume), volume.meta().name.as_deref().unwrap_or_default());
        let all = world.now().map(|now| now.replicators).unwrap_or_default();
        let of = all.into_values().filter(move |replicator| replicator.volume_id() == id);
        of.map(|r| ObjectRef::new(r.meta().name.as_deref().unwrap_or_default()).within(&namespace(&*r)))
    };
    let replicator = Controller::new(replicators, config())
        .watches(volumes, config(), of_volume)
        .reconcile_all_on(changes(context.world.nodes(), LOOK))
        .reconcile_all_on(changes(context.world.reports(), LOOK));
    spawn("Replicator", replicator, replicator::reconcile::reconcile, context);

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &context.namespace);
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &context.namespace);
    let own = config().fields(&format!("metadata.name={}", names::OPERATOR));
    let parts = Controller::new(deployments, own)
        .owns(sets, config())
        .reconcile_all_on(changes(context.settings.clone(), LOOK));
    spawn("NodeParts", parts, node_parts::reconcile::reconcile, context);
}

fn namespace(object: &impl Resource) -> String {
    object.meta().namespace.clone().unwrap_or_default()
}

fn spawn<K, F>(
    kind: &'static str,
    controller: Controller<K>,
    turn: impl Fn(Arc<K>, Arc<Context>) -> F + Send + Sync + 'static,
    context: &Arc<Context>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Debug + Unpin + Send + Sync,
    F: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let stop = context.stop.clone();
    let context = Arc::clone(context);
    let run = controller
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(turn, |_, error, _| again(error), Arc::clone(&context))
        .for_each(move |result| {
            match result {
                Ok(_) => context.metrics.turn(kind, false),
                Err(kube_runtime::controller::Error::ReconcilerFailed(error, object)) => {
                    context.metrics.turn(kind, true);
                    if !matches!(error, ReconcileError::NotListed) {
                        warn!(target: "reconcile", kind, %object, %error, "tried again later");
                    }
                }
                // An object that is gone by the time its turn comes.
                Err(kube_runtime::controller::Error::ObjectNotFound(_)) => {}
                Err(error) => warn!(target: "reconcile", kind, %error, "the API server cannot be watched"),
            }
            std::future::ready(())
        });
    tokio::spawn(run);
}
