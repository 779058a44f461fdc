//! The operator: talks to the Kubernetes API, so that agents need not.
//!
//! Owns the reconcilers of Volumes (`volume`), Replicators (`replicator`) and the node parts (`node_parts`), and what each
//! node shall do (`desired`), which passes to the far side of the agents through `control`. It never touches a user's file.

pub mod apply;
pub mod authority_store;
pub mod conditions;
pub mod context;
pub mod control;
pub mod desired;
pub mod election;
pub mod events;
pub mod far_side;
pub mod http;
pub mod metrics;
pub mod names;
pub mod node_parts;
pub mod options;
pub mod rate;
pub mod replicator;
pub mod review;
pub mod run;
pub mod settings;
pub mod volume;
pub mod world;

#[cfg(test)]
mod testing;
