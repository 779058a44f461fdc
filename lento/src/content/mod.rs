//! Contents as bytes: reading a file whole and unchanged, and writing one at offsets with its holes kept.

pub mod sink;
pub mod source;

/// Bytes per chunk.
pub const CHUNK: usize = 512 << 10;
/// What is zero over a block of this many bytes is left out.
pub const BLOCK: usize = 4096;
