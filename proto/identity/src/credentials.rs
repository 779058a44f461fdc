//! A certificate with its key and the authorities that are trusted, and how they are replaced while connections run.

use crate::name::OPERATOR_NAME;
use crate::name::expiry_of_certificate;
use crate::name::node_identity;
use crate::name::node_of_certificate;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tonic::transport::Certificate;
use tonic::transport::ClientTlsConfig;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A part of it cannot be read.
    #[error("{part}: {reason}")]
    Unreadable {
        /// Which: the certificate, the key or the authorities.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// A certificate of somebody else.
    #[error("the certificate is for node {found:?}, this is node {expected:?}")]
    OtherNode {
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
}

/// Whether the far side of a listener must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// It must.
    Refused,
    /// It may come without one, to enrol.
    Admitted,
}

/// A certificate, its key, and whom to trust. Checked when made: key and certificate belong together.
#[derive(Clone)]
pub struct Identity {
    identity: tonic::transport::Identity,
    authorities: Certificate,
    server: Arc<ServerConfig>,
    leaf: CertificateDer<'static>,
    expiry: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("expiry", &self.expiry).finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM: certificate chain, key, and every authority that is trusted.
    ///
    /// # Errors
    /// One of them cannot be read, or they do not belong together.
    pub fn from_pem(
        certificate: &str,
        key: &str,
        authorities: &str,
        strangers: Strangers,
    ) -> Result<Identity, IdentityError> {
        let chain = certificates("certificate", certificate)?;
        let leaf = chain.first().cloned().ok_or_else(|| unreadable("certificate", "there is none"))?;
        let expiry = expiry_of_certificate(&leaf).map_err(|reason| unreadable("certificate", reason))?;
        let server = server(chain, key, roots(authorities)?, strangers)?;
        Ok(Identity {
            identity: tonic::transport::Identity::from_pem(certificate, key),
            authorities: Certificate::from_pem(authorities),
            server: Arc::new(server),
            leaf,
            expiry,
        })
    }

    /// Refuses a certificate that is not `node`'s.
    ///
    /// # Errors
    /// It is another node's, or none's.
    pub fn of_node(self, node: &str) -> Result<Identity, IdentityError> {
        let found = node_of_certificate(&self.leaf).map_err(|reason| unreadable("certificate", reason))?;
        if found != node {
            return Err(IdentityError::OtherNode { found, expected: node.to_owned() });
        }
        Ok(self)
    }

    /// Until when it is valid.
    #[must_use]
    pub fn expiry(&self) -> SystemTime {
        self.expiry
    }

    /// For the listening side.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For a connection to `node`, who must prove to be it.
    #[must_use]
    pub fn client(&self, node: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authorities.clone())
            .domain_name(node_identity(node))
    }
}

/// For a connection to the operator, who must prove to be it by one of `authorities` (PEM each). `identity`: who we are;
/// to enrol nobody says it.
#[must_use]
pub fn client_of_operator(identity: Option<&Identity>, authorities: &[String]) -> ClientTlsConfig {
    let config = ClientTlsConfig::new()
        .ca_certificates(authorities.iter().map(Certificate::from_pem))
        .domain_name(OPERATOR_NAME);
    match identity {
        Some(identity) => config.identity(identity.identity.clone()),
        None => config,
    }
}

/// The certificates in a PEM text.
///
/// # Errors
/// It is not one.
pub fn certificates(part: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(part, error))
}

/// Authorities to trust; each must be readable, and there must be one.
fn roots(authorities: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authorities", authorities)? {
        roots.add(certificate).map_err(|error| unreadable("authorities", error))?;
    }
    if roots.is_empty() {
        return Err(unreadable("authorities", "there is none"));
    }
    Ok(roots)
}

/// Whether a text holds authorities that can be trusted.
///
/// # Errors
/// It does not.
pub fn check_authorities(authorities: &str) -> Result<(), IdentityError> {
    roots(authorities).map(|_| ())
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: &str,
    roots: RootCertStore,
    strangers: Strangers,
) -> Result<ServerConfig, IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unreadable("key", error))?;
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = match strangers {
        Strangers::Refused => clients,
        Strangers::Admitted => clients.allow_unauthenticated(),
    };
    let clients = clients.build().map_err(|error| unreadable("authorities", error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable("TLS", error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| unreadable("key", error))?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}

fn unreadable(part: &'static str, reason: impl fmt::Display) -> IdentityError {
    IdentityError::Unreadable { part, reason: reason.to_string() }
}

/// The identity of now. Clones see the same; each new connection takes what is there then.
#[derive(Clone, Debug)]
pub struct Credentials {
    now: watch::Receiver<Option<Arc<Identity>>>,
}

impl Credentials {
    /// The place where the identity is put, and where it is taken from. At first there is none.
    #[must_use]
    pub fn channel() -> (watch::Sender<Option<Arc<Identity>>>, Credentials) {
        let (sender, now) = watch::channel(None);
        (sender, Credentials { now })
    }

    /// One that never changes.
    #[must_use]
    pub fn fixed(identity: Identity) -> Credentials {
        let (_, now) = watch::channel(Some(Arc::new(identity)));
        Credentials { now }
    }

    /// The identity of now; `None`: there is none yet.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Identity>> {
        self.now.borrow().clone()
    }
}
