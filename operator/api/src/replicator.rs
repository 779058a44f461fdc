//! `Replicator`: one node's replica of one Volume.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::rules;
use crate::volume::{Access, Mode, Position, Volume};

/// One node's replica of one Volume, in the Volume's namespace. The server's own replica needs none.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "intermezzo.dev",
    version = "v1alpha1",
    doc = "One node's replica of one Volume.",
    kind = "Replicator",
    plural = "replicators",
    shortname = "imr",
    category = "intermezzo",
    namespaced,
    status = "ReplicatorStatus",
    derive = "PartialEq",
    validation = rules::name(),
    printcolumn = r#"{"name":"Volume","type":"string","jsonPath":".spec.volume"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Connected","type":"string","jsonPath":".status.conditions[?(@.type==\"Connected\")].status"}"#,
    printcolumn = r#"{"name":"In sync","type":"string","jsonPath":".status.conditions[?(@.type==\"InSync\")].status"}"#,
    printcolumn = r#"{"name":"Pending","type":"integer","jsonPath":".status.pending","description":"Own records without a verdict"}"#,
    printcolumn = r#"{"name":"Lag","type":"number","jsonPath":".status.lagSeconds","description":"Seconds behind the server"}"#,
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode","priority":1}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1,"description":"Whether the spec is carried out as it is written, and which field is not"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::same_for_ever("volume", "make another Replicator for another Volume, then delete this one"),
    validation = rules::same_for_ever("nodeName", "make another Replicator for another node, then delete this one")
)]
pub struct ReplicatorSpec {
    /// Name of the Volume, in the same namespace.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::dns_label("volume"))]
    pub volume: String,
    /// Node that holds the replica.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::dns_label("nodeName"))]
    pub node_name: String,
    /// How much it keeps. Absent: as the Volume says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// What programs on the node may do. Absent: as the Volume says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// What this node's Lento may do with the tree. `ReadOnly`: others' updates are held back, and the node's own go out. Absent:
    /// as the Volume says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lento_access: Option<Access>,
    /// Neither send nor receive for now; the mount stays and goes on journaling.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Patterns of paths whose contents are always kept (`mode: OnDemand`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 4096)))]
    pub pins: Vec<String>,
}

/// How a replica is, as its agent reported last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Position that is durable on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Own records that have no verdict yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    /// Age in seconds of the oldest record of the server that is not durable here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// The Volume's annotation `intermezzo.dev/wait` that this node's agent has answered: what had been written here by then
    /// is safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<String>,
    /// What is true of the replica: Accepted, Ready, Connected, InSync, Degraded; while it is deleted: Terminating.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Replicator {
    /// `namespace/name` of the Replicator.
    #[must_use]
    pub fn id(&self) -> String {
        crate::manifest::id(&self.metadata)
    }

    /// `namespace/name` of its Volume.
    #[must_use]
    pub fn volume_id(&self) -> String {
        format!("{}/{}", crate::manifest::namespace(&self.metadata), self.spec.volume)
    }

    /// How much it keeps, the Volume's default applied.
    #[must_use]
    pub fn mode(&self, volume: &Volume) -> Mode {
        self.spec.mode.unwrap_or(volume.spec.replication.mode)
    }

    /// What its Lento may do with the tree, the Volume's default applied.
    #[must_use]
    pub fn lento_access(&self, volume: &Volume) -> Access {
        self.spec.lento_access.unwrap_or(volume.spec.replication.lento_access)
    }

    /// What programs may do, the Volume's default applied.
    #[must_use]
    pub fn access(&self, volume: &Volume) -> Access {
        self.spec.access.unwrap_or(volume.spec.replication.access)
    }
}
