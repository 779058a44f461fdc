//! This node's identity from files (`--tls-cert`, `--tls-key`, `--tls-ca`), which are followed when they change. What an
//! identity is: `intermezzo-identity`.

use intermezzo_identity::Credentials;
use intermezzo_identity::Identity;
use intermezzo_identity::IdentityError;
use intermezzo_identity::credentials::Strangers;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

pub use intermezzo_identity::NODE_DOMAIN;
pub use intermezzo_identity::name::node_of_certificate;
pub use intermezzo_identity::peer_node;

/// How often the files are looked at: whoever replaces them does it hours before they end.
const LOOK: Duration = Duration::from_secs(2);

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
    /// What is in them.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
}

/// Where an identity lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authorities that are trusted, PEM.
    pub authorities: PathBuf,
}

/// The three texts.
#[derive(PartialEq, Eq)]
struct Texts([String; 3]);

impl NodeFiles {
    /// Reads the three files; the certificate must be `node`'s.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(&self, node: &str) -> Result<Identity, TlsError> {
        self.identity(node, &self.read()?)
    }

    fn read(&self) -> Result<Texts, TlsError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        Ok(Texts([read(&self.certificate)?, read(&self.key)?, read(&self.authorities)?]))
    }

    fn identity(&self, node: &str, texts: &Texts) -> Result<Identity, TlsError> {
        let Texts([certificate, key, authorities]) = texts;
        Identity::from_pem(certificate, key, authorities, Strangers::Refused)
            .and_then(|identity| identity.of_node(node))
            .map_err(|source| TlsError::Identity { path: self.certificate.clone(), source })
    }

    /// Reads them now and whenever they change, until told to stop. What is wrong later is said, and the last good
    /// identity stays.
    ///
    /// # Errors
    /// They are wrong from the beginning.
    pub fn follow(self, node: &str, stop: CancellationToken) -> Result<Credentials, TlsError> {
        let mut known = self.read()?;
        let first = self.identity(node, &known)?;
        let (put, credentials) = Credentials::channel();
        put.send_replace(Some(Arc::new(first)));
        let node = node.to_owned();
        let follow = async move {
            let mut said = String::new();
            loop {
                tokio::time::sleep(LOOK).await;
                // Three files are not replaced in one moment: until they fit together the old ones go on.
                let found = self.read().and_then(|texts| {
                    let new = (texts != known).then(|| self.identity(&node, &texts)).transpose()?;
                    Ok((texts, new))
                });
                match found {
                    Ok((texts, Some(identity))) => {
                        info!(target: "tls", "the certificate or its authorities were replaced");
                        known = texts;
                        said.clear();
                        put.send_replace(Some(Arc::new(identity)));
                    }
                    Ok((_, None)) => said.clear(),
                    Err(error) if error.to_string() != said => {
                        warn!(target: "tls", %error, "the new certificate is not taken; the last good one stays");
                        said = error.to_string();
                    }
                    Err(_) => {}
                }
            }
        };
        tokio::spawn(stop.run_until_cancelled_owned(follow));
        Ok(credentials)
    }
}
