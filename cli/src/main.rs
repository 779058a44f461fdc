//! `intermezzo`: the command line.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(intermezzo::run(intermezzo::Cli::parse()) as u8)
}
