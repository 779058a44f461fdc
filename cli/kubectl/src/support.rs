//! `kubectl intermezzo support-bundle`: what somebody needs to see who is to help, as files in a directory.
//!
//! It holds objects, events, logs and what agents say of themselves, but no content of a volume, no Secret and no key. What
//! cannot be had is named in the bundle and does not stop the rest.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use intermezzo::Exit;
use intermezzo::output::say;
use intermezzo_api::{Conflict, Replicator, Volume};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube_client::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{SupportArgs, Target};
use crate::cluster::{Cluster, ClusterError, Life};

/// What the bundle says about itself.
const ABOUT: &str = "\
What InterMezzo in this cluster looks like.

*.json     objects and events; managed fields are left out
logs/      of each container, and of its life before (.previous) where there was one
status/    what each agent says of its volumes
missing    what could not be had, and why

No content of a volume is here, no Secret and no key. Names of files are: in conflicts, and where a log line is about one.
";

pub(crate) async fn run(cluster: &Cluster, target: &Target, args: &SupportArgs) -> Result<Exit> {
    let name = || format!("intermezzo-support-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let dir = args.out.clone().unwrap_or_else(|| name().into());
    // Never into something that is there: nothing of another day may be taken for today's.
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut bundle = Bundle { dir, missing: Vec::new() };
    bundle.write("about", ABOUT)?;
    bundle.objects("volumes", cluster.list::<Volume>().await)?;
    bundle.objects("replicators", cluster.list::<Replicator>().await)?;
    bundle.objects("conflicts", cluster.list::<Conflict>().await)?;
    bundle.objects("daemonsets", cluster.parts::<DaemonSet>().await)?;
    bundle.objects("deployments", cluster.parts::<Deployment>().await)?;
    let pods = bundle.objects("pods", cluster.parts::<Pod>().await)?;
    bundle.objects("events", events(cluster, &pods).await)?;
    for pod in &pods {
        bundle.logs(cluster, pod).await?;
        if pod.labels().get("app.kubernetes.io/component").is_some_and(|component| component == "lento") {
            bundle.status(target, pod)?;
        }
    }
    let what = format!("{} pods", pods.len());
    if bundle.missing.is_empty() {
        say(format_args!("{}: {what}", bundle.dir.display()));
        return Ok(Exit::Done);
    }
    bundle.write("missing", &bundle.missing.join("\n"))?;
    say(format_args!(
        "{}: {what}; {} things could not be had: see `missing` in it",
        bundle.dir.display(),
        bundle.missing.len()
    ));
    Ok(Exit::Failed)
}

/// Those about our objects, and those about our pods.
async fn events(cluster: &Cluster, pods: &[Pod]) -> Result<Vec<Event>, ClusterError> {
    let mut events = cluster.list::<Event>().await?;
    events.retain(|event| {
        event
            .involved_object
            .api_version
            .as_ref()
            .is_some_and(|version| version.starts_with("intermezzo.dev/"))
    });
    let namespaces: BTreeSet<String> = pods.iter().filter_map(ResourceExt::namespace).collect();
    for namespace in namespaces {
        events.extend(cluster.list_in::<Event>(&namespace).await?);
    }
    Ok(events)
}

/// The directory, as far as it is filled.
struct Bundle {
    dir: PathBuf,
    missing: Vec<String>,
}

impl Bundle {
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn objects<K>(&mut self, name: &str, objects: Result<Vec<K>, ClusterError>) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Debug,
    {
        let mut objects = match objects {
            Ok(objects) => objects,
            Err(error) => {
                self.missing.push(format!("{name}: {error}"));
                return Ok(Vec::new());
            }
        };
        objects.iter_mut().for_each(|object| object.meta_mut().managed_fields = None);
        let values: Vec<Value> = objects.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        self.write(&format!("{name}.json"), &serde_json::to_string_pretty(&values)?)?;
        Ok(objects)
    }

    async fn logs(&mut self, cluster: &Cluster, pod: &Pod) -> Result<()> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let status = pod.status.as_ref();
        let containers = status.into_iter().flat_map(|status| {
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
        });
        for container in containers {
            let lives = [(Life::Present, ""), (Life::Before, ".previous")];
            for (life, suffix) in lives.into_iter().take(if container.restart_count > 0 { 2 } else { 1 }) {
                let file = format!("logs/{name}.{}{suffix}.log", container.name);
                match cluster.log(&namespace, &name, &container.name, life).await {
                    Ok(text) => self.write(&file, &text)?,
                    Err(error) => self.missing.push(format!("{file}: {error}")),
                }
            }
        }
        Ok(())
    }

    fn status(&mut self, target: &Target, pod: &Pod) -> Result<()> {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let file = format!("status/{node}.json");
        match told(crate::agent::exec(
            target,
            &(pod.namespace().unwrap_or_default(), pod.name_any()),
            &["intermezzo", "status", "-o", "json"],
        )) {
            Ok(text) => self.write(&file, &text),
            Err(why) => {
                self.missing.push(format!("{file}: {why}"));
                Ok(())
            }
        }
    }
}

/// What the command prints; else why not.
fn told(mut command: Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("cannot run kubectl: {error}"))?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    }
}

/// Where bundles are put: a path that does not exist yet.
pub(crate) fn new_directory(path: &str) -> Result<PathBuf, String> {
    if Path::new(path).exists() {
        return Err("it exists; name a new directory".to_owned());
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, some};
    use serde_json::json;

    fn pod(name: &str, component: &str, restarts: i32) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "system", "labels": {"app.kubernetes.io/component": component},
                "managedFields": [{"manager": "x"}]},
            "spec": {"nodeName": "a", "containers": [{"name": component}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": component, "image": "i", "imageID": "",
                "ready": true, "restartCount": restarts}]}})
    }

    async fn bundle(objects: crate::testing::Objects) -> (tempfile::TempDir, PathBuf, Exit) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("bundle");
        let (cluster, _) = cluster(objects);
        let args = SupportArgs { out: Some(out.clone()) };
        let exit = run(&cluster, &Target::default(), &args).await.unwrap();
        (dir, out, exit)
    }

    #[tokio::test]
    async fn it_holds_objects_events_and_logs_of_both_lives() {
        let objects = crate::testing::Objects {
            pods: vec![pod("holder-1", "holder", 0), pod("presto-1", "presto", 2)],
            events: vec![json!({"metadata": {"name": "e", "namespace": "team"}, "reason": "ConflictFound",
                "involvedObject": {"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Volume", "name": "shared"}})],
            ..some()
        };
        let (_dir, out, exit) = bundle(objects).await;
        assert_eq!(exit, Exit::Done);
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert!(read("volumes.json").contains("\"shared\""));
        assert!(read("conflicts.json").contains("StoreStore"));
        assert!(read("events.json").contains("ConflictFound"));
        assert!(read("pods.json").contains("presto-1") && !read("pods.json").contains("managedFields"));
        assert_eq!(read("logs/presto-1.presto.log"), "present life of presto-1/presto");
        assert_eq!(read("logs/presto-1.presto.previous.log"), "life before of presto-1/presto");
        assert!(!out.join("logs/holder-1.holder.previous.log").exists(), "it has lived once");
        assert!(!out.join("missing").exists());
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_named_and_the_rest_is_there() {
        let objects =
            crate::testing::Objects { pods: vec![pod("presto-1", "presto", 0)], no_logs: true, ..some() };
        let (_dir, out, exit) = bundle(objects).await;
        assert_eq!(exit, Exit::Failed);
        let missing = fs::read_to_string(out.join("missing")).unwrap();
        assert!(missing.contains("logs/presto-1.presto.log: you may not read logs"), "{missing}");
        assert!(out.join("volumes.json").exists() && out.join("pods.json").exists());
    }

    #[test]
    fn it_goes_into_a_new_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_string_lossy();
        assert!(new_directory(&path).unwrap_err().contains("name a new directory"));
        assert!(new_directory(&format!("{path}/new")).is_ok());
    }
}
