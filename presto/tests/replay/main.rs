//! Replays on a volume without a mount, users played by calls of the filter: each operation, each precondition.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod attributes;
mod busy;
mod history;
mod install;
mod missing;
mod names;
mod power;
mod recovery;
mod world;
