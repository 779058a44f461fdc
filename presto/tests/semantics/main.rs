//! docs/semantics.md, sentence by sentence: each test does the same on a mounted volume and on the lower file system itself,
//! and what programs are told must be the same. What is not the same is in `deviations.rs`. Needs root and /dev/fuse.

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
#[path = "../common/calls.rs"]
mod calls;
mod data;
mod deviations;
mod directories;
mod document;
mod journaled;
mod locks;
#[path = "../common/lower_fs.rs"]
mod lower_fs;
mod mappings;
#[path = "../common/mounted.rs"]
mod mounted;
mod names;
mod opening;
mod places;
mod renames;
mod rights;
mod space;
mod stacked;
mod xattrs;
