//! What ends and comes back: programs, power, disks.

use super::disk::Disk;
use super::disk::Keeps;
use super::memory::Memory;
use super::permits::Door;
use super::world::Node;
use super::world::SERVER;
use super::world::World;
use lento_core::io::Input;
use lento_core::io::Output;
use lento_core::io::ReadResult;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Recno;
use lento_core::volume::Before;
use std::collections::BTreeSet;

/// What the server's disk held once.
pub(super) struct Backup {
    pub disk: Disk,
    pub store: Memory,
    pub kept: BTreeSet<Hash>,
}

impl World {
    /// kill -9 of lento: log and store stay, what was said or asked and not done is forgotten.
    pub fn kill(&mut self, index: usize) {
        self.note(format!("kill lento n{index}"));
        self.cut_all(index);
        let node = &mut self.nodes[index];
        node.volume = None;
        // Presto ends what it was doing before it answers the next lento.
        let jobs = std::mem::take(&mut node.jobs);
        if let Some(Output::Replay { items, untouched_since, .. }) =
            jobs.into_iter().find(|job| matches!(job, Output::Replay { .. }))
        {
            let done = self.dice.roll(items.len() as u64 + 1) as usize;
            node.disk.replay(items.get(..done).unwrap_or(&[]), untouched_since);
        }
        self.start(index, false);
    }

    /// A volume that stopped with a fault begins again.
    pub fn restart(&mut self, index: usize) {
        self.cut_all(index);
        self.start(index, false);
    }

    /// Lento ends in order, presto goes on until the machine does, and that comes up again.
    pub fn boot_after_a_clean_end(&mut self, index: usize, meanwhile: impl FnOnce(&mut Disk)) {
        self.cut_all(index);
        let node = &mut self.nodes[index];
        node.volume = None;
        node.store.make_durable();
        meanwhile(&mut node.disk);
        node.disk.make_durable();
        self.start_after(index, Before::Rested);
    }

    /// The node's disk is replaced by an empty one.
    pub fn wipe(&mut self, index: usize) {
        self.cut_all(index);
        let node = &mut self.nodes[index];
        node.volume = None;
        node.store = Memory::default();
        node.disk = Disk::new();
        node.disk.nsec = index as u32;
        node.lives = 0;
        node.wiped += 1;
        self.start(index, false);
    }

    /// Power cut: log, tree and store fall back to the last sync.
    pub fn power(&mut self, index: usize) {
        let keeps = if self.skews && self.dice.roll(3) == 0 { Keeps::Tree } else { Keeps::Nothing };
        self.power_but(index, keeps);
    }

    /// The same, but this is still there.
    pub fn power_but(&mut self, index: usize, keeps: Keeps) {
        self.note(format!("power cut n{index}"));
        self.cut_all(index);
        let node = &mut self.nodes[index];
        node.volume = None;
        node.door = Door::default();
        node.store.crash();
        let synced = node.disk.durable_contents();
        let torn = self.tears.then_some(&mut self.dice);
        let became = node.disk.power_cut(keeps, torn);
        self.forget_copies_that_were_not_synced(index, &synced);
        for (good, torn) in became {
            if good != Hash::empty() && self.has_a_copy(index, good) {
                self.torn.insert(torn, good);
            }
        }
        self.forget_what_is_on_no_disk(index);
        self.start(index, true);
    }

    /// Who had the good content of a torn file, had not synced it and has lost its power as well, has it no longer: what is in
    /// its tree by chance is in no journal, and nobody knows what it is.
    fn forget_copies_that_were_not_synced(&mut self, index: usize, synced: &BTreeSet<Hash>) {
        let others = |good: Hash| {
            let mut others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
            others.any(|(_, node)| node.disk.shows(good))
        };
        let gone = |good: &Hash| !synced.contains(good) && !others(*good);
        let gone: Vec<Hash> =
            self.torn.iter().filter(|(_, good)| gone(good)).map(|(torn, _)| *torn).collect();
        for torn in gone {
            self.torn.remove(&torn);
        }
    }

    /// Another node's tree has this content: the server's, or, for the server's own, any client's.
    pub(super) fn has_a_copy(&self, of: usize, content: Hash) -> bool {
        let others = self.nodes.iter().enumerate().filter(|(index, _)| (*index == SERVER) != (of == SERVER));
        others.into_iter().any(|(_, node)| node.disk.shows(content))
    }

    /// Somebody saves the server's disk as it is after the last sync. All clients follow by then: one that gets its tree
    /// later cannot tell what happened before.
    pub fn back_up(&mut self) {
        let follows = |node: &Node| {
            let status = node.volume.as_ref().and_then(|volume| volume.status(&node.store).ok());
            status.is_some_and(|status| {
                status.connected && !status.waiting.iter().any(|why| why.contains("of the tree"))
            })
        };
        if !self.nodes.iter().all(follows) {
            return;
        }
        self.note("backup".into());
        let node = &self.nodes[SERVER];
        let (mut disk, mut store) = (node.disk.clone(), node.store.clone());
        disk.power_cut(Keeps::Nothing, None);
        store.crash();
        self.backup = Some(Backup { disk, store, kept: node.kept.clone() });
    }

    /// The server begins again with what was saved.
    pub fn restore(&mut self) {
        let Some(Backup { mut disk, store, kept }) = self.backup.take() else { return };
        self.note("restore".into());
        self.cut_all(SERVER);
        let node = &mut self.nodes[SERVER];
        disk.go_on_from(&node.disk);
        // What was kept since then was on the server's disk only, and whoever wrote it had been told so.
        self.superseded.extend(node.kept.difference(&kept).copied());
        (node.disk, node.store, node.kept, node.volume) = (disk, store, kept, None);
        self.forget_what_is_on_no_disk(SERVER);
        let durable: BTreeSet<Hash> = self
            .nodes
            .iter()
            .flat_map(|node| node.disk.durable_contents().into_iter().chain(node.kept.iter().copied()))
            .collect();
        self.fragile.extend(self.written.keys().filter(|hash| !durable.contains(*hash)));
        self.start(SERVER, true);
    }

    /// What no disk and no conflict store holds any more had not been synced: nobody was promised anything.
    fn forget_what_is_on_no_disk(&mut self, index: usize) {
        let on_disks: BTreeSet<Hash> = self
            .nodes
            .iter()
            .flat_map(|node| {
                node.disk.inodes.values().map(|i| Hash::of(&i.bytes)).chain(node.kept.iter().copied())
            })
            .collect();
        let gone: Vec<Hash> = self
            .written
            .iter()
            .filter(|(hash, who)| {
                let theirs = index == SERVER;
                let own = who.starts_with(&format!("n{index}:"));
                (theirs || own || self.fragile.contains(*hash)) && !on_disks.contains(*hash)
            })
            .map(|(hash, _)| *hash)
            .collect();
        self.superseded.extend(gone);
    }

    /// kill -9 of presto: what it was asked stays undone or done, nobody is told.
    pub fn kill_presto(&mut self, index: usize) {
        self.note(format!("kill presto n{index}"));
        let jobs = std::mem::take(&mut self.nodes[index].jobs);
        self.nodes[index].half_synced = false;
        let mut inputs = Vec::new();
        for job in jobs {
            match job {
                Output::Replay { ticket, items, untouched_since } => {
                    let done = self.dice.roll(items.len() as u64 + 1) as usize;
                    let node = &mut self.nodes[index];
                    node.disk.replay(items.get(..done).unwrap_or(&[]), untouched_since);
                    inputs.push(Input::Replayed { ticket, outcomes: vec![] });
                }
                Output::ReadContent { ticket, .. } => {
                    inputs.push(Input::ContentRead {
                        ticket,
                        result: ReadResult::Failed("presto is gone".into()),
                    });
                }
                Output::Sync { ticket } => inputs.push(Input::Synced { ticket, recno: None }),
                Output::Revoke { ticket, .. } => inputs.push(Input::Revoked { ticket, upto: None }),
                Output::Admit { .. } => {}
                other => self.nodes[index].jobs.push_back(other),
            }
        }
        self.nodes[index].door = Door::default();
        self.nodes[index].asks.clear();
        self.nodes[index].disk.settled = 0;
        inputs.push(Input::PrestoDown);
        self.give_all(index, inputs);
        // Descriptors die with presto; when it comes back it journals what they had written.
        let open: Vec<FileId> = self.nodes[index].disk.writers.iter().copied().collect();
        for file in open {
            self.close(index, file);
        }
        let last = self.nodes[index].disk.last();
        self.give(index, Input::PrestoUp { first: Recno(1), last });
    }
}
