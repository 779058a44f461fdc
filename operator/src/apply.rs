//! Server-side apply: the operator owns the fields it sets, and no others.

use std::fmt::Debug;

use kube_client::api::{DeleteParams, Patch, PatchParams};
use kube_client::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::ReconcileError;
use crate::names::MANAGER;

fn params() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

/// Applies an object as a whole. Its status is not part of it.
///
/// # Errors
/// The API server's.
pub async fn object<K>(api: &Api<K>, object: &K) -> Result<K, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let mut value = serde_json::to_value(object)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
        fields.insert("apiVersion".into(), K::api_version(&()).into());
        fields.insert("kind".into(), K::kind(&()).into());
    }
    Ok(api.patch(&object.name_any(), &params(), &Patch::Apply(value)).await?)
}

/// Which version of an object a status is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Whatever it is by now.
    Any,
    /// The one that was read: a decision that must not be taken twice is refused (409) where somebody was faster.
    Read,
}

/// Applies an object's status: all of it.
///
/// # Errors
/// The API server's.
pub async fn status<K>(
    api: &Api<K>,
    object: &K,
    status: &impl Serialize,
    version: Version,
) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let read = object.resource_version().filter(|_| version == Version::Read);
    let mut value: Value = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()),
        // Another object of the same name gets none of this.
        "metadata": {"name": object.name_any(), "uid": object.uid()},
        "status": status,
    });
    if let (Some(read), Some(metadata)) =
        (read, value.pointer_mut("/metadata").and_then(Value::as_object_mut))
    {
        metadata.insert("resourceVersion".into(), read.into());
    }
    api.patch_status(&object.name_any(), &params(), &Patch::Apply(value)).await?;
    Ok(())
}

/// Deletes by name; gone already is right too.
///
/// # Errors
/// The API server's.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube_client::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
