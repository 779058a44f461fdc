//! The cluster's one authority, and a certificate for each who takes part. They live as long as the cluster's directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::machine::Machine;
use super::network::{API_SERVICE, Network};

/// Signs, and knows where things lie.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub certificate: PathBuf,
    server: String,
}

/// Makes the authority and what the control plane and the administrator need.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, network: &Network, nodes: &[Machine]) -> Result<Authority> {
    let pki = dir.join("pki");
    fs::create_dir_all(&pki)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "test cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = pki.join("ca.crt");
    fs::write(&certificate, params.self_signed(&key)?.pem())?;
    let server = format!("https://{}:6443", network.control());
    let authority = Authority { issuer: Issuer::new(params, key), certificate, server };

    let control = network.control();
    let names = [
        "kubernetes.default.svc.cluster.local",
        "kubernetes.default.svc",
        "kubernetes.default",
        "kubernetes",
        "localhost",
        API_SERVICE,
        "127.0.0.1",
        &control,
    ];
    authority.issue(&pki.join("apiserver"), "kube-apiserver", None, &names)?;
    authority.issue(
        &pki.join("apiserver-kubelet"),
        "kube-apiserver-kubelet-client",
        Some("system:masters"),
        &[],
    )?;
    let accounts = KeyPair::generate()?;
    private(&pki.join("accounts.key"), &accounts.serialize_pem())?;
    fs::write(pki.join("accounts.pub"), accounts.public_key_pem())?;

    authority.kubeconfig(&dir.join("admin.kubeconfig"), "kubernetes-admin", Some("system:masters"))?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        authority.kubeconfig(&pki.join(format!("{name}.kubeconfig")), &format!("system:{name}"), None)?;
    }
    for (number, node) in nodes.iter().enumerate() {
        let lib = node.path("/var/lib/kubelet");
        fs::create_dir_all(&lib)?;
        authority.issue(&lib.join("server"), &node.name, None, &[&node.name, &network.node(number)])?;
        let name = format!("system:node:{}", node.name);
        authority.kubeconfig(&lib.join("kubelet.kubeconfig"), &name, Some("system:nodes"))?;
        authority.kubeconfig(&lib.join("proxy.kubeconfig"), "system:kube-proxy", None)?;
    }
    Ok(authority)
}

impl Authority {
    /// Writes `PATH.crt` and `PATH.key`.
    fn issue(&self, path: &Path, name: &str, group: Option<&str>, alternatives: &[&str]) -> Result<()> {
        let alternatives: Vec<String> = alternatives.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(alternatives)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        fs::write(path.with_extension("crt"), params.signed_by(&key, &self.issuer)?.pem())?;
        private(&path.with_extension("key"), &key.serialize_pem())
    }

    /// Writes a kubeconfig, and its certificate and key beside it. JSON is YAML.
    fn kubeconfig(&self, path: &Path, name: &str, group: Option<&str>) -> Result<()> {
        self.issue(path, name, group, &[])?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": self.server, "certificate-authority": self.certificate,
            }}],
            "users": [{"name": name, "user": {
                "client-certificate": path.with_extension("crt"), "client-key": path.with_extension("key"),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        });
        private(path, &serde_json::to_string_pretty(&config)?)
    }
}

fn private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
