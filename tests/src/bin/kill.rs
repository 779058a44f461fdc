//! `make test-kill`: kill -9 of random processes under a real workload. After each round all trees are equal and nothing
//! that was acknowledged is lost.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use intermezzo::admin::{self, Scope};
use intermezzo::fleet::{Daemon, Node};
use intermezzo::output::say;
use intermezzo_tests::fleet::{self, Keep, Temporary};
use intermezzo_tests::walk::walk_both;
use intermezzo_tests::workload::{self, Appender, Lines, Mount, Project, Worker};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// For a fleet to become quiet and equal after a round.
const PATIENCE: Duration = Duration::from_secs(120);

/// Kills random processes of a fleet while programs work on all nodes.
#[derive(Parser)]
struct Args {
    /// Number of rounds
    #[arg(long, env = "ROUNDS", default_value_t = 30)]
    rounds: u32,
    /// Replays the choices of an earlier run (the kernel's timing is not part of it)
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Length of a round's killing in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Kill only this program: presto or lento
    #[arg(long)]
    only: Option<String>,
    /// Kill nothing: the workload alone
    #[arg(long)]
    spare: bool,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=26))]
    nodes: u8,
    /// Workers on each node; beside them one appends to shared files and one works in a git checkout
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Leave everything in place after a failure
    #[arg(long, env = "KEEP", num_args = 0..=1, default_missing_value = "1", value_parser = clap::builder::BoolishValueParser::new(), default_value = "0", hide_env_values = true)]
    keep: bool,
    /// Directory below which the fleet is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    say(format_args!("kill: seed {seed}, {} rounds", args.rounds));
    match rounds(&args, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("kill: FAILED, seed {seed}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn rounds(args: &Args, seed: u64) -> Result<()> {
    let begin = Instant::now();
    let scratch = tempfile::Builder::new().prefix("intermezzo-kill-scratch-").tempdir_in(&args.base)?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut harness = Harness::up(args, &mut random, scratch.path())?;
    for round in 1..=args.rounds {
        if let Err(error) = harness.round(round, args, &mut random) {
            harness.fleet.explain(&named_in(&format!("{error:#}")));
            if args.keep {
                harness.fleet.keep();
            }
            return Err(error.context(format!("round {round}")));
        }
    }
    harness.end()?;
    let took = begin.elapsed().as_secs_f64();
    say(format_args!(
        "kill: {} rounds in {took:.0} s: trees equal, nothing lost, nothing left behind",
        args.rounds
    ));
    Ok(())
}

/// Names of files that a failure is about: the lines `  NAME: what is there, what should be`.
fn named_in(failure: &str) -> Vec<String> {
    let lines = failure.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    lines.filter_map(|(path, _)| path.rsplit('/').next().map(str::to_owned)).collect()
}

struct Harness {
    fleet: Temporary,
    mounts: Vec<Arc<Mount>>,
    workers: Vec<Worker>,
    projects: Vec<Project>,
    appenders: Vec<Appender>,
    lines: Lines,
}

impl Harness {
    fn up(args: &Args, random: &mut StdRng, scratch: &Path) -> Result<Harness> {
        let fleet = Temporary::up(&args.base, "intermezzo-kill", usize::from(args.nodes), Keep::Nothing)?;
        let mut mounts = Vec::new();
        for node in &fleet.fleet.config.nodes {
            mounts.push(Arc::new(Mount::new(&node.name, fleet.fleet.mountpoint(node))));
        }
        if let Some(first) = mounts.first() {
            workload::prepare(&first.path)?;
        }
        let mut harness = Harness {
            fleet,
            mounts,
            workers: Vec::new(),
            projects: Vec::new(),
            appenders: Vec::new(),
            lines: Lines::default(),
        };
        harness.settle()?;
        for mount in &harness.mounts {
            for number in 0..args.workers {
                let name = format!("{}-{number}", mount.node);
                harness.workers.push(Worker::new(mount.clone(), &name, scratch, random.random())?);
            }
            let name = format!("project-{}", mount.node);
            harness.projects.push(Project::new(mount.clone(), &name, scratch, random.random())?);
            harness.appenders.push(Appender::new(mount.clone(), scratch, random.random())?);
        }
        Ok(harness)
    }

    fn round(&mut self, round: u32, args: &Args, random: &mut StdRng) -> Result<()> {
        let before: (u64, u64) = self.steps();
        let stop = AtomicBool::new(false);
        let mut chaos = StdRng::seed_from_u64(random.random());
        let (fleet, mounts) = (&self.fleet, &self.mounts);
        let kills = std::thread::scope(|scope| -> Result<Vec<String>> {
            let mut threads = Vec::new();
            for worker in &mut self.workers {
                threads.push(scope.spawn(|| until(&stop, || worker.step())));
            }
            for project in &mut self.projects {
                threads.push(scope.spawn(|| until(&stop, || project.step())));
            }
            for appender in &mut self.appenders {
                threads.push(scope.spawn(|| until(&stop, || appender.step())));
            }
            let killed = kill(fleet, mounts, args, &mut chaos, &stop);
            stop.store(true, Ordering::SeqCst);
            for thread in threads {
                thread.join().map_err(|_| anyhow!("a worker panicked"))??;
            }
            killed
        })?;
        let begin = Instant::now();
        self.settle()?;
        let settled = begin.elapsed();
        self.check()?;
        let after = self.steps();
        let lines: usize = self.appenders.iter().map(Appender::acknowledged).sum();
        say(format_args!(
            "round {round}: killed [{}]; {} steps done, {} failed, {lines} shared lines; equal after {:.1} s",
            kills.join(" "),
            after.0 - before.0,
            after.1 - before.1,
            settled.as_secs_f64()
        ));
        Ok(())
    }

    fn steps(&self) -> (u64, u64) {
        let workers = self.workers.iter().map(|worker| (worker.done, worker.failed));
        let projects = self.projects.iter().map(|project| (project.done, project.failed));
        workers.chain(projects).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Everything runs, is connected, and what was written is everywhere.
    fn settle(&self) -> Result<()> {
        let fleet = &self.fleet.fleet;
        fleet.wait_ready(PATIENCE, &mut |_| ())?;
        // Twice: what one node's records did to the other's may have made records there.
        for _ in 0..2 {
            for node in &fleet.config.nodes {
                fleet.wait(node, Scope::Everywhere, PATIENCE)?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        for mount in &self.mounts {
            for worker in &self.workers {
                worker.check(&mount.node, &mount.path)?;
            }
            for project in &self.projects {
                project.check(&mount.node, &mount.path)?;
            }
        }
        self.no_faults()?;
        let conflicts = self.conflicts()?;
        let kept = self.lines.look(&self.mounts.first().context("no nodes")?.path, &conflicts)?;
        for appender in &self.appenders {
            appender.check(&kept)?;
        }
        let [first, others @ ..] = self.mounts.as_slice() else { bail!("no nodes") };
        for other in others {
            let (one, two) = walk_both(&first.path, &other.path)?;
            let different = one.differences(&two);
            let lines: Vec<String> =
                different.iter().take(20).map(|difference| format!("\n  {difference}")).collect();
            ensure!(
                different.is_empty(),
                "the trees differ in {} names ({} / {}):{}",
                different.len(),
                first.node,
                other.node,
                lines.concat()
            );
        }
        Ok(())
    }

    /// A kill is no reason for an agent to stop a volume, even if it goes on a second later.
    fn no_faults(&self) -> Result<()> {
        let fleet = &self.fleet.fleet;
        for node in &fleet.config.nodes {
            let log = fs::read(fleet.layout.log(node, Daemon::Lento))?;
            let log = String::from_utf8_lossy(&log);
            if let Some(line) = log.lines().find(|line| line.contains("the volume is stopped")) {
                bail!("node {}: {line}", node.name);
            }
        }
        Ok(())
    }

    /// Files that hold the losing contents of Conflicts.
    fn conflicts(&self) -> Result<BTreeSet<PathBuf>> {
        let fleet = &self.fleet.fleet;
        let mut contents = BTreeSet::new();
        for node in &fleet.config.nodes {
            let socket = fleet.layout.admin_socket(node);
            let records = admin::conflicts(&socket, &fleet.config.volume)?;
            contents.extend(
                records.into_iter().map(|record| record.content).filter(|content| !content.is_empty()),
            );
        }
        Ok(contents.into_iter().map(PathBuf::from).collect())
    }

    /// A clean end leaves no process.
    fn end(self) -> Result<()> {
        let dir = self.fleet.fleet.layout.dir.clone();
        self.fleet.fleet.down(&mut |_| ())?;
        let mut left = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(&*dir.to_string_lossy()) {
                left.push(format!("{}: {words}", entry.file_name().to_string_lossy()));
            }
        }
        ensure!(left.is_empty(), "processes left behind: {}", left.join("; "));
        Ok(())
    }
}

fn until(stop: &AtomicBool, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        if let Err(error) = step() {
            stop.store(true, Ordering::SeqCst);
            return Err(error);
        }
    }
    Ok(())
}

/// Kills and restarts for the length of a round; at its end everything runs again.
fn kill(
    fleet: &Temporary,
    mounts: &[Arc<Mount>],
    args: &Args,
    random: &mut StdRng,
    stop: &AtomicBool,
) -> Result<Vec<String>> {
    let running = &fleet.fleet;
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let mut killed = Vec::new();
    while Instant::now() < end && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(random.random_range(50..900)));
        if args.spare {
            continue;
        }
        let victims = victims(args, running.config.nodes.len(), random);
        let pause = Duration::from_millis(random.random_range(0..600));
        let mut hit: Vec<(&Node, Daemon)> = Vec::new();
        for (index, daemon) in victims {
            let (Some(node), Some(mount)) = (running.config.nodes.get(index), mounts.get(index)) else {
                continue;
            };
            if daemon == Daemon::Presto {
                mount.going();
            }
            fleet::kill(running, node, daemon)?;
            killed.push(format!("{daemon}-{}", node.name));
            hit.push((node, daemon));
        }
        std::thread::sleep(pause);
        for (node, daemon) in hit {
            running.start(node, daemon)?;
        }
        // Most of the time the next one dies only when this one is there again; sometimes in the middle of it.
        if random.random_bool(0.7) {
            back(mounts);
        }
    }
    back(mounts);
    Ok(killed)
}

fn back(mounts: &[Arc<Mount>]) {
    let begin = Instant::now();
    for mount in mounts {
        while !mount.works() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        mount.back();
    }
}

/// One process, or now and then both of a node, or the same program on all nodes.
fn victims(args: &Args, nodes: usize, random: &mut StdRng) -> Vec<(usize, Daemon)> {
    let daemon = match args.only.as_deref() {
        Some("presto") => Daemon::Presto,
        Some("lento") => Daemon::Lento,
        _ if random.random() => Daemon::Presto,
        _ => Daemon::Lento,
    };
    let node = random.random_range(0..nodes);
    match random.random_range(0..10) {
        0 if args.only.is_none() => vec![(node, Daemon::Presto), (node, Daemon::Lento)],
        1 => (0..nodes).map(|node| (node, daemon)).collect(),
        _ => vec![(node, daemon)],
    }
}
