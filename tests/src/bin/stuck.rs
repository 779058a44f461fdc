//! `make stuck`: the lento of one node stands still (SIGSTOP) while the others write a lot. They go on and become equal, the
//! server's memory stays bounded, and after SIGCONT the third is equal as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use intermezzo::admin::Scope;
use intermezzo::fleet::process::{Recorded, Signal};
use intermezzo::fleet::{Daemon, Fleet};
use intermezzo::output::say;
use intermezzo_tests::fleet::{Keep, Temporary};
use intermezzo_tests::walk::walk_both;

const PATIENCE: Duration = Duration::from_secs(180);
/// A peer that does not answer is noticed within 15 s; what waits for it until then is limited.
const NOTICED: Duration = Duration::from_secs(40);

/// Stops a node's lento while others write, and lets it go on
#[derive(Parser)]
struct Args {
    /// Files written meanwhile on each of the other nodes
    #[arg(long, default_value_t = 1500)]
    files: usize,
    /// Size of each, in KiB
    #[arg(long, default_value_t = 60)]
    kib: usize,
    /// Most memory that the server's lento may take besides, in MiB
    #[arg(long, default_value_t = 400)]
    memory: u64,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    match stuck(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("stuck: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Goes on when this ends, whatever happens.
struct Stopped(Recorded);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.signal(Signal::Continue);
    }
}

fn stuck(args: &Args) -> Result<()> {
    let fleet = Temporary::up(&args.base, "intermezzo-stuck", 3, Keep::Nothing)?;
    fleet.fleet.wait_ready(PATIENCE, &mut |_| ())?;
    let running = |node: &str| -> Result<Recorded> {
        fleet.fleet.running(fleet.fleet.node(node)?, Daemon::Lento).context("no lento")
    };
    let (server, victim) = (running("a")?, running("c")?);
    let before = memory(&server)?;
    victim.signal(Signal::Stop);
    let stopped = Stopped(victim);

    let begin = Instant::now();
    let mut most = before;
    for number in 0..args.files {
        for node in ["a", "b"] {
            write(&fleet.mount(node)?.join(format!("{node}-{number}")), number, args.kib)?;
        }
        if number % 50 == 0 {
            most = most.max(memory(&server)?);
        }
    }
    fleet.fleet.wait(fleet.fleet.node("b")?, Scope::Server, PATIENCE)?;
    equal(&fleet, "b", PATIENCE)?;
    let took = begin.elapsed();
    while connected(&fleet.fleet, "c")? && begin.elapsed() < took + NOTICED {
        most = most.max(memory(&server)?);
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(!connected(&fleet.fleet, "c")?, "the server does not notice that c stands still");
    let more = most.saturating_sub(before) >> 10;
    ensure!(more <= args.memory, "the server's lento took {more} MiB for a client that stands still");
    say(format_args!(
        "✓ {} files of {} KiB on two nodes, equal after {:.1} s beside one that stands still; {more} MiB of memory",
        2 * args.files,
        args.kib,
        took.as_secs_f64()
    ));

    drop(stopped);
    let begin = Instant::now();
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    equal(&fleet, "c", PATIENCE)?;
    say(format_args!("✓ equal {:.1} s after it goes on", begin.elapsed().as_secs_f64()));
    Ok(())
}

fn write(path: &Path, number: usize, kib: usize) -> Result<()> {
    let bytes: Vec<u8> = (0..kib << 10).map(|at| (at * 31 + number * 17 + at / 253) as u8).collect();
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Resident memory of a process, in KiB.
fn memory(process: &Recorded) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

fn connected(fleet: &Fleet, node: &str) -> Result<bool> {
    let status = fleet.status(fleet.node("a")?)?;
    let volume = status.volumes.first().context("no volume")?;
    Ok(volume.replicators.iter().any(|one| one.node == node && one.connected))
}

fn equal(fleet: &Temporary, node: &str, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        let (one, two) = walk_both(&fleet.mount("a")?, &fleet.mount(node)?)?;
        let different = one.differences(&two);
        if different.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < patience, "a and {node} differ in {} names", different.len());
        std::thread::sleep(Duration::from_millis(200));
    }
}
