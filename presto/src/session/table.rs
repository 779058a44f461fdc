//! A table of fixed slots in the session's memory. The first word of a slot says whether it is used, and is written last.

use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::lower::Shared;

/// Where a table lies and how large it may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Word that tells how many slots were ever used.
    pub mark: usize,
    /// First word of the first slot.
    pub start: usize,
    /// Words of a slot.
    pub words: usize,
    /// Slots.
    pub capacity: usize,
}

/// A slot's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(usize);

impl Slot {
    pub(super) fn number(self) -> usize {
        self.0
    }

    pub(super) fn of(number: usize) -> Slot {
        Slot(number)
    }
}

#[derive(Debug)]
pub(super) struct Table {
    shape: Shape,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    slots: Vec<usize>,
    used: usize,
}

impl Table {
    /// Finds the free slots of what is there.
    pub fn open(shape: Shape, memory: &Shared) -> Table {
        let used = memory.word(shape.mark).map_or(0, |word| word.load(Ordering::Acquire));
        let used = usize::try_from(used).unwrap_or(usize::MAX).min(shape.capacity);
        let table = Table { shape, free: Mutex::default() };
        let slots = (0..used).rev().filter(|slot| table.get(memory, Slot(*slot), 0) == 0).collect();
        *table.free.lock() = Free { slots, used };
        table
    }

    /// Takes a slot; `None` when there is no more. `values` are its words, the first of them not zero.
    pub fn insert(&self, memory: &Shared, values: &[u64]) -> Option<Slot> {
        let slot = {
            let mut free = self.free.lock();
            match free.slots.pop() {
                Some(slot) => slot,
                None if free.used < self.shape.capacity => {
                    let slot = free.used;
                    free.used = slot.saturating_add(1);
                    // Before the slot can be used: who comes next looks no further than this.
                    memory.word(self.shape.mark)?.store(u64::try_from(free.used).ok()?, Ordering::Release);
                    slot
                }
                None => return None,
            }
        };
        self.write(memory, Slot(slot), values);
        Some(Slot(slot))
    }

    /// Writes a slot anew, its first word last.
    pub fn write(&self, memory: &Shared, slot: Slot, values: &[u64]) {
        for (at, value) in values.iter().enumerate().skip(1) {
            self.set(memory, slot, at, *value);
        }
        self.set(memory, slot, 0, values.first().copied().unwrap_or(0));
    }

    /// Gives a slot back.
    pub fn remove(&self, memory: &Shared, slot: Slot) {
        self.set(memory, slot, 0, 0);
        self.free.lock().slots.push(slot.0);
    }

    pub fn get(&self, memory: &Shared, slot: Slot, at: usize) -> u64 {
        self.place(slot, at)
            .and_then(|place| memory.word(place))
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub fn set(&self, memory: &Shared, slot: Slot, at: usize, value: u64) {
        if let Some(word) = self.place(slot, at).and_then(|place| memory.word(place)) {
            word.store(value, Ordering::Release);
        }
    }

    /// The words of every used slot.
    pub fn all<const N: usize>(&self, memory: &Shared) -> Vec<(Slot, [u64; N])> {
        let used = self.free.lock().used;
        let read = |slot| (Slot(slot), std::array::from_fn(|at| self.get(memory, Slot(slot), at)));
        (0..used)
            .map(read)
            .filter(|(_, words): &(Slot, [u64; N])| words.first().is_some_and(|w| *w != 0))
            .collect()
    }

    fn place(&self, slot: Slot, at: usize) -> Option<usize> {
        let inside = slot.0 < self.shape.capacity && at < self.shape.words;
        inside.then(|| self.shape.start + slot.0 * self.shape.words + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { mark: 0, start: 8, words: 4, capacity: 3 };

    #[test]
    fn what_is_in_the_table_is_found_by_the_next() {
        let memory = Shared::create(64).unwrap();
        let table = Table::open(SHAPE, &memory);
        let slots: Vec<Slot> = (1..=3).map(|n| table.insert(&memory, &[n, 10 * n]).unwrap()).collect();
        assert!(table.insert(&memory, &[9]).is_none(), "it is full");
        table.remove(&memory, slots[1]);
        let next = Table::open(SHAPE, &memory);
        let all = next.all::<2>(&memory);
        assert_eq!(all, [(slots[0], [1, 10]), (slots[2], [3, 30])]);
        assert_eq!(next.insert(&memory, &[4, 40]), Some(slots[1]), "the free slot is used again");
    }
}
