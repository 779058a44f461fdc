//! A fleet for a proof: under a temporary directory, gone at the end whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use intermezzo::fleet::process::{Signal, tail};
use intermezzo::fleet::{Daemon, Fleet, Mounts, Node, Request, mounts};
use intermezzo::output::say;

use crate::history;

/// Whether to leave everything in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Leave it running.
    Everything,
    /// Take it away.
    Nothing,
}

/// A running fleet that is taken down when this goes.
#[derive(Debug)]
pub struct Temporary {
    /// The fleet.
    pub fleet: Fleet,
    keep: Keep,
}

impl Temporary {
    /// Starts a fleet in a new directory below `base`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn up(base: &Path, name: &str, nodes: usize, keep: Keep) -> Result<Temporary> {
        Temporary::start(base, name, nodes, keep, None)
    }

    /// The same with a volume that adopts a directory.
    ///
    /// # Errors
    /// It does not come up.
    pub fn adopting(base: &Path, name: &str, nodes: usize, tree: &Path) -> Result<Temporary> {
        Temporary::start(base, name, nodes, Keep::Nothing, Some(tree.to_owned()))
    }

    /// The same without any process: the caller starts those that run here.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn made(base: &Path, name: &str, nodes: usize) -> Result<Temporary> {
        Temporary::make(base, name, nodes, Keep::Nothing, None)
    }

    fn start(base: &Path, name: &str, nodes: usize, keep: Keep, adopt: Option<PathBuf>) -> Result<Temporary> {
        let mut this = Temporary::make(base, name, nodes, keep, adopt)?;
        let up = this.fleet.up(Duration::from_secs(60), &mut |_| ());
        up.with_context(|| format!("the fleet in {} does not come up", this.fleet.layout.dir.display()))?;
        Ok(this)
    }

    fn make(base: &Path, name: &str, nodes: usize, keep: Keep, adopt: Option<PathBuf>) -> Result<Temporary> {
        fs::create_dir_all(base)?;
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(base)?.keep();
        // A proof has files open on the mounts and starts processes: with a presto away and its mounts kept, the new
        // process would wait for it when it closes them, between fork and exec.
        let mounts = Mounts::EndWithPresto;
        let request = Request { nodes: Some(nodes), volume: None, lower: Vec::new(), adopt, mounts };
        let fleet = Fleet::make(&dir, &request)?;
        end_with_signal(&fleet, keep);
        Ok(Temporary { fleet, keep })
    }

    /// Where a node's volume is mounted.
    ///
    /// # Errors
    /// No such node.
    pub fn mount(&self, node: &str) -> Result<PathBuf> {
        Ok(self.fleet.mountpoint(self.fleet.node(node)?))
    }

    /// What each agent says of itself, the end of each log, and what the journals tell of these names: for who reads of a
    /// failure and has only its output.
    pub fn explain(&self, names: &[String]) {
        match self.fleet.conflicts() {
            Ok(conflicts) => {
                let about = conflicts
                    .iter()
                    .filter(|conflict| names.iter().any(|name| conflict.path.ends_with(name)));
                about.for_each(|conflict| say(format_args!("{conflict:?}")));
            }
            Err(error) => say(format_args!("conflicts: {error}")),
        }
        // A node without a log runs elsewhere.
        let here = |node: &&Node| self.fleet.layout.log(node, Daemon::Lento).exists();
        for node in self.fleet.config.nodes.iter().filter(here) {
            match self.fleet.status(node) {
                Ok(status) => say(format_args!("node {}: {status:?}", node.name)),
                Err(error) => say(format_args!("node {}: {error}", node.name)),
            }
            for daemon in [Daemon::Presto, Daemon::Lento] {
                let path = self.fleet.layout.log(node, daemon);
                say(format_args!("the end of {}:\n{}", path.display(), tail(&path, LOG_LINES)));
            }
            for name in names {
                let cache = self.fleet.layout.cache(node).join(&self.fleet.config.volume);
                let told = history::of(&cache, name);
                let told = told.unwrap_or_else(|error| format!("{error:#}"));
                say(format_args!("what the journal of {} tells of {name}:\n{told}", node.name));
            }
        }
    }

    /// Leaves everything in place after all: somebody will want to look.
    pub fn keep(&mut self) {
        self.keep = Keep::Everything;
    }
}

/// A proof on a fleet of its own, for a `main`: where it fails, the agents and their logs are shown.
pub fn proof(
    program: &str,
    base: &Path,
    nodes: usize,
    show: impl FnOnce(&mut Temporary) -> Result<()>,
) -> ExitCode {
    let fleet = Temporary::up(base, &format!("intermezzo-{program}"), nodes, Keep::Nothing);
    let shown = fleet.and_then(|mut fleet| show(&mut fleet).inspect_err(|_| fleet.explain(&[])));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{program}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let dir = self.fleet.layout.dir.clone();
        if self.keep == Keep::Everything {
            say(format_args!("Left in place: {}; `intermezzo dev down --dir {0}` ends it.", dir.display()));
            return;
        }
        remove(&self.fleet);
    }
}

/// Of each log, in an explanation.
const LOG_LINES: usize = 40;

/// For a killed process to be gone with all its threads, which may wait for a disk.
const DEATH: Duration = Duration::from_secs(20);

/// Whether there was something to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// It ran.
    Running,
    /// It did not.
    Nothing,
}

/// kill -9, and waits until it is gone.
///
/// # Errors
/// It does not go.
pub fn kill(fleet: &Fleet, node: &Node, daemon: Daemon) -> Result<Killed> {
    let Some(process) = fleet.running(node, daemon) else { return Ok(Killed::Nothing) };
    process.signal(Signal::Kill);
    ensure!(process.wait(DEATH), "{daemon} of node {} survives kill -9", node.name);
    Ok(Killed::Running)
}

fn remove(fleet: &Fleet) {
    let dir = &fleet.layout.dir;
    if let Err(error) = fleet.down(&mut |_| ()) {
        say(format_args!("{}: {error}; left in place", dir.display()));
        return;
    }
    // Only what this program made, and never through a mount.
    if mounts::below(dir).is_empty() {
        for path in immutable(dir) {
            let _ = std::process::Command::new("chattr").arg("-i").arg(path).status();
        }
        #[allow(clippy::disallowed_methods)] // A temporary directory of this process.
        if let Err(error) = fs::remove_dir_all(dir) {
            say(format_args!("{}: {error}", dir.display()));
        }
    }
}

/// Directories under mount points are immutable, so that nothing is written below a missing mount.
fn immutable(dir: &Path) -> Vec<PathBuf> {
    let nodes = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join("mounts"));
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    nodes.flat_map(below).flat_map(below).collect()
}

/// Ctrl-C and SIGTERM take the fleet down as well.
fn end_with_signal(fleet: &Fleet, keep: Keep) {
    let fleet = fleet.clone();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut term) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
        });
        // One that is gone already leaves the others to those who watch them.
        if !fleet.layout.dir.exists() {
            return;
        }
        if keep == Keep::Nothing {
            say("Interrupted: taking the fleet down.");
            remove(&fleet);
        }
        std::process::exit(130);
    });
}
