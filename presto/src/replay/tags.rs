//! Lower identities of objects that recent replays named by tag, so that a batch can refer to what it makes.
//!
//! A bounded memory, not a truth: Lento's store is; what is forgotten here is named by identity.

use std::collections::{BTreeMap, VecDeque};

use intermezzo_kml::record::{FileId, Tag};

use super::plan::By;

/// Tags remembered per volume.
const KEEP: usize = 65_536;

/// Tag -> identity, oldest forgotten first.
#[derive(Debug, Default)]
pub struct Tags {
    known: BTreeMap<Tag, FileId>,
    order: VecDeque<Tag>,
}

impl Tags {
    /// Remembers; a tag already known takes the new identity.
    pub fn learn(&mut self, tag: Tag, file: FileId) {
        if tag == Tag::default() || file.is_none() {
            return;
        }
        if self.known.insert(tag, file).is_none() {
            self.order.push_back(tag);
        }
        while self.order.len() > KEEP {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// The identity a reference means; `None` for a tag that nobody told.
    #[must_use]
    pub fn find(&self, by: By) -> Option<FileId> {
        match by {
            By::File(file) => Some(file),
            By::Tag(tag) => self.known.get(&tag).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(number: u64) -> Tag {
        Tag { replica: 1, incarnation: 1, number }
    }

    #[test]
    fn the_newest_identity_counts_and_the_oldest_is_forgotten() {
        let mut tags = Tags::default();
        let (old, new) = (FileId { ino: 1, generation: 1 }, FileId { ino: 2, generation: 1 });
        tags.learn(tag(1), old);
        tags.learn(tag(1), new);
        assert_eq!(tags.find(By::Tag(tag(1))), Some(new));
        for number in 2..=u64::try_from(KEEP).unwrap() + 1 {
            tags.learn(tag(number), old);
        }
        assert_eq!(tags.find(By::Tag(tag(1))), None);
        assert_eq!(tags.find(By::File(new)), Some(new));
    }
}
