//! The Kubernetes-shaped objects of InterMezzo, `intermezzo.dev/v1alpha1`.
//!
//! Owns the types `Volume`, `Replicator` and `Conflict`, the rules by which the API server refuses them, and how they are read from a directory of YAML files (`manifest`), so that the
//! operator, agents without Kubernetes and the command line share one meaning of each field. No client, no IO but reading files.

pub mod condition;
pub mod conflict;
pub mod definitions;
pub mod manifest;
pub mod names;
pub mod replicator;
mod rules;
pub mod volume;
pub mod wait;

pub use condition::Condition;
pub use conflict::{Conflict, ConflictSpec};
pub use replicator::{Replicator, ReplicatorSpec, ReplicatorStatus};
pub use volume::{Access, DeletionPolicy, Mode, Volume, VolumeSpec, VolumeStatus};

/// API group of every object.
pub const GROUP: &str = "intermezzo.dev";
/// Version of the API that this crate describes.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every object.
pub const API_VERSION: &str = "intermezzo.dev/v1alpha1";
