//! What a mounted session needs to outlive presto, in memory that the holder keeps: `docs/technical/mount-survival.md`.
//!
//! Owns the layout of that memory (version 1). Each fact is written before the reply that makes the kernel rely on it, and
//! taken back after the kernel has let go, so whatever moment presto is killed in, the next one finds enough.
//! Without a holder there is no such memory.

mod memory;
mod requests;
mod table;

pub use memory::Agreed;
pub use memory::HeldHandle;
pub use memory::Identity;
pub use memory::Memory;
pub use memory::Refusal;
pub use memory::Way;
pub use requests::Earlier;
pub use requests::Request;
pub use requests::Went;
pub(crate) use requests::is_resent;
pub(crate) use requests::number;
pub use table::Slot;
