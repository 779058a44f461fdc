//! How long what a node asks of its disk takes, by dice of its own: histories stay the same with it and without.

use super::dice::Dice;
use super::world::World;
use lento_core::io::Output;
use lento_core::types::FileId;

/// What takes long.
pub struct Timing {
    dice: Dice,
    /// Of so many reads one is done, the others wait; 1: all are.
    reads: u64,
    /// The same of syncs.
    syncs: u64,
    /// A sync makes the disk durable, and the store some time later, as it is then.
    parts: bool,
    /// Of so many files one is never quiet while it is read; 0: none.
    restless: u64,
    seed: u64,
}

impl Timing {
    pub fn new(seed: u64) -> Timing {
        let mut dice = Dice(seed ^ 0x0071_3e00);
        let reads = [1, 1, 2, 5, 20][dice.roll(5) as usize];
        let syncs = [1, 1, 2, 5][dice.roll(4) as usize];
        let parts = dice.roll(2) == 0;
        let restless = [0, 0, 2, 4][dice.roll(4) as usize];
        Timing { dice, reads, syncs, parts, restless, seed }
    }

    /// Whether this file changes whenever it is read.
    pub(super) fn is_restless(&self, file: FileId) -> bool {
        self.restless > 0 && Dice(self.seed ^ (file.ino << 20)).roll(self.restless) == 0
    }

    /// From now on all files are quiet.
    pub fn calm(&mut self) {
        self.restless = 0;
    }

    /// Whether this job waits.
    fn holds(&mut self, job: &Output) -> bool {
        let one_in = match job {
            Output::ReadContent { .. } => self.reads,
            Output::Sync { .. } => self.syncs,
            _ => 1,
        };
        self.dice.roll(one_in) > 0
    }
}

impl World {
    /// Whether the first job of the node waits until after the others.
    pub(super) fn put_off(&mut self, index: usize) -> bool {
        let jobs = &mut self.nodes[index].jobs;
        let (Some(timing), Some(job)) = (&mut self.timing, jobs.front()) else { return false };
        if !timing.holds(job) {
            return false;
        }
        jobs.rotate_left(1);
        true
    }

    /// The disk is durable. Whether that is all for now.
    pub(super) fn is_half_a_sync(&mut self, index: usize, job: &Output) -> bool {
        let node = &mut self.nodes[index];
        if std::mem::take(&mut node.half_synced) {
            return false;
        }
        node.disk.make_durable();
        node.half_synced = self.timing.as_ref().is_some_and(|timing| timing.parts);
        if node.half_synced {
            node.jobs.push_back(job.clone());
        }
        node.half_synced
    }
}
