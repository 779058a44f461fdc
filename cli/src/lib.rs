//! `intermezzo`, the command line: try InterMezzo out on one machine, look at agents, look into journals.
//!
//! Owns the terminal and the life of local fleets (`fleet`). It talks to agents only through their admin socket, and never
//! touches a cache or a mount but to unmount what a fleet that is going down left behind.

pub mod admin;
mod args;
mod commands;
pub mod fleet;
pub mod initramfs;
pub mod output;
pub mod pki;
pub mod progress;
mod replace;

pub use args::Cli;
pub use args::seconds;
pub use commands::run;

/// `intermezzo`, with the arguments of this process.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(run(<Cli as clap::Parser>::parse()) as u8)
}

/// What the exit code says to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked.
    Done = 0,
    /// It failed; the message says why.
    Failed = 1,
    /// The command line is wrong (clap's code).
    Usage = 2,
    /// Not true (yet): `wait` ran out of time, `verify` found damage, `dev status` found something down.
    NotTrue = 3,
    /// No agent answers there.
    Unreachable = 4,
}
