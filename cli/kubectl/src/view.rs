//! A Volume with its Replicators, as the commands print it.

use std::collections::BTreeMap;

use intermezzo_api::condition::{CONNECTED, DEGRADED, IN_SYNC, READY, TERMINATING};
use intermezzo_api::volume::Position;
use intermezzo_api::{Condition, Replicator, Volume};
use serde::Serialize;

use crate::cluster::{Cluster, ClusterError};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeView {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    pub ready: Truth,
    pub in_sync: Truth,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflicts: Option<i64>,
    pub problems: Vec<String>,
    pub replicators: Vec<ReplicatorView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicatorView {
    pub name: String,
    pub node: String,
    pub connected: Truth,
    pub in_sync: Truth,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Positions behind the server; `None`: another epoch, or one of the two is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    pub problems: Vec<String>,
}

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Truth {
    Yes,
    No,
    Unknown,
}

impl std::fmt::Display for Truth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Truth::Yes => "yes",
            Truth::No => "no",
            Truth::Unknown => "?",
        })
    }
}

fn truth(conditions: &[Condition], type_: &str) -> Truth {
    match conditions.iter().find(|condition| condition.type_ == type_).map(|found| found.status.as_str()) {
        Some("True") => Truth::Yes,
        Some("False") => Truth::No,
        _ => Truth::Unknown,
    }
}

/// What a person should know: conditions that are not as they should be. `Ready` and what the table shows has its cause in
/// another one.
fn problems(conditions: &[Condition]) -> Vec<String> {
    let wrong = |condition: &&Condition| match condition.type_.as_str() {
        READY | CONNECTED | IN_SYNC => false,
        DEGRADED | TERMINATING => condition.status == "True",
        _ => condition.status != "True",
    };
    conditions.iter().filter(wrong).map(|c| format!("{}: {}", c.reason, c.message)).collect()
}

/// As the server's log counts.
pub(crate) fn position(position: Option<&Position>) -> String {
    position.map(|position| format!("{}.{}", position.epoch, position.number)).unwrap_or_default()
}

impl ReplicatorView {
    fn new(replicator: &Replicator, server: Option<&Position>) -> ReplicatorView {
        let status = replicator.status.clone().unwrap_or_default();
        let behind = server.zip(status.position.as_ref()).filter(|(there, here)| there.epoch == here.epoch);
        ReplicatorView {
            name: replicator.id(),
            node: replicator.spec.node_name.clone(),
            connected: truth(&status.conditions, CONNECTED),
            in_sync: truth(&status.conditions, IN_SYNC),
            paused: replicator.spec.paused,
            behind: behind.map(|(there, here)| there.number.saturating_sub(here.number)),
            position: status.position,
            lag_seconds: status.lag_seconds,
            pending: status.pending,
            problems: problems(&status.conditions),
        }
    }
}

impl VolumeView {
    fn new(volume: &Volume, replicators: &[&Replicator]) -> VolumeView {
        let status = volume.status.clone().unwrap_or_default();
        let view = |one: &&Replicator| ReplicatorView::new(one, status.position.as_ref());
        let mut replicators: Vec<ReplicatorView> = replicators.iter().map(view).collect();
        replicators.sort_by(|a, b| a.node.cmp(&b.node));
        VolumeView {
            name: volume.id(),
            ready: truth(&status.conditions, READY),
            in_sync: truth(&status.conditions, IN_SYNC),
            problems: problems(&status.conditions),
            server: status.server,
            position: status.position,
            conflicts: status.conflicts,
            replicators,
        }
    }
}

/// Everything that is meant, by name. Replicators of Volumes that are not there are last.
pub(crate) async fn all(
    cluster: &Cluster,
    only: Option<&str>,
) -> Result<(Vec<VolumeView>, Vec<ReplicatorView>), ClusterError> {
    let volumes: Vec<Volume> = match only {
        Some(name) if cluster.space != crate::cluster::Space::All => vec![cluster.volume(name).await?],
        _ => cluster.list().await?,
    };
    let replicators: Vec<Replicator> = cluster.list().await?;
    let mut of: BTreeMap<String, Vec<&Replicator>> = BTreeMap::new();
    for replicator in &replicators {
        of.entry(replicator.volume_id()).or_default().push(replicator);
    }
    let meant = |name: Option<&str>| only.is_none_or(|only| name == Some(only));
    let mut views = Vec::new();
    for volume in volumes.iter().filter(|volume| meant(volume.metadata.name.as_deref())) {
        views.push(VolumeView::new(volume, &of.remove(&volume.id()).unwrap_or_default()));
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    let orphans = of.into_values().flatten().filter(|one| meant(Some(&one.spec.volume)));
    Ok((views, orphans.map(|one| ReplicatorView::new(one, None)).collect()))
}
