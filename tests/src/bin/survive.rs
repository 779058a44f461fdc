//! `make test-survive`: presto is killed -9 again and again while programs work, and its holder now and then. No program
//! may notice anything but a pause.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::fleet::process::binary;
use intermezzo::output::{Table, print_text, say};
use intermezzo_tests::survive::{self, PATIENCE, Tally};
use presto_holder::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::mount::UnmountFlags;

/// Kills on one volume. Without Lento nobody empties its journal, which each start reads.
const ROUND: u32 = 100;
const VOLUME: &str = "test/survive";

/// Kills presto under working programs, which may notice nothing.
#[derive(Parser)]
struct Args {
    /// How often presto is killed
    #[arg(long, env = "KILLS", default_value_t = 100)]
    kills: u32,
    /// Every so many kills the holder is killed as well, while presto runs
    #[arg(long, default_value_t = 7)]
    holder_every: u32,
    /// Replays the choices of an earlier run
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Be the programs on this mount, until this file is there (the test starts itself so)
    #[arg(long, hide = true, num_args = 2)]
    client: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let [mount, stop] = args.client.as_slice() {
        return client(mount, stop);
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    say(format_args!("survive: seed {seed}, {} kills", args.kills));
    match kills(&args, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("survive: FAILED, seed {seed}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The programs are a process of their own: one that has files open on the mount must start none while presto is away.
struct Programs {
    child: Child,
    mount: PathBuf,
    stop: PathBuf,
}

impl Drop for Programs {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Whatever they wait for: without the connection it ends.
            let _ = rustix::mount::unmount(&self.mount, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Programs {
    fn start(mount: PathBuf, scratch: &Path) -> Result<Programs> {
        let stop = scratch.join("stop");
        let child = Command::new(std::env::current_exe()?)
            .arg("--client")
            .args([&mount, &stop])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Programs { child, mount, stop })
    }

    fn lines(&mut self) -> Result<impl BufRead + use<>> {
        Ok(BufReader::new(self.child.stdout.take().context("the programs say nothing")?))
    }

    fn end(&mut self, lines: &mut impl BufRead) -> Result<Vec<Tally>> {
        fs::write(&self.stop, b"")?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begin.elapsed() < PATIENCE, "the programs hang");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// A holder and a presto with one volume, and nothing else.
struct World {
    dir: PathBuf,
    holder: Child,
    presto: Child,
    takeovers: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.presto.kill();
        let _ = rustix::mount::unmount(self.mount(), UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
        let _ = rustix::mount::unmount(self.mount(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = self.holder.wait();
        let _ = self.presto.wait();
    }
}

impl World {
    fn start(dir: &Path) -> Result<World> {
        let (state, cache, mount) = (dir.join("state"), dir.join("cache"), dir.join("mount"));
        fs::create_dir(&state)?;
        fs::create_dir(&cache)?;
        let volume = serde_json::json!({"name": VOLUME, "uid": 7, "cache": cache, "mountpoint": mount});
        let table = serde_json::json!({"version": 1, "volumes": [volume]});
        fs::write(state.join("volumes.json"), table.to_string())?;
        let holder = holder(dir)?;
        let mut world = World { dir: dir.to_owned(), holder, presto: presto(dir)?, takeovers: 0 };
        world.wait_for("mounted")?;
        Ok(world)
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mount")
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("presto.log"))?)
    }

    /// Waits until presto's log says this once more than it did at the last takeover.
    fn wait_for(&mut self, word: &str) -> Result<()> {
        let begin = Instant::now();
        while self.log()?.matches(word).count() <= self.takeovers {
            ensure!(begin.elapsed() < PATIENCE, "presto is not there: {word} is not in its log");
            if let Some(status) = self.presto.try_wait()? {
                bail!("presto has ended by itself: {status}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// kill -9, and a new one at once. How long until it serves.
    fn another_presto(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.presto.kill()?;
        self.presto.wait()?;
        self.presto = presto(&self.dir)?;
        self.wait_for("taken over from an earlier presto")?;
        self.takeovers += 1;
        Ok(begin.elapsed())
    }

    /// kill -9 of the holder; waits until the next one has been given everything.
    fn another_holder(&mut self) -> Result<()> {
        self.holder.kill()?;
        self.holder.wait()?;
        self.holder = holder(&self.dir)?;
        let begin = Instant::now();
        loop {
            let found = Client::connect(&socket(&self.dir)).and_then(|client| client.find(VOLUME));
            if matches!(found, Ok(Some(_))) {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "presto gives the new holder nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("holder.sock")
}

fn holder(dir: &Path) -> Result<Child> {
    let child = Command::new(binary("presto-holder")?)
        .arg("--socket")
        .arg(socket(dir))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let begin = Instant::now();
    while Client::connect(&socket(dir)).is_err() {
        ensure!(begin.elapsed() < PATIENCE, "the holder does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child)
}

fn presto(dir: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(dir.join("presto.log"))?;
    let child = Command::new(binary("presto")?)
        .args([Path::new("--state"), &dir.join("state"), Path::new("--socket"), &dir.join("presto.sock")])
        .args([Path::new("--holder"), &socket(dir)])
        .args(["--log", "fuser=error,info"])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// What is reported at the end.
#[derive(Default)]
struct Sum {
    tallies: Vec<Tally>,
    slowest: Duration,
}

fn kills(args: &Args, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let begin = Instant::now();
    let mut sum = Sum::default();
    let mut left = args.kills;
    while left > 0 {
        let now = left.min(ROUND);
        round(args, now, &mut random, &mut sum)?;
        left -= now;
        say(format_args!("survive: {} of {} kills", args.kills - left, args.kills));
    }
    report(&sum.tallies)?;
    let worst = sum.tallies.iter().map(|tally| tally.worst).fold(0.0, f64::max);
    say(format_args!(
        "survive: {} kills in {:.0} s, no error; longest pause of a program {worst:.2} s, slowest restart {:.2} s",
        args.kills,
        begin.elapsed().as_secs_f64(),
        sum.slowest.as_secs_f64()
    ));
    Ok(())
}

fn round(args: &Args, kills: u32, random: &mut StdRng, sum: &mut Sum) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("intermezzo-survive-").tempdir_in(&args.base)?;
    let mut world = World::start(dir.path())?;
    let mut programs = Programs::start(world.mount(), dir.path())?;
    let mut lines = programs.lines()?;
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the programs do not start");
    for number in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.random_range(20..350)));
        if programs.child.try_wait()?.is_some() {
            break; // One of them has failed; the report says which.
        }
        sum.slowest = sum.slowest.max(world.another_presto()?);
        if number.is_multiple_of(args.holder_every) {
            world.another_holder()?;
        }
    }
    let tallies = programs.end(&mut lines)?;
    let failed = tallies.iter().filter(|tally| tally.error.is_some()).count();
    if failed > 0 {
        report(&tallies)?;
        print_text(&world.log()?)?;
        bail!("{failed} programs noticed");
    }
    for (number, tally) in tallies.into_iter().enumerate() {
        match sum.tallies.get_mut(number) {
            Some(before) => before.add(&tally),
            None => sum.tallies.push(tally),
        }
    }
    Ok(())
}

fn report(tallies: &[Tally]) -> Result<()> {
    let mut table = Table::new(&["PROGRAM", "ROUNDS", "LONGEST", "ERROR"]);
    for tally in tallies {
        table.row([
            tally.worker.clone(),
            tally.rounds.to_string(),
            format!("{:.2} s", tally.worst),
            tally.error.clone().unwrap_or_else(|| "none".into()),
        ]);
    }
    print_text(&table.render())?;
    Ok(())
}

/// The programs' process: one line when all run, one with their tallies at the end.
fn client(mount: &Path, until: &Path) -> ExitCode {
    let workers = match survive::workers(mount) {
        Ok(workers) => workers,
        Err(error) => {
            say(format_args!("survive: the programs cannot be set up: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let stop = AtomicBool::new(false);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(|| survive::run(worker, &stop))).collect();
        let _ = print_text("ready\n");
        while !until.exists() && threads.iter().all(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let text = serde_json::to_string(&tallies).unwrap_or_default();
    let _ = print_text(&format!("{text}\n"));
    ExitCode::SUCCESS
}
