//! A server and its clients on simulated disks, stores and streams. Every test takes what it needs of it.

#![allow(dead_code)]

pub mod acts;
mod contents;
pub mod crashes;
mod dice;
pub mod disk;
pub mod looking;
pub mod memory;
pub mod mix;
pub mod past;
pub mod permits;
pub mod replay;
mod resting;
pub mod scrub;
pub mod steps;
pub mod timing;
pub mod world;
