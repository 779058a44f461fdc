//! The decisions of Lento, without IO: state machines that take inputs and give outputs.
//!
//! No tokio, no files, no clock; BTreeMap only, so that a run replays exactly. Everything that must survive lives in
//! the [`store::Store`] that the shell opens and commits; everything else is rebuilt from it, the KML and the peers.

pub mod io;
pub mod message;
pub mod record;
pub mod store;
pub mod types;
pub mod volume;

pub use volume::Volume;
