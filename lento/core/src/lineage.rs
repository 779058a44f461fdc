//! Where a volume's history has forked. Each time a server may have lost the end of its log it begins a new *era* there;
//! two nodes that know the eras they followed can tell up to which position they have seen the same records.

use crate::types::Epoch;
use crate::types::Position;
use serde::Deserialize;
use serde::Serialize;

/// Most eras that are remembered and told.
pub const ERAS_MAX: usize = 256;

/// The positions of one epoch begin behind `from`; they end where the next era begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// Its epoch.
    pub epoch: Epoch,
    /// The last position that is still the era's before.
    pub from: Position,
}

/// The eras of one history, oldest first. Empty: none was followed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage(Vec<Era>);

impl Lineage {
    /// Eras as a peer told them; the oldest are left out where there are too many.
    #[must_use]
    pub fn new(mut eras: Vec<Era>) -> Lineage {
        eras.drain(..eras.len().saturating_sub(ERAS_MAX));
        Lineage(eras)
    }

    /// A history begins.
    #[must_use]
    pub fn first(epoch: Epoch) -> Lineage {
        Lineage(vec![Era { epoch, from: Position(0) }])
    }

    /// What stood behind `from` may be lost.
    pub fn begin(&mut self, epoch: Epoch, from: Position) {
        self.0.push(Era { epoch, from });
        self.0.drain(..self.0.len().saturating_sub(ERAS_MAX));
    }

    /// The epoch that goes on; 0 if there is none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.last().map_or(Epoch(0), |era| era.epoch)
    }

    /// The eras, oldest first.
    #[must_use]
    pub fn eras(&self) -> &[Era] {
        &self.0
    }

    /// Whether none was followed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to where this log, which has come to `head`, and the other one are the same; `None`: nowhere.
    #[must_use]
    pub fn fork(&self, head: Position, other: &Lineage, other_head: Position) -> Option<Position> {
        self.0.iter().rev().find_map(|era| {
            other
                .0
                .iter()
                .any(|there| there.epoch == era.epoch)
                .then(|| self.end(era.epoch, head).min(other.end(era.epoch, other_head)))
        })
    }

    fn end(&self, epoch: Epoch, head: Position) -> Position {
        let next = self.0.iter().skip_while(|era| era.epoch != epoch).nth(1);
        next.map_or(head, |next| next.from.min(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(eras: &[(u64, u64)]) -> Lineage {
        Lineage::new(
            eras.iter().map(|(epoch, from)| Era { epoch: Epoch(*epoch), from: Position(*from) }).collect(),
        )
    }

    fn fork(mine: &[(u64, u64)], head: u64, theirs: &[(u64, u64)], their_head: u64) -> Option<u64> {
        let there = lineage(theirs).fork(Position(their_head), &lineage(mine), Position(head));
        let here = lineage(mine).fork(Position(head), &lineage(theirs), Position(their_head));
        assert_eq!(here, there, "both sides say the same");
        here.map(|position| position.0)
    }

    #[test]
    fn one_log_is_the_same_as_far_as_both_have_come() {
        assert_eq!(fork(&[(1, 0)], 50, &[(1, 0)], 80), Some(50));
        assert_eq!(fork(&[(1, 0)], 80, &[(1, 0)], 50), Some(50), "who lost its end without noticing");
    }

    #[test]
    fn a_power_cut_ends_an_era_where_nothing_was_told_beyond() {
        assert_eq!(fork(&[(1, 0)], 50, &[(1, 0), (2, 50)], 90), Some(50));
        assert_eq!(fork(&[(1, 0)], 30, &[(1, 0), (2, 50), (3, 70)], 90), Some(30));
    }

    #[test]
    fn a_backup_forks_in_the_past_even_where_positions_have_grown_again() {
        assert_eq!(fork(&[(1, 0)], 80, &[(1, 0), (2, 50)], 500), Some(50));
        // The backup is older than the era that the client followed last.
        assert_eq!(fork(&[(1, 0), (2, 60)], 80, &[(1, 0), (3, 50)], 70), Some(50));
        assert_eq!(fork(&[(1, 0), (2, 40)], 80, &[(1, 0), (3, 50)], 70), Some(40));
        // A client that was welcomed to an era and has not come to where it begins.
        assert_eq!(fork(&[(1, 0), (2, 60)], 30, &[(1, 0), (3, 50)], 70), Some(30));
    }

    #[test]
    fn histories_of_their_own_have_nothing_in_common() {
        assert_eq!(fork(&[(1, 0)], 80, &[(9, 0)], 80), None);
        assert_eq!(fork(&[], 0, &[(9, 0)], 80), None);
    }
}
