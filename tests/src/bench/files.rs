//! The mount beside the native directory under it: one CPU for programs and presto, pairs in turn, medians of ratios.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use intermezzo::admin::Scope;
use intermezzo::fleet::Daemon;
use intermezzo::output::{Table, say};
use serde::Serialize;

use super::applications;
use super::bindfs::Bindfs;
use super::figure::{Figure, median};
use super::journal::{self, Tail};
use super::workloads::{WORKLOADS, Workload};
use super::{Archive, PATIENCE};
use crate::fleet::{Keep, Temporary};
use crate::run::timed;

/// The figures.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    rows: Vec<Row>,
    not_measured: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    figure: Figure,
    value: f64,
    /// Medians, in milliseconds.
    mount_ms: f64,
    native_ms: f64,
    /// Of each pair.
    values: Vec<f64>,
    /// The same of bindfs, where it took part.
    bindfs: Option<f64>,
}

impl Report {
    pub(super) fn render(&self) -> String {
        let mut table = Table::new(&[
            "FILE SYSTEM",
            "RATIO",
            "TARGET",
            "",
            "MOUNT",
            "NATIVE",
            "PAIRS",
            "LEAST",
            "MOST",
            "BINDFS",
        ]);
        for row in &self.rows {
            let show = |value| row.figure.show(value);
            let ends = [f64::min as fn(f64, f64) -> f64, f64::max]
                .map(|end| row.values.iter().copied().reduce(end).map(show).unwrap_or_default());
            let [least, most] = ends;
            table.row([
                row.figure.name.to_owned(),
                show(row.value),
                row.figure.wanted(),
                row.figure.verdict(row.value).to_owned(),
                format!("{:.2} ms", row.mount_ms),
                format!("{:.2} ms", row.native_ms),
                row.values.len().to_string(),
                least,
                most,
                row.bindfs.map_or("-".to_owned(), show),
            ]);
        }
        let mut text = table.render();
        text.push_str(
            "Time through the mount by time in the native directory beside it (throughput: the other way round), median of \
             pairs in turn.\nOne CPU for programs and presto; journal on. Journal's share: its records appended anew \
             (NATIVE) by the untar (MOUNT).\nBINDFS: the same ratio of bindfs --multithreaded, in the same rounds.\n",
        );
        for reason in &self.not_measured {
            text.push_str(&format!("not measured: {reason}\n"));
        }
        text
    }
}

/// Where a run takes place.
#[derive(Clone, Copy, Debug)]
enum Side {
    Native,
    Mount,
    Bindfs,
}

/// The directories and how to come to rest between runs.
struct Bench {
    fleet: Temporary,
    /// Before the directory that it lies in.
    bindfs: Option<Bindfs>,
    scratch: tempfile::TempDir,
    native: PathBuf,
    mount: PathBuf,
    pairs: usize,
}

pub(super) fn measure(base: &Path, pairs: usize, only: &str) -> Result<Report> {
    let bench = Bench::up(base, pairs)?;
    Archive::pack(bench.scratch.path(), 2_000)?;
    let (applications, mut not_measured) = applications::available(bench.scratch.path())?;
    if bench.bindfs.is_none() {
        not_measured.push("bindfs: not installed (apt-get install bindfs)".to_owned());
    }
    let mut rows = Vec::new();
    let wanted = |figure: &Figure| figure.name.contains(only);
    if wanted(&journal::FIGURE) {
        rows.push(bench.journal()?);
    }
    for workload in applications.iter().chain(&WORKLOADS).filter(|workload| wanted(&workload.figure)) {
        rows.push(bench.pairs(workload)?);
    }
    Ok(Report { rows, not_measured })
}

impl Bench {
    fn up(base: &Path, pairs: usize) -> Result<Bench> {
        let (cpu, other) = two_cpus()?;
        pin(None, cpu)?;
        let scratch = tempfile::Builder::new().prefix("intermezzo-bench-").tempdir_in(base)?;
        let native = scratch.path().join("native");
        fs::create_dir(&native)?;
        // Daemons inherit the CPU; lento works behind the programs' backs, as it does wherever there is more than one.
        let fleet = Temporary::up(base, "intermezzo-bench", 1, Keep::Nothing)?;
        let lento = fleet.fleet.running(fleet.fleet.node("a")?, Daemon::Lento);
        for task in fs::read_dir(format!("/proc/{}/task", lento.context("lento does not run")?.pid))? {
            pin(Some(task?.file_name().to_string_lossy().parse()?), other)?;
        }
        let mount = fleet.mount("a")?;
        let bindfs = Bindfs::mount(scratch.path())?;
        Ok(Bench { fleet, bindfs, scratch, native, mount, pairs })
    }

    /// Nothing of what was written before is still on its way, neither to lento nor to the disk.
    fn rest(&self) -> Result<()> {
        self.fleet.fleet.wait(self.fleet.fleet.node("a")?, Scope::Server, PATIENCE)?;
        rustix::fs::sync();
        Ok(())
    }

    /// Seconds that the timed part takes in a new directory below `root`. What it makes stays: see `WORKLOADS`.
    fn once(&self, workload: &Workload, root: &Path, pair: usize) -> Result<f64> {
        let dir = root.join(format!("{}-{pair}", workload.figure.name));
        fs::create_dir(&dir)?;
        (workload.prepare)(&dir, self.scratch.path())?;
        self.rest()?;
        let begin = Instant::now();
        (workload.timed)(&dir, self.scratch.path())?;
        let took = begin.elapsed().as_secs_f64();
        self.rest()?;
        Ok(took)
    }

    fn pairs(&self, workload: &Workload) -> Result<Row> {
        let figure = workload.figure;
        let mut places = vec![(Side::Native, self.native.as_path()), (Side::Mount, &self.mount)];
        places.extend(self.bindfs.as_ref().map(|bindfs| (Side::Bindfs, bindfs.mount_point())));
        let (mut values, mut others) = (Vec::new(), Vec::new());
        let (mut mounts, mut natives) = (Vec::new(), Vec::new());
        // The first pair is for warming up.
        for pair in 0..=self.pairs {
            let (mut native, mut mount, mut bindfs) = (f64::NAN, f64::NAN, None);
            for (side, root) in &places {
                let took = self.once(workload, root, pair)?;
                match side {
                    Side::Native => native = took,
                    Side::Mount => mount = took,
                    Side::Bindfs => bindfs = Some(took),
                }
            }
            // Who goes first changes from pair to pair.
            places.rotate_left(1);
            if pair == 0 {
                continue;
            }
            values.push(figure.of(mount, native));
            others.extend(bindfs.map(|bindfs| figure.of(bindfs, native)));
            mounts.push(mount * 1e3);
            natives.push(native * 1e3);
        }
        Ok(Row::new(figure, values, &mounts, &natives, &others))
    }

    fn journal(&self) -> Result<Row> {
        let node = self.fleet.fleet.node("a")?;
        let cache = self.fleet.fleet.layout.cache(node).join(&self.fleet.fleet.config.volume);
        let archive = self.scratch.path().join("tree.tar");
        let (mut values, mut untars, mut appends) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=self.pairs {
            let dir = self.mount.join(format!("journal-{run}"));
            fs::create_dir(&dir)?;
            self.rest()?;
            let mut tail = Tail::of(&cache)?;
            let untar = timed("tar", &[Path::new("xf"), &archive], &dir)?;
            let records = tail.read()?;
            self.rest()?;
            let append = journal::append(&records, &self.scratch.path().join(format!("kml-{run}")))?;
            if run > 0 {
                values.push(append.as_secs_f64() / untar.as_secs_f64() * 100.0);
                untars.push(untar.as_secs_f64() * 1e3);
                appends.push(append.as_secs_f64() * 1e3);
            }
        }
        Ok(Row::new(journal::FIGURE, values, &untars, &appends, &[]))
    }
}

impl Row {
    fn new(figure: Figure, values: Vec<f64>, mounts: &[f64], natives: &[f64], bindfs: &[f64]) -> Row {
        let (value, mount_ms, native_ms) = (median(&values), median(mounts), median(natives));
        say(format_args!("{}: {} ({mount_ms:.2} ms, {native_ms:.2} ms)", figure.name, figure.show(value)));
        let bindfs = (!bindfs.is_empty()).then(|| median(bindfs));
        Row { figure, value, mount_ms, native_ms, values, bindfs }
    }
}

/// Two CPUs this process may use, the same one twice if there is no other.
fn two_cpus() -> Result<(usize, usize)> {
    let all = rustix::thread::sched_getaffinity(None)?;
    let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).rev().filter(|cpu| all.is_set(*cpu));
    let first = cpus.next().context("no CPU")?;
    Ok((first, cpus.next().unwrap_or(first)))
}

/// The thread (this one, and all it starts, if none is named) runs on one CPU.
fn pin(thread: Option<i32>, cpu: usize) -> Result<()> {
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    let thread = thread.map(|id| rustix::process::Pid::from_raw(id).context("no thread")).transpose()?;
    Ok(rustix::thread::sched_setaffinity(thread, &one)?)
}
