//! `kubectl intermezzo`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(kubectl_intermezzo::run(&kubectl_intermezzo::Cli::parse()) as u8)
}
