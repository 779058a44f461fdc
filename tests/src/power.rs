//! `make test-power`: what programs are promised by fsync, through power cuts of a virtual machine.
//!
//! A worker's steps follow from a seed (`plan`), so the computer outside knows what the machine did from the number of the step
//! that it was at. `check` says what a power cut may leave of it.

pub mod act;
pub mod check;
mod content;
pub mod guest;
pub mod model;
pub mod node;
pub mod observe;
pub mod plan;
pub mod round;
pub mod talk;
