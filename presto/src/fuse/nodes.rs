//! Node id <-> file identity.
//!
//! Inode number and generation fit into one node id wherever the inode number has at most 32 bits: then nothing is kept.
//! Others get a number from a table; such numbers have zero in their low half, which no inode number is.

use std::collections::BTreeMap;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;

const ROOT: u64 = 1;
const LOW: u64 = 0xffff_ffff;

/// The node ids of one mount.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: FileId,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_file: BTreeMap<FileId, u64>,
    by_node: BTreeMap<u64, (FileId, u64)>,
    last: u64,
}

impl Nodes {
    pub(crate) fn new(root: FileId) -> Nodes {
        Nodes { root, table: Mutex::default() }
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
                table.last = table.last.saturating_add(1);
                let number = table.last << 32;
                table.by_file.insert(id, number);
                number
            }
        };
        let slot = table.by_node.entry(number).or_insert((id, 0));
        slot.1 = slot.1.saturating_add(lookups);
        number
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
        if slot.1 == 0 {
            let id = slot.0;
            table.by_node.remove(&node);
            table.by_file.remove(&id);
        }
    }
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
