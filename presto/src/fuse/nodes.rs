//! Node id <-> file identity.
//!
//! Inode number and generation fit into one node id wherever the inode number has at most 32 bits: then nothing is kept.
//! Others get a number from a table; such numbers have zero in their low half, which no inode number is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;

use crate::session::Memory;

const ROOT: u64 = 1;
const LOW: u64 = 0xffff_ffff;
/// Mark of a number that the session's memory had no room for.
const NOT_NOTED: u64 = 1 << 63;

/// The node ids of one mount.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: FileId,
    table: Mutex<Table>,
    memory: OnceLock<Arc<Memory>>,
}

#[derive(Debug, Default)]
struct Table {
    by_file: BTreeMap<FileId, u64>,
    by_node: BTreeMap<u64, (FileId, u64)>,
    last: u64,
}

impl Nodes {
    pub(crate) fn new(root: FileId) -> Nodes {
        Nodes { root, table: Mutex::default(), memory: OnceLock::new() }
    }

    /// Notes the numbers from the table there from now on.
    pub(crate) fn keep_in(&self, memory: &Arc<Memory>) {
        let _ = self.memory.set(Arc::clone(memory));
    }

    /// Takes over the numbers that an earlier presto gave out.
    pub(crate) fn resume(&self, memory: &Arc<Memory>) {
        let mut table = self.table.lock();
        for (at, id, lookups) in memory.nodes() {
            let number = noted_number(at);
            table.by_file.insert(id, number);
            table.by_node.insert(number, (id, lookups));
        }
        drop(table);
        self.keep_in(memory);
    }

    /// Node id of a file, for replies that do not make the kernel remember it.
    pub(crate) fn of(&self, id: FileId) -> u64 {
        self.number(id, 0)
    }

    /// Node id for a reply by which the kernel remembers the file, until it forgets.
    pub(crate) fn remember(&self, id: FileId) -> u64 {
        self.number(id, 1)
    }

    fn number(&self, id: FileId, lookups: u64) -> u64 {
        if id == self.root {
            return ROOT;
        }
        if id.ino <= LOW && id.ino != 0 && id.generation <= LOW {
            return id.generation << 32 | id.ino;
        }
        let mut table = self.table.lock();
        let number = match table.by_file.get(&id) {
            Some(number) => *number,
            None => {
                let noted = self.memory.get().and_then(|memory| memory.add_node(id, 0));
                let number = match noted {
                    Some(at) => noted_number(at),
                    None => {
                        table.last = table.last.saturating_add(1);
                        table.last << 32 | if self.memory.get().is_some() { NOT_NOTED } else { 0 }
                    }
                };
                table.by_file.insert(id, number);
                number
            }
        };
        let slot = table.by_node.entry(number).or_insert((id, 0));
        slot.1 = slot.1.saturating_add(lookups);
        self.note(number, slot.1);
        number
    }

    fn note(&self, node: u64, lookups: u64) {
        if let (Some(memory), Some(at)) = (self.memory.get(), noted_at(node)) {
            memory.set_lookups(at, lookups);
        }
    }

    /// The file; `None` for a number that was never given out.
    pub(crate) fn file(&self, node: u64) -> Option<FileId> {
        match node {
            ROOT => Some(self.root),
            node if node & LOW != 0 => Some(FileId { ino: node & LOW, generation: node >> 32 }),
            node => self.table.lock().by_node.get(&node).map(|(id, _)| *id),
        }
    }

    /// The kernel has forgotten it this many times.
    pub(crate) fn forget(&self, node: u64, lookups: u64) {
        if node & LOW != 0 {
            return;
        }
        let mut table = self.table.lock();
        let Some(slot) = table.by_node.get_mut(&node) else { return };
        slot.1 = slot.1.saturating_sub(lookups);
        self.note(node, slot.1);
        if slot.1 == 0 {
            let id = slot.0;
            if let (Some(memory), Some(at)) = (self.memory.get(), noted_at(node)) {
                memory.remove_node(at);
            }
            table.by_node.remove(&node);
            table.by_file.remove(&id);
        }
    }
}

/// Number of the file in this slot of the session's memory.
fn noted_number(at: usize) -> u64 {
    (at as u64).saturating_add(1) << 32
}

fn noted_at(node: u64) -> Option<usize> {
    if node & NOT_NOTED != 0 {
        return None;
    }
    usize::try_from(node >> 32).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_need_no_table() {
        let root = FileId { ino: 2, generation: 0 };
        let nodes = Nodes::new(root);
        assert_eq!(nodes.of(root), 1);
        assert_eq!(nodes.file(1), Some(root));
        let id = FileId { ino: 12, generation: 0xffff_ffff };
        assert_eq!(nodes.file(nodes.remember(id)), Some(id));
        assert!(nodes.table.lock().by_node.is_empty());
    }

    #[test]
    fn large_numbers_live_until_forgotten() {
        let nodes = Nodes::new(FileId { ino: 2, generation: 0 });
        let id = FileId { ino: 1 << 40, generation: 7 };
        let node = nodes.remember(id);
        assert_eq!(nodes.remember(id), node);
        nodes.forget(node, 1);
        assert_eq!(nodes.file(node), Some(id));
        nodes.forget(node, 1);
        assert_eq!(nodes.file(node), None);
        assert_ne!(nodes.remember(id), node, "numbers are not used twice");
    }
}
