//! The holder: keeps what a mount needs to live while presto is away.
//!
//! For each session presto hands over a FUSE device and the session's memory; whoever asks next gets them. It also writes
//! presto's corrections of the kernel's caches, for which a writer may have to wait until presto answers somebody.
//! It never touches a mount, never starts a process, and has no network. `protocol.rs` has the words, `link.rs` the
//! socket, `client.rs` presto's side, `keeper.rs` what is kept, `notices.rs` the corrections.

mod client;
mod keeper;
mod link;
mod notices;
mod protocol;

pub use client::{Client, ClientError};
pub use keeper::Keeper;
pub use link::{Link, LinkError};
pub use protocol::{Kept, MAX_NAME, MAX_PACKET, VERSION, ack, batch};
