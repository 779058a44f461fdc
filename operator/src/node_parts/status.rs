//! How the node parts are: for the operator's metrics, and for its log when it changes.

use k8s_openapi::api::apps::v1::DaemonSet;
use kube_client::ResourceExt;

/// One DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartStatus {
    /// Name.
    pub name: String,
    /// Nodes that shall have it.
    pub wanted: i32,
    /// Nodes where it is ready.
    pub ready: i32,
    /// Nodes that run an older template; with `OnDelete` somebody has to delete their pods.
    pub old: i32,
}

/// As the API server says.
#[must_use]
pub fn of(set: &DaemonSet) -> PartStatus {
    let status = set.status.clone().unwrap_or_default();
    let wanted = status.desired_number_scheduled;
    PartStatus {
        name: set.name_any(),
        wanted,
        ready: status.number_ready,
        old: wanted.saturating_sub(status.updated_number_scheduled.unwrap_or(0)),
    }
}
