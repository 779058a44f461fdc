//! What the disk refuses: no space, writes that stop in the middle, entries that cannot go, descriptors that are not there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod broken;
mod full;
mod limits;
#[path = "../common/lower_fs.rs"]
mod lower_fs;
mod midway;
#[path = "../common/mounted.rs"]
mod mounted;
mod starting;
mod synced;
#[path = "../replay/world.rs"]
#[allow(dead_code)]
mod world;
