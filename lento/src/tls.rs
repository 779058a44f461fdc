//! Mutual TLS: who an agent is, who may talk to it, and whom it talks to. A node's name is in its certificate.

use std::path::Path;
use std::path::PathBuf;
use tonic::transport::Certificate;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Identity;
use tonic::transport::ServerTlsConfig;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What follows a node's name in its certificate.
pub const NODE_DOMAIN: &str = ".node.intermezzo.internal";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate that cannot be read.
    #[error("{0}")]
    Certificate(String),
    /// A certificate of somebody else.
    #[error("{}: the certificate is for node {found:?}, this is node {expected:?}", path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
}

/// An agent's certificate, key and authority.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    identity: Identity,
    authority: Certificate,
}

impl NodeIdentity {
    /// Reads the three files; the certificate must be `node`'s.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(node: &str, cert: &Path, key: &Path, ca: &Path) -> Result<NodeIdentity, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        let pem = read(cert)?;
        let broken = |reason: String| TlsError::Certificate(format!("{}: {reason}", cert.display()));
        let (_, first) = x509_parser::pem::parse_x509_pem(&pem).map_err(|error| broken(error.to_string()))?;
        let found = node_of_certificate(&first.contents).map_err(broken)?;
        if found != node {
            let (path, expected) = (cert.to_owned(), node.to_owned());
            return Err(TlsError::OtherNode { path, found, expected });
        }
        Ok(NodeIdentity {
            identity: Identity::from_pem(pem, read(key)?),
            authority: Certificate::from_pem(read(ca)?),
        })
    }

    /// For the listening side: peers must show a certificate of the same authority.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.authority.clone())
    }

    /// For a connection to `node`, who must prove to be it.
    #[must_use]
    pub fn client(&self, node: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .domain_name(format!("{node}{NODE_DOMAIN}"))
    }
}

/// The node named in a certificate (DER).
///
/// # Errors
/// Text for people: it names none, or several.
pub fn node_of_certificate(der: &[u8]) -> Result<String, String> {
    let (_, certificate) = parse_x509_certificate(der).map_err(|error| error.to_string())?;
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut nodes = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_suffix(NODE_DOMAIN),
        _ => None,
    });
    match (nodes.next(), nodes.next()) {
        (Some(node), None) if is_node_name(node) => Ok(node.to_owned()),
        (Some(node), None) => Err(format!("the certificate's node name {node:?} is not one")),
        (None, _) => Err(format!("the certificate names no node (a DNS name ending in {NODE_DOMAIN})")),
        (Some(_), Some(_)) => Err("the certificate names several nodes".to_owned()),
    }
}

/// The node at the other end of a request.
///
/// # Errors
/// It has not proved to be one.
pub fn peer_node<T>(request: &tonic::Request<T>) -> Result<String, tonic::Status> {
    let certificates = request.peer_certs();
    let first = certificates.as_ref().and_then(|certificates| certificates.first());
    let first = first.ok_or_else(|| tonic::Status::unauthenticated("no client certificate"))?;
    node_of_certificate(first).map_err(tonic::Status::unauthenticated)
}

/// A node name is a DNS name as Kubernetes has it.
fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
