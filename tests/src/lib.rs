//! What the proofs share: an independent walk of a tree, fleets that clean up after themselves, sources to copy.
//!
//! Nothing here knows how replication works: equality is judged from outside, through the mounts.

pub mod bench;
pub mod boot;
pub mod cluster;
pub mod fleet;
pub mod history;
pub mod image;
pub mod machine;
pub mod power;
pub mod run;
pub mod sbom;
pub mod scenarios;
pub mod sources;
pub mod survive;
pub mod walk;
pub mod workload;
