//! What the server's log holds, in memory: how many bytes of content lie behind a position and how old they are can be
//! told without reading the log.
//!
//! One mark stands for one row while the log is short. A log of more rows than [`MARKS`] is known more coarsely: marks
//! are joined in pairs, so that the memory stays bounded and an answer is wrong by one mark at most.

use crate::types::Position;
use crate::types::Time;
use std::collections::VecDeque;

/// Most marks: 2 MiB of memory for a volume whose log is never truncated.
const MARKS: usize = 32 << 10;

/// Some neighbouring rows of the log.
#[derive(Clone, Copy, Debug)]
struct Mark {
    first: Position,
    last: Position,
    rows: u64,
    bytes: u64,
    /// Bytes of the rows themselves.
    stored: u64,
    /// When the oldest of them was made, where one says.
    time: Option<Time>,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    marks: VecDeque<Mark>,
    /// How many rows a new mark takes.
    step: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger { marks: VecDeque::new(), step: 1 }
    }
}

/// What a Replicator has not got yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Bytes of content.
    pub bytes: u64,
    /// When the oldest of it was made (server's clock).
    pub since: Option<Time>,
}

impl Ledger {
    /// A new row. Rows come in order.
    pub fn note(&mut self, position: Position, time: Option<Time>, bytes: u64, stored: u64) {
        if let Some(mark) = self.marks.back_mut()
            && (mark.rows < self.step || position <= mark.last)
        {
            mark.last = mark.last.max(position);
            mark.rows += 1;
            mark.bytes = mark.bytes.saturating_add(bytes);
            mark.stored = mark.stored.saturating_add(stored);
            mark.time = mark.time.or(time);
            return;
        }
        self.marks.push_back(Mark { first: position, last: position, rows: 1, bytes, stored, time });
        if self.marks.len() > MARKS {
            self.join();
        }
    }

    fn join(&mut self) {
        let mut all = std::mem::take(&mut self.marks).into_iter();
        while let Some(mut mark) = all.next() {
            if let Some(next) = all.next() {
                mark.last = next.last;
                mark.rows += next.rows;
                mark.bytes = mark.bytes.saturating_add(next.bytes);
                mark.stored = mark.stored.saturating_add(next.stored);
                mark.time = mark.time.or(next.time);
            }
            self.marks.push_back(mark);
        }
        self.step = self.step.saturating_mul(2);
    }

    /// The content of a row is known now.
    pub fn fill(&mut self, position: Position, bytes: u64) {
        let at = self.marks.partition_point(|mark| mark.last < position);
        if let Some(mark) = self.marks.get_mut(at)
            && mark.first <= position
        {
            mark.bytes = mark.bytes.saturating_add(bytes);
        }
    }

    /// Bytes of the rows behind a position, about.
    #[must_use]
    pub fn stored_after(&self, position: Position) -> u64 {
        let marks = self.marks.iter().skip_while(|mark| mark.last <= position);
        marks.fold(0, |sum, mark| sum.saturating_add(mark.stored))
    }

    /// The log up to here is gone.
    pub fn truncate(&mut self, upto: Position) {
        while self.marks.pop_front_if(|mark| mark.last <= upto).is_some() {}
        if self.marks.len() < MARKS / 4 {
            self.step = 1;
        }
    }

    /// Answers for any number of Replicators, with one look at the marks.
    #[must_use]
    pub fn sums(&self, upto: Position) -> Sums<'_> {
        let mut before = Vec::with_capacity(self.marks.len() + 1);
        let mut sum = 0_u64;
        before.push(sum);
        for mark in self.marks.iter().take_while(|mark| mark.first <= upto) {
            sum = sum.saturating_add(mark.bytes);
            before.push(sum);
        }
        Sums { ledger: self, before }
    }
}

/// Made by [`Ledger::sums`].
#[derive(Debug)]
pub struct Sums<'a> {
    ledger: &'a Ledger,
    /// Bytes before each mark, then all of them.
    before: Vec<u64>,
}

impl Sums<'_> {
    /// What lies behind `applied`.
    #[must_use]
    pub fn behind(&self, applied: Position) -> Behind {
        let at = self.ledger.marks.partition_point(|mark| mark.last <= applied);
        let all = self.before.last().copied().unwrap_or(0);
        let bytes = self.before.get(at).map_or(0, |before| all.saturating_sub(*before));
        let count = self.before.len().saturating_sub(1);
        let since = self.ledger.marks.iter().take(count).skip(at).find_map(|mark| mark.time);
        Behind { bytes, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sec: i64) -> Option<Time> {
        Some(Time { sec, nsec: 0 })
    }

    fn behind(ledger: &Ledger, applied: u64, upto: u64) -> Behind {
        ledger.sums(Position(upto)).behind(Position(applied))
    }

    #[test]
    fn a_short_log_is_told_exactly() {
        let mut ledger = Ledger::default();
        for number in 1..=10 {
            ledger.note(Position(number * 2), at(100 + number as i64), 10, 3);
        }
        assert_eq!(behind(&ledger, 0, 20), Behind { bytes: 100, since: at(101) });
        assert_eq!(behind(&ledger, 5, 20), Behind { bytes: 80, since: at(103) });
        assert_eq!(behind(&ledger, 6, 20), Behind { bytes: 70, since: at(104) });
        assert_eq!(behind(&ledger, 6, 9), Behind { bytes: 10, since: at(104) }, "20 is not durable yet");
        assert_eq!(behind(&ledger, 20, 20), Behind::default());
        assert_eq!([0, 5, 20].map(|at| ledger.stored_after(Position(at))), [30, 24, 0]);
        assert_eq!(behind(&ledger, 20, 7), Behind::default(), "ahead of what is durable");
    }

    #[test]
    fn contents_are_counted_when_they_are_known_and_gone_with_the_log() {
        let mut ledger = Ledger::default();
        ledger.note(Position(1), at(1), 0, 0);
        ledger.note(Position(3), None, 5, 0);
        ledger.fill(Position(1), 7);
        ledger.fill(Position(2), 1000);
        assert_eq!(behind(&ledger, 0, 3), Behind { bytes: 12, since: at(1) });
        ledger.truncate(Position(2));
        assert_eq!(
            behind(&ledger, 0, 3),
            Behind { bytes: 5, since: None },
            "a verdict has no time of its own"
        );
    }

    #[test]
    fn a_long_log_takes_no_more_memory_and_is_told_almost_exactly() {
        let mut ledger = Ledger::default();
        let rows = 1_000_000;
        for number in 1..=rows {
            ledger.note(Position(number), at(number as i64), 1, 0);
        }
        assert!(ledger.marks.len() <= MARKS);
        for applied in [0, 1, 999, 500_000, 999_999] {
            let told = behind(&ledger, applied, rows);
            let right = rows - applied;
            assert!((right..right + 64).contains(&told.bytes), "{told:?} for {right}");
        }
        ledger.truncate(Position(rows));
        assert_eq!(behind(&ledger, 0, rows), Behind::default());
    }
}
