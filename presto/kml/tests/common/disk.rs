//! A disk that dies: counts each change, stops at any of them, forgets at a power cut what was not synced, sector by
//! sector and in any order, and lets single bits be flipped.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use intermezzo_kml::fs::{Access, FileSystem, Map};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    contents: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<Change>,
    steps: u64,
    crash_at: Option<u64>,
    boot: u8,
    locked: bool,
    /// Files that fit; `None` = any number.
    room: Option<usize>,
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What each sector was after each change since the last sync.
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Marked since the last power cut.
    kept: bool,
    /// What lies in the device's cache, and how many versions of each sector that covers.
    written_out: Option<(Vec<u8>, BTreeMap<usize, usize>)>,
}

#[derive(Clone)]
enum Change {
    Add(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl State {
    /// Whether the change happens at all; `last` says that the process dies in it.
    fn step(&mut self) -> Step {
        self.steps += 1;
        match self.crash_at {
            Some(at) if self.steps > at => Step::Dead,
            Some(at) if self.steps == at => Step::Last,
            _ => Step::Alive,
        }
    }

    fn must_live(&mut self) -> io::Result<()> {
        if self.step() == Step::Dead { Err(dead()) } else { Ok(()) }
    }
}

#[derive(PartialEq)]
enum Step {
    Alive,
    Last,
    Dead,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Add(path, id) => drop(names.insert(path.clone(), *id)),
            Change::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Change::Remove(path) => drop(names.remove(path)),
        }
    }
}

impl Disk {
    /// The process dies at the `steps`-th change from now.
    pub fn crash_after(&self, steps: u64) {
        let mut state = self.0.lock();
        state.crash_at = Some(state.steps + steps);
    }

    pub fn crashed(&self) -> bool {
        let state = self.0.lock();
        state.crash_at.is_some_and(|at| state.steps >= at)
    }

    pub fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// Somebody else's sync: what was written out before is durable.
    pub fn flush(&self) {
        let mut state = self.0.lock();
        if state.must_live().is_err() {
            return;
        }
        for content in &mut state.contents {
            let Some((durable, counts)) = content.written_out.take() else { continue };
            content.durable = durable;
            for (sector, count) in counts {
                if let Some(versions) = content.versions.get_mut(&sector) {
                    versions.drain(..count);
                }
            }
            content.versions.retain(|_, versions| !versions.is_empty());
        }
    }

    pub fn set_room(&self, files: Option<usize>) {
        self.0.lock().room = files;
    }

    /// kill -9: what was stored stays. The process is gone.
    pub fn revive(&self) {
        let mut state = self.0.lock();
        state.crash_at = None;
        state.locked = false;
    }

    /// The power goes: of each sector some version since the last sync remains, of the names' changes some prefix.
    pub fn cut_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = self.0.lock();
        for content in &mut state.contents {
            let mut survived = content.durable.clone();
            // Some cuts lose much, some little.
            let keep = [0.0, 0.5, 0.9, 0.99, 1.0][random.random_range(0..5)];
            for (sector, versions) in &content.versions {
                let version = if random.random_bool(keep) {
                    Some(versions.len() - 1)
                } else {
                    random.random_range(0..=versions.len()).checked_sub(1)
                };
                if let Some(version) = version {
                    let at = sector * SECTOR;
                    survived[at..at + versions[version].len()].copy_from_slice(&versions[version]);
                }
            }
            content.versions.clear();
            content.kept = false;
            content.durable.clone_from(&survived);
            content.now = survived;
        }
        let mut names = std::mem::take(&mut state.durable_names);
        let changes = std::mem::take(&mut state.name_changes);
        let kept = random.random_range(0..=changes.len());
        for change in &changes[..kept] {
            change.apply(&mut names);
        }
        state.durable_names = names.clone();
        state.names = names;
        state.boot += 1;
        drop(state);
        self.revive();
    }

    /// An independent copy of what a process would see now.
    pub fn copy(&self) -> Disk {
        let state = self.0.lock();
        let contents: Vec<_> = state
            .contents
            .iter()
            .map(|c| Content { now: c.now.clone(), durable: c.now.clone(), ..Content::default() })
            .collect();
        Disk(Arc::new(Mutex::new(State {
            contents,
            names: state.names.clone(),
            durable_names: state.names.clone(),
            boot: state.boot,
            ..State::default()
        })))
    }

    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.0.lock();
        state.names.iter().map(|(path, id)| (path.clone(), state.contents[*id].now.len())).collect()
    }

    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut state = self.0.lock();
        let id = state.names[path];
        state.contents[id].now[byte] ^= 1 << bit;
    }
}

impl FileSystem for Disk {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(()))
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create(&self, file: &Path, bytes: u64) -> io::Result<Box<dyn Map>> {
        let mut state = self.0.lock();
        if state.room.is_some_and(|room| state.names.len() >= room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.must_live()?;
        let zeros = vec![0; bytes as usize];
        state.contents.push(Content { now: zeros.clone(), durable: zeros, ..Content::default() });
        let id = state.contents.len() - 1;
        state.names.insert(file.to_owned(), id);
        state.name_changes.push(Change::Add(file.to_owned(), id));
        drop(state);
        Ok(Box::new(DiskMap { disk: self.clone(), id, access: Access::Write }))
    }

    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn Map>> {
        let id = *self.0.lock().names.get(file).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(DiskMap { disk: self.clone(), id, access }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.must_live()?;
        let change = Change::Rename(from.to_owned(), to.to_owned());
        change.apply(&mut state.names);
        state.name_changes.push(change);
        Ok(())
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.must_live()?;
        let change = Change::Remove(file.to_owned());
        change.apply(&mut state.names);
        state.name_changes.push(change);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.must_live()?;
        state.name_changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn instance(&self, _: &Path) -> [u8; 16] {
        [self.0.lock().boot; 16]
    }

    fn background(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct DiskMap {
    disk: Disk,
    id: usize,
    access: Access,
}

impl DiskMap {
    fn change(&self, at: u64, bytes: &[u8]) {
        assert_eq!(self.access, Access::Write, "a store through a read-only map");
        let mut state = self.disk.0.lock();
        let length = match state.step() {
            Step::Alive => bytes.len(),
            // Dies in the middle of copying.
            Step::Last => (bytes.len() / 16) * 8,
            Step::Dead => return,
        };
        // A single word is stored or not.
        let length = if bytes.len() == 8 { 8 } else { length };
        let at = at as usize;
        let content = &mut state.contents[self.id];
        content.now[at..at + length].copy_from_slice(&bytes[..length]);
        if length > 0 {
            for sector in at / SECTOR..=(at + length - 1) / SECTOR {
                let version = content.now[sector * SECTOR..(sector + 1) * SECTOR].to_vec();
                content.versions.entry(sector).or_default().push(version);
            }
        }
    }
}

impl Map for DiskMap {
    fn size(&self) -> u64 {
        self.disk.0.lock().contents[self.id].now.len() as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) {
        let at = at as usize;
        into.copy_from_slice(&self.disk.0.lock().contents[self.id].now[at..at + into.len()]);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.change(at, bytes);
    }

    fn load(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        assert!(at.is_multiple_of(8));
        self.read(at, &mut word);
        u64::from_le_bytes(word)
    }

    fn store(&self, at: u64, word: u64) {
        assert!(at.is_multiple_of(8));
        self.change(at, &word.to_le_bytes());
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.must_live()?;
        let content = &mut state.contents[self.id];
        content.durable.clone_from(&content.now);
        content.versions.clear();
        content.written_out = None;
        Ok(())
    }

    fn start_write_out(&self) -> io::Result<()> {
        Ok(())
    }

    fn mark(&self) {
        let mut state = self.disk.0.lock();
        if state.must_live().is_ok() {
            state.contents[self.id].kept = true;
        }
    }

    fn was_kept(&self) -> bool {
        self.disk.0.lock().contents[self.id].kept
    }

    fn wait_written_out(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.must_live()?;
        let content = &mut state.contents[self.id];
        let counts = content.versions.iter().map(|(sector, versions)| (*sector, versions.len())).collect();
        content.written_out = Some((content.now.clone(), counts));
        Ok(())
    }
}
