//! What keeps two directories equal: InterMezzo, rsync called after each change, lsyncd watching.
//!
//! rsync and lsyncd work from directory to directory, locally and as they come: one direction, no network, no TLS, and
//! nothing is synced to the disk, while `wait` of ours ends when the change is durable on both nodes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use intermezzo::admin::Scope;

use super::PATIENCE;
use crate::fleet::{Keep, Temporary};
use crate::run::timed;

/// How a changed file travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// As the tool decides.
    Default,
    /// By what differs, where the tool can be told.
    Delta,
}

/// Keeps `b` equal to `a`.
pub(super) trait Peer {
    /// Where changes are made.
    fn a(&self) -> &Path;
    /// Where they are to be seen.
    fn b(&self) -> &Path;
    /// Runs what must be run after a change; what notices by itself does nothing.
    fn push(&self, transfer: Transfer) -> Result<()>;
    /// Waits until `b` is known to be equal to `a`.
    fn wait(&self) -> Result<()>;
    /// How many small files are sent one by one: fewer where each takes long.
    fn small_files(&self) -> usize;
    /// Whether `b`'s directories have the times of `a`'s in the end.
    fn keeps_directory_times(&self) -> bool;
}

/// InterMezzo: two nodes.
pub(super) struct Ours {
    fleet: Temporary,
    a: PathBuf,
    b: PathBuf,
}

impl Ours {
    pub(super) fn up(base: &Path) -> Result<Ours> {
        let fleet = Temporary::up(base, "intermezzo-bench", 2, Keep::Nothing)?;
        let (a, b) = (fleet.mount("a")?, fleet.mount("b")?);
        Ok(Ours { fleet, a, b })
    }
}

impl Peer for Ours {
    fn a(&self) -> &Path {
        &self.a
    }

    fn b(&self) -> &Path {
        &self.b
    }

    fn push(&self, _: Transfer) -> Result<()> {
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(self.fleet.fleet.wait(self.fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?)
    }

    fn small_files(&self) -> usize {
        300
    }

    fn keeps_directory_times(&self) -> bool {
        true
    }
}

/// Two plain directories.
#[derive(Debug)]
struct Directories {
    a: PathBuf,
    b: PathBuf,
}

impl Directories {
    fn make(dir: &Path) -> Result<Directories> {
        let this = Directories { a: dir.join("a"), b: dir.join("b") };
        fs::create_dir_all(&this.a)?;
        fs::create_dir_all(&this.b)?;
        Ok(this)
    }
}

/// rsync, called after each change.
#[derive(Debug)]
pub(super) struct Rsync(Directories);

impl Rsync {
    /// `None` if it is not installed.
    pub(super) fn make(dir: &Path) -> Result<Option<Rsync>> {
        if !is_installed("rsync")? {
            return Ok(None);
        }
        Ok(Some(Rsync(Directories::make(&dir.join("rsync"))?)))
    }
}

impl Peer for Rsync {
    fn a(&self) -> &Path {
        &self.0.a
    }

    fn b(&self) -> &Path {
        &self.0.b
    }

    fn push(&self, transfer: Transfer) -> Result<()> {
        // A slash behind the source means what is in it.
        let (from, to) = (format!("{}/", self.0.a.display()), format!("{}/", self.0.b.display()));
        let whole: &[&str] = if transfer == Transfer::Delta { &["--no-whole-file"] } else { &[] };
        timed("rsync", &[&["-a", "--delete"], whole, &[&from, &to]].concat(), Path::new("/")).map(drop)
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn small_files(&self) -> usize {
        30
    }

    fn keeps_directory_times(&self) -> bool {
        false
    }
}

/// lsyncd, watching; it is ended when this goes.
#[derive(Debug)]
pub(super) struct Lsyncd {
    directories: Directories,
    child: Child,
}

impl Lsyncd {
    /// Starts it and waits until it watches. `None` if it, or the rsync that it calls, is not installed.
    pub(super) fn start(dir: &Path) -> Result<Option<Lsyncd>> {
        if !is_installed("rsync")? || !is_installed("lsyncd")? {
            return Ok(None);
        }
        let dir = dir.join("lsyncd");
        let directories = Directories::make(&dir)?;
        let config = dir.join("lsyncd.lua");
        // A delay of 0 is the smallest it allows: it acts at once, the fastest it can be.
        let text = format!(
            "settings {{ nodaemon = true, logfile = {:?}, pidfile = {:?} }}\n\
             sync {{ default.rsync, source = {:?}, target = {:?}, delay = 0,\n\
             \x20 rsync = {{ archive = true, _extra = {{ \"--no-whole-file\" }} }} }}\n",
            dir.join("log"),
            dir.join("pid"),
            directories.a,
            directories.b,
        );
        fs::write(&config, text)?;
        let said = File::create(dir.join("said"))?;
        // It goes with this process however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "lsyncd"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(said.try_clone()?)
            .stdout(said)
            .spawn()
            .context("cannot start lsyncd")?;
        let this = Lsyncd { directories, child };
        fs::write(this.directories.a.join("first"), "x")?;
        visible(|| this.directories.b.join("first").exists())
            .with_context(|| format!("lsyncd does not work; see {}", dir.join("said").display()))?;
        Ok(Some(this))
    }
}

impl Drop for Lsyncd {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.child.id())
            && let Some(pid) = rustix::process::Pid::from_raw(id)
        {
            // So that it ends the rsync that it may have started.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(10) {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer for Lsyncd {
    fn a(&self) -> &Path {
        &self.directories.a
    }

    fn b(&self) -> &Path {
        &self.directories.b
    }

    fn push(&self, _: Transfer) -> Result<()> {
        Ok(())
    }

    /// It has no word for "done", so both trees are listed until they have the same names and sizes.
    fn wait(&self) -> Result<()> {
        visible(|| {
            let listed = list(&self.directories.a);
            listed.is_some() && listed == list(&self.directories.b)
        })
    }

    fn small_files(&self) -> usize {
        100
    }

    fn keeps_directory_times(&self) -> bool {
        false
    }
}

/// Names and sizes; `None` if it changes under the reader.
fn list(root: &Path) -> Option<Vec<(PathBuf, u64)>> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).ok()? {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            let path = entry.path();
            if meta.is_dir() {
                left.push(path.clone());
            }
            let size = if meta.is_dir() { 0 } else { meta.len() };
            found.push((path.strip_prefix(root).ok()?.to_owned(), size));
        }
    }
    found.sort();
    Some(found)
}

/// Asks again and again, with short pauses, until it is so.
pub(super) fn visible(mut there: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !there() {
        if begin.elapsed() > PATIENCE {
            bail!("a change did not arrive in {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Whether this machine has a program. It is asked for its version.
pub(super) fn is_installed(program: &str) -> Result<bool> {
    let asked = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match asked {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot start {program}")),
    }
}
