//! `Volume`: a replicated tree with one server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::rules;

/// A replicated tree with one server. Every node with a Replicator of it holds it as plain files.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "intermezzo.dev",
    version = "v1alpha1",
    doc = "A replicated tree with one server.",
    kind = "Volume",
    plural = "volumes",
    shortname = "imv",
    category = "intermezzo",
    namespaced,
    status = "VolumeStatus",
    derive = "PartialEq",
    validation = rules::name(),
    printcolumn = r#"{"name":"Server","type":"string","jsonPath":".status.server","description":"Node that serves the volume"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"In sync","type":"string","jsonPath":".status.conditions[?(@.type==\"InSync\")].status"}"#,
    printcolumn = r#"{"name":"Replicators","type":"integer","jsonPath":".status.replicators","description":"Replicators on the replication list"}"#,
    printcolumn = r#"{"name":"Conflicts","type":"integer","jsonPath":".status.conflicts"}"#,
    printcolumn = r#"{"name":"Writes","type":"string","jsonPath":".spec.writes","priority":1}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1,"description":"Whether the spec is carried out as it is written, and which field is not"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::same_for_ever("source", "it is the tree itself; make another Volume for another directory"))]
pub struct VolumeSpec {
    /// Which node serves the volume.
    pub server: ServerSpec,
    /// What Replicators are made and with which settings, unless a Replicator says otherwise.
    #[serde(default)]
    pub replication: ReplicationSpec,
    /// How updates are admitted: `Optimistic` (anybody writes at once, conflicts are kept) or `Permits` (one writer at a time).
    #[serde(default)]
    pub writes: Writes,
    /// With `writes: Permits`, what programs may do on a node that cannot reach the volume's server: `Steal` (write; what
    /// excludes each other is a conflict later) or `ReadOnly` (EROFS).
    #[serde(default)]
    pub when_alone: WhenAlone,
    /// What happens to two updates that exclude each other. Whatever is chosen, the losing content is kept for a time.
    #[serde(default)]
    pub conflicts: Conflicts,
    /// How long the server keeps what lost where `conflicts` has decided (`ServerWins`, `ClientWins`). What waits for a person is
    /// kept until it is resolved.
    #[serde(default)]
    pub conflict_retention: ConflictRetention,
    /// What the server does when one node is about to remove a large part of the tree.
    #[serde(default)]
    pub mass_removal: MassRemoval,
    /// What the server keeps of what was overwritten, removed and renamed (`intermezzo history`, `intermezzo restore`). Absent:
    /// nothing; where it is taken away, what was kept goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<HistorySpec>,
    /// What fsync(2) and fdatasync(2) promise to programs: `Local` (it is on this node's disk), `Server` (on the server's as well;
    /// after 30 s, or 5 s without a connection to it, the call fails with ETIMEDOUT or EHOSTUNREACH) or `ServerIfThere` (the same,
    /// but then the call succeeds with this node's disk only).
    #[serde(default)]
    pub durability: Durability,
    /// Limits of each node's journal (KML) of this volume.
    #[serde(default)]
    pub log: LogSpec,
    /// What the tree may hold before programs get EDQUOT.
    #[serde(default, skip_serializing_if = "LimitsSpec::is_none")]
    pub limits: LimitsSpec,
    /// Patterns of paths that stay on the node where they are made, in the syntax of `.gitignore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 4096)))]
    pub exclude: Vec<String>,
    /// An existing directory of the server's node that becomes the volume's first content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What becomes of the nodes' data (trees and journals) when the Volume is deleted. A `source` directory always stays.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// A PersistentVolumeClaim (ReadWriteMany) for pods that may not name paths of the node. Absent: none is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSpec>,
}

/// The claim of a Volume, in its namespace. Pods that use it are placed on nodes where the volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// Its name. Absent: the Volume's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::dns_label("name"))]
    pub name: Option<String>,
}

impl Volume {
    /// Name of its claim, where it has one.
    #[must_use]
    pub fn claim_name(&self) -> Option<String> {
        let claim = self.spec.claim.as_ref()?;
        claim.name.clone().or_else(|| self.metadata.name.clone())
    }
}

/// What becomes of the nodes' data when a Volume or a Replicator is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays where it is, unmounted.
    #[default]
    Retain,
    /// It is removed from every node that can be reached.
    Delete,
}

/// Which node serves a volume: `nodeName`, or the best one of `nodeSelector`. Exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.nodeName) != has(self.nodeSelector)")
        .message("name one node (nodeName) or a selector (nodeSelector), exactly one of the two"),
    validation = Rule::new(
        "!has(oldSelf.nodeName) || (has(self.nodeName) && self.nodeName == oldSelf.nodeName)"
    ).message("the server of a Volume cannot be moved: keep spec.server.nodeName as it was")
)]
pub struct ServerSpec {
    /// Name of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::dns_label("nodeName"))]
    pub node_name: Option<String>,
    /// Nodes of which one is chosen and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

/// Defaults of a volume's Replicators.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationSpec {
    /// Nodes that get a Replicator by themselves. Absent: only Replicators that somebody makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Whether contents are kept in full or fetched when first opened.
    #[serde(default)]
    pub mode: Mode,
    /// Whether programs on the node may write.
    #[serde(default)]
    pub access: Access,
    /// Whether Lento may change the node's tree. `ReadOnly`: others' updates are held back there, and the node's own go out.
    #[serde(default)]
    pub lento_access: Access,
}

/// How much of a volume a Replicator keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Every content, always.
    #[default]
    Full,
    /// The whole tree; contents when first opened.
    OnDemand,
}

/// What programs on a node, or its Lento, may do with the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Access {
    /// Read and update.
    #[default]
    ReadWrite,
    /// Read.
    ReadOnly,
}

/// How updates are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Writes {
    /// Every node writes at once; the server judges afterwards.
    #[default]
    Optimistic,
    /// One node writes at a time: the holder of the permit, which programs of other nodes wait for.
    Permits,
}

/// What programs may do under permits on a node that cannot reach the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenAlone {
    /// Write, as with `Optimistic`.
    #[default]
    Steal,
    /// Read.
    ReadOnly,
}

/// What happens to two updates that exclude each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Conflicts {
    /// The server's state stays in the tree; the other waits, whole, for a person.
    #[default]
    KeepBoth,
    /// The server's state stays; the other is kept for a while (`conflictRetention`).
    ServerWins,
    /// The later one goes over the server's file, whose content is kept for a while. Where there is nothing to go over (the
    /// directory or the file is gone), the other waits for a person, as with `KeepBoth`.
    ClientWins,
    /// As `KeepBoth`, and until somebody resolves it no other node's update changes or removes the file.
    Manual,
}

/// How long what lost is kept where a policy has decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConflictRetention {
    /// Days in which the server's agent runs. Absent: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36_500))]
    pub days: Option<u32>,
    /// Bytes on the server's disk; beyond that the oldest go first. Absent: 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// When one node's removals wait for a person.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MassRemoval {
    /// What becomes of them.
    #[serde(default)]
    pub action: MassAction,
    /// Largest part of the tree that one node may remove at a time, in percent. Absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<u8>,
    /// Fewer files and directories than this are never held. Absent: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub minimum: Option<u64>,
}

/// What becomes of a removal of a large part of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MassAction {
    /// The server does not do it until somebody approves it (`intermezzo hold`).
    #[default]
    Hold,
    /// It is done like any other.
    Allow,
}

/// How long and how much of what was the server keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistorySpec {
    /// Days in which the server's agent runs. Absent: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36_500))]
    pub days: Option<u32>,
    /// Bytes of earlier contents on the server's disk; beyond that the oldest go first. The records of who did what take up to a
    /// tenth of it in addition. Absent: 10 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576))]
    pub max_bytes: Option<u64>,
    /// Longest file that is copied before it is changed in place, where the file system cannot share its blocks (ext4, tmpfs).
    /// What is removed or replaced is moved aside, however large. Absent: 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_copy_bytes: Option<u64>,
}

impl HistorySpec {
    /// Days.
    #[must_use]
    pub fn days(&self) -> u32 {
        self.days.unwrap_or(30)
    }

    /// Bytes of contents.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes.unwrap_or(10 << 30)
    }

    /// Longest file that is copied.
    #[must_use]
    pub fn max_copy_bytes(&self) -> u64 {
        self.max_copy_bytes.unwrap_or(1 << 20)
    }
}

/// What fsync(2) promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Durability {
    /// What was written is on this node's disk.
    #[default]
    Local,
    /// It is on the server's disk as well, or the call fails.
    Server,
    /// It is on the server's disk as well, unless that cannot be had in time.
    ServerIfThere,
}

/// Limits of a node's journal of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogSpec {
    /// Largest size in bytes. Absent: 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 67_108_864))]
    pub max_bytes: Option<u64>,
    /// What writers meet when it is full.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What a volume's tree may hold on a node. Programs that need more get EDQUOT; others' updates still arrive, so nodes that
/// wrote at the same time may together be above a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Sum of the lengths of its files in bytes. Absent: no limit. Where there is one, contents are written through presto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_bytes: Option<u64>,
    /// Number of its files, directories and other inodes. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_inodes: Option<u64>,
}

impl LimitsSpec {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == LimitsSpec::default()
    }
}

/// What a writer meets when the journal is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenFull {
    /// It waits for space up to a limit, then gets ENOSPC.
    #[default]
    Wait,
    /// The volume is read-only on this node until there is space.
    ReadOnly,
}

/// Where a volume's first content comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A directory of the server's node; it must lie below a path that the node's administrator allows.
    HostPath(HostPath),
}

/// A directory of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPath {
    /// Absolute path without `..`, other than `/`.
    #[schemars(length(max = 4096))]
    #[x_kube(
        validation = Rule::new("self.startsWith('/') && self != '/'")
            .message("write an absolute path to a directory, such as /srv/data"),
        validation = Rule::new("!self.split('/').exists(part, part == '..')")
            .message("write the path without `..`")
    )]
    pub path: String,
}

/// How a volume is, as its server's agent and the operator saw it last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Node that serves the volume now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Newest durable position of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Name of the claim that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Nodes to which the server forwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replication_list: Vec<String>,
    /// Number of Replicators on the replication list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicators: Option<i64>,
    /// Number of Conflicts that nobody has resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicts: Option<i64>,
    /// The annotation `intermezzo.dev/wait` that the server's agent has answered: what had been written on the server by then
    /// is safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<String>,
    /// What is true of the volume: Accepted, Ready, Serving, Connected, InSync, Degraded; while it is deleted: Terminating.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A place in the total order of a volume's updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Incarnation of the server's log.
    pub epoch: u64,
    /// Number of the record in it.
    pub number: u64,
}

impl Volume {
    /// `namespace/name`: the volume's name everywhere outside Kubernetes.
    #[must_use]
    pub fn id(&self) -> String {
        crate::manifest::id(&self.metadata)
    }

    /// The node that `spec.server.nodeName` names.
    #[must_use]
    pub fn server_node(&self) -> Option<&str> {
        self.spec.server.node_name.as_deref()
    }
}
