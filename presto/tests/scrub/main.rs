//! The scrub and adoption: what is found in the tree without a record, and directories that were there before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod adopt;
mod ask;
#[path = "../common/calls.rs"]
mod calls;
mod covered;
mod entries;
#[path = "../replay_process/fleet.rs"]
#[allow(dead_code)]
mod fleet;
mod listing;
mod objects;
mod power;
#[path = "../replay/world.rs"]
#[allow(dead_code)]
mod world;
