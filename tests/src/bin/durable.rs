//! fsync that waits for the server (`durability: Server`), on real mounts: when it returns, the server has it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use intermezzo::fleet::Daemon;
use intermezzo::output::say;
use intermezzo_api::volume::Durability;
use intermezzo_tests::fleet::{Temporary, kill, proof};
use intermezzo_tests::run::until;

/// For what should take moments.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an fsync may take while the server is away: what is promised, and what a busy machine adds.
const AWAY: Duration = Duration::from_secs(45);
const TURNS: usize = 200;
const EHOSTUNREACH: i32 = 113;

/// Shows what fsync promises with `durability: Server`, with and without the server.
#[derive(Parser)]
struct Args {
    /// Directory below which the fleet is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    proof("durable", &Args::parse().base, 2, show)
}

/// Somebody who makes and removes names all the time.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<usize>>,
}

impl Busy {
    fn begin(at: PathBuf) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut made = 0;
            while !stopped.load(Ordering::Relaxed) {
                File::create(&at)?;
                fs::remove_file(&at)?;
                made += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(made)
        });
        Busy { stop, thread }
    }

    fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| anyhow!("a writer has panicked"))??)
    }
}

/// Writes a file and syncs it; how long the fsync took.
fn synced(at: &Path, content: &[u8]) -> std::io::Result<Duration> {
    let mut file = File::create(at)?;
    file.write_all(content)?;
    let begin = Instant::now();
    file.sync_all()?;
    Ok(begin.elapsed())
}

fn show(fleet: &mut Temporary) -> Result<()> {
    let (a, b) = (fleet.mount("a")?, fleet.mount("b")?);
    let server = &fleet.fleet.node("a")?.clone();
    fleet.fleet.set_exclude(&["*.local"])?;
    fleet.fleet.set_durability(Durability::Server)?;
    // The server's disk is only waited for once presto knows that it is to be.
    until("the option", PATIENCE, || {
        let at = b.join("first");
        synced(&at, b"first")?;
        Ok(fs::read(a.join("first")).is_ok_and(|there| there == b"first") && {
            synced(&at, b"second")?;
            fs::read(a.join("first"))? == b"second"
        })
    })?;

    // Each is on the server when the call returns: nothing is waited for here.
    let mut took = Vec::new();
    for turn in 0..TURNS {
        let name = format!("f{}", turn % 7);
        let content = format!("turn {turn} {}", "x".repeat(turn * 37));
        took.push(synced(&b.join(&name), content.as_bytes())?);
        ensure!(
            fs::read(a.join(&name))? == content.as_bytes(),
            "turn {turn}: fsync has returned, and a has not got it"
        );
    }
    took.sort();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    say(format_args!(
        "✓ {TURNS} times fsync on b, and a had it at once: p50 {:.1?}, p90 {:.1?}",
        at(50),
        at(90)
    ));

    // What databases and editors do: a new file under a temporary name, a rename, and an fsync of the directory.
    fs::create_dir(b.join("d"))?;
    let busy = Busy::begin(b.join("d/other"));
    for turn in 0..20 {
        let content = format!("version {turn}");
        synced(&b.join("d/new"), content.as_bytes())?;
        fs::rename(b.join("d/new"), b.join("d/page"))?;
        File::open(b.join("d"))?.sync_all()?;
        ensure!(
            fs::read(a.join("d/page"))? == content.as_bytes(),
            "version {turn} is not on a after fsync of d"
        );
        ensure!(!a.join("d/new").exists(), "the rename of version {turn} is not on a after fsync of d");
    }
    let made = busy.end()?;
    say(format_args!(
        "✓ fsync of a directory: its names are on the server, while others made {made} more in it"
    ));

    // On the server itself there is nobody to wait for.
    synced(&a.join("own"), b"own")?;

    // The server is away.
    kill(&fleet.fleet, server, Daemon::Lento)?;
    let begin = Instant::now();
    let Err(error) = synced(&b.join("away"), b"away") else { bail!("an fsync succeeded without a server") };
    ensure!(error.raw_os_error() == Some(EHOSTUNREACH), "{error}");
    ensure!(begin.elapsed() < AWAY, "it took {:?}", begin.elapsed());
    say(format_args!("✓ without the server: {error}, after {:.1?}", begin.elapsed()));
    ensure!(fs::read(b.join("away"))? == b"away", "what was written is gone");
    let begin = Instant::now();
    synced(&a.join("own"), b"alone").context("on the server's own node nobody is waited for")?;
    ensure!(
        begin.elapsed() < Duration::from_secs(4),
        "on the server's own node it took {:?}",
        begin.elapsed()
    );
    let begin = Instant::now();
    ensure!(synced(&b.join("away"), b"once more").is_err(), "the second fsync succeeded without a server");
    ensure!(begin.elapsed() < Duration::from_secs(4), "the second took {:?}", begin.elapsed());
    synced(&b.join("note.local"), b"stays here").context("what stays on this node needs no server")?;

    // With the other policy programs go on.
    fleet.fleet.set_durability(Durability::ServerIfThere)?;
    until("fsync without a server", PATIENCE, || Ok(synced(&b.join("goes on"), b"on").is_ok()))?;
    let begin = Instant::now();
    synced(&b.join("goes on"), b"and on")?;
    ensure!(begin.elapsed() < Duration::from_secs(4), "it took {:?}", begin.elapsed());
    say(format_args!("✓ ServerIfThere: programs go on, fsync {:.1?}", begin.elapsed()));

    // Back again.
    fleet.fleet.set_durability(Durability::Server)?;
    fleet.fleet.up(PATIENCE, &mut |_| ())?;
    until("the server", PATIENCE, || Ok(synced(&b.join("back"), b"back").is_ok()))?;
    ensure!(
        fs::read(a.join("back"))? == b"back" && fs::read(a.join("goes on"))? == b"and on",
        "a lacks something"
    );
    say("✓ the server is back: fsync waits for it again");

    // Whoever waits can be killed.
    let frozen = fleet.fleet.running(server, Daemon::Lento).context("a's lento does not run")?;
    let frozen = rustix::process::Pid::from_raw(frozen.pid).context("no process")?;
    rustix::process::kill_process(frozen, rustix::process::Signal::STOP)?;
    let ended = (|| -> Result<Duration> {
        let to = format!("of={}", b.join("killed").display());
        let mut waits = Command::new("dd")
            .args(["if=/dev/zero", &to, "bs=4k", "count=1", "conv=fsync", "status=none"])
            .spawn()?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(waits.try_wait()?.is_none(), "fsync returned although the server stands still");
        // It has a handler for this one: programs do not expect an fsync to be interrupted.
        let pid = rustix::process::Pid::from_raw(i32::try_from(waits.id())?).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::USR1)?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(waits.try_wait()?.is_none(), "a signal with a handler has ended an fsync");
        let begin = Instant::now();
        waits.kill()?;
        waits.wait()?;
        Ok(begin.elapsed())
    })();
    rustix::process::kill_process(frozen, rustix::process::Signal::CONT)?;
    let ended = ended?;
    ensure!(ended < Duration::from_secs(4), "a signal took {ended:?}");
    say(format_args!("✓ a signal ends the wait after {ended:.1?}"));
    Ok(())
}
