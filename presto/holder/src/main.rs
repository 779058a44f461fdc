//! presto-holder: keeps the mounts of one node's presto.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use presto_holder::Keeper;
use signal_hook::consts::{SIGINT, SIGTERM};

const USAGE: &str = "presto-holder --socket PATH

Keeps the mounts of this node's presto alive while presto is killed, replaced or upgraded.
Start it before presto, with the PATH that presto is given as --holder.
PATH may also come from the variable PRESTO_HOLDER.
";

fn main() -> ExitCode {
    match socket(std::env::args_os().skip(1)) {
        Ok(Some(path)) => serve(path),
        Ok(None) => {
            let _ = write!(std::io::stdout(), "{USAGE}");
            ExitCode::SUCCESS
        }
        Err(()) => {
            let _ = write!(std::io::stderr(), "{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn serve(path: PathBuf) -> ExitCode {
    let shown = path.display();
    // As the first process of a container it would not even hear of SIGTERM otherwise.
    let stop = match termination() {
        Ok(stop) => stop,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "holder: cannot wait for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut keeper = match Keeper::bind(&path) {
        Ok(keeper) => keeper,
        Err(errno) => {
            let _ = writeln!(std::io::stderr(), "holder: socket {shown}: {errno}; is its directory there?");
            return ExitCode::FAILURE;
        }
    };
    let _ = writeln!(std::io::stderr(), "holder: listens at {shown}");
    match keeper.run(&stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            let _ = writeln!(std::io::stderr(), "holder: socket {shown}: {errno}");
            ExitCode::FAILURE
        }
    }
}

/// Has something to read once somebody wants the holder to end.
fn termination() -> std::io::Result<UnixStream> {
    let (wait, tell) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, tell.try_clone()?)?;
    }
    Ok(wait)
}

/// `None`: help is wanted.
fn socket(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<PathBuf>, ()> {
    let mut path = std::env::var_os("PRESTO_HOLDER").map(PathBuf::from);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--socket") => path = Some(arguments.next().ok_or(())?.into()),
            Some("--help" | "-h") => return Ok(None),
            _ => return Err(()),
        }
    }
    path.map(Some).ok_or(())
}
