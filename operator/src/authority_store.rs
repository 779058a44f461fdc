//! Where the certificate authority lives: a Secret with its parts, a ConfigMap with what agents trust.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_client::api::PostParams;
use kube_client::{Api, Client};

use crate::apply;
use crate::context::ReconcileError;
use crate::names::{AUTHORITY, AUTHORITY_FILE, MANAGER, labels};

/// Parts of an authority by name, as they are stored.
pub type Parts = BTreeMap<String, String>;

/// The Secret and the ConfigMap.
#[derive(Clone, Debug)]
pub struct AuthorityStore {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
}

/// What was stored, with the version that a later write must replace.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The parts.
    pub parts: Parts,
    version: Option<String>,
}

impl AuthorityStore {
    /// In the operator's namespace.
    #[must_use]
    pub fn new(client: &Client, namespace: &str) -> AuthorityStore {
        AuthorityStore {
            secrets: Api::namespaced(client.clone(), namespace),
            maps: Api::namespaced(client.clone(), namespace),
        }
    }

    /// What is stored; `None` before the first write.
    ///
    /// # Errors
    /// The API server's.
    pub async fn load(&self) -> Result<Option<Stored>, ReconcileError> {
        let Some(secret) = self.secrets.get_opt(AUTHORITY).await? else { return Ok(None) };
        let text = |bytes: ByteString| String::from_utf8_lossy(&bytes.0).into_owned();
        let data = secret.data.unwrap_or_default();
        let parts = data.into_iter().map(|(name, bytes)| (name, text(bytes))).collect();
        Ok(Some(Stored { parts, version: secret.metadata.resource_version }))
    }

    /// Stores the parts in place of `before`; refused where somebody else has stored since.
    ///
    /// # Errors
    /// The API server's, 409 among them.
    pub async fn save(&self, parts: &Parts, before: Option<&Stored>) -> Result<Stored, ReconcileError> {
        let data =
            parts.iter().map(|(name, text)| (name.clone(), ByteString(text.clone().into_bytes()))).collect();
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(AUTHORITY.into()),
                labels: Some(labels("operator")),
                resource_version: before.and_then(|stored| stored.version.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".into()),
            data: Some(data),
            ..Secret::default()
        };
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let written = match before {
            Some(_) => self.secrets.replace(AUTHORITY, &params, &secret).await?,
            None => self.secrets.create(&params, &secret).await?,
        };
        Ok(Stored { parts: parts.clone(), version: written.metadata.resource_version })
    }

    /// Publishes what agents shall trust (PEM).
    ///
    /// # Errors
    /// The API server's.
    pub async fn publish(&self, bundle: &str) -> Result<(), ReconcileError> {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(AUTHORITY.into()),
                labels: Some(labels("operator")),
                ..ObjectMeta::default()
            },
            data: Some([(AUTHORITY_FILE.to_owned(), bundle.to_owned())].into()),
            ..ConfigMap::default()
        };
        apply::object(&self.maps, &map).await.map(drop)
    }
}
