//! The names that the operator, the chart and the agents share, and the labels of what the operator makes.

use std::collections::BTreeMap;

/// Field manager of everything that the operator applies.
pub const MANAGER: &str = "intermezzo-operator";
/// The operator's Deployment, Service, ServiceAccount, Lease and ConfigMap.
pub const OPERATOR: &str = "intermezzo-operator";
/// ServiceAccount of the node parts. It may do nothing: it only proves on which node a pod runs.
pub const NODE_ACCOUNT: &str = "intermezzo-node";
/// DaemonSet of the file system filter.
pub const PRESTO: &str = "intermezzo-presto";
/// DaemonSet of the holder of presto's mounts.
pub const HOLDER: &str = "intermezzo-holder";
/// DaemonSet of the cache manager.
pub const LENTO: &str = "intermezzo-lento";
/// Secret with the authority's key, and ConfigMap with what agents trust.
pub const AUTHORITY: &str = "intermezzo-ca";
/// Key of the bundle in that ConfigMap.
pub const AUTHORITY_FILE: &str = "ca.crt";
/// Audience of the agents' tokens.
pub const AUDIENCE: &str = "intermezzo.dev/operator";
/// Where agents attach.
pub const CONTROL_PORT: u16 = 7440;
/// Finalizer of Volumes and Replicators.
pub const FINALIZER: &str = "intermezzo.dev/agents";
/// Label with the name of the Volume.
pub const VOLUME_LABEL: &str = "intermezzo.dev/volume";
/// Label with the name of the node.
pub const NODE_LABEL: &str = "intermezzo.dev/node";
/// Label of who made an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Labels of an object of this component.
#[must_use]
pub fn labels(component: &str) -> BTreeMap<String, String> {
    let mut labels = selector(component);
    labels.insert("app.kubernetes.io/version".into(), env!("CARGO_PKG_VERSION").into());
    labels.insert("app.kubernetes.io/part-of".into(), "intermezzo".into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// The labels among them that never change, for selectors.
#[must_use]
pub fn selector(component: &str) -> BTreeMap<String, String> {
    [("name", "intermezzo"), ("instance", "intermezzo"), ("component", component)]
        .map(|(key, value)| (format!("app.kubernetes.io/{key}"), value.to_owned()))
        .into()
}

/// FNV-1a: the same on every operator and after each of its updates.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
