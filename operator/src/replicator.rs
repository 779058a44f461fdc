//! Replicators: validate and status are pure; the end of one gives its node time to send what it has.

pub mod reconcile;
pub mod status;
pub mod terminate;
pub mod validate;

#[cfg(test)]
mod tests;
