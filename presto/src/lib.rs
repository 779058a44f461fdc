//! Presto: the file system filter. A FUSE server over a plain local directory that journals each update and applies
//! others' updates on Lento's demand.

pub mod channel;
pub mod check;
pub mod filter;
pub mod fuse;
pub mod holding;
pub mod lower;
pub mod recovery;
pub mod replay;
pub mod root;
pub mod scrub;
pub mod session;
pub mod volumes;
