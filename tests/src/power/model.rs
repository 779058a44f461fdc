//! What a worker has made, as if the power never went: names, files, and the version of each sector.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::content::{self, SECTOR};

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file, by its number: names of one file have the same.
    File(u32),
}

/// A file's content. Files grow and are overwritten; they never shrink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// In bytes.
    pub size: usize,
    /// Of each sector.
    pub versions: Vec<u16>,
    /// The newest version that any sector was written with.
    pub newest: u16,
    /// A power cut left zeros where something was added: its content says no more where it is from.
    pub torn: bool,
}

/// One call, or the few that no program would separate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a file of this size and closes it.
    Make(String, usize),
    /// Adds so many bytes at the end.
    Append(String, usize),
    /// Writes these sectors anew, in place.
    Overwrite(String, Range<usize>),
    /// Moves a file, over another where there is one.
    Rename(String, String),
    /// Gives a file a second name.
    Link(String, String),
    /// Takes a name away.
    Remove(String),
    /// Makes a directory.
    MakeDirectory(String),
    /// fsync of a file: a promise of its content.
    Sync(String),
    /// fdatasync of a file: the same promise.
    SyncData(String),
    /// fsync of a directory (the worker's own is the empty name): a promise of its names.
    SyncDirectory(String),
}

/// A worker's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Makes its contents its own.
    pub seed: u64,
    /// The number of the next file.
    pub next: u32,
    /// By number, also those without a name.
    pub files: BTreeMap<u32, File>,
    /// By path below the worker's directory.
    pub names: BTreeMap<String, Entry>,
}

impl Step {
    /// Whether it asks for a promise.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        matches!(self, Step::Sync(_) | Step::SyncData(_) | Step::SyncDirectory(_))
    }
}

impl File {
    /// The whole content.
    #[must_use]
    pub fn bytes(&self, seed: u64, number: u32) -> Vec<u8> {
        let sectors = content::lengths(self.size).enumerate().map(|(at, length)| {
            let version = self.versions.get(at).copied().unwrap_or_default();
            content::sector(seed, number, at, version, length)
        });
        sectors.flatten().collect()
    }

    fn grow(&mut self, by: usize) {
        self.size += by;
        self.versions.resize(self.size.div_ceil(SECTOR), self.newest);
    }
}

impl Model {
    /// The file of this name.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<u32> {
        match self.names.get(name) {
            Some(Entry::File(number)) => Some(*number),
            _ => None,
        }
    }

    /// The content of a file as it should be read.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let file = self.file(name).and_then(|number| Some((number, self.files.get(&number)?)));
        file.map(|(number, file)| file.bytes(self.seed, number)).unwrap_or_default()
    }

    /// What a step leaves when it is done.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Make(name, size) => {
                let mut file = File::default();
                file.grow(*size);
                self.files.insert(self.next, file);
                self.names.insert(name.clone(), Entry::File(self.next));
                self.next += 1;
            }
            Step::Append(name, by) => self.change(name, |file| file.grow(*by)),
            Step::Overwrite(name, sectors) => self.change(name, |file| {
                file.newest += 1;
                let newest = file.newest;
                let touched = file.versions.iter_mut().skip(sectors.start).take(sectors.len());
                touched.for_each(|version| *version = newest);
            }),
            Step::Rename(from, to) => {
                if let Some(entry) = self.names.remove(from) {
                    self.names.insert(to.clone(), entry);
                }
            }
            Step::Link(from, to) => {
                if let Some(entry) = self.names.get(from).copied() {
                    self.names.insert(to.clone(), entry);
                }
            }
            Step::Remove(name) => {
                self.names.remove(name);
            }
            Step::MakeDirectory(name) => {
                self.names.insert(name.clone(), Entry::Directory);
            }
            Step::Sync(_) | Step::SyncData(_) | Step::SyncDirectory(_) => {}
        }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut File)) {
        if let Some(file) = self.file(name).and_then(|number| self.files.get_mut(&number)) {
            change(file);
        }
    }
}

/// The directory of a name: the empty one at the top.
#[must_use]
pub fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}
