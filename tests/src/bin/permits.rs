//! `make test-permits`: programs on several nodes write to one file under permits. Nothing is lost, nothing conflicts, readers do
//! not wait, and who is cut off is fenced.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use intermezzo::admin::Scope;
use intermezzo::fleet::process::Signal;
use intermezzo::fleet::{Daemon, Node, WhenAlone};
use intermezzo::output::say;
use intermezzo_tests::fleet::{Keep, Temporary, kill};
use intermezzo_tests::run::until;
use intermezzo_tests::walk::walk_both;

/// For a fleet to become quiet, and for the slowest of what is awaited here.
const PATIENCE: Duration = Duration::from_secs(120);
/// A node without a word from its server, or a server without one from the holder, goes on after about so long.
const LEASE: Duration = Duration::from_secs(10);

/// Writes from several nodes of a fleet under permits.
#[derive(Parser)]
struct Args {
    /// Turns of two nodes that append to one file
    #[arg(long, env = "TURNS", default_value_t = 1000)]
    turns: usize,
    /// Lines that each of three nodes appends at once
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// Directory below which the fleet is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match proof(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("permits: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn proof(args: &Args) -> Result<()> {
    let fleet = Temporary::up(&args.base, "intermezzo-permits", 3, Keep::Nothing)?;
    let result = Proof { fleet: &fleet }.run(args);
    if result.is_err() {
        fleet.explain(&["log".to_owned(), "crowd".to_owned()]);
    }
    result
}

struct Proof<'a> {
    fleet: &'a Temporary,
}

impl Proof<'_> {
    fn run(&self, args: &Args) -> Result<()> {
        self.permits(WhenAlone::Steal)?;
        self.by_turns(args.turns)?;
        self.in_a_crowd(args.lines)?;
        self.holder_stands_still()?;
        self.presto_of_the_holder_is_killed()?;
        self.server_is_away_and_users_go_on()?;
        self.permits(WhenAlone::ReadOnly)?;
        self.server_is_away_and_users_read()?;
        self.nothing_conflicts()?;
        say("permits: nothing lost, no conflict, everything equal");
        Ok(())
    }

    fn node(&self, name: &str) -> Result<&Node> {
        Ok(self.fleet.fleet.node(name)?)
    }

    fn path(&self, node: &str, file: &str) -> Result<PathBuf> {
        Ok(self.fleet.mount(node)?.join(file))
    }

    /// Each node says that it has heard of it.
    fn permits(&self, when_alone: WhenAlone) -> Result<()> {
        self.fleet.fleet.set_permits(when_alone)?;
        for node in ["a", "b", "c"] {
            let file = self.path(node, "begin")?;
            until("every node is under permits", PATIENCE, || {
                append(&file, node)?;
                Ok(self.state(node)? == "held")
            })?;
        }
        // What was begun without permits is over.
        std::thread::sleep(Duration::from_secs(1));
        self.quiet()
    }

    fn state(&self, node: &str) -> Result<String> {
        let status = self.fleet.fleet.status(self.node(node)?)?;
        let volume = status.volumes.first().context("no volume")?;
        Ok(format!("{:?}", volume.permit()).to_lowercase())
    }

    fn quiet(&self) -> Result<()> {
        for node in ["a", "b", "c"] {
            self.fleet.fleet.wait(self.node(node)?, Scope::Everywhere, PATIENCE)?;
        }
        for other in ["b", "c"] {
            until("all nodes are equal", PATIENCE, || {
                let (one, two) = walk_both(&self.fleet.mount("a")?, &self.fleet.mount(other)?)?;
                Ok(one.differences(&two).is_empty())
            })?;
        }
        Ok(())
    }

    fn nothing_conflicts(&self) -> Result<()> {
        let conflicts = self.fleet.fleet.conflicts()?;
        ensure!(conflicts.is_empty(), "{} conflicts: {conflicts:?}", conflicts.len());
        Ok(())
    }

    /// Two nodes append to one file by turns, each when the other has closed it.
    fn by_turns(&self, turns: usize) -> Result<()> {
        for pair in [["b", "c"], ["a", "b"]] {
            let name = format!("log-{}{}", pair[0], pair[1]);
            let mut took = Vec::new();
            let (mut turn, mut wanted) = (0, String::new());
            while turn < turns {
                for node in pair {
                    let begin = Instant::now();
                    append(&self.path(node, &name)?, &turn.to_string())
                        .with_context(|| format!("turn {turn}"))?;
                    took.push(begin.elapsed());
                    wanted += &format!("{turn}\n");
                    turn += 1;
                }
            }
            self.quiet()?;
            for node in ["a", "b", "c"] {
                let found = fs::read_to_string(self.path(node, &name)?)?;
                ensure!(found == wanted, "{name} on {node}: {} lines of {turn}", found.lines().count());
            }
            self.nothing_conflicts()?;
            took.sort();
            let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
            say(format_args!(
                "✓ {turn} turns of {pair:?}: open, append and close took p50 {:.1?}, p90 {:.1?}, p99 {:.1?}",
                at(50),
                at(90),
                at(99)
            ));
        }
        Ok(())
    }

    /// Three nodes append at once, as fast as they can.
    fn in_a_crowd(&self, lines: usize) -> Result<()> {
        let begin = Instant::now();
        let nodes = ["a", "b", "c"];
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let writers: Vec<_> = nodes
                .map(|node| {
                    scope.spawn(move || {
                        let path = self.path(node, "crowd")?;
                        (0..lines).try_for_each(|line| append(&path, &format!("{node}{line}")))
                    })
                })
                .into_iter()
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?)
                .collect()
        });
        results.into_iter().collect::<Result<Vec<()>>>()?;
        let took = begin.elapsed();
        self.quiet()?;
        let text = fs::read_to_string(self.path("a", "crowd")?)?;
        let found: Vec<&str> = text.lines().collect();
        let different: BTreeSet<&str> = found.iter().copied().collect();
        ensure!(
            found.len() == 3 * lines && different.len() == found.len(),
            "{} lines, {} different",
            found.len(),
            different.len()
        );
        for node in nodes {
            let own: Vec<&str> = found.iter().copied().filter(|line| line.starts_with(node)).collect();
            let wanted: Vec<String> = (0..lines).map(|line| format!("{node}{line}")).collect();
            ensure!(own == wanted, "the lines of {node} are out of order");
        }
        self.nothing_conflicts()?;
        say(format_args!(
            "✓ three nodes appended {} lines at once in {took:.1?}: each is there once",
            3 * lines
        ));
        Ok(())
    }

    /// The holder's agent stops answering: writers wait and can be interrupted, readers do not, and the lease ends.
    fn holder_stands_still(&self) -> Result<()> {
        append(&self.path("b", "log")?, "one")?;
        self.fleet.fleet.wait(self.node("b")?, Scope::Everywhere, PATIENCE)?;
        let holder =
            self.fleet.fleet.running(self.node("b")?, Daemon::Lento).context("lento of b is gone")?;
        holder.signal(Signal::Stop);
        let begin = Instant::now();
        let result = (|| {
            let file = self.path("c", "log")?;
            // The kernel keeps a directory to itself while something is made in it, so only names that it knows are found.
            fs::metadata(&file)?;
            let mut waiting = Command::new("sh").arg("-c").arg("echo two >> \"$0\"").arg(&file).spawn()?;
            std::thread::sleep(Duration::from_millis(300));
            let mut many = Vec::new();
            for nth in 0..30 {
                many.push(Command::new("mkdir").arg(self.path("c", &format!("dir{nth}"))?).spawn()?);
            }
            std::thread::sleep(Duration::from_secs(1));
            let reading = Instant::now();
            let found = fs::read_to_string(&file)?;
            ensure!(found == "one\n", "{found:?} although the holder has not given it back");
            fs::metadata(self.path("c", "crowd")?)?;
            let reading = reading.elapsed();
            ensure!(reading < Duration::from_secs(2), "readers waited {reading:.1?}");
            ensure!(waiting.try_wait()?.is_none(), "a writer that should wait did not");
            let killing = Instant::now();
            many.iter_mut().try_for_each(|child| child.kill())?;
            for child in &mut many {
                child.wait()?;
            }
            let killed = killing.elapsed();
            ensure!(killed < Duration::from_secs(5), "killed writers ended after {killed:.1?}");
            ensure!(waiting.wait()?.success(), "the writer that waited failed");
            Ok((reading, killed))
        })();
        holder.signal(Signal::Continue);
        let (reading, killed) = result?;
        let took = begin.elapsed();
        ensure!(took > LEASE / 2, "the permit passed on after {took:.1?}, before the lease had ended");
        self.quiet()?;
        ensure!(fs::read_to_string(self.path("b", "log")?)? == "one\ntwo\n", "both lines are everywhere");
        self.nothing_conflicts()?;
        say(format_args!(
            "✓ the holder stood still: the next one wrote after {took:.1?}; meanwhile reads took {reading:.1?}, and killed writers were gone in {killed:.1?}"
        ));
        Ok(())
    }

    fn presto_of_the_holder_is_killed(&self) -> Result<()> {
        let file = self.path("b", "log")?;
        append(&file, "three")?;
        kill(&self.fleet.fleet, self.node("b")?, Daemon::Presto)?;
        self.fleet.fleet.start(self.node("b")?, Daemon::Presto)?;
        self.fleet.fleet.wait_ready(PATIENCE, &mut |_| ())?;
        append(&file, "four")?;
        append(&self.path("c", "log")?, "five")?;
        self.quiet()?;
        let found = fs::read_to_string(self.path("a", "log")?)?;
        ensure!(found == "one\ntwo\nthree\nfour\nfive\n", "{found:?}");
        self.nothing_conflicts()?;
        say("✓ presto of the holder was killed: the permit was asked for anew");
        Ok(())
    }

    fn away<T>(&self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        let server = self.node("a")?;
        kill(&self.fleet.fleet, server, Daemon::Lento)?;
        let result = meanwhile();
        self.fleet.fleet.start(server, Daemon::Lento)?;
        self.fleet.fleet.wait_ready(PATIENCE, &mut |_| ())?;
        result
    }

    fn server_is_away_and_users_go_on(&self) -> Result<()> {
        let begin = Instant::now();
        let mut wanted = String::new();
        self.away(|| {
            // For a while it may still be let in on its lease.
            until("status says so", PATIENCE, || {
                let line = wanted.lines().count().to_string();
                append(&self.path("c", "alone")?, &line)?;
                wanted += &format!("{line}\n");
                Ok(self.state("c")? == "stolen")
            })
        })?;
        let took = begin.elapsed();
        until("it is over", PATIENCE, || Ok(self.state("c")? != "stolen"))?;
        append(&self.path("c", "alone")?, "over")?;
        self.quiet()?;
        let found = fs::read_to_string(self.path("b", "alone")?)?;
        ensure!(found == wanted + "over\n", "{found:?}: every line is everywhere");
        say(format_args!("✓ the server was away: a user went on without the permit ({took:.1?} in all)"));
        Ok(())
    }

    fn server_is_away_and_users_read(&self) -> Result<()> {
        append(&self.path("b", "log")?, "six")?;
        self.quiet()?;
        let begin = Instant::now();
        let (refused, read) = self.away(|| {
            let file = self.path("c", "log")?;
            let refused =
                OpenOptions::new().append(true).open(&file).err().and_then(|error| error.raw_os_error());
            until("status says so", PATIENCE, || Ok(self.state("c")? == "readonly"))?;
            Ok((refused, fs::read_to_string(&file)?))
        })?;
        let took = begin.elapsed();
        ensure!(refused == Some(rustix::io::Errno::ROFS.raw_os_error()), "refused with {refused:?}");
        ensure!(read.ends_with("six\n"), "reading goes on");
        append(&self.path("c", "log")?, "seven")?;
        self.quiet()?;
        say(format_args!(
            "✓ the server was away: writing was refused with EROFS, reading went on ({took:.1?} in all)"
        ));
        Ok(())
    }
}

/// Open, append, close.
fn append(path: &Path, line: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| path.display().to_string())?;
    file.write_all(format!("{line}\n").as_bytes())?;
    Ok(())
}
