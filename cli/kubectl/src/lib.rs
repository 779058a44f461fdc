//! `kubectl intermezzo`, the plugin of kubectl: how volumes are and whether what was written is safe, from the objects in the
//! cluster, with the rights of whoever asks.
//!
//! It talks to the API server and to nobody else, and changes one annotation (`wait`) and what a person may change of a Replicator
//! (`pause`, `resume`, `pin`, `unpin`). What only an agent knows (the
//! contents of conflicts, its own status) it asks by `kubectl exec`, with the rights of whoever asks (`agent.rs`). Words, tables and exit codes
//! are those of `intermezzo`.

mod agent;
mod args;
mod cluster;
mod conflicts;
mod lag;
mod replicators;
mod status;
mod support;
mod view;
mod wait;

#[cfg(test)]
mod testing;

pub use args::Cli;
use args::{Command, Conflicts};
use cluster::{Cluster, ClusterError};
use intermezzo::Exit;
use intermezzo::output::say;

/// Carries out a command line.
#[must_use]
pub fn run(cli: &Cli) -> Exit {
    let done = carry_out(cli);
    done.unwrap_or_else(|error| {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
            return Exit::Done;
        }
        say(format_args!("kubectl intermezzo: {error:#}"));
        match error.downcast_ref::<ClusterError>() {
            Some(error) if error.is_unreachable() => Exit::Unreachable,
            _ => Exit::Failed,
        }
    })
}

fn carry_out(cli: &Cli) -> anyhow::Result<Exit> {
    // Two crypto providers would make rustls panic, so the one is named before anything else.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&cli.target).await?;
        match &cli.command {
            Command::Status(args) => status::run(&cluster, args).await,
            Command::Lag(args) => lag::run(&cluster, args).await,
            Command::Wait(args) => wait::run(&cluster, args).await,
            Command::Pause(args) => replicators::pause(&cluster, args, true).await,
            Command::Resume(args) => replicators::pause(&cluster, args, false).await,
            Command::Pin(args) => replicators::pin(&cluster, args, true).await,
            Command::Unpin(args) => replicators::pin(&cluster, args, false).await,
            Command::SupportBundle(args) => support::run(&cluster, &cli.target, args).await,
            Command::History(args) => agent::history(&cluster, &cli.target, args).await,
            Command::Conflicts(Conflicts::List(args)) => conflicts::run(&cluster, args).await,
            Command::Conflicts(Conflicts::Show(args)) => agent::show(&cluster, &cli.target, args).await,
            Command::Conflicts(Conflicts::Diff(args)) => agent::diff(&cluster, &cli.target, args).await,
            Command::Conflicts(Conflicts::Resolve(args)) => agent::resolve(&cluster, &cli.target, args).await,
        }
    })
}
