//! What an agent remembers of contents that it sent or received: the hashes of their blocks, so that the next transfer
//! begins without reading the old version, and transfers that went wrong. By content, never by file: it cannot be stale.

use super::block::Value;
use lento_core::types::Hash;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most blocks of all contents together: 8 MiB of memory for 16 GiB of contents.
const BLOCKS: usize = 256 << 10;
/// Fewer blocks than this are hashed again in no time.
const WORTH: usize = 32;
/// Most transfers that went wrong.
const DOUBTED: usize = 64;

/// The hashes of all blocks of one content.
pub type Values = Arc<[Value]>;

#[derive(Debug, Default)]
struct Inner {
    /// The newest last.
    contents: VecDeque<(Hash, Values)>,
    doubted: VecDeque<String>,
}

/// All of one volume.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Inner>>);

impl Known {
    /// The blocks of this content.
    #[must_use]
    pub fn get(&self, hash: Hash) -> Option<Values> {
        let mut inner = self.0.lock();
        let index = inner.contents.iter().position(|(known, _)| *known == hash)?;
        let entry = inner.contents.remove(index)?;
        let values = entry.1.clone();
        inner.contents.push_back(entry);
        Some(values)
    }

    /// Remembers a content as long as there is room.
    pub fn put(&self, hash: Hash, values: Values) {
        if !(WORTH..=BLOCKS).contains(&values.len()) {
            return;
        }
        let mut inner = self.0.lock();
        inner.contents.retain(|(known, _)| *known != hash);
        inner.contents.push_back((hash, values));
        let mut blocks: usize = inner.contents.iter().map(|(_, values)| values.len()).sum();
        while blocks > BLOCKS
            && let Some((_, oldest)) = inner.contents.pop_front()
        {
            blocks -= oldest.len();
        }
    }

    /// What came into this staged file was wrong: next time nothing that is here is built upon.
    pub fn doubt(&self, staged: &str) {
        let mut inner = self.0.lock();
        inner.doubted.retain(|name| name != staged);
        inner.doubted.push_back(staged.to_owned());
        if inner.doubted.len() > DOUBTED {
            inner.doubted.pop_front();
        }
    }

    /// Whether that happened.
    #[must_use]
    pub fn doubts(&self, staged: &str) -> bool {
        self.0.lock().doubted.iter().any(|name| name == staged)
    }

    /// What came into this staged file is right.
    pub fn trust(&self, staged: &str) {
        self.0.lock().doubted.retain(|name| name != staged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Values {
        vec![Value::of(0, b"x"); count].into()
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let known = Known::default();
        let hash = |number: u32| Hash::of(&number.to_le_bytes());
        for number in 0..4 {
            known.put(hash(number), values(BLOCKS / 4));
        }
        assert!(known.get(hash(0)).is_some());
        known.put(hash(4), values(BLOCKS / 4));
        assert_eq!([0, 1, 2].map(|number| known.get(hash(number)).is_some()), [true, false, true]);
        known.put(hash(5), values(WORTH - 1));
        known.put(hash(6), values(BLOCKS + 1));
        assert_eq!([5, 6].map(|number| known.get(hash(number))), [None, None]);
    }

    #[test]
    fn doubt_lasts_until_it_went_well_and_is_bounded() {
        let known = Known::default();
        known.doubt("a");
        assert!(known.doubts("a") && !known.doubts("b"));
        known.trust("a");
        assert!(!known.doubts("a"));
        for number in 0..=DOUBTED {
            known.doubt(&number.to_string());
        }
        assert!(!known.doubts("0") && known.doubts("1"));
    }
}
