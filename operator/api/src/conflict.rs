//! `Conflict`: an update that lost against another and is kept, for a person to look at.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::rules;

/// An update that lost against another one. The operator makes it from what the volume's server reports, and removes it when
/// the server keeps it no longer. Its content lies at the server; `intermezzo conflicts` shows it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "intermezzo.dev",
    version = "v1alpha1",
    doc = "An update that lost against another one and is kept.",
    kind = "Conflict",
    plural = "conflicts",
    shortname = "imc",
    category = "intermezzo",
    namespaced,
    derive = "PartialEq",
    validation = rules::frozen_spec(),
    printcolumn = r#"{"name":"Volume","type":"string","jsonPath":".spec.volume"}"#,
    printcolumn = r#"{"name":"Kind","type":"string","jsonPath":".spec.kind"}"#,
    printcolumn = r#"{"name":"From","type":"string","jsonPath":".spec.nodeName","description":"Node where the losing update was made"}"#,
    printcolumn = r#"{"name":"Path","type":"string","jsonPath":".spec.path"}"#,
    printcolumn = r#"{"name":"Size","type":"integer","jsonPath":".spec.size","priority":1}"#,
    printcolumn = r#"{"name":"Made","type":"date","jsonPath":".spec.time","description":"When the losing update was made"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ConflictSpec {
    /// Name of the Volume, in the same namespace.
    pub volume: String,
    /// Position of the verdict in the order of the volume's updates; it names the conflict.
    pub position: u64,
    /// What collided with what, such as `UpdateUpdate`.
    pub kind: String,
    /// Path of the object below the volume's root when it was judged.
    pub path: String,
    /// Node where the losing update was made.
    pub node_name: String,
    /// When it was made, by that node's clock (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub time: Option<String>,
    /// Bytes of content that are kept.
    #[serde(default)]
    pub size: u64,
}
