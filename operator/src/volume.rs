//! Volumes: dereference, validate, build, apply, status. Validate, build and status are pure.

pub mod apply;
pub mod build;
pub mod dereference;
pub mod reconcile;
pub mod status;
pub mod terminate;
pub mod validate;

#[cfg(test)]
mod tests;
