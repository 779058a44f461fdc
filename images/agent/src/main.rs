//! What the image of the agent holds: lento and the command line as one program, which is whatever it is called by. They
//! have most of their code in common: as two programs they would be a third larger.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let called = std::env::args_os().next();
    match called.as_deref().map(Path::new).and_then(Path::file_name) {
        Some(name) if name == "intermezzo" => intermezzo::main(),
        _ => lento::program::main(),
    }
}
