//! kubectl and helm for a test: run, apply, wait; each with a deadline and what it said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::command::{DEADLINE, fed, output};

/// Nodes that do not answer are waited for.
const DELETION: Duration = Duration::from_secs(180);

/// A client program with the rights of a user.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    /// `config` is what KUBECONFIG is set to.
    #[must_use]
    pub fn new(program: PathBuf, config: PathBuf) -> Kubectl {
        Kubectl { program, config }
    }

    /// The command without arguments, for who needs more than [`Kubectl::run`].
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Caches of helm and kubectl beside the cluster: a user's own are not touched.
        let dir = self.config.parent().unwrap_or(Path::new("/"));
        command.env("KUBECONFIG", &self.config).env("HOME", dir);
        for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs it; what it wrote.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_within(arguments, DEADLINE)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn run_within(&self, arguments: &[&str], deadline: Duration) -> Result<String> {
        output(self.command().args(arguments), deadline)
    }

    /// `kubectl apply` of a text of YAML.
    ///
    /// # Errors
    /// The API server refuses it, or one of its objects.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut command = self.command();
        fed(
            command.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]),
            Some(manifests),
            DEADLINE,
        )
    }

    /// `kubectl delete` of the objects of a text of YAML; returns when they are gone.
    ///
    /// # Errors
    /// One stays.
    pub fn delete(&self, manifests: &str) -> Result<String> {
        let mut command = self.command();
        fed(command.args(["delete", "--ignore-not-found", "-f", "-"]), Some(manifests), DELETION)
    }

    /// `kubectl get ... -o json`.
    ///
    /// # Errors
    /// There is no such object.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// Waits for a Deployment or DaemonSet.
    ///
    /// # Errors
    /// It is not there in time; with its pods as they are.
    pub fn rolled_out(&self, namespace: &str, what: &str, deadline: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", deadline.as_secs());
        let waited = self.run_within(
            &["rollout", "status", "--namespace", namespace, what, &timeout],
            deadline + Duration::from_secs(30),
        );
        waited.map(|_| ()).map_err(|error| {
            let pods = self.run(&["get", "pods", "--namespace", namespace, "-o", "wide"]).unwrap_or_default();
            error.context(format!("{what} in {namespace} is not rolled out; its pods:\n{pods}"))
        })
    }

    /// Names of the nodes that are ready.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn ready_nodes(&self) -> Result<BTreeSet<String>> {
        let nodes = self.get(&["nodes"])?;
        let items = nodes.get("items").and_then(Value::as_array).context("a list without items")?;
        let is_ready = |node: &&Value| {
            let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
            conditions.into_iter().flatten().any(|one| {
                one.get("type").and_then(Value::as_str) == Some("Ready")
                    && one.get("status").and_then(Value::as_str) == Some("True")
            })
        };
        let name = |node: &Value| node.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
        Ok(items.iter().filter(is_ready).filter_map(name).collect())
    }
}
