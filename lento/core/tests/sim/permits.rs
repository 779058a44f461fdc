//! What presto does under permits: its door, which lento opens and closes.

use super::world::SERVER;
use super::world::World;
use lento_core::io::Input;
use lento_core::io::Writes;
use lento_core::types::Ticket;

/// Which updates it lets in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Door {
    serial: u64,
    until: u64,
    /// What was given with this number or a smaller one means nothing.
    revoked: u64,
}

impl Door {
    pub fn admit(&mut self, serial: u64, until: u64) {
        if serial > self.revoked && serial >= self.serial {
            (self.serial, self.until) = (serial, until);
        }
    }

    fn is_open(&self, clock: u64) -> bool {
        clock < self.until
    }
}

impl World {
    /// Each machine counts from its own boot.
    pub fn clock_of(&self, index: usize) -> u64 {
        self.now + 1_000_000 * index as u64
    }

    pub(super) fn revoke(&mut self, index: usize, ticket: Ticket, serial: u64) {
        let door = &mut self.nodes[index].door;
        door.revoked = door.revoked.max(serial);
        if door.serial <= door.revoked {
            door.until = 0;
        }
        let upto = Some(self.nodes[index].disk.last());
        self.note(format!("t{} n{index} lets nobody in beyond {upto:?}", self.now));
        self.give(index, Input::Revoked { ticket, upto });
    }

    /// Whether a user may write now; else it is asked for.
    pub fn may_write(&mut self, index: usize) -> bool {
        if self.writes == Writes::Optimistic {
            return true;
        }
        if self.is_open(index) {
            return true;
        }
        self.give(index, Input::PermitWanted);
        false
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.nodes[index].door.is_open(self.clock_of(index))
    }

    /// Nodes whose users may write just now by the permit: a client's has an end, what it steals has none.
    pub fn writers(&self) -> Vec<usize> {
        let by_permit = |index: &usize| *index == SERVER || self.nodes[*index].door.until != u64::MAX;
        (0..self.nodes.len()).filter(|index| self.is_open(*index)).filter(by_permit).collect()
    }

    /// The owner of the volume wants updates admitted otherwise.
    pub fn set_writes(&mut self, writes: Writes) {
        self.writes = writes;
        for index in 0..self.nodes.len() {
            self.give(index, Input::Writes(writes));
        }
    }
}
