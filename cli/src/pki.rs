//! A CA and certificates of nodes, for use without an operator.
//!
//! A node's identity is the DNS name `<node>.node.intermezzo.internal` in its certificate: it serves and it dials with the
//! same one. Private keys never leave the directory they are written to, mode 0600.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use intermezzo_api::names::dns_label;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Domain of all node identities. It is reserved for private use, so no public CA vouches for a name in it.
pub const DOMAIN: &str = "node.intermezzo.internal";

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is there that must not be overwritten.
    #[error(
        "{0} is there already; remove it first if a new one is wanted (whoever trusts the old one must then be told)"
    )]
    Exists(PathBuf),
    /// A CA's files are not what they should be.
    #[error("{path}: not a CA's certificate or key: {source}")]
    NotCa {
        /// Directory of the CA.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A node's name is no DNS label.
    #[error("node name {0}")]
    Node(String),
}

/// A certificate and its private key on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificate, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

impl Files {
    /// The CA's files in `dir`.
    #[must_use]
    pub fn ca(dir: &Path) -> Files {
        Files { cert: dir.join("ca.crt"), key: dir.join("ca.key") }
    }

    /// A node's files in `dir`.
    #[must_use]
    pub fn node(dir: &Path, node: &str) -> Files {
        Files { cert: dir.join(format!("{node}.crt")), key: dir.join(format!("{node}.key")) }
    }

    /// Whether both are there.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.cert.exists() && self.key.exists()
    }
}

/// The DNS name that is a node's identity.
#[must_use]
pub fn identity(node: &str) -> String {
    format!("{node}.{DOMAIN}")
}

/// Makes a CA in `dir`.
///
/// # Errors
/// Files that are there already are not overwritten.
pub fn make_ca(dir: &Path, name: &str, valid: Duration) -> Result<Files, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, valid);
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    write(Files::ca(dir), &cert.pem(), &key.serialize_pem())
}

/// Makes a certificate for `node` in `out`, signed by the CA in `ca`.
///
/// # Errors
/// A name that is no DNS label, a CA that cannot be read, files that are there already.
pub fn make_node(ca: &Path, out: &Path, node: &str, valid: Duration) -> Result<Files, PkiError> {
    dns_label(node).map_err(PkiError::Node)?;
    let files = Files::ca(ca);
    let not_ca = |source| PkiError::NotCa { path: ca.to_owned(), source };
    let ca_key = KeyPair::from_pem(&read(&files.key)?).map_err(not_ca)?;
    let issuer = Issuer::from_ca_cert_pem(&read(&files.cert)?, ca_key).map_err(not_ca)?;

    let mut params = CertificateParams::new(vec![identity(node)])?;
    params.distinguished_name.push(DnType::CommonName, node);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, valid);
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    write(Files::node(out, node), &cert.pem(), &key.serialize_pem())
}

fn set_validity(params: &mut CertificateParams, valid: Duration) {
    let now = SystemTime::now();
    // Clocks of nodes differ a little.
    // A node whose clock has lost years must not be locked out for that.
    params.not_before = SystemTime::UNIX_EPOCH.into();
    params.not_after = (now + valid).into();
}

fn write(files: Files, cert: &str, key: &str) -> Result<Files, PkiError> {
    for path in [&files.key, &files.cert] {
        if path.exists() {
            return Err(PkiError::Exists(path.clone()));
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
        }
    }
    write_one(&files.key, key)?;
    write_one(&files.cert, cert)?;
    Ok(files)
}

fn write_one(path: &Path, text: &str) -> Result<(), PkiError> {
    let make = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    make().map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_nodes_certificate_is_signed_by_the_ca_and_names_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let ca = make_ca(dir.path(), "test", DAY).unwrap();
        let node = make_node(dir.path(), dir.path(), "a", DAY).unwrap();
        for file in [&ca.key, &ca.cert, &node.key, &node.cert] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let der =
            |path: &Path| x509_parser::pem::parse_x509_pem(&fs::read(path).unwrap()).unwrap().1.contents;
        let (ca, node) = (der(&ca.cert), der(&node.cert));
        let ca = x509_parser::parse_x509_certificate(&ca).unwrap().1;
        let node = x509_parser::parse_x509_certificate(&node).unwrap().1;
        assert_eq!(node.issuer(), ca.subject());
        assert!(ca.is_ca() && !node.is_ca());
        assert!(node.validity().is_valid());
        assert_eq!(node.validity().not_before.timestamp(), 0, "whatever a node's clock says");
        let names = node.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(format!("{:?}", names.value.general_names[0]).contains("a.node.intermezzo.internal"));
        let usage = node.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.server_auth && usage.value.client_auth && !usage.value.any);
    }

    #[test]
    fn nothing_is_overwritten_and_names_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), "test", DAY).unwrap();
        assert!(matches!(make_ca(dir.path(), "test", DAY), Err(PkiError::Exists(_))));
        assert!(matches!(make_node(dir.path(), dir.path(), "A.b", DAY), Err(PkiError::Node(_))));
        make_node(dir.path(), dir.path(), "a", DAY).unwrap();
        assert!(matches!(make_node(dir.path(), dir.path(), "a", DAY), Err(PkiError::Exists(_))));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(make_node(empty.path(), dir.path(), "b", DAY), Err(PkiError::File { .. })));
    }
}
