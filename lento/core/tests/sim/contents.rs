//! Contents that are read, staged, kept and forgotten.

use super::world::SERVER;
use super::world::World;
use lento_core::io::Input;
use lento_core::io::ReadResult;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::INLINE_MAX;
use lento_core::types::OpId;
use lento_core::types::Ticket;

impl World {
    /// What was kept of this record goes, and whoever said so knows it.
    pub(super) fn forget(&mut self, index: usize, record: OpId) {
        let node = &mut self.nodes[index];
        for hash in node.kept_of.remove(&record).unwrap_or_default() {
            if !node.kept_of.values().any(|kept| kept.contains(&hash)) {
                node.kept.remove(&hash);
                self.superseded.insert(hash);
            }
        }
    }

    pub(super) fn read_content(&mut self, index: usize, ticket: Ticket, file: FileId, stage: bool) {
        let racy = self.dice.roll(3) == 0;
        if let Some(times) = self.nodes[index].unreadable.get_mut(&file).filter(|times| **times > 0) {
            *times -= 1;
            self.give(index, Input::ContentRead { ticket, result: ReadResult::Failed("I/O error".into()) });
            return;
        }
        let changes = self.restless.contains(&(index, file))
            || self.timing.as_ref().is_some_and(|timing| timing.is_restless(file));
        let node = &self.nodes[index];
        let result = match node.disk.inodes.get(&file) {
            None => ReadResult::Gone,
            // Presto does not open it.
            Some(inode) if inode.missing.is_some() => ReadResult::Gone,
            Some(_) if changes => ReadResult::Unstable,
            Some(inode) => {
                let small = inode.bytes.len() as u64 <= INLINE_MAX && !travels_alone(&inode.bytes);
                ReadResult::Whole {
                    hash: Hash::of(&inode.bytes),
                    size: inode.bytes.len() as u64,
                    version: node.disk.version(file),
                    racy,
                    inline: small.then(|| inode.bytes.clone()),
                }
            }
        };
        if let (ReadResult::Whole { hash, size, inline: None, .. }, true) = (&result, stage) {
            let (hash, size) = (*hash, *size);
            let bytes = node.disk.inodes[&file].bytes.clone();
            if !self.up[index] {
                self.give(index, Input::ContentRead { ticket, result: ReadResult::Failed("cut".into()) });
                return;
            }
            self.staged += 1;
            let name = format!("{hash}-{}", self.staged);
            self.nodes[SERVER].disk.stage.insert(name.clone(), bytes);
            let node = self.nodes[index].name.clone();
            self.give(SERVER, Input::Staged { node, hash, size, name });
        }
        self.give(index, Input::ContentRead { ticket, result });
    }
}

/// As if it were too large for a batch of records. It is the content that says so: what is equal travels alike.
fn travels_alone(bytes: &[u8]) -> bool {
    !bytes.is_empty() && Hash::of(bytes).0[0].is_multiple_of(4)
}
