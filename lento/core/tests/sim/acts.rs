//! What users do, and what a user has seen who does it.

use super::disk::ROOT;
use super::world::World;
use lento_core::io::Input;
use lento_core::keeping::Keeping;
use lento_core::types::FileId;

impl World {
    pub fn content(&mut self) -> Vec<u8> {
        self.counter += 1;
        format!("content {}", self.counter).into_bytes()
    }

    /// Somebody sets a node's clock, to any time within decades.
    pub fn set_clock(&mut self, index: usize) {
        let to = self.dice.roll(80 * 365 * 86_400);
        self.note(format!("clock of n{index} is {to}"));
        self.nodes[index].disk.clock = to;
    }

    /// A user stores and closes; what was there is knowingly superseded.
    pub fn store(&mut self, index: usize, file: FileId, bytes: &[u8]) {
        self.look_away(index, file);
        self.empty_missing(index, file);
        self.nodes[index].disk.user_store(file, bytes);
        self.close(index, file);
    }

    pub fn open_and_store(&mut self, index: usize, file: FileId, bytes: &[u8]) {
        self.look_away(index, file);
        self.empty_missing(index, file);
        let disk = &mut self.nodes[index].disk;
        disk.writers.insert(file);
        disk.user_store(file, bytes);
    }

    /// What is not here can only be written anew.
    fn empty_missing(&mut self, index: usize, file: FileId) {
        let disk = &mut self.nodes[index].disk;
        if disk.inodes[&file].missing.is_some() {
            disk.user_empty(file);
        }
    }

    /// Somebody opens something whose content is not here.
    pub fn open_missing(&mut self, index: usize) {
        let node = &self.nodes[index];
        let missing = |file: &FileId| node.disk.inodes[file].missing.is_some();
        let files: Vec<_> = self.files(index).into_iter().map(|(_, _, file)| file).filter(missing).collect();
        if files.is_empty() || node.volume.is_none() {
            return;
        }
        let file = files[self.dice.roll(files.len() as u64) as usize];
        self.asked_for += 1;
        let id = self.asked_for;
        self.note(format!("t{} n{index} opens {file:?}, which is not here", self.now));
        self.nodes[index].asks.insert(id);
        self.give(index, Input::Demand { id, file });
    }

    /// How much a node keeps from now on.
    pub fn keep(&mut self, index: usize, keeping: Keeping) {
        self.note(format!("t{} n{index} keeps {keeping:?}", self.now));
        self.nodes[index].keeping = keeping.clone();
        self.give(index, Input::Keep(keeping));
    }

    pub fn close(&mut self, index: usize, file: FileId) {
        self.nodes[index].disk.writers.remove(&file);
        self.flush(index, file);
    }

    /// What an open file contains is journaled, as a background look or one of several closes does.
    pub fn flush(&mut self, index: usize, file: FileId) {
        let disk = &mut self.nodes[index].disk;
        if !disk.inodes.contains_key(&file) {
            return;
        }
        let linked = disk.inodes.values().any(|i| i.entries.values().any(|f| *f == file));
        let counted = linked || disk.orphans.contains(&file);
        let text = String::from_utf8_lossy(&disk.inodes[&file].bytes).into_owned();
        let hash = disk.hash(file);
        disk.user_close(file);
        if counted && !text.is_empty() {
            self.written.insert(hash, format!("n{index}: {text}"));
        }
    }

    /// Whoever changes or removes a file has seen what was in it.
    pub fn look_away(&mut self, index: usize, file: FileId) {
        if self.nodes[index].disk.inodes.contains_key(&file) {
            let hash = self.nodes[index].disk.hash(file);
            self.superseded.insert(hash);
        }
    }

    pub fn files(&self, index: usize) -> Vec<(FileId, Vec<u8>, FileId)> {
        let mut found = Vec::new();
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            for (name, file) in &self.nodes[index].disk.inodes[&dir].entries {
                found.push((dir, name.clone(), *file));
                if self.nodes[index].disk.inodes[file].attributes.is_dir() {
                    dirs.push(*file);
                }
            }
        }
        found
    }
}
