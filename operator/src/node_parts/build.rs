//! The DaemonSets, from the settings: pure, one file for each.

mod holder;
mod lento;
mod presto;

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    EnvVar, EnvVarSource, HostPathVolumeSource, ObjectFieldSelector, PodSpec, PodTemplateSpec, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names;
use crate::settings::{Settings, Strategy};

/// Where sockets are, on the node and in both pods.
const RUN: &str = "/run/intermezzo";
/// Where volumes are mounted on the node. Nothing below it outlives a reboot, so that no pod starts on the empty directory
/// under a mount that is not there yet. Not below `RUN`: lento must not have the mounts.
pub(crate) const MOUNTS: &str = "/run/intermezzo-mounts";
/// Pods run with little time: both programs end within it.
const GRACE: i64 = 30;

/// Everything that the node parts need.
#[must_use]
pub fn build(settings: &Settings, namespace: &str, owner: &OwnerReference) -> Vec<DaemonSet> {
    [holder::build, presto::build, lento::build].map(|build| build(settings, namespace, owner)).into()
}

struct Shape<'a> {
    name: &'static str,
    component: &'static str,
    namespace: &'a str,
    owner: &'a OwnerReference,
    strategy: Strategy,
}

fn daemon_set(shape: &Shape<'_>, pod: PodSpec) -> DaemonSet {
    let strategy = match shape.strategy {
        Strategy::OnDelete => {
            DaemonSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None }
        }
        Strategy::RollingUpdate => DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDaemonSet {
                max_unavailable: Some(IntOrString::Int(1)),
                ..RollingUpdateDaemonSet::default()
            }),
        },
    };
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(shape.name.into()),
            namespace: Some(shape.namespace.into()),
            labels: Some(names::labels(shape.component)),
            owner_references: Some(vec![shape.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(names::selector(shape.component)),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(names::labels(shape.component)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            update_strategy: Some(strategy),
            ..DaemonSetSpec::default()
        }),
        status: None,
    }
}

/// What both pods have in common.
fn pod(settings: &Settings) -> PodSpec {
    let selector: BTreeMap<String, String> = settings
        .node_selector
        .clone()
        .into_iter()
        .chain([("kubernetes.io/os".into(), "linux".into())])
        .collect();
    PodSpec {
        service_account_name: Some(names::NODE_ACCOUNT.into()),
        // Agents hold no Kubernetes credentials.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        node_selector: Some(selector),
        tolerations: Some(settings.tolerations.clone()).filter(|all| !all.is_empty()),
        priority_class_name: settings.priority_class_name.clone(),
        image_pull_secrets: Some(settings.images.pull_secrets.clone()).filter(|all| !all.is_empty()),
        termination_grace_period_seconds: Some(GRACE),
        ..PodSpec::default()
    }
}

fn host(name: &str, path: &Path, type_: &str) -> Volume {
    let source = HostPathVolumeSource { path: path.display().to_string(), type_: Some(type_.into()) };
    Volume { name: name.into(), host_path: Some(source), ..Volume::default() }
}

fn mount(name: &str, path: &Path, propagation: Option<&str>) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.display().to_string(),
        mount_propagation: propagation.map(str::to_owned),
        ..VolumeMount::default()
    }
}

fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

fn field(name: &str, path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector { field_path: path.into(), api_version: None };
    let from = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    EnvVar { name: name.into(), value: None, value_from: Some(from) }
}

fn source_name(index: usize) -> String {
    format!("source-{index}")
}

#[cfg(test)]
mod tests;
