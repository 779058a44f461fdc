//! Manifests: the same objects as in Kubernetes, read from a directory of YAML files.
//!
//! Owns parsing (`parse`), what must hold between objects (`check`), what works today (`supported`) and printing back.
//! Every error names file, object and field. YAML always goes through `serde_json::Value`: read directly, enums with data
//! would need YAML tags.

mod check;
mod each;
mod error;
mod parse;
mod supported;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use crate::{Replicator, Volume};
pub use each::ObjectProblem;
pub use error::{Problem, Problems};
pub use parse::{Object, parse};

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Everything a directory of manifests says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// By `namespace/name`.
    pub volumes: BTreeMap<String, Volume>,
    /// By `namespace/name` of the Replicator.
    pub replicators: BTreeMap<String, Replicator>,
    files: BTreeMap<(&'static str, String), PathBuf>,
}

/// What one node is to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It decides the order and forwards.
    Server,
    /// It reintegrates with the server.
    Client,
}

impl Manifests {
    /// Reads every `*.yaml`, `*.yml` and `*.json` in `dir` (not below it, no hidden files), in order of name.
    /// The result is complete and checked: see [`Manifests::check`] and [`Manifests::check_supported`].
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn read_dir(dir: &Path) -> Result<Manifests, Problems> {
        let mut all = Manifests::default();
        let mut problems = Problems::default();
        for file in files(dir)? {
            match std::fs::read_to_string(&file) {
                Ok(text) => all.add_text(&file, &text, &mut problems),
                Err(error) => problems.push(Problem::file(&file, error)),
            }
        }
        // What refers to an object that could not be read would only repeat the first error.
        if problems.is_empty() {
            all.check(&mut problems);
            all.check_supported(&mut problems);
        }
        problems.or(all)
    }

    /// Reads one text; `file` is for messages. Checked like [`Manifests::read_dir`].
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read_text(file: &Path, text: &str) -> Result<Manifests, Problems> {
        let mut all = Manifests::default();
        let mut problems = Problems::default();
        all.add_text(file, text, &mut problems);
        if problems.is_empty() {
            all.check(&mut problems);
            all.check_supported(&mut problems);
        }
        problems.or(all)
    }

    fn add_text(&mut self, file: &Path, text: &str, problems: &mut Problems) {
        for object in parse(file, text, problems) {
            self.add(file, object, problems);
        }
    }

    fn add(&mut self, file: &Path, object: Object, problems: &mut Problems) {
        let (kind, id) = (object.kind(), object.id());
        if let Some(first) = self.files.insert((kind, id.clone()), file.to_owned()) {
            let what = format!("defined twice, first in {}", first.display());
            problems.push(Problem::object(file, kind, &id, "metadata.name", what));
            return;
        }
        match object {
            Object::Volume(volume) => drop(self.volumes.insert(id, *volume)),
            Object::Replicator(replicator) => drop(self.replicators.insert(id, *replicator)),
        }
    }

    /// Adds an object that was made in memory (it replaces one of the same name).
    pub fn insert(&mut self, object: Object) {
        match object {
            Object::Volume(volume) => drop(self.volumes.insert(volume.id(), *volume)),
            Object::Replicator(replicator) => drop(self.replicators.insert(replicator.id(), *replicator)),
        }
    }

    /// The Replicators of a volume (`namespace/name`): its replication list.
    pub fn replicators_of<'a>(&'a self, volume: &'a str) -> impl Iterator<Item = &'a Replicator> {
        self.replicators.values().filter(move |replicator| replicator.volume_id() == volume)
    }

    /// The Replicator of a volume on a node.
    #[must_use]
    pub fn replicator_on(&self, volume: &str, node: &str) -> Option<&Replicator> {
        self.replicators.values().find(|r| r.spec.node_name == node && r.volume_id() == volume)
    }

    /// What `node` is to the volume; `None` if it holds no replica.
    #[must_use]
    pub fn role(&self, volume: &str, node: &str) -> Option<Role> {
        if self.volumes.get(volume)?.server_node() == Some(node) {
            return Some(Role::Server);
        }
        self.replicator_on(volume, node).map(|_| Role::Client)
    }

    /// Every node that serves or replicates something.
    #[must_use]
    pub fn nodes(&self) -> std::collections::BTreeSet<&str> {
        let servers = self.volumes.values().filter_map(Volume::server_node);
        servers.chain(self.replicators.values().map(|r| r.spec.node_name.as_str())).collect()
    }

    /// All objects as one YAML text of several documents, volumes first.
    ///
    /// # Errors
    /// An object that does not become YAML (none known).
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let volumes = self.volumes.values().map(to_yaml);
        let documents: Vec<String> =
            volumes.chain(self.replicators.values().map(to_yaml)).collect::<Result<_, _>>()?;
        Ok(documents.join("---\n"))
    }

    fn file(&self, kind: &'static str, id: &str) -> &Path {
        self.files.get(&(kind, id.to_owned())).map_or(Path::new("(memory)"), |file| file)
    }
}

/// One value as YAML, through `serde_json::Value`.
///
/// # Errors
/// A value that is not representable, such as a map with keys that are no strings.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, serde_yaml::Error> {
    let value = serde_json::to_value(value).map_err(<serde_yaml::Error as serde::ser::Error>::custom)?;
    // The one place that prints: a Value has no enums with data, which is what the ban is about.
    #[allow(clippy::disallowed_methods)]
    serde_yaml::to_string(&value)
}

/// The namespace of an object.
pub(crate) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

/// `namespace/name` of an object.
pub(crate) fn id(metadata: &ObjectMeta) -> String {
    format!("{}/{}", namespace(metadata), metadata.name.as_deref().unwrap_or_default())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, Problems> {
    let list = |dir: &Path| -> std::io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if known && !hidden && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    };
    list(dir).map_err(|error| Problems::from(Problem::file(dir, error)))
}

#[cfg(test)]
mod tests;
