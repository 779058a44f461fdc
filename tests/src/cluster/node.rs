//! The programs of a node and their files: containerd, kubelet, kube-proxy, and how pods get addresses.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::certificates::Authority;
use super::images::SANDBOX;
use super::machine::{Machine, Run};
use super::network::{DNS_SERVICE, Network, PODS};
use super::parts::Parts;

/// Writes their files, on the node's own disk.
///
/// # Errors
/// A file cannot be written.
pub fn configure(node: &Machine, number: usize, network: &Network, authority: &Authority) -> Result<()> {
    write(node, "/var/lib/containerd-config/config.toml", &containerd())?;
    write(node, "/var/lib/containerd-config/net.d/10-pods.conflist", &pretty(&pods(&network.pods(number)))?)?;
    write(node, "/var/lib/kubelet/config.yaml", &pretty(&kubelet(&authority.certificate))?)?;
    // Names outside of the cluster lead nowhere, so nobody is asked.
    write(node, "/var/lib/kubelet/resolv.conf", "")
}

/// All of them, in the order of their start.
#[must_use]
pub fn programs(node: &Machine, number: usize, network: &Network, parts: &Parts) -> Vec<Run> {
    let kubernetes = parts.program("kubernetes");
    let name = &node.name;
    vec![
        Run {
            name: "containerd".into(),
            binary: "containerd".into(),
            arguments: ["--config", "/var/lib/containerd-config/config.toml"].map(OsString::from).into(),
        },
        Run::new(
            &kubernetes,
            "kubelet",
            vec![
                "--config=/var/lib/kubelet/config.yaml".into(),
                "--kubeconfig=/var/lib/kubelet/kubelet.kubeconfig".into(),
                format!("--hostname-override={name}").into(),
                format!("--node-ip={}", network.node(number)).into(),
            ],
        ),
        Run::new(
            &kubernetes,
            "kube-proxy",
            vec![
                "--kubeconfig=/var/lib/kubelet/proxy.kubeconfig".into(),
                format!("--hostname-override={name}").into(),
                format!("--cluster-cidr={PODS}").into(),
                "--proxy-mode=iptables".into(),
                // It is a setting of the whole kernel.
                "--conntrack-max-per-core=0".into(),
            ],
        ),
    ]
}

fn containerd() -> String {
    format!(
        r#"version = 2

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX}"
  # Without CAP_SYS_RESOURCE nothing may be made less killable than its parent.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/var/lib/containerd-config/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// Each pod has a link of its own to the node and is routed: a bridge would need a kernel module for Services of pods on
/// the same node.
fn pods(subnet: &str) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet(authority: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": authority}, "webhook": {"enabled": true}, "anonymous": {"enabled": false}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/var/lib/kubelet/server.crt",
        "tlsPrivateKeyFile": "/var/lib/kubelet/server.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "/var/lib/kubelet/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        // What a container gives itself in this machine: no limits of the kernel, no control groups of its own for pods.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "failSwapOn": false,
        "featureGates": {"KubeletInUserNamespace": true},
        // The machine's disk is others' too.
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        // A node that is cut off shall be seen as such within a test.
        "nodeLeaseDurationSeconds": 20,
        "nodeStatusUpdateFrequency": "5s",
    })
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}

fn write(node: &Machine, inside: &str, text: &str) -> Result<()> {
    let path = node.path(inside);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
