//! The programs of the control plane and what they are told.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::machine::Run;
use super::network::{Network, PODS, SERVICES};
use super::parts::Parts;

/// Makes the directories that they need.
///
/// # Errors
/// A directory cannot be made.
pub fn configure(dir: &Path) -> Result<()> {
    Ok(fs::create_dir_all(dir.join("control/etcd"))?)
}

/// All of them, in the order of their start.
#[must_use]
pub fn programs(dir: &Path, network: &Network, parts: &Parts) -> Vec<Run> {
    let binary = parts.program("kubernetes");
    vec![
        Run::new(&binary, "etcd", etcd(dir)),
        Run::new(&binary, "kube-apiserver", apiserver(dir, network)),
        Run::new(&binary, "kube-controller-manager", controller_manager(dir)),
        Run::new(&binary, "kube-scheduler", scheduler(dir)),
    ]
}

/// One of them.
#[must_use]
pub fn program(dir: &Path, network: &Network, parts: &Parts, name: &str) -> Option<Run> {
    programs(dir, network, parts).into_iter().find(|run| run.name == name)
}

fn etcd(dir: &Path) -> Vec<OsString> {
    let mut all = flags(&[
        ("listen-client-urls", "http://127.0.0.1:2379"),
        ("advertise-client-urls", "http://127.0.0.1:2379"),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
        ("log-level", "warn"),
        // A cluster for trials: speed, not safety from a power failure.
        ("unsafe-no-fsync", "true"),
    ]);
    all.push(file("data-dir", &dir.join("control/etcd")));
    all
}

fn apiserver(dir: &Path, network: &Network) -> Vec<OsString> {
    let mut all = flags(&[
        ("etcd-servers", "http://127.0.0.1:2379"),
        ("advertise-address", &network.control()),
        ("service-cluster-ip-range", SERVICES),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("allow-privileged", "true"),
        ("kubelet-preferred-address-types", "InternalIP"),
        // Requests that are under way when it is told to end are few here.
        ("shutdown-delay-duration", "0s"),
    ]);
    let pki = dir.join("pki");
    for (flag, name) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "apiserver-kubelet.crt"),
        ("kubelet-client-key", "apiserver-kubelet.key"),
        ("service-account-key-file", "accounts.pub"),
        ("service-account-signing-key-file", "accounts.key"),
    ] {
        all.push(file(flag, &pki.join(name)));
    }
    all.push(file("cert-dir", &dir.join("control/run")));
    all
}

fn controller_manager(dir: &Path) -> Vec<OsString> {
    let mut all = flags(&[
        ("leader-elect", "false"),
        ("use-service-account-credentials", "true"),
        ("cluster-cidr", PODS),
        ("service-cluster-ip-range", SERVICES),
        // A node that is cut off shall be seen as such within a test.
        ("node-monitor-period", "2s"),
        ("node-monitor-grace-period", "20s"),
    ]);
    let pki = dir.join("pki");
    all.push(file("kubeconfig", &pki.join("kube-controller-manager.kubeconfig")));
    // Made if it is absent, in /usr unless told otherwise.
    all.push(file("flex-volume-plugin-dir", &dir.join("control/volumeplugins")));
    all.push(file("root-ca-file", &pki.join("ca.crt")));
    all.push(file("service-account-private-key-file", &pki.join("accounts.key")));
    all.push(file("cert-dir", &dir.join("control/run")));
    all
}

fn scheduler(dir: &Path) -> Vec<OsString> {
    let mut all = flags(&[("leader-elect", "false")]);
    all.push(file("kubeconfig", &dir.join("pki/kube-scheduler.kubeconfig")));
    all.push(file("cert-dir", &dir.join("control/run")));
    all
}

fn flags(pairs: &[(&str, &str)]) -> Vec<OsString> {
    pairs.iter().map(|(flag, value)| OsString::from(format!("--{flag}={value}"))).collect()
}

fn file(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("--{flag}="));
    argument.push(path);
    argument
}
