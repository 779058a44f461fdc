//! A developer in a checkout: git clone, edit, make, commit, rm -rf. What git and make leave behind cannot be foretold, so it
//! is read when they have done well; from then on it must be there, on every node, and git must find it whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{self, Model};
use super::{DEADLINE, Mount, read_tree};
use crate::run::{Ended, run};

/// Source files of the project.
const SOURCES: u32 = 8;

/// One developer on one node.
#[derive(Debug)]
pub struct Project {
    mount: Arc<Mount>,
    name: String,
    scratch: PathBuf,
    random: StdRng,
    /// What is there, as far as it was acknowledged; `None`: no checkout.
    tree: Option<Model>,
    /// Steps that were acknowledged.
    pub done: u64,
    /// Steps that failed, which they may while presto is dead.
    pub failed: u64,
}

impl Project {
    /// A developer whose checkout is the directory `name` of the volume. The repository it comes from is made in
    /// `scratch`, a directory outside.
    ///
    /// # Errors
    /// git does not work.
    pub fn new(mount: Arc<Mount>, name: &str, scratch: &Path, seed: u64) -> Result<Project> {
        let scratch = scratch.join(name);
        let origin = scratch.join("origin");
        fs::create_dir_all(&origin)?;
        let objects: Vec<String> = (0..SOURCES).map(|n| format!("part{n}.o")).collect();
        let mut makefile = format!("program: {}\n\tcc -o $@ $^\n", objects.join(" "));
        let mut calls = String::new();
        for n in 0..SOURCES {
            makefile.push_str(&format!("part{n}.o: part{n}.c\n\tcc -c -o $@ $<\n"));
            calls.push_str(&format!("+ part{n}()"));
            let main = if n == 0 { "\nint main(void) { return total() == 0; }\n" } else { "" };
            fs::write(
                origin.join(format!("part{n}.c")),
                format!("int part{n}(void) {{ return {n}; }}\n{main}"),
            )?;
        }
        let declared: String = (0..SOURCES).map(|n| format!("int part{n}(void);\n")).collect();
        let first = fs::read_to_string(origin.join("part0.c"))?;
        let total = format!("{declared}int total(void) {{ return 1 {calls}; }}\n{first}");
        fs::write(origin.join("part0.c"), total)?;
        fs::write(origin.join("Makefile"), makefile)?;
        fs::write(origin.join(".gitignore"), "*.o\nprogram\n")?;
        let this = Project {
            mount,
            name: name.to_owned(),
            scratch,
            random: StdRng::seed_from_u64(seed),
            tree: None,
            done: 0,
            failed: 0,
        };
        for words in [vec!["init", "-q"], vec!["add", "."], vec!["commit", "-q", "-m", "first"]] {
            let ended = this.git(&origin, &words)?;
            ensure!(ended == Ended::Well, "git {words:?} in {}: {ended:?}", origin.display());
        }
        Ok(this)
    }

    fn git(&self, dir: &Path, words: &[&str]) -> Result<Ended> {
        let dir = dir.display().to_string();
        // Nothing of the user's own settings, and no work left to the background.
        let fixed = [
            "-C",
            &dir,
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "gc.auto=0",
            "-c",
            "safe.directory=*",
        ];
        run("git", &[&fixed[..], words].concat(), &self.scratch, DEADLINE)
    }

    fn checkout(&self) -> PathBuf {
        self.mount.path.join(&self.name)
    }

    /// Does one step.
    ///
    /// # Errors
    /// Something acknowledged is gone, something hangs, or a step failed though nobody was killed.
    pub fn step(&mut self) -> Result<()> {
        self.mount.wait()?;
        let quiet = self.mount.quiet();
        let (what, ended) = self.work()?;
        let killed = quiet.is_none() || quiet != self.mount.quiet();
        match ended {
            // What git cannot read it takes for absent: a clone without files ends well.
            Ended::Well if killed && what.starts_with("git") => self.start_over(),
            Ended::Well => {
                self.done += 1;
                self.tree = self.observe()?;
                Ok(())
            }
            Ended::Stuck => bail!("{} hangs: {what} in {}", self.mount.node, self.name),
            Ended::Badly(said) => {
                ensure!(killed, "node {}, nobody killed: {what} in {}: {said}", self.mount.node, self.name);
                self.failed += 1;
                self.start_over()
            }
        }
    }

    fn work(&mut self) -> Result<(&'static str, Ended)> {
        let dir = self.checkout();
        if self.tree.is_none() {
            let (from, to) = (self.scratch.join("origin"), dir.display().to_string());
            return Ok(("git clone", self.git(&from, &["clone", "-q", "--no-hardlinks", ".", &to])?));
        }
        let part = self.random.random_range(0..SOURCES);
        let source = dir.join(format!("part{part}.c"));
        Ok(match self.random.random_range(0..10) {
            0..3 => {
                let expression = format!("1i // {}", self.done);
                (
                    "sed -i",
                    run("sed", &["-i", &expression, &source.display().to_string()], &self.scratch, DEADLINE)?,
                )
            }
            3..6 => {
                ("make", run("make", &["-s", "-C", &dir.display().to_string()], &self.scratch, DEADLINE)?)
            }
            6..8 => ("git commit", self.git(&dir, &["commit", "-q", "--allow-empty", "-am", "more"])?),
            8 => ("git fsck", self.git(&dir, &["fsck", "--full"])?),
            _ => ("rm -rf", run("rm", &["-rf", &dir.display().to_string()], &self.scratch, DEADLINE)?),
        })
    }

    /// What an interrupted git or make leaves needs a person; this one throws it away.
    fn start_over(&mut self) -> Result<()> {
        let dir = self.checkout().display().to_string();
        let begin = Instant::now();
        while run("rm", &["-rf", &dir], &self.scratch, DEADLINE)? != Ended::Well {
            ensure!(begin.elapsed() < DEADLINE, "{dir} cannot be removed on node {}", self.mount.node);
            self.mount.wait()?;
        }
        self.tree = None;
        Ok(())
    }

    fn observe(&self) -> Result<Option<Model>> {
        let begin = Instant::now();
        loop {
            self.mount.wait()?;
            match read_tree(&self.checkout()) {
                Ok(tree) => return Ok((!tree.is_empty()).then_some(tree)),
                Err(error) if begin.elapsed() > DEADLINE => {
                    return Err(error)
                        .with_context(|| format!("{} cannot be read", self.checkout().display()));
                }
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }

    /// Whether a node's volume shows exactly what this developer was told is done, and git finds it whole there.
    ///
    /// # Errors
    /// What is lost, or has come back.
    pub fn check(&self, node: &str, volume: &Path) -> Result<()> {
        let dir = volume.join(&self.name);
        let wrong = model::same(&read_tree(&dir)?, self.tree.as_ref().unwrap_or(&Model::new()));
        if !wrong.is_empty() {
            bail!("lost or returned, seen on node {node} in {}:\n  {}", self.name, wrong.join("\n  "));
        }
        if self.tree.is_some() {
            let ended = self.git(&dir, &["fsck", "--full", "--strict"])?;
            ensure!(ended == Ended::Well, "git fsck of {} on node {node}: {ended:?}", self.name);
        }
        Ok(())
    }
}
