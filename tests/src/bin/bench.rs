//! `make bench`: see `intermezzo_tests::bench`.

use std::process::ExitCode;

use clap::Parser;
use intermezzo::output::say;
use intermezzo_tests::bench::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
