//! InterMezzo on a real cluster, end to end: what its users see with kubectl and inside of pods. `make test-cluster`.
//!
//! One cluster for all scenarios, in the order of [`ALL`]; each leaves it as the next one expects it: installed, the Volume
//! `shared` on all nodes, one pod `user` on each that has it at /shared.

mod away;
mod claim;
mod early;
mod ends;
mod install;
mod kills;
mod membership;
mod partition;
mod plugin;
mod presto;
mod privilege;
mod refused;
mod share;
mod wait;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::cluster::kubectl::Kubectl;
use crate::cluster::pod::Pod;

/// For whatever shall happen by itself, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Namespace of the chart's parts.
pub const SYSTEM: &str = "intermezzo-system";
/// Where nodes have their volumes: NAMESPACE/VOLUME below.
pub const MOUNTS: &str = "/run/intermezzo-mounts";
/// Names of the nodes; the first one serves.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// A scenario; what it saw, in a sentence.
pub type Scenario = fn(&mut Suite<'_>) -> Result<String>;

/// All of them by name, in the order in which they run.
pub const ALL: [(&str, Scenario); 17] = [
    ("install", install::install),
    ("helm-test", install::helm_test),
    ("pod-first", early::pod_before_volume),
    ("share", share::share),
    ("refused", refused::refused),
    ("conditions", refused::conditions),
    ("membership", membership::membership),
    ("paused", membership::by_hand_and_paused),
    ("claim", claim::claim),
    ("privilege", privilege::privilege),
    ("kills", kills::kills),
    ("presto", presto::killed),
    ("partition", partition::partition),
    ("plugin", plugin::plugin),
    ("away", away::away),
    ("delete", ends::volumes),
    ("uninstall", ends::uninstall),
];

/// What the scenarios share.
#[derive(Debug)]
pub struct Suite<'a> {
    /// The cluster.
    pub cluster: &'a mut Cluster,
    /// kubectl as its administrator.
    pub kubectl: Kubectl,
    /// The chart.
    pub chart: PathBuf,
    /// A directory outside of every volume.
    pub scratch: &'a Path,
}

impl<'a> Suite<'a> {
    /// A suite on a cluster that has the images.
    ///
    /// # Errors
    /// There is no chart.
    pub fn new(cluster: &'a mut Cluster, scratch: &'a Path) -> Result<Suite<'a>> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/intermezzo").canonicalize()?;
        let kubectl = cluster.kubectl();
        Ok(Suite { cluster, kubectl, chart, scratch })
    }

    /// The user's pod of a node.
    fn user(&self, node: &str) -> Result<Pod> {
        Pod::of(&self.kubectl, "default", "app=user", node)
    }

    /// The volume `shared` as the user's pod of each node sees it, in the order of [`NODES`].
    fn shared(&self) -> Result<Vec<PathBuf>> {
        NODES.iter().map(|node| Ok(self.user(node)?.root()?.join("shared"))).collect()
    }

    /// A volume as programs of a node see it, without a pod.
    fn on_node(&self, node: &str, volume: &str) -> Result<PathBuf> {
        Ok(self.path_of(node, MOUNTS)?.join(volume))
    }

    /// A path of a node as its programs see it.
    fn path_of(&self, node: &str, path: &str) -> Result<PathBuf> {
        Ok(self.cluster.node(node)?.root()?.join(path.trim_start_matches('/')))
    }

    /// A part of InterMezzo on a node: `presto` or `lento`.
    fn part(&self, part: &str, node: &str) -> Result<Pod> {
        Pod::of(&self.kubectl, SYSTEM, &format!("app.kubernetes.io/component={part}"), node)
    }

    /// A condition of an object: its status and its message.
    fn condition(&self, object: &str, kind: &str) -> Result<(String, String)> {
        let found = self.kubectl.get(&[object])?;
        let all = found.pointer("/status/conditions").and_then(Value::as_array);
        let one = all.into_iter().flatten().find(|one| text(one, "type") == kind);
        let one = one.with_context(|| format!("{object} has no condition {kind}"))?;
        Ok((text(one, "status").to_owned(), text(one, "message").to_owned()))
    }
}

/// A Volume of `default`, with these lines below `spec`.
fn volume(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {}\n", line.trim_end())).collect();
    format!(
        "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {{name: {name}, namespace: default}}\nspec:\n{spec}"
    )
}

/// A Replicator of `default`, with these lines below `spec`.
fn replicator(name: &str, spec: &str) -> String {
    volume(name, spec).replace("kind: Volume", "kind: Replicator")
}

/// A pod on node2 that has a Volume of `default` below /; it does not start without it.
fn user_of(volume: &str, name: &str) -> String {
    let manifest = include_str!("../cluster/manifests/user-of.yaml");
    manifest.replace("MOUNTS", MOUNTS).replace("VOLUME", volume).replace("NAME", name)
}

/// A text field of an object; empty where there is none.
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
