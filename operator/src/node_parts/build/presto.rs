//! The DaemonSet of presto: privileged, because it mounts; no network to speak of, no token.

use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{MOUNTS, RUN, Shape, daemon_set, env, host, mount, pod, source_name};
use crate::names;
use crate::settings::{Settings, Strategy};

pub(super) fn build(settings: &Settings, namespace: &str, owner: &OwnerReference) -> DaemonSet {
    let dir = &settings.host_directory;
    // A mount that is made in the pod appears on the node, and from there in every pod that uses it.
    let bidirectional = Some("Bidirectional");
    let (run, shown) = (Path::new(RUN), Path::new(MOUNTS));
    let mut volumes = vec![
        host("intermezzo", dir, "DirectoryOrCreate"),
        host("run", run, "DirectoryOrCreate"),
        host("mounts", shown, "DirectoryOrCreate"),
    ];
    let mut mounts =
        vec![mount("intermezzo", dir, None), mount("run", run, None), mount("mounts", shown, bidirectional)];
    for (index, source) in settings.allowed_sources.iter().enumerate() {
        volumes.push(host(&source_name(index), source, "DirectoryOrCreate"));
        mounts.push(mount(&source_name(index), source, bidirectional));
    }
    let mut variables = vec![
        env("PRESTO_STATE", dir.join("presto").display().to_string()),
        env("PRESTO_SOCKET", format!("{RUN}/presto.sock")),
        env("PRESTO_HOLDER", super::holder::SOCKET),
    ];
    if !settings.allowed_sources.is_empty() {
        let allowed: Vec<String> = settings.allowed_sources.iter().map(|p| p.display().to_string()).collect();
        variables.push(env("PRESTO_ALLOW_SOURCE", allowed.join(":")));
    }
    variables.extend(settings.presto.log.iter().map(|log| env("PRESTO_LOG", log)));
    let container = Container {
        name: "presto".into(),
        image: Some(settings.images.presto.clone()),
        image_pull_policy: Some(settings.images.pull_policy.clone()),
        env: Some(variables),
        resources: Some(settings.presto.resources.clone()),
        security_context: Some(SecurityContext {
            privileged: Some(true),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let pod = PodSpec {
        containers: vec![container],
        // Callers are known by their pid on the node; in a pid namespace of its own presto would see 0.
        host_pid: Some(true),
        volumes: Some(volumes),
        ..pod(settings)
    };
    // The holder keeps the mounts meanwhile, but not on kernels before 6.9 and not those of adopted directories: a person
    // chooses the moment, or says in the settings that there are none of these.
    let strategy = settings.presto.update_strategy.unwrap_or(Strategy::OnDelete);
    let shape = Shape { name: names::PRESTO, component: "presto", namespace, owner, strategy };
    daemon_set(&shape, pod)
}
