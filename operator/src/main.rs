//! The `intermezzo-operator` program: reads its options, runs, and ends in order on SIGTERM.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use intermezzo_api::definitions;
use intermezzo_operator::options::{Command, Options, Run};
use intermezzo_operator::run::run;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// How long an orderly end may take; the Lease is given back in it.
const END_DEADLINE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let result = match Options::parse().command {
        Command::Crds => crds(),
        Command::Run(options) => serve(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "intermezzo-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn crds() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for definition in definitions::all() {
        write!(out, "---\n{}", definitions::yaml(&definition)?)?;
    }
    Ok(())
}

fn serve(options: Run) -> anyhow::Result<()> {
    // Two crypto providers would make rustls panic, so the one is named before anything else.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("a crypto provider is there already");
    }
    let filter = EnvFilter::try_from_env("INTERMEZZO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(until_signal(options));
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn until_signal(options: Run) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let running = run(options, stop.clone());
    tokio::pin!(running);
    tokio::select! {
        result = &mut running => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(target: "operator", "stopping");
    stop.cancel();
    match tokio::time::timeout(END_DEADLINE, running).await {
        Ok(result) => result,
        Err(_) => anyhow::bail!("not stopped within {END_DEADLINE:?}"),
    }
}
