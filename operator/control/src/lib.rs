//! The far side of the agents, free of Kubernetes: who they are (certificates), what they shall do, and how they are.
//!
//! An operator needs little of it:
//! - an [`Authority`], read from its Secret or created; [`Authority::due`] says what takes its place, which is written to
//!   the Secret *before* it is put into the watch channel; [`Authority::bundle`] goes to the agents' ConfigMap;
//! - a [`Reviewer`], which knows to which node a token belongs;
//! - for each node a [`Desired`], made of the same objects that people apply, put into a watch channel;
//! - [`listen`], which serves agents until it is stopped and gives [`Agents`]: who is attached, and each one's last report.
//!
//! A node is the node in its certificate. It gets nothing but its own desired state and speaks for nobody else.
//! How trust, enrolment and desired state work, and why: `docs/technical/control.md`.

mod attach;
pub mod authority;
pub mod desired;
mod edge;
mod enrol;
mod registry;
mod server;

pub use attach::DesiredByNode;
pub use authority::Authority;
pub use authority::AuthorityError;
pub use authority::Lifetimes;
pub use desired::Desired;
pub use desired::NodeName;
pub use edge::PROTOCOL;
pub use enrol::Review;
pub use enrol::Reviewer;
pub use registry::Agent;
pub use registry::Agents;
pub use server::ControlError;
pub use server::Listening;
pub use server::Settings;
pub use server::listen;
