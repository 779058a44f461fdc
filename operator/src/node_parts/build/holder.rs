//! The DaemonSet of the holder: keeps presto's mounts while presto is killed or replaced. It receives descriptors over a
//! socket and needs no right at all. Nothing replaces it but a person, for it is what the others rely on.

use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Capabilities, Container, PodSpec, SeccompProfile, SecurityContext};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{RUN, Shape, daemon_set, env, host, mount, pod};
use crate::names;
use crate::settings::{Settings, Strategy};

/// Its socket, where presto finds it.
pub(super) const SOCKET: &str = "/run/intermezzo/holder.sock";
/// It has nothing to bring to an end.
const GRACE: i64 = 1;

pub(super) fn build(settings: &Settings, namespace: &str, owner: &OwnerReference) -> DaemonSet {
    let run = Path::new(RUN);
    let container = Container {
        name: "holder".into(),
        // Of presto's image: both belong to one version, and a node that has one need not pull the other.
        image: Some(settings.images.presto.clone()),
        image_pull_policy: Some(settings.images.pull_policy.clone()),
        command: Some(vec!["/bin/presto-holder".into()]),
        env: Some(vec![env("PRESTO_HOLDER", SOCKET)]),
        security_context: Some(SecurityContext {
            privileged: Some(false),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            // The directory of the socket is root's.
            run_as_user: Some(0),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![mount("run", run, None)]),
        ..Container::default()
    };
    let pod = PodSpec {
        containers: vec![container],
        volumes: Some(vec![host("run", run, "DirectoryOrCreate")]),
        termination_grace_period_seconds: Some(GRACE),
        ..pod(settings)
    };
    let strategy = Strategy::OnDelete;
    daemon_set(&Shape { name: names::HOLDER, component: "holder", namespace, owner, strategy }, pod)
}
