//! One module for each command; each says what it did by its exit code.

mod agents;
mod cml;
mod completions;
mod conflicts;
mod dev;
mod diff;
mod history;
mod hold;
mod initramfs;
mod kml;
mod parts;
mod pki;
mod place;
mod prefetch;
mod resolve;
mod restore;
mod scrub;
mod status;
mod wait;

use crate::Exit;
use crate::admin::AdminError;
use crate::args::{Cli, Command};
use crate::fleet::FleetError;
use crate::output::say;

/// Carries out a command line.
#[must_use]
pub fn run(cli: Cli) -> Exit {
    let done = match cli.command {
        Command::Dev(dev) => dev::run(dev),
        Command::Status(args) => status::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Kml(kml) => kml::run(kml),
        Command::Cml(cml) => cml::run(&cml),
        Command::Conflicts(conflicts) => conflicts::run(&conflicts),
        Command::History(args) => history::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Hold(hold) => hold::run(&hold),
        Command::Initramfs(args) => initramfs::run(&args),
        Command::Pki(pki) => pki::run(pki),
        Command::Prefetch(args) => prefetch::run(&args),
        Command::Scrub(args) => scrub::run(&args),
        Command::Completions { shell } => completions::run(shell),
    };
    done.unwrap_or_else(|error| {
        if closed(&error) {
            return Exit::Done; // `intermezzo kml dump | head` is no failure.
        }
        say(format_args!("intermezzo: {error:#}"));
        code(&error)
    })
}

fn closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

fn code(error: &anyhow::Error) -> Exit {
    let admin = error.downcast_ref::<AdminError>().or_else(|| match error.downcast_ref::<FleetError>() {
        Some(FleetError::Admin(admin)) => Some(admin),
        _ => None,
    });
    match admin {
        Some(admin) if admin.is_unreachable() => Exit::Unreachable,
        _ => Exit::Failed,
    }
}
