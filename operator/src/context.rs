//! What every reconciler has at hand, and what may go wrong in one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_client::Client;
use kube_client::core::error_boundary::InvalidObject;
use kube_runtime::controller::Action;
use kube_runtime::finalizer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::conditions::elapsed;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::names::FINALIZER;
use crate::rate::{Applied, Writes};
use crate::settings::Settings;
use crate::world::World;

/// What every reconciler has at hand.
pub struct Context {
    /// Talks to the API server.
    pub client: Client,
    /// Everything there is.
    pub world: World,
    /// What the administrator set.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Tells people.
    pub events: Events,
    /// When statuses were written.
    pub writes: Writes,
    /// Of which conflicts there are objects.
    pub conflicts: Applied,
    /// Which claims were made.
    pub claims: Applied,
    /// Counts.
    pub metrics: Metrics,
    /// Namespace of the operator.
    pub namespace: String,
    /// When this operator began to lead.
    pub began: Timestamp,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// How long agents get to attach to an operator that has just begun to lead, and does not know what they have done. An agent
/// whose operator was cut off notices that after some 20 s.
const ATTACH: Duration = Duration::from_secs(45);

impl Context {
    /// Whether the nodes of an object that is being deleted are still waited for.
    #[must_use]
    pub fn deadline_of(&self, ends: &ObjectMeta) -> Deadline {
        let (deadline, now) = (self.settings.borrow().deletion_deadline(), Timestamp::now());
        let since = ends.deletion_timestamp.as_ref().map_or(now, |time| time.0);
        let known = elapsed(self.began, now) > ATTACH;
        if known && elapsed(since, now) > deadline { Deadline::Over } else { Deadline::Ahead }
    }
}

/// Of the end of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Nodes are waited for.
    Ahead,
    /// Who has not answered is left behind.
    Over,
}

/// Why an object could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or did not answer.
    #[error("the API server: {0}")]
    Api(#[from] Box<kube_client::Error>),
    /// The finalizer could not be set or removed.
    #[error("finalizer: {0}")]
    Finalizer(String),
    /// An object did not become JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The lists have not been read yet.
    #[error("the lists of objects have not been read yet")]
    NotListed,
    /// An object that cannot be read.
    #[error("{object}: {reason}; correct or delete it")]
    Broken {
        /// Which.
        object: String,
        /// Why.
        reason: String,
    },
}

impl From<kube_client::Error> for ReconcileError {
    fn from(error: kube_client::Error) -> ReconcileError {
        ReconcileError::Api(Box::new(error))
    }
}

/// Whether the object is being deleted and waits for this operator.
#[must_use]
pub fn ends(object: &ObjectMeta) -> bool {
    let ours = object.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    ours && object.deletion_timestamp.is_some()
}

impl From<finalizer::Error<ReconcileError>> for ReconcileError {
    fn from(error: finalizer::Error<ReconcileError>) -> ReconcileError {
        match error {
            finalizer::Error::ApplyFailed(error) | finalizer::Error::CleanupFailed(error) => error,
            other => ReconcileError::Finalizer(other.to_string()),
        }
    }
}

/// What a person should know about an object that cannot be read.
#[must_use]
pub fn unreadable(broken: &InvalidObject) -> String {
    format!("this version of the operator cannot read it, and what it said before stays: {}", broken.error)
}

/// After an error: again, the later the more there are. One object's trouble delays no other.
#[must_use]
pub fn again(error: &ReconcileError) -> Action {
    Action::requeue(match error {
        ReconcileError::NotListed => Duration::from_millis(200),
        ReconcileError::Broken { .. } => Duration::from_secs(300),
        ReconcileError::Api(_) | ReconcileError::Finalizer(_) | ReconcileError::Json(_) => {
            Duration::from_secs(5)
        }
    })
}
