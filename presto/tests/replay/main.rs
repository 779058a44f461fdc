//! Replays on a volume without a mount, users played by calls of the filter: each operation, each precondition.

mod attributes;
mod busy;
mod install;
mod names;
mod recovery;
mod world;
