//! `intermezzo`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    intermezzo::main()
}
