//! Excluded names: files like others to users, nothing to other nodes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "../scrub/ask.rs"]
#[allow(dead_code)]
mod ask;
#[path = "../common/calls.rs"]
mod calls;
mod lento;
#[path = "../common/mounted.rs"]
mod mounted;
mod users;
#[path = "../replay/world.rs"]
#[allow(dead_code)]
mod world;
