//! Conditions: what is true of an object now, each with the generation of the spec it was judged by.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The object does what its spec asks.
pub const READY: &str = "Ready";
/// The server has the volume mounted and takes records.
pub const SERVING: &str = "Serving";
/// Every Replicator has what the server has.
pub const IN_SYNC: &str = "InSync";
/// The agents concerned talk to each other.
pub const CONNECTED: &str = "Connected";
/// Something works worse than asked; the message says what.
pub const DEGRADED: &str = "Degraded";
/// The object is right as it is written and is carried out; the message names the field where it is not.
pub const ACCEPTED: &str = "Accepted";
/// The object is being deleted; the message says what is waited for.
pub const TERMINATING: &str = "Terminating";
