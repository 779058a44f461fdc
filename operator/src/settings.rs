//! What an administrator sets: the file that the chart renders into the ConfigMap `intermezzo-operator`.
//!
//! One Rust type is its schema. A field nobody knows and a wrong value are refused with the field's name.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings of the operator and of the node parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Images of the node parts.
    pub images: Images,
    /// Directory of every node for trees, journals, state and mounts.
    #[serde(default = "host_directory")]
    pub host_directory: PathBuf,
    /// Directories of nodes that Volumes may adopt (`spec.source`), with all below them.
    #[serde(default)]
    pub allowed_sources: Vec<PathBuf>,
    /// Whether Volumes may ask for a PersistentVolumeClaim.
    #[serde(default)]
    pub claims: bool,
    /// Ports of the agents on their nodes.
    #[serde(default)]
    pub ports: Ports,
    /// The file system filter.
    #[serde(default)]
    pub presto: Part,
    /// The cache manager.
    #[serde(default)]
    pub lento: Part,
    /// Nodes that get the node parts.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the node parts tolerate.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// Priority class of the node parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// How long the deletion of an object waits for nodes that do not answer, in seconds.
    #[serde(default = "deletion_deadline")]
    pub deletion_deadline_seconds: u32,
    /// How long a Replicator made from a selector stays when its Node object is gone, in seconds.
    #[serde(default = "node_gone_grace")]
    pub node_gone_grace_seconds: u32,
}

/// Which images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Images {
    /// Of presto.
    pub presto: String,
    /// Of lento.
    pub lento: String,
    /// When nodes pull them.
    #[serde(default = "pull_policy")]
    pub pull_policy: String,
    /// Secrets to pull them with.
    #[serde(default)]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// Ports on the nodes' own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ports {
    /// Where agents replicate with each other.
    pub replication: u16,
    /// Their probes and metrics.
    pub metrics: u16,
}

impl Default for Ports {
    fn default() -> Ports {
        Ports { replication: 7430, metrics: 7431 }
    }
}

/// One of the node parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Part {
    /// What it asks for and may use.
    pub resources: ResourceRequirements,
    /// What it logs, such as `info` or `replay=debug,info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How pods follow a new template. Absent: `OnDelete` for presto, `RollingUpdate` for lento.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<Strategy>,
}

/// How a DaemonSet's pods follow a new template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// When somebody deletes the pod.
    OnDelete,
    /// One node after the other.
    RollingUpdate,
}

fn host_directory() -> PathBuf {
    "/var/lib/intermezzo".into()
}

fn deletion_deadline() -> u32 {
    120
}

fn node_gone_grace() -> u32 {
    3600
}

fn pull_policy() -> String {
    "IfNotPresent".into()
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it is wrong.
    #[error("{}: {field}: {reason}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Which field; `.` for all of it.
        field: String,
        /// Why, and what to write.
        reason: String,
    },
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        parse(&text).map_err(|(field, reason)| SettingsError::Wrong { path: path.to_owned(), field, reason })
    }

    /// How long a deletion waits.
    #[must_use]
    pub fn deletion_deadline(&self) -> Duration {
        Duration::from_secs(self.deletion_deadline_seconds.into())
    }
}

fn parse(text: &str) -> Result<Settings, (String, String)> {
    let all = |error: serde_yaml::Error| (".".to_owned(), format!("not YAML: {error}"));
    let value = Value::deserialize(serde_yaml::Deserializer::from_str(text)).map_err(all)?;
    let settings: Settings = serde_path_to_error::deserialize(value)
        .map_err(|error| (error.path().to_string(), error.inner().to_string()))?;
    let mut paths = vec![("hostDirectory".to_owned(), &settings.host_directory)];
    for (index, source) in settings.allowed_sources.iter().enumerate() {
        paths.push((format!("allowedSources[{index}]"), source));
    }
    for (field, path) in paths {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || path.parent().is_none() || !path.components().all(plain) {
            return Err((field, format!("{} must be an absolute path without `..`", path.display())));
        }
    }
    let host = &settings.host_directory;
    for (index, source) in settings.allowed_sources.iter().enumerate() {
        if source.starts_with(host) || host.starts_with(source) {
            let reason = format!("{} and hostDirectory lie within each other", source.display());
            return Err((format!("allowedSources[{index}]"), reason));
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: &str = "images: {presto: p:1, lento: l:1}\n";

    fn wrong(more: &str) -> String {
        let (field, reason) = parse(&format!("{IMAGES}{more}")).unwrap_err();
        format!("{field}: {reason}")
    }

    #[test]
    fn little_is_enough() {
        let settings = parse(IMAGES).unwrap();
        assert_eq!(settings.host_directory, Path::new("/var/lib/intermezzo"));
        assert_eq!((settings.ports.replication, settings.ports.metrics), (7430, 7431));
        assert_eq!(settings.deletion_deadline(), Duration::from_secs(120));
        assert!(settings.allowed_sources.is_empty(), "nothing may be adopted unless somebody says so");
    }

    #[test]
    fn wrong_settings_are_named() {
        assert!(wrong("ports: {replicatoin: 1}").starts_with("ports.replicatoin: unknown field"));
        assert!(wrong("hostDirectory: var").starts_with("hostDirectory: var must be an absolute path"));
        assert!(wrong("allowedSources: [/srv, /a/../b]").starts_with("allowedSources[1]: "));
        assert!(wrong("allowedSources: [/var]").contains("lie within each other"));
        assert!(wrong("presto: {updateStrategy: Sometimes}").starts_with("presto.updateStrategy"));
        assert!(parse("a: [").unwrap_err().1.contains("not YAML"));
    }
}
