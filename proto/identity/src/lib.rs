//! Who is who on the network: names in certificates, mutual TLS whose certificates change while it runs, and the far side
//! of a request. Used by agents and by the operator; it knows nothing of volumes and touches no files.

pub mod credentials;
pub mod incoming;
pub mod name;
pub mod peer;

pub use credentials::Credentials;
pub use credentials::Identity;
pub use credentials::IdentityError;
pub use name::NODE_DOMAIN;
pub use name::OPERATOR_NAME;
pub use peer::peer_node;
