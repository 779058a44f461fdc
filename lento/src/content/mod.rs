//! Contents as bytes: reading a file whole and unchanged, describing it by blocks, sending what differs from what the
//! receiver has, and putting the two together there.

pub mod assembly;
pub mod block;
pub mod difference;
pub mod incoming;
pub mod packing;
pub mod source;

/// Most bytes of a piece.
pub const CHUNK: usize = 512 << 10;
/// What is zero over a block of this many bytes is left out on disk.
pub const BLOCK: usize = 4096;
