//! This node's certificate as the operator gave it, with its key and whom to trust, on disk.

use super::kept::Kind;
use crate::random::jitter;
use intermezzo_identity::Identity;
use intermezzo_identity::IdentityError;
use intermezzo_identity::credentials::Strangers;
use serde::Deserialize;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::time::Instant;

const KIND: Kind = Kind { file: "identity", name: "identity", version: 1 };

#[derive(Clone, Serialize, Deserialize)]
struct Texts {
    certificate: String,
    key: String,
    authorities: String,
    /// Seconds that the certificate lives in all.
    lifetime: u64,
}

/// Checked: the certificate is this node's, and the key is the certificate's.
#[derive(Clone)]
pub(super) struct KeptIdentity {
    node: String,
    texts: Texts,
    identity: Arc<Identity>,
    /// By the wall clock, and by one that nobody sets.
    renew_at: (SystemTime, Instant),
}

impl KeptIdentity {
    /// One that was just given.
    ///
    /// # Errors
    /// It is not for this node, or its parts do not belong together.
    pub(super) fn new(
        node: &str,
        certificate: String,
        key: String,
        authorities: String,
        lifetime: Duration,
    ) -> Result<KeptIdentity, IdentityError> {
        KeptIdentity::checked(node, Texts { certificate, key, authorities, lifetime: lifetime.as_secs() })
    }

    fn checked(node: &str, texts: Texts) -> Result<KeptIdentity, IdentityError> {
        let identity =
            Identity::from_pem(&texts.certificate, &texts.key, &texts.authorities, Strangers::Refused)?
                .of_node(node)?;
        // Between a quarter and half of its life: not all nodes at once, and most of it is left if that fails.
        let lifetime = Duration::from_secs(texts.lifetime);
        let spare = lifetime.saturating_sub(jitter(lifetime / 2));
        let at = identity.expiry().checked_sub(spare).unwrap_or(SystemTime::UNIX_EPOCH);
        let wait = at.duration_since(SystemTime::now()).unwrap_or_default().min(lifetime);
        let renew_at = (at, Instant::now() + wait);
        Ok(KeptIdentity { node: node.to_owned(), texts, identity: Arc::new(identity), renew_at })
    }

    /// The one on disk; `None`: there is none.
    ///
    /// # Errors
    /// Text for people: there is one, and it cannot be used.
    pub(super) fn load(state: &Path, node: &str) -> Result<Option<KeptIdentity>, String> {
        let Some(texts) = KIND.read(state)? else { return Ok(None) };
        KeptIdentity::checked(node, texts).map(Some).map_err(|error| format!("kept identity: {error}"))
    }

    pub(super) fn save(&self, state: &Path) -> Result<(), String> {
        KIND.write(state, &self.texts)
    }

    /// The same certificate with other authorities.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn trusting(&self, authorities: String) -> Result<KeptIdentity, IdentityError> {
        let texts = Texts { authorities, ..self.texts.clone() };
        let renew_at = self.renew_at;
        Ok(KeptIdentity { renew_at, ..KeptIdentity::checked(&self.node, texts)? })
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        self.identity.clone()
    }

    /// PEM.
    pub(super) fn authorities(&self) -> &str {
        &self.texts.authorities
    }

    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.texts.lifetime)
    }

    pub(super) fn renewal_is_due(&self) -> bool {
        self.renew_at.0 <= SystemTime::now() || self.renew_at.1 <= Instant::now()
    }

    pub(super) fn is_over(&self) -> bool {
        self.identity.expiry() <= SystemTime::now()
    }
}
