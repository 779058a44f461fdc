//! What a worker does next: short stories as programs have them, some with every promise asked for, some with none.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::content::SECTOR;
use super::model::{Entry, Model, Step, parent};

/// Most names of a worker.
const NAMES: usize = 28;
/// Most directories of a worker.
const DIRECTORIES: usize = 4;
/// A file of this size is not appended to, in bytes.
const LARGE: usize = 192 << 10;

/// A worker's steps, which follow from the seed and its files at the beginning.
#[derive(Debug)]
pub struct Plan {
    /// The files after the steps so far.
    pub model: Model,
    random: StdRng,
    ahead: VecDeque<Step>,
    stories: u64,
}

impl Plan {
    /// The plan with this seed.
    #[must_use]
    pub fn new(seed: u64, model: Model) -> Plan {
        Plan { model, random: StdRng::seed_from_u64(seed), ahead: VecDeque::new(), stories: 0 }
    }

    /// The next step; `model` does not know it yet.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(step) = self.ahead.pop_front() {
                return step;
            }
            self.stories += 1;
            self.ahead = self.story().into();
        }
    }

    fn story(&mut self) -> Vec<Step> {
        if self.model.names.len() > NAMES {
            return self.remove();
        }
        match self.random.random_range(0..100) {
            0..22 => self.create(),
            22..40 => self.save(),
            40..58 => self.append(),
            58..74 => self.overwrite(),
            74..80 => self.link(),
            80..87 => self.rename(),
            87..91 => self.directory(),
            _ => self.remove(),
        }
    }

    fn size(&mut self) -> usize {
        match self.random.random_range(0..10) {
            0 => self.random.random_range(64 << 10..160 << 10),
            1..4 => self.random.random_range(4 << 10..40 << 10),
            _ => self.random.random_range(0..6 << 10),
        }
    }

    /// A name that nothing had in this plan.
    fn fresh(&mut self) -> String {
        let directories = self.model.names.iter().filter(|(_, entry)| **entry == Entry::Directory);
        let mut places: Vec<String> = directories.map(|(name, _)| format!("{name}/")).collect();
        places.push(String::new());
        let place = places.choose(&mut self.random).cloned().unwrap_or_default();
        format!("{place}f{}-{}", self.model.next, self.stories)
    }

    fn some_file(&mut self) -> Option<String> {
        let files = self.model.names.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        let files: Vec<&String> = files.map(|(name, _)| name).collect();
        files.choose(&mut self.random).map(|name| (*name).clone())
    }

    /// Two in three ask for the promise.
    fn sync(&mut self, name: &str) -> Vec<Step> {
        match self.random.random_range(0..6) {
            0 | 1 => Vec::new(),
            2 => vec![Step::SyncData(name.to_owned())],
            _ => vec![Step::Sync(name.to_owned())],
        }
    }

    fn sync_directory(&mut self, name: &str) -> Vec<Step> {
        let asks = self.random.random_range(0..3) > 0;
        if asks { vec![Step::SyncDirectory(parent(name).to_owned())] } else { Vec::new() }
    }

    fn create(&mut self) -> Vec<Step> {
        let (name, size) = (self.fresh(), self.size());
        let (file, directory) = (self.sync(&name), self.sync_directory(&name));
        [vec![Step::Make(name, size)], file, directory].concat()
    }

    /// As careful programs save: the new content is safe before it takes the name.
    fn save(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        let temporary = format!("{name}.tmp{}", self.stories);
        let (size, directory) = (self.size(), self.sync_directory(&name));
        let steps = vec![
            Step::Make(temporary.clone(), size),
            Step::Sync(temporary.clone()),
            Step::Rename(temporary, name),
        ];
        [steps, directory].concat()
    }

    fn append(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        if self.model.bytes(&name).len() > LARGE {
            return self.remove();
        }
        let by = self.random.random_range(1..8 << 10);
        let sync = self.sync(&name);
        [vec![Step::Append(name, by)], sync].concat()
    }

    fn overwrite(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        let sectors = self.model.bytes(&name).len().div_ceil(SECTOR);
        if sectors == 0 {
            return self.append();
        }
        let first = self.random.random_range(0..sectors);
        let last = self.random.random_range(first..sectors.min(first + 64));
        let sync = self.sync(&name);
        [vec![Step::Overwrite(name, first..last + 1)], sync].concat()
    }

    fn link(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        let to = self.fresh();
        let sync = self.sync_directory(&to);
        [vec![Step::Link(name, to)], sync].concat()
    }

    fn rename(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        let to = self.fresh();
        let (here, there) = (self.sync_directory(&to), self.sync_directory(&name));
        [vec![Step::Rename(name, to)], here, there].concat()
    }

    fn directory(&mut self) -> Vec<Step> {
        let directories = self.model.names.values().filter(|entry| **entry == Entry::Directory).count();
        if directories >= DIRECTORIES {
            return self.create();
        }
        // Whoever works in it has it by then.
        let name = format!("d{}-{}", self.model.next, self.stories);
        vec![Step::MakeDirectory(name), Step::SyncDirectory(String::new())]
    }

    fn remove(&mut self) -> Vec<Step> {
        let Some(name) = self.some_file() else { return self.create() };
        let sync = self.sync_directory(&name);
        [vec![Step::Remove(name)], sync].concat()
    }
}
