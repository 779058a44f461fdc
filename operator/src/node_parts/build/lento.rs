//! The DaemonSet of lento: the node's network, and of all privileges only to read what any user may have written.

use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapProjection, Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath, PodSpec,
    Probe, ProjectedVolumeSource, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{MOUNTS, RUN, Shape, daemon_set, env, field, host, mount, pod};
use crate::names;
use crate::settings::{Settings, Strategy};

/// Where the token and the authorities are.
const IDENTITY: &str = "/var/run/intermezzo-identity";
/// The kubelet renews the token at 80 % of this.
const TOKEN_SECONDS: i64 = 3600;

pub(super) fn build(settings: &Settings, namespace: &str, owner: &OwnerReference) -> DaemonSet {
    let dir = &settings.host_directory;
    let (cache, state) = (dir.join("cache"), dir.join("state"));
    let volumes = vec![
        host("cache", &cache, "DirectoryOrCreate"),
        host("state", &state, "DirectoryOrCreate"),
        host("run", Path::new(RUN), "DirectoryOrCreate"),
        identity(),
    ];
    let read_only = |mut mount: VolumeMount| {
        mount.read_only = Some(true);
        mount
    };
    let mounts = vec![
        // Contents and journals are read here; to change a file lento must ask presto. Adopted directories are not even
        // mounted: presto opens what lento is to read.
        read_only(mount("cache", &cache, None)),
        mount("state", &state, None),
        mount("run", Path::new(RUN), None),
        read_only(mount("identity", Path::new(IDENTITY), None)),
    ];
    let container = Container {
        name: "lento".into(),
        image: Some(settings.images.lento.clone()),
        image_pull_policy: Some(settings.images.pull_policy.clone()),
        env: Some(variables(settings, namespace)),
        ports: Some(vec![
            port("replication", settings.ports.replication),
            port("metrics", settings.ports.metrics),
        ]),
        startup_probe: Some(Probe {
            failure_threshold: Some(60),
            period_seconds: Some(1),
            ..probe("/healthz")
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(6),
            period_seconds: Some(10),
            ..probe("/healthz")
        }),
        readiness_probe: Some(Probe { period_seconds: Some(5), ..probe("/readyz") }),
        resources: Some(settings.lento.resources.clone()),
        security_context: Some(SecurityContext {
            // uid 0 without capabilities may not even read others' files; it owns the socket's and the state's directory.
            run_as_user: Some(0),
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: Some(vec!["DAC_READ_SEARCH".into()]),
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let pod = PodSpec {
        containers: vec![container],
        host_network: Some(true),
        // The operator is found by its Service, also from the node's network.
        dns_policy: Some("ClusterFirstWithHostNet".into()),
        volumes: Some(volumes),
        ..pod(settings)
    };
    let strategy = settings.lento.update_strategy.unwrap_or(Strategy::RollingUpdate);
    let shape = Shape { name: names::LENTO, component: "lento", namespace, owner, strategy };
    daemon_set(&shape, pod)
}

fn variables(settings: &Settings, namespace: &str) -> Vec<EnvVar> {
    let dir = &settings.host_directory;
    let path = |name: &str| dir.join(name).display().to_string();
    let operator = format!("{}.{namespace}.svc:{}", names::OPERATOR, names::CONTROL_PORT);
    let mut all = vec![
        field("LENTO_NODE", "spec.nodeName"),
        field("HOST_IP", "status.hostIP"),
        env("LENTO_OPERATOR", operator),
        env("LENTO_OPERATOR_CA", format!("{IDENTITY}/{}", names::AUTHORITY_FILE)),
        env("LENTO_TOKEN", format!("{IDENTITY}/token")),
        env("LENTO_LISTEN", format!("0.0.0.0:{}", settings.ports.replication)),
        env("LENTO_ADVERTISE", format!("$(HOST_IP):{}", settings.ports.replication)),
        env("LENTO_METRICS", format!("$(HOST_IP):{}", settings.ports.metrics)),
        env("LENTO_PRESTO_SOCKET", format!("{RUN}/presto.sock")),
        env("LENTO_ADMIN_SOCKET", format!("{RUN}/lento.sock")),
        env("LENTO_STATE", path("state")),
        env("LENTO_CACHE", path("cache")),
        env("LENTO_MOUNTS", MOUNTS),
    ];
    all.extend(settings.lento.log.iter().map(|log| env("LENTO_LOG", log)));
    all
}

fn identity() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(names::AUDIENCE.into()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".into(),
    };
    let authorities = ConfigMapProjection {
        name: names::AUTHORITY.into(),
        items: Some(vec![KeyToPath {
            key: names::AUTHORITY_FILE.into(),
            path: names::AUTHORITY_FILE.into(),
            mode: None,
        }]),
        optional: None,
    };
    let sources = vec![
        VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() },
        VolumeProjection { config_map: Some(authorities), ..VolumeProjection::default() },
    ];
    let projected = ProjectedVolumeSource { sources: Some(sources), default_mode: Some(0o400) };
    Volume { name: "identity".into(), projected: Some(projected), ..Volume::default() }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: number.into(),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::String("metrics".into()),
        ..HTTPGetAction::default()
    };
    Probe { http_get: Some(get), timeout_seconds: Some(5), ..Probe::default() }
}
