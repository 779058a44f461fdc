//! Work on one directory, whatever it lies on: what is to be there first, and what is timed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};

use super::figure::Figure;
use crate::run::timed;

/// A step: the directory to work in, and the one with what was made for all.
pub(super) type Step = fn(&Path, &Path) -> Result<()>;

/// One figure's work.
pub(super) struct Workload {
    pub(super) figure: Figure,
    pub(super) prepare: Step,
    pub(super) timed: Step,
}

const fn ratio(name: &'static str, target: f64, prepare: Step, timed: Step) -> Workload {
    Workload { figure: Figure::at_most(name, target, "x"), prepare, timed }
}

const fn throughput(name: &'static str, target: f64, prepare: Step, timed: Step) -> Workload {
    Workload { figure: Figure::at_least(name, target, "x"), prepare, timed }
}

/// Those that need nothing but tar and rm. What removes comes last: ext4 passes over inodes that were removed a short
/// while ago, one by one, so that making files right after a removal measures that search, on both sides.
pub(super) const WORKLOADS: [Workload; 12] = [
    ratio("untar", 3.3, nothing, untar),
    ratio("create + 4k", 3.2, nothing, make),
    ratio("rename", 2.6, make, rename),
    ratio("mkdir", 2.3, nothing, mkdir),
    ratio("open + close", 6.0, make, open_close),
    ratio("stat", 1.1, make_and_stat, stat),
    ratio("second readdir", 0.6, make_and_list, readdir),
    ratio("fsync loop", 1.05, nothing, fsync),
    throughput("write throughput", 0.95, nothing, write),
    throughput("read throughput", 0.95, write, read),
    ratio("unlink", 2.2, make, unlink),
    ratio("rm -rf", 1.9, untar, remove_tree),
];

/// Files of the workloads with many.
const COUNT: usize = 1_000;

pub(super) fn nothing(_: &Path, _: &Path) -> Result<()> {
    Ok(())
}

fn each(mut work: impl FnMut(usize) -> std::io::Result<()>) -> Result<()> {
    Ok((0..COUNT).try_for_each(&mut work)?)
}

fn make(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::write(dir.join(n.to_string()), [1; 4096]))
}

fn untar(dir: &Path, scratch: &Path) -> Result<()> {
    timed("tar", &[Path::new("xf"), &scratch.join("tree.tar")], dir).map(drop)
}

fn remove_tree(dir: &Path, _: &Path) -> Result<()> {
    timed("rm", &["-rf", "tree"], dir).map(drop)
}

fn unlink(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::remove_file(dir.join(n.to_string())))
}

fn rename(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::rename(dir.join(n.to_string()), dir.join(format!("r{n}"))))
}

fn mkdir(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::create_dir(dir.join(n.to_string())))
}

fn open_close(dir: &Path, _: &Path) -> Result<()> {
    each(|n| File::open(dir.join(n.to_string())).map(drop))
}

fn stat(dir: &Path, _: &Path) -> Result<()> {
    (0..10).try_for_each(|_| each(|n| fs::metadata(dir.join(n.to_string())).map(drop)))
}

fn make_and_stat(dir: &Path, scratch: &Path) -> Result<()> {
    make(dir, scratch)?;
    stat(dir, scratch)
}

fn readdir(dir: &Path, _: &Path) -> Result<()> {
    for _ in 0..10 {
        ensure!(fs::read_dir(dir)?.count() == COUNT, "names are missing");
    }
    Ok(())
}

fn make_and_list(dir: &Path, scratch: &Path) -> Result<()> {
    make(dir, scratch)?;
    readdir(dir, scratch)
}

fn fsync(dir: &Path, _: &Path) -> Result<()> {
    let mut file = File::create(dir.join("file"))?;
    for _ in 0..100 {
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
    }
    Ok(())
}

const BLOCK: usize = 128 << 10;
const BLOCKS: u64 = 1024;

fn write(dir: &Path, _: &Path) -> Result<()> {
    let file = File::create(dir.join("file"))?;
    let block = vec![1; BLOCK];
    Ok((0..BLOCKS).try_for_each(|n| file.write_all_at(&block, n * BLOCK as u64))?)
}

fn read(dir: &Path, _: &Path) -> Result<()> {
    let file = File::open(dir.join("file"))?;
    let mut block = vec![0; BLOCK];
    Ok((0..BLOCKS).try_for_each(|n| file.read_exact_at(&mut block, n * BLOCK as u64))?)
}
