//! Contents as bytes: reading a file whole and unchanged, describing it by blocks and by chunks, sending what
//! the receiver does not have, and putting the two together there.

pub mod assembly;
pub mod block;
pub mod chunk;
pub mod difference;
pub mod incoming;
pub mod known;
pub mod packing;
pub mod source;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// Most bytes of a piece.
pub const CHUNK: usize = 512 << 10;
/// What is zero over a block of this many bytes is left out on disk.
pub const BLOCK: usize = 4096;

/// A flag that a thread looks at, set when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Stop(pub Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
