//! The objects that a Volume needs: pure, one file for each kind.

pub mod claim;
pub mod conflicts;
pub mod replicators;
