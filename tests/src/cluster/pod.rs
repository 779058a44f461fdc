//! A pod of a test: found by a label and its node, run into, and seen from outside as its first process sees its files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use intermezzo::fleet::process::Recorded;

use super::kubectl::Kubectl;

/// A pod with one container.
#[derive(Clone, Debug)]
pub struct Pod {
    kubectl: Kubectl,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// A pod by its name.
    #[must_use]
    pub fn named(kubectl: &Kubectl, namespace: &str, name: &str) -> Pod {
        Pod { kubectl: kubectl.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The pod with this label (`key=value`) on this node, the one that is not being deleted.
    ///
    /// # Errors
    /// There is none.
    pub fn of(kubectl: &Kubectl, namespace: &str, label: &str, node: &str) -> Result<Pod> {
        let field = format!("spec.nodeName={node}");
        let found = kubectl.get(&[
            "pods",
            "--namespace",
            namespace,
            "--selector",
            label,
            "--field-selector",
            &field,
        ])?;
        let items =
            found.get("items").and_then(serde_json::Value::as_array).context("a list without items")?;
        let stays = items.iter().find(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
        let name = stays.and_then(|pod| pod.pointer("/metadata/name")).and_then(serde_json::Value::as_str);
        let name = name.with_context(|| format!("no pod {label} in {namespace} on {node}"))?;
        Ok(Pod::named(kubectl, namespace, name))
    }

    /// Runs a command in its container.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["exec", "--namespace", &self.namespace, &self.name, "--"], command].concat())
    }

    /// A field of it, in the words of `kubectl -o jsonpath`.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn field(&self, path: &str) -> Result<String> {
        let path = format!("jsonpath={{{path}}}");
        self.kubectl.run(&["get", "pod", "--namespace", &self.namespace, &self.name, "-o", &path])
    }

    /// The first process of its container, by the number that it has on this machine.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self) -> Result<Recorded> {
        let id = self.field(".status.containerStatuses[0].containerID")?;
        let id = id.rsplit('/').next().filter(|id| !id.is_empty());
        let id = id.with_context(|| format!("pod {} has no container yet", self.name))?;
        let mut all: Vec<Recorded> = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let is_there =
                fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(id));
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            all.extend(pid.filter(|_| is_there).and_then(Recorded::now));
        }
        // What somebody runs in it by `kubectl exec` began later.
        let first = all.into_iter().min_by_key(|process| process.start);
        first.with_context(|| format!("the container of pod {} has no process", self.name))
    }

    /// Its root directory, seen from outside: what is below is what its programs see, and stays readable while the API
    /// server is away.
    ///
    /// # Errors
    /// It does not run.
    pub fn root(&self) -> Result<PathBuf> {
        let process = self.process()?;
        let root = PathBuf::from(format!("/proc/{}/root", process.pid));
        ensure!(process.is_alive(), "pod {} has ended", self.name);
        Ok(root)
    }
}
