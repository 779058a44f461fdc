//! Several nodes append to the same files. Each line is unique; every acknowledged one must be in the file at the end, or
//! in a kept Conflict: who appends can not have removed what he did not see.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{DEADLINE, Mount};
use crate::run::{Ended, run};

/// Directory of the shared files.
pub const DIRECTORY: &str = "shared";

/// Appends on one node.
#[derive(Debug)]
pub struct Appender {
    mount: Arc<Mount>,
    scratch: PathBuf,
    random: StdRng,
    count: u64,
    acknowledged: Vec<String>,
}

impl Appender {
    /// An appender on this mount.
    ///
    /// # Errors
    /// Its scratch directory cannot be made.
    pub fn new(mount: Arc<Mount>, scratch: &Path, seed: u64) -> Result<Appender> {
        let scratch = scratch.join(format!("append-{}", mount.node));
        fs::create_dir_all(&scratch)?;
        Ok(Appender {
            mount,
            scratch,
            random: StdRng::seed_from_u64(seed),
            count: 0,
            acknowledged: Vec::new(),
        })
    }

    /// Appends one line to one of the shared files.
    ///
    /// # Errors
    /// It hangs.
    pub fn step(&mut self) -> Result<()> {
        self.mount.wait()?;
        self.count += 1;
        let line = format!("{} {}", self.mount.node, self.count);
        let from = self.scratch.join("line");
        fs::write(&from, format!("{line}\n"))?;
        let to = self.mount.path.join(DIRECTORY).join(format!("log-{}", self.random.random_range(0..4)));
        let words = [
            format!("if={}", from.display()),
            format!("of={}", to.display()),
            "oflag=append".into(),
            "conv=notrunc,nocreat".into(),
            "status=none".into(),
        ];
        match run("dd", &words, &self.scratch, DEADLINE)? {
            Ended::Well => self.acknowledged.push(line),
            Ended::Badly(_) => {} // It may be there or not.
            Ended::Stuck => bail!("node {} hangs: dd {words:?}", self.mount.node),
        }
        Ok(())
    }

    /// Whether every acknowledged line is among those that are kept.
    ///
    /// # Errors
    /// Which are lost.
    pub fn check(&self, kept: &BTreeSet<String>) -> Result<()> {
        let mut lost = self.acknowledged.iter().filter(|line| !kept.contains(*line));
        let some: Vec<&str> = lost.by_ref().take(10).map(String::as_str).collect();
        if some.is_empty() {
            return Ok(());
        }
        let (node, more) = (&self.mount.node, lost.count());
        bail!("lost lines appended on node {node}: {} and {more} more", some.join(", "))
    }

    /// How many lines were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }
}

/// Makes the shared files.
///
/// # Errors
/// They cannot be made.
pub fn prepare(volume: &Path) -> Result<()> {
    fs::create_dir(volume.join(DIRECTORY))?;
    for n in 0..4 {
        fs::write(volume.join(DIRECTORY).join(format!("log-{n}")), "")?;
    }
    Ok(())
}

/// Lines that are kept somewhere.
#[derive(Debug, Default)]
pub struct Lines {
    /// Kept contents with the version that was read. They only gain lines (a writer may close an orphan twice).
    read: BTreeMap<PathBuf, (u64, SystemTime)>,
    kept: BTreeSet<String>,
}

impl Lines {
    /// Every line that is in a shared file of the volume or in one of the kept contents.
    ///
    /// # Errors
    /// Anything that cannot be read.
    pub fn look(&mut self, volume: &Path, conflicts: &BTreeSet<PathBuf>) -> Result<BTreeSet<String>> {
        if let Some(gone) = self.read.keys().find(|file| !conflicts.contains(*file)) {
            bail!("the kept content {} is not listed any more", gone.display());
        }
        for file in conflicts {
            let stat = fs::metadata(file)?;
            let version = (stat.len(), stat.modified()?);
            if self.read.get(file) != Some(&version) {
                self.kept.extend(lines(file)?);
                self.read.insert(file.clone(), version);
            }
        }
        let mut all = self.kept.clone();
        for entry in fs::read_dir(volume.join(DIRECTORY))? {
            all.extend(lines(&entry?.path())?);
        }
        Ok(all)
    }
}

fn lines(file: &Path) -> Result<Vec<String>> {
    let content = fs::read(file)?;
    Ok(String::from_utf8_lossy(&content).lines().map(str::to_owned).collect())
}
