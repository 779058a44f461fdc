//! Two directories kept equal: how long until a change of one is in the other.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use intermezzo::output::{Table, say};
use serde::Serialize;

use super::Archive;
use super::figure::{Figure, percentile};
use super::peers::{Lsyncd, Ours, Peer, Rsync, Transfer, visible};
use crate::run::timed;
use crate::walk::walk_both;

/// The figures and what the others need for the same.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    rows: Vec<Row>,
    not_installed: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    figure: Figure,
    value: f64,
    rsync: Option<f64>,
    lsyncd: Option<f64>,
    detail: String,
}

/// One figure as measured with one peer.
type Measured = (Figure, f64, String);

/// What the work is done with.
struct Material {
    tree: Archive,
    large: PathBuf,
    copying: Duration,
}

const LARGE: u64 = 256 << 20;
const MANY: usize = 2_000;

pub(super) fn measure(base: &Path) -> Result<Report> {
    let scratch = tempfile::Builder::new().prefix("intermezzo-bench-").tempdir_in(base)?;
    let (large, copying) = large(scratch.path())?;
    let material = Material { tree: Archive::pack(scratch.path(), 11_000)?, large, copying };
    let ours = Ours::up(base)?;
    let rsync = Rsync::make(scratch.path())?;
    let lsyncd = Lsyncd::start(scratch.path())?;

    let mut rows = Vec::new();
    // One step of the work with everybody, then the next step.
    for step in [untar, small_files, large_file, rename, remove] {
        let measured = step(&ours, &material)?;
        let by_rsync = rsync.as_ref().map(|peer| step(peer, &material)).transpose()?.unwrap_or_default();
        let by_lsyncd = lsyncd.as_ref().map(|peer| step(peer, &material)).transpose()?.unwrap_or_default();
        for (at, (figure, value, detail)) in measured.into_iter().enumerate() {
            let value_of = |peer: &[Measured]| peer.get(at).map(|(_, value, _)| *value);
            let (rsync, lsyncd) = (value_of(&by_rsync), value_of(&by_lsyncd));
            let row = Row { figure, value, rsync, lsyncd, detail };
            say(row.cells().join("  "));
            rows.push(row);
        }
    }
    let absent = |installed: bool, name| (!installed).then_some(name);
    let not_installed = [absent(rsync.is_some(), "rsync"), absent(lsyncd.is_some(), "lsyncd")];
    Ok(Report { rows, not_installed: not_installed.into_iter().flatten().collect() })
}

impl Report {
    pub(super) fn render(&self) -> String {
        let mut table =
            Table::new(&["REPLICATION", "OURS", "TARGET", "", "RSYNC", "LSYNCD", "DETAIL OF OURS"]);
        for row in &self.rows {
            table.row(row.cells());
        }
        let mut text = table.render();
        text.push_str(
            "rsync: `rsync -a --delete` once after each change (4 KiB: and --no-whole-file). lsyncd: default.rsync, delay 0. \
             Both copy one way\nbetween two native directories and sync nothing to the disk. OURS: two nodes over TLS, \
             changed and seen through mounts; \"equal\"\nand \"on both nodes\" mean durable on both.\n",
        );
        if !self.not_installed.is_empty() {
            let names = self.not_installed.join(", ");
            text.push_str(&format!("not installed: {names} (apt-get install rsync lsyncd)\n"));
        }
        text
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let show = |value: Option<f64>| value.map(|value| self.figure.show(value)).unwrap_or_default();
        [
            self.figure.name.to_owned(),
            self.figure.show(self.value),
            self.figure.wanted(),
            self.figure.verdict(self.value).to_owned(),
            show(self.rsync),
            show(self.lsyncd),
            self.detail.clone(),
        ]
    }
}

/// A file nobody can compress, and how long it takes to copy it and sync the copy.
fn large(scratch: &Path) -> Result<(PathBuf, Duration)> {
    let path = scratch.join("large");
    let mut random = File::open("/dev/urandom")?.take(LARGE);
    let mut file = File::create(&path)?;
    std::io::copy(&mut random, &mut file)?;
    file.sync_all()?;
    let copy = scratch.join("copy");
    let begin = Instant::now();
    fs::copy(&path, &copy)?;
    File::open(&copy)?.sync_all()?;
    let took = begin.elapsed();
    fs::remove_file(copy)?;
    Ok((path, took))
}

fn untar(peer: &dyn Peer, material: &Material) -> Result<Vec<Measured>> {
    let begin = Instant::now();
    let took = material.tree.unpack(peer.a())?.as_secs_f64();
    peer.push(Transfer::Default)?;
    peer.wait()?;
    let whole = begin.elapsed().as_secs_f64();
    equal(peer)?;
    let Archive { files, bytes, .. } = material.tree;
    let detail = format!("{files} files, {} MB", bytes / 1_000_000);
    let itself = format!("untar itself {took:.2} s");
    Ok(vec![
        (Figure::at_most("equal after untar", 1.0, "s"), whole - took, detail),
        (Figure::plain("untar, from its begin to equal", "s"), whole, itself),
    ])
}

fn small_files(peer: &dyn Peer, _: &Material) -> Result<Vec<Measured>> {
    fs::create_dir(peer.a().join("small"))?;
    peer.push(Transfer::Default)?;
    visible(|| peer.b().join("small").is_dir())?;
    let mut latencies = Vec::new();
    for n in 0..peer.small_files() {
        let name = format!("small/{n}");
        fs::write(peer.a().join(&name), [b'x'; 1024])?;
        let begin = Instant::now();
        peer.push(Transfer::Default)?;
        visible(|| fs::read(peer.b().join(&name)).is_ok_and(|content| content.len() == 1024))?;
        latencies.push(begin.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(2));
    }
    let detail = format!("{} files of 1 KiB one by one (rsync 30, lsyncd 100)", latencies.len());
    Ok(vec![
        (Figure::at_most("small file visible, p50", 3.0, "ms"), percentile(&latencies, 50), detail),
        (Figure::at_most("small file visible, p90", 5.0, "ms"), percentile(&latencies, 90), String::new()),
    ])
}

fn large_file(peer: &dyn Peer, material: &Material) -> Result<Vec<Measured>> {
    let (a, b) = (peer.a().join("large"), peer.b().join("large"));
    let begin = Instant::now();
    fs::copy(&material.large, &a)?;
    peer.push(Transfer::Default)?;
    visible(|| fs::metadata(&b).is_ok_and(|meta| meta.len() == LARGE))?;
    peer.wait()?;
    let took = begin.elapsed().as_secs_f64();
    let native = material.copying.as_secs_f64();
    let detail = format!("{took:.2} s against {native:.2} s for cp and sync");
    let whole = (Figure::at_most("256 MiB file on both nodes", 1.2, "x"), took / native, detail);

    // rsync takes a file of the same size and second for the same.
    std::thread::sleep(Duration::from_millis(1100));
    let begin = Instant::now();
    let file = File::options().write(true).open(&a)?;
    file.write_all_at(&[7; 4096], LARGE / 2)?;
    drop(file);
    peer.push(Transfer::Delta)?;
    let mut seen = [0; 4096];
    visible(|| {
        let read = File::open(&b).and_then(|file| file.read_exact_at(&mut seen, LARGE / 2));
        read.is_ok() && seen == [7; 4096]
    })?;
    let took = begin.elapsed().as_secs_f64();
    Ok(vec![whole, (Figure::at_most("4 KiB changed in it seen", 0.15, "s"), took, String::new())])
}

fn rename(peer: &dyn Peer, _: &Material) -> Result<Vec<Measured>> {
    let (a, b) = (peer.a(), peer.b());
    fs::create_dir(a.join("many"))?;
    for n in 0..MANY {
        fs::write(a.join("many").join(n.to_string()), "x")?;
    }
    peer.push(Transfer::Default)?;
    // The last name in the order in which rsync copies.
    visible(|| b.join("many/999").exists())?;
    peer.wait()?;
    let begin = Instant::now();
    fs::rename(a.join("many"), a.join("moved"))?;
    peer.push(Transfer::Default)?;
    visible(|| b.join("moved/999").exists() && !b.join("many").exists())?;
    let value = begin.elapsed().as_secs_f64() * 1e3;
    Ok(vec![(Figure::at_most("rename of a directory seen", 5.0, "ms"), value, format!("{MANY} files in it"))])
}

fn remove(peer: &dyn Peer, material: &Material) -> Result<Vec<Measured>> {
    let begin = Instant::now();
    let took = timed("rm", &["-rf", "tree"], peer.a())?.as_secs_f64();
    peer.push(Transfer::Default)?;
    visible(|| !peer.b().join("tree").exists())?;
    let whole = begin.elapsed().as_secs_f64();
    peer.wait()?;
    equal(peer)?;
    let detail = format!("{} files", material.tree.files);
    let itself = format!("rm itself {took:.2} s");
    Ok(vec![
        (Figure::at_most("rm -rf seen after it ends", 0.2, "s"), whole - took, detail),
        (Figure::plain("rm -rf, from its begin to seen", "s"), whole, itself),
    ])
}

fn equal(peer: &dyn Peer) -> Result<()> {
    let (a, b) = (peer.a(), peer.b());
    let (first, second) = walk_both(a, b)?;
    let mut different = first.differences(&second);
    if !peer.keeps_directory_times() {
        different.retain(|difference| {
            !(difference.what.starts_with("mtime ") && a.join(&difference.path).is_dir())
        });
    }
    ensure!(
        different.is_empty(),
        "{} and {} differ in {} names, first {:?}",
        a.display(),
        b.display(),
        different.len(),
        different.first()
    );
    Ok(())
}
