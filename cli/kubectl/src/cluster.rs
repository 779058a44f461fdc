//! The way to the API server, and what can go wrong on it, in words.

use std::fmt::Debug;
use std::time::Duration;

use intermezzo_api::{Replicator, Volume};
use k8s_openapi::api::core::v1::Pod;
use kube::core::NamespaceResourceScope;
use kube_client::api::{ListParams, LogParams, Patch, PatchParams};
use kube_client::config::{KubeConfigOptions, KubeconfigError};
use kube_client::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::Target;

/// How long the API server may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Objects in one answer.
const PAGE: u32 = 500;
/// What is of InterMezzo's own.
const OURS: &str = "app.kubernetes.io/name=intermezzo";
/// Lines of one log.
const LINES: i64 = 20_000;

/// What can go wrong on the way to the objects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("no cluster: {0}; is KUBECONFIG right, or --context?")]
    Config(#[from] Box<KubeconfigError>),
    #[error("the cluster at {url} does not answer: {reason}")]
    Unreachable { url: String, reason: String },
    #[error(
        "this cluster has no {0}: InterMezzo is not installed in it (`helm install intermezzo charts/intermezzo`), or its definitions are gone"
    )]
    NotInstalled(String),
    #[error("{0}")]
    NotFound(String),
    #[error("you may not {what}: {message}")]
    Forbidden { what: String, message: String },
    #[error("{what}: {message}")]
    Refused { what: String, message: String },
}

impl ClusterError {
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ClusterError::Unreachable { .. })
    }
}

/// Which objects are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    One(String),
    All,
}

/// Of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Present,
    /// It has been restarted since.
    Before,
}

/// A cluster, and the namespace that is meant.
pub(crate) struct Cluster {
    client: Client,
    url: String,
    pub space: Space,
}

impl Cluster {
    /// By the kubeconfig, or from inside a pod. Nobody is asked yet.
    pub async fn connect(target: &Target) -> Result<Cluster, ClusterError> {
        let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
        let config = match Config::from_kubeconfig(&options).await {
            Ok(config) => config,
            Err(error) => match Config::incluster() {
                Ok(config) if target.context.is_none() => config,
                _ => return Err(Box::new(error).into()),
            },
        };
        let (url, default) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let space = match target.all_namespaces {
            true => Space::All,
            false => Space::One(target.namespace.clone().unwrap_or(default)),
        };
        let unreachable = |error: kube_client::Error| ClusterError::Unreachable {
            url: url.clone(),
            reason: error.to_string(),
        };
        let client = Client::try_from(config).map_err(unreachable)?;
        Ok(Cluster { client, url, space })
    }

    #[cfg(test)]
    pub fn with(client: Client, space: Space) -> Cluster {
        Cluster { client, url: "http://test".to_owned(), space }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.space {
            Space::One(namespace) => Api::namespaced(self.client.clone(), namespace),
            Space::All => Api::all(self.client.clone()),
        }
    }

    /// All objects of a kind that are meant.
    pub async fn list<K>(&self) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        self.pages(self.api::<K>(), ListParams::default()).await
    }

    /// All objects of a kind in one namespace.
    pub async fn list_in<K>(&self, namespace: &str) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        self.pages(Api::<K>::namespaced(self.client.clone(), namespace), ListParams::default()).await
    }

    /// InterMezzo's own objects of a kind, in whatever namespace it is installed.
    pub async fn parts<K>(&self) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        self.pages(Api::<K>::all(self.client.clone()), ListParams::default().labels(OURS)).await
    }

    /// What a container has said last, in its present life or in the one before.
    pub async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        life: Life,
    ) -> Result<String, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = LogParams {
            container: Some(container.to_owned()),
            previous: life == Life::Before,
            tail_lines: Some(LINES),
            timestamps: true,
            ..LogParams::default()
        };
        self.ask("read logs", api.logs(pod, &params)).await
    }

    async fn pages<K>(&self, api: Api<K>, begin: ListParams) -> Result<Vec<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let what = format!("list {}", K::plural(&()));
        let (mut all, mut params) = (Vec::new(), begin.clone().limit(PAGE));
        loop {
            let page = self.ask(&what, api.list(&params)).await.map_err(|error| match error {
                // Lists are always there where the kind is.
                ClusterError::NotFound(_) => ClusterError::NotInstalled(K::plural(&()).into_owned()),
                other => other,
            })?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = begin.clone().limit(PAGE).continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// The pod of the agent on a node: namespace and name.
    pub async fn agent_on(&self, node: &str) -> Result<(String, String), ClusterError> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default()
            .labels(&format!("{OURS},app.kubernetes.io/component=lento"))
            .fields(&format!("spec.nodeName={node}"))
            .limit(PAGE);
        let pods = self.ask("list pods in all namespaces", api.list(&params)).await?;
        let running =
            |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let pod = pods.items.into_iter().find(running);
        let named = pod.and_then(|pod| pod.metadata.namespace.zip(pod.metadata.name));
        named.ok_or_else(|| ClusterError::NotFound(format!("no agent runs on node {node}")))
    }

    /// One Volume of the namespace.
    pub async fn volume(&self, name: &str) -> Result<Volume, ClusterError> {
        match self.ask(&format!("get Volume {name}"), self.api::<Volume>().get(name)).await {
            Err(ClusterError::NotFound(message)) => {
                // No such Volume, or no such kind: a list tells.
                let others = self.list::<Volume>().await?;
                let names: Vec<&str> =
                    others.iter().filter_map(|volume| volume.metadata.name.as_deref()).take(10).collect();
                let hint = match names.is_empty() {
                    true => "; there is none in this namespace (-n)".to_owned(),
                    false => format!("; there are {}", names.join(", ")),
                };
                Err(ClusterError::NotFound(format!("{message}{hint}")))
            }
            other => other,
        }
    }

    /// Changes a Volume by a merge patch.
    pub async fn patch_volume(&self, name: &str, patch: &Value) -> Result<Volume, ClusterError> {
        let (api, params) = (self.api::<Volume>(), PatchParams::default());
        self.ask(&format!("patch Volume {name}"), api.patch(name, &params, &Patch::Merge(patch))).await
    }

    /// Changes a Replicator by a merge patch.
    pub async fn patch_replicator(&self, name: &str, patch: &Value) -> Result<Replicator, ClusterError> {
        let (api, params) = (self.api::<Replicator>(), PatchParams::default());
        self.ask(&format!("patch Replicator {name}"), api.patch(name, &params, &Patch::Merge(patch))).await
    }

    async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, kube_client::Error>>,
    ) -> Result<T, ClusterError> {
        let unreachable = |reason: String| ClusterError::Unreachable { url: self.url.clone(), reason };
        let answer = tokio::time::timeout(ANSWER, call).await;
        answer.map_err(|_| unreachable(format!("nothing within {} s", ANSWER.as_secs())))?.map_err(|error| {
            let what = what.to_owned();
            match error {
                kube_client::Error::Api(status) => {
                    let message = status.message.clone();
                    match status.code {
                        404 => ClusterError::NotFound(message),
                        401 | 403 => ClusterError::Forbidden { what, message },
                        _ => ClusterError::Refused { what, message },
                    }
                }
                kube_client::Error::SerdeError(error) => {
                    let message = format!("an object is not as this version knows it: {error}");
                    ClusterError::Refused { what, message }
                }
                other => unreachable(chain(&other)),
            }
        })
    }
}

/// An error with what is behind it: the outermost of a transport says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(error) = behind {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        behind = error.source();
    }
    text
}
