//! Everything the operator looks at, as the API server told it last: Volumes, Replicators, Nodes.
//!
//! One broken object is not everybody's trouble: it is kept as it was when it could last be read, and reported.

use std::collections::{BTreeMap, BTreeSet};
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

/// What was listed of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed<T> {
    objects: Objects<T>,
    /// Objects that cannot be read, and of which no earlier version is known either.
    unreadable: BTreeSet<String>,
}

impl<T> Default for Listed<T> {
    fn default() -> Listed<T> {
        Listed { objects: Objects::new(), unreadable: BTreeSet::new() }
    }
}

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
    /// Volumes and Replicators that are there and of which nothing is known.
    pub unreadable: Unreadable,
}

/// Objects of which nothing but the name is known, by `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Volumes.
    pub volumes: BTreeSet<String>,
    /// Replicators.
    pub replicators: BTreeSet<String>,
}

impl Snapshot {
    /// The Replicators of a volume, the oldest first.
    #[must_use]
    pub fn replicators_of(&self, volume: &str) -> Vec<&Replicator> {
        let (namespace, name) = volume.split_once('/').unwrap_or_default();
        let of = |replicator: &&Replicator| {
            replicator.spec.volume == name && replicator.meta().namespace.as_deref() == Some(namespace)
        };
        let mut all: Vec<&Replicator> = self.replicators.values().map(Arc::as_ref).filter(of).collect();
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
    volumes: watch::Receiver<Option<Listed<Volume>>>,
    replicators: watch::Receiver<Option<Listed<Replicator>>>,
    nodes: watch::Receiver<Option<Listed<NodeFacts>>>,
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
        let (volumes, replicators) = (self.volumes.borrow().clone()?, self.replicators.borrow().clone()?);
        Some(Snapshot {
            volumes: volumes.objects,
            replicators: replicators.objects,
            nodes: self.nodes.borrow().as_ref()?.objects.clone(),
            reports: self.reports.borrow().clone(),
            unreadable: Unreadable { volumes: volumes.unreadable, replicators: replicators.unreadable },
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
) -> watch::Receiver<Option<Listed<T>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(None);
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut events = pin!(watcher(api, watcher::Config::default().any_semantic()).default_backoff());
        let mut listed = Listed::default();
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(Event::Init) => listed = Listed::default(),
                Ok(Event::InitApply(object)) => keep(&mut listed, sender.borrow().as_ref(), &take, &object),
                Ok(Event::InitDone) => {
                    sender.send_replace(Some(std::mem::take(&mut listed)));
                }
                Ok(Event::Apply(object)) => {
                    let mut one = Listed::default();
                    keep(&mut one, sender.borrow().as_ref(), &take, &object);
                    let name = name(&object);
                    sender.send_if_modified(|all| all.get_or_insert_default().put(&name, one));
                }
                Ok(Event::Delete(object)) => {
                    let name = name(&object);
                    sender.send_if_modified(|all| {
                        all.as_mut().is_some_and(|all| all.put(&name, Listed::default()))
                    });
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

impl<T: PartialEq> Listed<T> {
    /// Puts what is known of one object in the place of what was. Whether that changes anything.
    fn put(&mut self, name: &str, mut one: Listed<T>) -> bool {
        let new = one.objects.remove(name);
        let old = match &new {
            Some(new) => self.objects.insert(name.to_owned(), Arc::clone(new)),
            None => self.objects.remove(name),
        };
        let unreadable = match one.unreadable.contains(name) {
            true => self.unreadable.insert(name.to_owned()),
            false => self.unreadable.remove(name),
        };
        old != new || unreadable
    }
}

fn keep<K, T>(
    into: &mut Listed<T>,
    known: Option<&Listed<T>>,
    take: &impl Fn(&K) -> T,
    object: &DeserializeGuard<K>,
) where
    K: Resource<DynamicType = ()>,
{
    let name = name(object);
    match &object.0 {
        Ok(object) => drop(into.objects.insert(name, Arc::new(take(object)))),
        Err(broken) => {
            warn!(target: "world", kind = %K::kind(&()), name, error = %broken, "an object cannot be read; what it said before stays");
            match known.and_then(|all| all.objects.get(&name)) {
                Some(before) => drop(into.objects.insert(name, Arc::clone(before))),
                None => drop(into.unreadable.insert(name)),
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
    pub(crate) fn nodes(&self) -> watch::Receiver<Option<Listed<NodeFacts>>> {
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
            volumes: watch::channel(Some(Listed { objects: now.volumes, ..Listed::default() })).1,
            replicators: watch::channel(Some(Listed { objects: now.replicators, ..Listed::default() })).1,
            nodes: watch::channel(Some(Listed { objects: now.nodes, ..Listed::default() })).1,
            reports: watch::channel(now.reports).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::volume;
    use kube_client::core::error_boundary::InvalidObject;
    use serde_json::json;

    fn object(broken: bool) -> DeserializeGuard<Volume> {
        let read = volume("v", json!({"server": {"nodeName": "a"}}));
        let metadata = read.metadata.clone();
        DeserializeGuard(if broken {
            Err(InvalidObject { error: "newer".into(), metadata })
        } else {
            Ok(read)
        })
    }

    fn kept(known: Option<&Listed<Volume>>, broken: bool) -> Listed<Volume> {
        let mut into = Listed::default();
        keep(&mut into, known, &Volume::clone, &object(broken));
        into
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was_and_is_not_taken_for_gone() {
        let read = kept(None, false);
        assert_eq!(kept(Some(&read), true), read);
        // An operator that has just begun knows no earlier version.
        let mut unknown = kept(None, true);
        assert!(unknown.objects.is_empty() && unknown.unreadable.contains("ns/v"));
        assert!(unknown.put("ns/v", read.clone()));
        assert_eq!(unknown, read);
        assert!(!unknown.put("ns/v", read));
        assert!(unknown.put("ns/v", Listed::default()));
        assert_eq!(unknown, Listed::default());
    }
}
