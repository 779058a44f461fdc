//! A machine: namespaces held by one process 1, a disk (a directory), and programs inside.
//!
//! `tests/cluster/machine.sh` is that process. Programs are started from outside into its namespaces; the kernel ends them
//! with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use intermezzo::fleet::process::{self, Recorded, Signal};
use serde::{Deserialize, Serialize};

use super::command::{self, until};

/// For namespaces, mounts and the start of a process.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that shall run in a machine.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called, in its log's name too.
    pub name: String,
    /// The program.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Run {
    /// A program of the cluster, whose file holds them all: its first argument says which.
    #[must_use]
    pub fn new(binary: &Path, name: &str, arguments: Vec<OsString>) -> Run {
        let all = std::iter::once(OsString::from(name)).chain(arguments).collect();
        Run { name: name.to_owned(), binary: binary.to_owned(), arguments: all }
    }
}

/// A machine of the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// Its disk: `var/lib`, `var/log` and `run` are the machine's own, and `logs` holds what its programs wrote.
    pub dir: PathBuf,
    init: Option<Recorded>,
    programs: BTreeMap<String, Recorded>,
}

impl Machine {
    /// A machine that does not run yet.
    #[must_use]
    pub fn new(cluster: &Path, name: &str) -> Machine {
        let dir = cluster.join(name);
        Machine { name: name.to_owned(), dir, init: None, programs: BTreeMap::new() }
    }

    /// Makes its namespaces and mounts.
    ///
    /// # Errors
    /// It does not start; with its log's end.
    pub fn boot(&mut self) -> Result<()> {
        fs::create_dir_all(self.dir.join("logs"))?;
        let script = self.dir.join("machine.sh");
        fs::write(&script, include_str!("../../cluster/machine.sh"))?;
        let log = self.log("machine");
        let mut arguments: Vec<OsString> =
            ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]
                .map(OsString::from)
                .into();
        arguments.extend([script.into(), self.dir.clone().into(), OsString::from(&self.name)]);
        let unshare =
            process::start(Path::new("unshare"), &arguments, &log).context("cannot start unshare")?;
        let booted = until(&format!("machine {} to start", self.name), PATIENCE, || {
            ensure!(unshare.is_alive(), "it ended: {}", process::tail(&log, 5));
            ensure!(self.dir.join("ready").exists(), "its mounts are not made");
            child(unshare.pid)
        });
        if booted.is_err() {
            // With it goes its child.
            unshare.signal(Signal::Kill);
        }
        self.init = Some(booted?);
        Ok(())
    }

    /// Starts a program inside.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&mut self, run: &Run) -> Result<()> {
        let mut arguments: Vec<OsString> = self.enter()?.into_iter().map(OsString::from).collect();
        arguments.push(run.binary.clone().into());
        arguments.extend(run.arguments.iter().cloned());
        let log = self.log(&run.name);
        let nsenter = process::start(Path::new("nsenter"), &arguments, &log)
            .with_context(|| format!("cannot start {} on {}", run.name, self.name))?;
        let started = until(&format!("{} to start on {}", run.name, self.name), PATIENCE, || {
            ensure!(nsenter.is_alive(), "it ended: {}", process::tail(&log, 10));
            child(nsenter.pid)
        })?;
        self.programs.insert(run.name.clone(), started);
        Ok(())
    }

    /// Ends a program at once and waits for its end.
    ///
    /// # Errors
    /// It does not run, or hangs in the kernel.
    pub fn stop(&mut self, program: &str) -> Result<()> {
        let recorded = self
            .programs
            .remove(program)
            .with_context(|| format!("{program} does not run on {}", self.name))?;
        recorded.signal(Signal::Kill);
        ensure!(recorded.wait(PATIENCE), "{program} on {} does not end", self.name);
        Ok(())
    }

    /// Runs a command inside, as root of the machine.
    ///
    /// # Errors
    /// It fails, or does not end in time.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        command::output(
            Command::new("nsenter").args(self.enter()?).arg(program).args(arguments),
            command::DEADLINE,
        )
    }

    /// The machine's files as its own programs see them, mounts included, seen from outside.
    ///
    /// # Errors
    /// It does not run.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root", self.pid()?)))
    }

    /// Processes of this name (proc(5), `comm`) that are on the machine's own network: its programs, and pods that share it.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(&self, name: &str) -> Result<Vec<Recorded>> {
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
        let ours = network(&self.pid()?.to_string())?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.trim_end() == name && network(&pid).is_ok_and(|one| one == ours) {
                found.extend(pid.parse().ok().and_then(Recorded::now));
            }
        }
        Ok(found)
    }

    /// Process 1 as it is seen from outside.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<i32> {
        let init = self.init.as_ref().filter(|init| init.is_alive());
        Ok(init.with_context(|| format!("machine {} does not run", self.name))?.pid)
    }

    /// Ends the machine, that is process 1, and with it every process inside.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&self) -> Result<()> {
        let Some(init) = &self.init else { return Ok(()) };
        init.signal(Signal::Kill);
        ensure!(init.wait(PATIENCE * 2), "machine {} (process {}) does not end", self.name, init.pid);
        Ok(())
    }

    /// Programs that were started and have ended by themselves.
    #[must_use]
    pub fn ended(&self) -> Vec<&str> {
        self.programs
            .iter()
            .filter(|(_, process)| !process.is_alive())
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Where a program's output goes.
    #[must_use]
    pub fn log(&self, program: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{program}.log"))
    }

    /// A path of the machine, seen from outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.join(inside.trim_start_matches('/'))
    }

    /// Arguments of nsenter(1). Its /sys is this machine's: a fresh one would hide the control groups.
    fn enter(&self) -> Result<Vec<String>> {
        let target = format!("--target={}", self.pid()?);
        Ok([&target, "--net", "--mount", "--uts", "--pid", "--"].map(str::to_owned).into())
    }
}

/// The only child of a process.
fn child(parent: i32) -> Result<Recorded> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let of = text.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse::<i32>().ok());
        if of == Some(parent)
            && let Some(found) = Recorded::now(pid)
        {
            return Ok(found);
        }
    }
    anyhow::bail!("process {parent} has no child yet")
}
