//! `lento`: the agent of a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    lento::program::main()
}
