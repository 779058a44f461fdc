//! The decisions of Lento, without IO: state machines that take inputs and give outputs.
//!
//! No tokio, no files, no clock; BTreeMap only, so that a run replays exactly. Everything that must survive lives in
//! the [`store::Store`] that the shell opens and commits; everything else is rebuilt from it, the KML and the peers.

mod acl;
mod apply;
mod aside;
mod client;
mod cml;
mod context;
mod facet;
pub mod ground;
pub mod history;
pub mod io;
mod judge;
pub mod keeping;
mod ledger;
pub mod lineage;
mod local;
pub mod message;
mod missing;
mod permit;
mod promise;
pub mod record;
mod replaying;
pub mod scrub;
mod server;
pub mod store;
mod table;
mod tree;
pub mod types;
pub mod volume;

pub use ledger::Behind;
pub use missing::Missing;
pub use server::ConflictRow;
pub use server::Held;
pub use server::Judged;
pub use server::Kept;
pub use server::Standing;
pub use server::State;
pub use volume::Volume;
