//! The program: reads its options, runs the agent, and ends it in order on SIGTERM.

use crate::agent::Agent;
use crate::options::Options;
use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// How long an orderly end may take.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// `lento`, with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Two crypto providers would make rustls panic, so the one is named before anything else.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let options = Options::parse();
    let filter = EnvFilter::try_from_env("LENTO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: "agent", error = format!("{error:#}"), "lento cannot go on");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(until_signal(options));
    // A thread that hangs in a file system must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn until_signal(options: Options) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let agent = Agent::run(options, stop.clone());
    tokio::pin!(agent);
    tokio::select! {
        result = &mut agent => return result.context("starting"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(target: "agent", "stopping");
    stop.cancel();
    match tokio::time::timeout(END_DEADLINE, agent).await {
        Ok(result) => result.context("stopping"),
        Err(_) => anyhow::bail!("not stopped within {END_DEADLINE:?}"),
    }
}
