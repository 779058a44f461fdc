//! Everything the operator looks at, as the API server told it last: Volumes, Replicators, Nodes.
//!
//! One broken object is not everybody's trouble: it is kept as it was when it could last be read, and reported.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use intermezzo_api::{Replicator, Volume};
use k8s_openapi::api::core::v1::Node;
use kube_client::core::DeserializeGuard;
use kube_client::{Api, Client, Resource, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::control::{NodeName, Reports};

/// What matters of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its kubelet is well.
    pub ready: bool,
    /// Nobody has cordoned it.
    pub schedulable: bool,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> NodeFacts {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        NodeFacts {
            labels: node.labels().clone(),
            ready: conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            schedulable: node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true),
        }
    }
}

/// Objects by name (`namespace/name`, for nodes the name).
pub type Objects<T> = BTreeMap<String, Arc<T>>;

/// All of it at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Volumes, by `namespace/name`.
    pub volumes: Objects<Volume>,
    /// Replicators, by `namespace/name`.
    pub replicators: Objects<Replicator>,
    /// Nodes.
    pub nodes: Objects<NodeFacts>,
    /// Attached agents.
    pub reports: Reports,
}

impl Snapshot {
    /// The Replicators of a volume, the oldest first.
    #[must_use]
    pub fn replicators_of(&self, volume: &str) -> Vec<&Replicator> {
        let mut all: Vec<&Replicator> =
            self.replicators.values().map(Arc::as_ref).filter(|r| r.volume_id() == volume).collect();
        all.sort_by_key(|replicator| age(*replicator));
        all
    }
}

/// Sorts objects by age; two of one second by name.
pub fn age<K: Resource>(object: &K) -> (Option<jiff::Timestamp>, String) {
    let made = object.meta().creation_timestamp.as_ref().map(|time| time.0);
    (made, object.name_any())
}

/// Follows all of it.
#[derive(Clone, Debug)]
pub struct World {
    volumes: watch::Receiver<Option<Objects<Volume>>>,
    replicators: watch::Receiver<Option<Objects<Replicator>>>,
    nodes: watch::Receiver<Option<Objects<NodeFacts>>>,
    reports: watch::Receiver<Reports>,
}

impl World {
    /// Begins to follow, until told to stop.
    #[must_use]
    pub fn follow(client: &Client, reports: watch::Receiver<Reports>, stop: &CancellationToken) -> World {
        let node = |node: &Node| NodeFacts::from(node);
        World {
            volumes: follow(client, Volume::clone, stop),
            replicators: follow(client, Replicator::clone, stop),
            nodes: follow(client, node, stop),
            reports,
        }
    }

    /// All of it now; `None` while something has not been listed yet.
    #[must_use]
    pub fn now(&self) -> Option<Snapshot> {
        Some(Snapshot {
            volumes: self.volumes.borrow().clone()?,
            replicators: self.replicators.borrow().clone()?,
            nodes: self.nodes.borrow().clone()?,
            reports: self.reports.borrow().clone(),
        })
    }

    /// Waits until anything has changed; an error: the world has ended.
    ///
    /// # Errors
    /// The tasks that follow have ended.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.volumes.changed() => changed,
            changed = self.replicators.changed() => changed,
            changed = self.nodes.changed() => changed,
            changed = self.reports.changed() => changed,
        }
    }
}

fn follow<K, T>(
    client: &Client,
    take: impl Fn(&K) -> T + Send + Sync + 'static,
    stop: &CancellationToken,
) -> watch::Receiver<Option<Objects<T>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(None);
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut events = pin!(watcher(api, watcher::Config::default().any_semantic()).default_backoff());
        let mut listed = Objects::new();
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(Event::Init) => listed = Objects::new(),
                Ok(Event::InitApply(object)) => keep(&mut listed, &sender, &take, object),
                Ok(Event::InitDone) => {
                    sender.send_replace(Some(std::mem::take(&mut listed)));
                }
                Ok(Event::Apply(object)) => {
                    let mut one = Objects::new();
                    keep(&mut one, &sender, &take, object);
                    sender.send_if_modified(|all| {
                        let all = all.get_or_insert_default();
                        one.into_iter().fold(false, |modified, (name, object)| {
                            all.insert(name, object.clone()).as_ref() != Some(&object) || modified
                        })
                    });
                }
                Ok(Event::Delete(object)) => {
                    let name = name(&object);
                    sender
                        .send_if_modified(|all| all.as_mut().is_some_and(|all| all.remove(&name).is_some()));
                }
                Err(error) => warn!(target: "world", kind = %K::kind(&()), %error, "cannot watch"),
            }
        }
    });
    receiver
}

fn name(object: &impl Resource) -> String {
    match object.meta().namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn keep<K, T>(
    into: &mut Objects<T>,
    sender: &watch::Sender<Option<Objects<T>>>,
    take: &impl Fn(&K) -> T,
    object: DeserializeGuard<K>,
) where
    K: Resource<DynamicType = ()>,
{
    let name = name(&object);
    match &object.0 {
        Ok(object) => drop(into.insert(name, Arc::new(take(object)))),
        Err(broken) => {
            warn!(target: "world", kind = %K::kind(&()), name, error = %broken, "an object cannot be read; what it said before stays");
            if let Some(before) = sender.borrow().as_ref().and_then(|all| all.get(&name)) {
                into.insert(name, Arc::clone(before));
            }
        }
    }
}

/// The names of nodes that a selector takes; an error for people where it makes no sense.
///
/// # Errors
/// What is wrong with the selector.
pub fn selected(
    nodes: &Objects<NodeFacts>,
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
) -> Result<Vec<NodeName>, String> {
    use kube_client::core::{Selector, SelectorExt};
    let selector = Selector::try_from(selector.clone()).map_err(|error| error.to_string())?;
    let chosen = nodes.iter().filter(|(_, facts)| selector.matches(&facts.labels));
    Ok(chosen.map(|(name, _)| name.clone()).collect())
}

impl World {
    /// The nodes, for whoever waits for a change.
    #[must_use]
    pub fn nodes(&self) -> watch::Receiver<Option<Objects<NodeFacts>>> {
        self.nodes.clone()
    }

    /// The attached agents, for whoever waits for a change.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Reports> {
        self.reports.clone()
    }
}

#[cfg(test)]
impl World {
    /// One that never changes.
    pub(crate) fn fixed(now: Snapshot) -> World {
        World {
            volumes: watch::channel(Some(now.volumes)).1,
            replicators: watch::channel(Some(now.replicators)).1,
            nodes: watch::channel(Some(now.nodes)).1,
            reports: watch::channel(now.reports).1,
        }
    }
}
