//! How a world comes to rest.

use super::timing::Timing;
use super::world::SERVER;
use super::world::World;
use lento_core::io::Input;
use lento_core::io::Judgement;
use lento_core::types::FileId;

impl World {
    /// Goes on until nobody has anything to do, large steps at a time.
    pub fn rest(&mut self) {
        self.rest_without(&[]);
    }

    /// The same while some nodes are away.
    pub fn rest_without(&mut self, away: &[usize]) {
        let (mut quiet, mut rounds) = (0, 0);
        while quiet < 200 {
            rounds += 1;
            if rounds > 20_000 {
                let tail: Vec<_> = self.log.iter().rev().take(12).rev().cloned().collect();
                panic!("never at rest: {}", tail.join("\n"));
            }
            self.now += 20;
            let mut busy = false;
            for index in (0..self.nodes.len()).filter(|index| !away.contains(index)) {
                if index > 0 && !self.up[index] {
                    self.connect(index);
                }
                busy |= self.read_journal(index, 2048);
                while self.run_job(index) {
                    busy = true;
                }
                if index > 0 {
                    while self.deliver(index, SERVER) || self.deliver(SERVER, index) {
                        busy = true;
                    }
                }
                self.timeout(index);
            }
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }

    /// A person answers what is asked about removals; whether anything was.
    pub fn answer(&mut self) -> bool {
        let node = &self.nodes[SERVER];
        let Some(status) = node.volume.as_ref().and_then(|volume| volume.status(&node.store).ok()) else {
            return false;
        };
        for (name, held) in &status.held {
            let judgement = if self.dice.roll(2) == 0 { Judgement::Approved } else { Judgement::Refused };
            self.note(format!("{judgement:?}: {name} {held:?}"));
            self.give(SERVER, Input::Judged(name.clone(), judgement));
        }
        !status.held.is_empty()
    }

    /// Everything heals and comes to rest; `false` if it does not within a generous bound.
    pub fn settle(&mut self) -> bool {
        self.restless.clear();
        self.timing.iter_mut().for_each(Timing::calm);
        for client in 1..self.nodes.len() {
            self.connect(client);
        }
        for index in 0..self.nodes.len() {
            let open: Vec<FileId> = self.nodes[index].disk.writers.iter().copied().collect();
            for file in open {
                self.close(index, file);
            }
        }
        let mut quiet = 0;
        for _ in 0..200_000 {
            self.now += 20;
            let mut busy = false;
            for index in 0..self.nodes.len() {
                if index > 0 && !self.up[index] {
                    self.connect(index);
                    busy = true;
                }
                busy |= self.read_journal(index, 64);
                busy |= self.run_job(index);
                if index > 0 {
                    busy |= self.deliver(index, SERVER);
                    busy |= self.deliver(SERVER, index);
                }
                self.timeout(index);
            }
            if !busy && quiet > 100 {
                busy |= self.answer();
            }
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet > 200 {
                return true;
            }
        }
        false
    }
}
