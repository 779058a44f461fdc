//! What runs on every node: the DaemonSets of presto and lento. Dereference is the operator's own Deployment, which owns them,
//! so that `helm uninstall` takes them along; build is pure.

pub mod build;
pub mod reconcile;
pub mod status;
