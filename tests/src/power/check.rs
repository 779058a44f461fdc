//! What a power cut may leave of a worker's steps: of each name and each content the promised state or a later one.

use std::collections::{BTreeMap, BTreeSet};

use super::content;
use super::model::{Entry, File, Model, Step, parent};
use super::observe::{Found, Observed};
use super::plan::Plan;

/// A worker's steps as far as they are known, and what it was promised.
#[derive(Debug)]
pub struct Promises {
    plan: Plan,
    /// Behind each step; the first is the beginning, all of which is promised.
    models: Vec<Model>,
    steps: Vec<Step>,
    /// Number of the model that was promised, by file and by directory.
    files: BTreeMap<u32, usize>,
    directories: BTreeMap<String, usize>,
    /// Promises so far.
    pub count: usize,
}

impl Promises {
    /// Before the first step.
    #[must_use]
    pub fn new(seed: u64, model: Model) -> Promises {
        let models = vec![model.clone()];
        let plan = Plan::new(seed, model);
        let (files, directories) = (BTreeMap::new(), BTreeMap::new());
        Promises { plan, models, steps: Vec::new(), files, directories, count: 0 }
    }

    /// A step was begun, the first one being 1: it may be done, or half, or not.
    pub fn begun(&mut self, number: usize) {
        while self.steps.len() < number {
            let step = self.plan.step();
            self.plan.model.apply(&step);
            self.models.push(self.plan.model.clone());
            self.steps.push(step);
        }
    }

    /// A step that asks for a promise has got it.
    pub fn synced(&mut self, number: usize) {
        self.begun(number);
        let (Some(step), Some(model)) = (self.steps.get(number - 1), self.models.get(number)) else { return };
        self.count += 1;
        match step {
            Step::Sync(name) | Step::SyncData(name) => {
                self.files.extend(model.file(name).map(|file| (file, number)));
            }
            Step::SyncDirectory(name) => {
                self.directories.insert(name.clone(), number);
            }
            _ => {}
        }
    }

    /// No power was cut: everything must be as the last step left it.
    pub fn all_synced(&mut self) {
        let last = self.steps.len();
        let model = &self.plan.model;
        self.files = model.files.keys().map(|file| (*file, last)).collect();
        self.directories = model.names.keys().map(|name| (parent(name).to_owned(), last)).collect();
        let all = self.models.iter().flat_map(|model| model.names.keys());
        self.directories.extend(all.map(|name| (parent(name).to_owned(), last)));
    }

    /// How many steps are known.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Whether the content of this name was changed without a promise afterwards, so that a cut may have torn it.
    #[must_use]
    pub fn may_be_torn(&self, name: &str) -> bool {
        let files: BTreeSet<u32> = self.models.iter().filter_map(|model| model.file(name)).collect();
        files.iter().any(|file| self.promised(*file) != self.last().files.get(file))
    }

    /// Whether nothing that was begun is missing.
    #[must_use]
    pub fn is_all(&self, left: &Model) -> bool {
        let last = self.last();
        left.names == last.names
            && left.files.iter().all(|(number, file)| last.files.get(number) == Some(file))
    }

    /// The steps that concern a name, for who reads of a failure.
    #[must_use]
    pub fn story(&self, name: &str) -> String {
        let about = |step: &Step| format!("{step:?}").contains(&format!("\"{name}\""));
        let steps = self.steps.iter().enumerate().filter(|(_, step)| about(step));
        steps.map(|(number, step)| format!(" {}:{step:?}", number + 1)).collect()
    }

    fn last(&self) -> &Model {
        &self.plan.model
    }

    fn promised(&self, file: u32) -> Option<&File> {
        let number = self.files.get(&file).copied().unwrap_or_default();
        self.models.get(number)?.files.get(&file)
    }

    /// Where the file has ended since it was promised. What is added behind an end within a block is not ordered before the
    /// new size (ext4, data=ordered): after a cut there may be zeros.
    fn ends(&self, file: u32) -> BTreeSet<usize> {
        let number = self.files.get(&file).copied().unwrap_or_default();
        let models = self.models.iter().skip(number);
        models.map(|model| model.files.get(&file).map_or(0, |file| file.size)).collect()
    }

    fn since(&self, directory: &str) -> &[Model] {
        let number = self.directories.get(directory).copied().unwrap_or_default();
        self.models.get(number..).unwrap_or_default()
    }

    /// What was found, as the beginning of new work.
    ///
    /// # Errors
    /// Each promise that is broken.
    pub fn check(&self, observed: &Observed) -> Result<Model, Vec<String>> {
        let mut check =
            Check { promises: self, files: BTreeMap::new(), inodes: BTreeMap::new(), broken: Vec::new() };
        let known = self.models.iter().flat_map(|model| model.names.keys());
        let names: BTreeSet<&String> = known.chain(observed.keys()).collect();
        let gone = |name: &str| !parent(name).is_empty() && !observed.contains_key(parent(name));
        let mut unclear = Vec::new();
        let mut model = Model { seed: self.last().seed, next: self.last().next, ..Model::default() };
        for name in names.into_iter().filter(|name| !gone(name)) {
            let allowed: Vec<Option<Entry>> = {
                let all = self.since(parent(name)).iter().map(|model| model.names.get(name).copied());
                all.fold(Vec::new(), |mut all, one| {
                    if !all.contains(&one) {
                        all.push(one);
                    }
                    all
                })
            };
            match observed.get(name) {
                None if allowed.contains(&None) => {}
                Some(Found::Directory) if allowed.contains(&Some(Entry::Directory)) => {
                    model.names.insert(name.clone(), Entry::Directory);
                }
                Some(Found::File { inode, size, sectors }) => {
                    let fits = check.fits(name, &allowed, *size, sectors);
                    unclear.push((name, *inode, fits));
                }
                found => check.broken.push(format!("{name}: {}, found {}", told(&allowed), shown(found))),
            }
        }
        unclear.sort_by_key(|(_, _, fits)| fits.len());
        for (name, inode, fits) in unclear {
            if let Some(file) = check.choose(name, inode, fits) {
                model.names.insert(name.clone(), Entry::File(file));
            }
        }
        check.reachable();
        model.files = check.files;
        if check.broken.is_empty() { Ok(model) } else { Err(check.broken) }
    }
}

struct Check<'a> {
    promises: &'a Promises,
    files: BTreeMap<u32, File>,
    inodes: BTreeMap<u64, u32>,
    broken: Vec<String>,
}

impl Check<'_> {
    /// Which of the files that may have this name have this content.
    fn fits(
        &mut self,
        name: &str,
        allowed: &[Option<Entry>],
        size: usize,
        sectors: &[u64],
    ) -> Vec<(u32, File)> {
        let files = allowed.iter().filter_map(|entry| match entry {
            Some(Entry::File(file)) => Some(*file),
            _ => None,
        });
        let mut reasons = Vec::new();
        let mut fits = Vec::new();
        for file in files {
            match self.content(file, size, sectors) {
                Ok(found) => fits.push((file, found)),
                Err(reason) => reasons.push(format!("file {file}: {reason}")),
            }
        }
        if fits.is_empty() {
            let reasons =
                if reasons.is_empty() { "no file had this name".into() } else { reasons.join("; ") };
            self.broken.push(format!("{name}: {}, found a file of {size} bytes: {reasons}", told(allowed)));
        }
        fits
    }

    fn content(&self, number: u32, size: usize, sectors: &[u64]) -> Result<File, String> {
        let nothing = File::default();
        let first = self.promises.promised(number).unwrap_or(&nothing);
        let last = self.promises.last().files.get(&number).unwrap_or(&nothing);
        if size < first.size || size > last.size {
            return Err(format!("promised {} bytes, and {} at most", first.size, last.size));
        }
        if first.torn {
            return Ok(File { size, ..last.clone() });
        }
        let seed = self.promises.last().seed;
        let ends = self.promises.ends(number);
        let (mut versions, mut torn) = (Vec::new(), false);
        for (at, (length, found)) in content::lengths(size).zip(sectors).enumerate() {
            let oldest = first.versions.get(at).copied().unwrap_or_default();
            let is =
                |version: &u16| content::hash(&content::sector(seed, number, at, *version, length)) == *found;
            if let Some(version) = (oldest..=last.newest).rev().find(is) {
                versions.push(version);
                continue;
            }
            let begin = at * content::SECTOR;
            let ended = |version: u16| {
                let ends = ends.iter().filter(|end| **end < begin + length);
                ends.map(|end| end.saturating_sub(begin)).any(|end| {
                    let mut bytes = content::sector(seed, number, at, version, end);
                    bytes.resize(length, 0);
                    content::hash(&bytes) == *found
                })
            };
            if (oldest..=last.newest).any(ended) {
                torn = true;
                versions.push(oldest);
                continue;
            }
            let older = (0..oldest).rev().find(is).map(|version| format!("is version {version}"));
            let zeros = content::hash(&vec![0; length]) == *found;
            let what = older.unwrap_or_else(|| if zeros { "is zeros" } else { "is unknown" }.into());
            return Err(format!("sector {at} {what}, promised {oldest}, newest {}", last.newest));
        }
        Ok(File { size, versions, newest: last.newest, torn })
    }

    /// Two empty files look alike; names of one file must be the same one.
    fn choose(&mut self, name: &str, inode: u64, fits: Vec<(u32, File)>) -> Option<u32> {
        if fits.is_empty() {
            return None;
        }
        let taken = |file: u32| self.inodes.iter().any(|(other, known)| *known == file && *other != inode);
        let known = self.inodes.get(&inode).copied();
        let mut possible =
            fits.into_iter().filter(|(file, _)| known.map_or(!taken(*file), |known| known == *file));
        let Some((file, content)) = possible.next() else {
            self.broken.push(format!("{name}: is not the same file as its other names, or is another's"));
            return None;
        };
        self.inodes.insert(inode, file);
        self.files.insert(file, content);
        Some(file)
    }

    /// A file that had a promised name and has had one at any time since has one still, whichever it is.
    fn reachable(&mut self) {
        for file in self.promises.last().files.keys() {
            let named = |model: &Model| model.names.values().any(|entry| *entry == Entry::File(*file));
            let since = self.promises.models.iter().enumerate().filter(|(number, model)| {
                let mut names = model.names.iter().filter(|(_, entry)| **entry == Entry::File(*file));
                names.any(|(name, _)| {
                    *number == self.promises.directories.get(parent(name)).copied().unwrap_or_default()
                })
            });
            let Some((since, _)) = since.max_by_key(|(number, _)| *number) else { continue };
            let always = self.promises.models.iter().skip(since).all(named);
            if always && !self.files.contains_key(file) && self.broken.is_empty() {
                self.broken.push(format!("file {file} has had a name since step {since} and has none"));
            }
        }
    }
}

fn told(allowed: &[Option<Entry>]) -> String {
    let words: Vec<String> = allowed
        .iter()
        .map(|entry| match entry {
            None => "nothing".into(),
            Some(Entry::Directory) => "a directory".into(),
            Some(Entry::File(file)) => format!("file {file}"),
        })
        .collect();
    format!("may be {}", words.join(" or "))
}

fn shown(found: Option<&Found>) -> &'static str {
    match found {
        None => "nothing",
        Some(Found::Directory) => "a directory",
        Some(Found::File { .. }) => "a file",
        Some(Found::Other) => "something else",
    }
}

#[cfg(test)]
mod tests;
