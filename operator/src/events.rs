//! What a person should hear about, as Kubernetes Events: transitions, never states.

use intermezzo_api::Condition;
use intermezzo_api::condition::{DEGRADED, IN_SYNC, READY};
use kube_client::{Client, Resource};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::debug;

use crate::conditions::changed;
use crate::names::MANAGER;

/// Tells.
#[derive(Clone)]
pub struct Events(Recorder);

/// Longest note that Kubernetes takes, in bytes.
const NOTE: usize = 1024;

impl Events {
    /// As this operator.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Events {
        let reporter = Reporter { controller: MANAGER.into(), instance: Some(instance.to_owned()) };
        Events(Recorder::new(client, reporter))
    }

    /// Something went as asked.
    pub async fn normal(&self, about: &impl Resource<DynamicType = ()>, reason: &str, note: &str) {
        self.tell(about, EventType::Normal, reason, note).await;
    }

    /// Somebody should look.
    pub async fn warning(&self, about: &impl Resource<DynamicType = ()>, reason: &str, note: &str) {
        self.tell(about, EventType::Warning, reason, note).await;
    }

    /// Tells the conditions that say something else than before.
    pub async fn transitions(
        &self,
        about: &impl Resource<DynamicType = ()>,
        before: &[Condition],
        now: &[Condition],
    ) {
        for condition in changed(before, now) {
            let first = crate::conditions::find(before, &condition.type_).is_none();
            match (condition.type_.as_str(), condition.status.as_str()) {
                // Comes and goes with every burst of writes.
                (IN_SYNC, _) => {}
                // Its cause is another condition, which tells.
                (READY, "False") => {}
                _ if condition.reason == "Starting" => {}
                (DEGRADED, "False") if first => {}
                (DEGRADED, "True") | (_, "False") => {
                    self.warning(
                        about,
                        &condition.reason,
                        &format!("{}: {}", condition.type_, condition.message),
                    )
                    .await;
                }
                (_, "True") | (DEGRADED, _) => {
                    self.normal(about, &condition.reason, &condition.message).await
                }
                _ => {}
            }
        }
    }

    async fn tell(
        &self,
        about: &impl Resource<DynamicType = ()>,
        type_: EventType,
        reason: &str,
        note: &str,
    ) {
        let note = note.get(..note.floor_char_boundary(NOTE)).unwrap_or_default().to_owned();
        let (reason, action) = (reason.to_owned(), "Reconcile".to_owned());
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.0.publish(&event, &about.object_ref(&())).await {
            debug!(target: "events", %error, "an event was not taken");
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}
