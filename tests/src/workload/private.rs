//! A worker in a directory of its own: what it was told is done must be there, exactly.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::model::{self, Model, Rule};
use super::{DEADLINE, Mount, read_tree};
use crate::run::{Ended, run};

/// Trees a worker has at most, so that a late round is like an early one.
const DIRECTORIES: usize = 12;

/// One worker on one node.
#[derive(Debug)]
pub struct Worker {
    mount: Arc<Mount>,
    name: String,
    scratch: PathBuf,
    random: StdRng,
    model: Model,
    next: u64,
    /// Steps that were acknowledged.
    pub done: u64,
    /// Steps that failed, which they may while presto is dead.
    pub failed: u64,
}

struct Step {
    program: &'static str,
    words: Vec<OsString>,
    /// What the program does first and makes durable to itself, where it works in two phases.
    halfway: Option<(Model, Rule)>,
    after: Model,
    rule: Rule,
}

impl Step {
    /// Whether `found` may be what it left when it was interrupted.
    fn may_leave(&self, found: &Model, before: &Model) -> Result<()> {
        if let Some((halfway, rule)) = &self.halfway {
            let first = model::allowed(found, before, halfway, *rule);
            return first.or_else(|_| model::allowed(found, halfway, &self.after, self.rule));
        }
        model::allowed(found, before, &self.after, self.rule)
    }
}

impl Worker {
    /// A worker that owns the directory `name` of the volume. `scratch` is a directory outside.
    ///
    /// # Errors
    /// Its directories cannot be made.
    pub fn new(mount: Arc<Mount>, name: &str, scratch: &Path, seed: u64) -> Result<Worker> {
        let scratch = scratch.join(name);
        fs::create_dir_all(&scratch)?;
        fs::create_dir(mount.path.join(name))
            .with_context(|| format!("cannot make {name} on node {}", mount.node))?;
        let random = StdRng::seed_from_u64(seed);
        let name = name.to_owned();
        Ok(Worker { mount, name, scratch, random, model: Model::new(), next: 0, done: 0, failed: 0 })
    }

    /// The node it works on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.mount.node
    }

    /// Does one step.
    ///
    /// # Errors
    /// Something acknowledged is gone, something hangs, or a step failed though nobody was killed.
    pub fn step(&mut self) -> Result<()> {
        if !self.mount.works() {
            self.mount.wait()?;
        }
        let step = self.choose()?;
        let quiet = self.mount.quiet();
        match run(step.program, &step.words, &self.scratch, DEADLINE)? {
            Ended::Well => {
                self.done += 1;
                self.model = step.after;
                Ok(())
            }
            Ended::Stuck => bail!("{} hangs: {} {:?}", self.mount.node, step.program, step.words),
            Ended::Badly(said) => {
                if quiet.is_some() && quiet == self.mount.quiet() {
                    bail!(
                        "node {}, nobody killed: {} {:?}: {said}",
                        self.mount.node,
                        step.program,
                        step.words
                    );
                }
                self.failed += 1;
                let found = self.observe()?;
                let told = || {
                    format!("node {}, after the failed {} {:?}", self.mount.node, step.program, step.words)
                };
                step.may_leave(&found, &self.model).with_context(told)?;
                self.model = found;
                Ok(())
            }
        }
    }

    /// Whether a node's volume shows exactly what this worker was told is done.
    ///
    /// # Errors
    /// What is lost, or has come back.
    pub fn check(&self, node: &str, volume: &Path) -> Result<()> {
        let wrong = model::same(&read_tree(&volume.join(&self.name))?, &self.model);
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("lost or returned, seen on node {node} in {}:\n  {}", self.name, wrong.join("\n  "))
    }

    fn observe(&self) -> Result<Model> {
        let begin = Instant::now();
        loop {
            self.mount.wait()?;
            match read_tree(&self.mount.path.join(&self.name)) {
                Ok(model) => return Ok(model),
                Err(error) if begin.elapsed() > DEADLINE => {
                    return Err(error).with_context(|| {
                        format!("{} cannot be read on node {}", self.name, self.mount.node)
                    });
                }
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }

    fn choose(&mut self) -> Result<Step> {
        self.next += 1;
        match self.random.random_range(0..100) {
            0..20 => self.write(),
            20..40 => self.append(),
            40..52 => self.rename_over(),
            52..59 => self.edit_in_place(),
            59..65 => self.save_with_backup(),
            65..75 => self.untar(),
            75..85 => self.rename_directory(),
            85..92 => self.remove_directory(),
            _ => self.remove_file(),
        }
    }

    fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mount.path.join(&self.name).join(path)
    }

    fn content(&mut self) -> Vec<u8> {
        let size = match self.random.random_range(0..20) {
            0 => self.random.random_range(60_000..400_000),
            1..4 => self.random.random_range(4_000..60_000),
            _ => self.random.random_range(0..4_000),
        };
        let mut content = format!("{} {}\n", self.name, self.next).into_bytes();
        let byte: u8 = self.random.random();
        content.extend((0..size).map(|n: usize| byte.wrapping_add((n % 251) as u8)));
        content
    }

    fn staged(&self, content: &[u8]) -> Result<PathBuf> {
        let path = self.scratch.join("content");
        fs::write(&path, content)?;
        Ok(path)
    }

    fn some_file(&mut self) -> PathBuf {
        PathBuf::from(format!("f{}", self.random.random_range(0..8)))
    }

    /// Writes a file anew, in place.
    fn write(&mut self) -> Result<Step> {
        let (path, content) = (self.some_file(), self.content());
        self.write_to(path, content)
    }

    fn write_to(&mut self, path: PathBuf, content: Vec<u8>) -> Result<Step> {
        let words = vec![self.staged(&content)?.into(), self.inside(&path).into()];
        let mut after = self.model.clone();
        after.insert(path, content.into());
        Ok(Step { program: "cp", words, halfway: None, after, rule: Rule::EachFile })
    }

    fn append(&mut self) -> Result<Step> {
        let (path, content) = (self.some_file(), self.content());
        let from = self.staged(&content)?;
        let mut after = self.model.clone();
        let before = after.get(&path).map(|content| content.to_vec()).unwrap_or_default();
        after.insert(path.clone(), [before, content].concat().into());
        let mut words: Vec<OsString> =
            ["oflag=append", "conv=notrunc", "bs=1M", "status=none"].iter().map(OsString::from).collect();
        for (word, path) in [("if=", from), ("of=", self.inside(&path))] {
            let mut word = OsString::from(word);
            word.push(path);
            words.push(word);
        }
        Ok(Step { program: "dd", words, halfway: None, after, rule: Rule::EachFile })
    }

    /// As editors save: a temporary file, then renamed over the target. Two steps, each acknowledged.
    fn rename_over(&mut self) -> Result<Step> {
        let temporary = PathBuf::from(".save.tmp");
        let Some(content) = self.model.get(&temporary).cloned() else {
            let content = self.content();
            return self.write_to(temporary, content);
        };
        let path = self.some_file();
        let words = vec!["-T".into(), self.inside(&temporary).into(), self.inside(&path).into()];
        let mut after = self.model.clone();
        after.remove(&temporary);
        after.insert(path, content);
        Ok(Step { program: "mv", words, halfway: None, after, rule: Rule::Whole })
    }

    /// As `sed -i` does: a temporary file under a name of its own choice, renamed over the file.
    fn edit_in_place(&mut self) -> Result<Step> {
        let path = self.some_file();
        let Some(before) = self.model.get(&path).filter(|content| content.ends_with(b"\n")).cloned() else {
            let mut content = format!("{} {}\n", self.name, self.next).into_bytes();
            content.extend(b"a line\n".repeat(self.random.random_range(0..200)));
            return self.write_to(path, content);
        };
        let line = format!("edited {}", self.next);
        let words = vec!["-i".into(), format!("$a {line}").into(), self.inside(&path).into()];
        let mut after = self.model.clone();
        after.insert(path, [&before[..], line.as_bytes(), b"\n"].concat().into());
        Ok(Step { program: "sed", words, halfway: None, after, rule: Rule::Temporary })
    }

    /// As editors save that keep a backup: the old file moves to `name~`, then the new one is written.
    fn save_with_backup(&mut self) -> Result<Step> {
        let (path, content) = (self.some_file(), self.content());
        let from = self.staged(&content)?;
        let mut halfway = self.model.clone();
        if let Some(before) = halfway.remove(&path) {
            let mut backup = path.clone().into_os_string();
            backup.push("~");
            halfway.insert(backup.into(), before);
        }
        let mut after = halfway.clone();
        after.insert(path.clone(), content.into());
        let words = vec!["--backup=simple".into(), from.into(), self.inside(&path).into()];
        Ok(Step { program: "cp", words, halfway: Some((halfway, Rule::Whole)), after, rule: Rule::EachFile })
    }

    /// Unpacks a small tree under a new name.
    fn untar(&mut self) -> Result<Step> {
        if self.directories().len() >= DIRECTORIES {
            return self.remove_directory();
        }
        let top = PathBuf::from(format!("t{}", self.next));
        let tree = self.scratch.join(&top);
        let mut after = self.model.clone();
        for n in 0..self.random.random_range(5..40) {
            let path = top.join(format!("d{}", n % 4)).join(format!("file {n}"));
            let content = self.content();
            let full = self.scratch.join(&path);
            fs::create_dir_all(full.parent().unwrap_or(&tree))?;
            fs::write(&full, &content)?;
            after.insert(path, content.into());
        }
        let archive = self.scratch.join("tree.tar");
        let words = ["cf".into(), archive.clone().into_os_string(), top.clone().into_os_string()];
        if run("tar", &words, &self.scratch, DEADLINE)? != Ended::Well {
            bail!("tar cannot pack {}", tree.display());
        }
        #[allow(clippy::disallowed_methods)] // Made above, in this process's scratch directory.
        fs::remove_dir_all(&tree)?;
        let words = vec!["xf".into(), archive.into(), "-C".into(), self.inside("").into()];
        Ok(Step { program: "tar", words, halfway: None, after, rule: Rule::EachFile })
    }

    fn directories(&self) -> Vec<PathBuf> {
        let tops = self.model.keys().filter(|path| path.components().count() > 1);
        let mut tops: Vec<PathBuf> = tops.filter_map(|path| path.iter().next()).map(PathBuf::from).collect();
        tops.dedup();
        tops
    }

    fn rename_directory(&mut self) -> Result<Step> {
        let Some(from) = self.directories().choose(&mut self.random).cloned() else { return self.untar() };
        let to = PathBuf::from(format!("r{}", self.next));
        let words = vec!["-T".into(), self.inside(&from).into(), self.inside(&to).into()];
        let moved =
            |path: &PathBuf| path.strip_prefix(&from).map_or_else(|_| path.clone(), |rest| to.join(rest));
        let after = self.model.iter().map(|(path, content)| (moved(path), content.clone())).collect();
        Ok(Step { program: "mv", words, halfway: None, after, rule: Rule::Whole })
    }

    fn remove_directory(&mut self) -> Result<Step> {
        let Some(top) = self.directories().choose(&mut self.random).cloned() else { return self.untar() };
        let words = vec!["-rf".into(), self.inside(&top).into()];
        let mut after = self.model.clone();
        after.retain(|path, _| !path.starts_with(&top));
        Ok(Step { program: "rm", words, halfway: None, after, rule: Rule::EachFile })
    }

    fn remove_file(&mut self) -> Result<Step> {
        let files: Vec<PathBuf> =
            self.model.keys().filter(|path| path.components().count() == 1).cloned().collect();
        let Some(path) = files.choose(&mut self.random).cloned() else { return self.write() };
        let words = vec![self.inside(&path).into()];
        let mut after = self.model.clone();
        after.remove(&path);
        Ok(Step { program: "rm", words, halfway: None, after, rule: Rule::Whole })
    }
}
