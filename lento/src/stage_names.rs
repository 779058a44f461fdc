//! Names of the staged files that clients' contents arrive in: an interrupted transfer finds its file again, and one
//! that is complete and waits for its record is never written to.

use lento_core::types::ObjectId;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most files that wait for the rest of their content; the oldest goes.
const PARTIAL_MAX: usize = 64;
/// Most complete ones that are remembered.
const COMPLETE_MAX: usize = 65_536;

/// Which content of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arriving {
    /// The volume.
    pub volume: String,
    /// Who sends it.
    pub node: String,
    /// What it is the content of, if the sender knows.
    pub object: Option<ObjectId>,
    /// The sender's file as it is: the same number, the same bytes.
    pub version: u64,
}

impl Arriving {
    /// The same after a restart of either side.
    fn name(&self, attempt: u64) -> String {
        let Arriving { volume, node, object, version } = self;
        let object = object.map(|object| object.to_string()).unwrap_or_default();
        let text = format!("{volume}\0{node}\0{object}\0{version}\0{attempt}");
        let hash = blake3::hash(text.as_bytes()).to_hex();
        hash.get(..32).unwrap_or_default().to_owned()
    }

    /// A later version of an object continues in the file of the one before.
    fn continues(&self, earlier: &Arriving) -> bool {
        let same_place = self.volume == earlier.volume && self.node == earlier.node;
        same_place
            && self.object == earlier.object
            && (self.object.is_some() || self.version == earlier.version)
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Being written to.
    active: BTreeSet<String>,
    partial: VecDeque<(Arriving, String)>,
    complete: BTreeSet<String>,
    in_order: VecDeque<String>,
}

/// All of one agent.
#[derive(Clone, Debug, Default)]
pub struct StageNames(Arc<Mutex<Inner>>);

impl StageNames {
    /// The file for this content; until [`StageNames::broken`] or [`StageNames::complete`] it is the caller's.
    #[must_use]
    pub fn begin(&self, arriving: &Arriving) -> String {
        let mut inner = self.0.lock();
        let earlier = inner.partial.iter().position(|(earlier, _)| arriving.continues(earlier));
        if let Some((_, name)) = earlier.and_then(|index| inner.partial.remove(index)) {
            inner.active.insert(name.clone());
            return name;
        }
        let mut attempt = 0;
        loop {
            let name = arriving.name(attempt);
            let waits = inner.partial.iter().any(|(_, partial)| *partial == name);
            if !waits && !inner.complete.contains(&name) && inner.active.insert(name.clone()) {
                return name;
            }
            attempt += 1;
        }
    }

    /// The transfer ended early. What has to be dropped to make room: volume and name.
    #[must_use]
    pub fn broken(&self, arriving: Arriving, name: String) -> Option<(String, String)> {
        let mut inner = self.0.lock();
        inner.active.remove(&name);
        inner.partial.push_back((arriving, name));
        let too_many = inner.partial.len() > PARTIAL_MAX;
        let oldest = if too_many { inner.partial.pop_front() } else { None };
        oldest.map(|(arriving, name)| (arriving.volume, name))
    }

    /// The content is there, and the file the record's.
    pub fn complete(&self, name: &str) {
        let mut inner = self.0.lock();
        inner.active.remove(name);
        if inner.complete.insert(name.to_owned()) {
            inner.in_order.push_back(name.to_owned());
        }
        if inner.in_order.len() > COMPLETE_MAX
            && let Some(oldest) = inner.in_order.pop_front()
        {
            inner.complete.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arriving(object: Option<ObjectId>, version: u64) -> Arriving {
        Arriving { volume: "ns/v".to_owned(), node: "b".to_owned(), object, version }
    }

    #[test]
    fn a_broken_transfer_goes_on_in_its_file_and_a_complete_one_is_left_alone() {
        let names = StageNames::default();
        let first = arriving(Some(ObjectId::ROOT), 1);
        let name = names.begin(&first);
        assert_eq!(StageNames::default().begin(&first), name, "the same after a restart");
        assert_eq!(names.broken(first.clone(), name.clone()), None);
        assert_eq!(names.begin(&arriving(Some(ObjectId::ROOT), 2)), name, "a later version");
        names.complete(&name);
        let again = names.begin(&first);
        assert_ne!(again, name);
        names.complete(&again);
        assert!(![name, again].contains(&names.begin(&first)));
    }

    #[test]
    fn two_transfers_of_one_content_never_share_a_file() {
        let names = StageNames::default();
        let content = arriving(Some(ObjectId::ROOT), 1);
        let first = names.begin(&content);
        let second = names.begin(&content);
        assert_ne!(first, second, "the first one is still being written");
        assert_eq!(names.broken(content.clone(), second.clone()), None);
        names.complete(&first);
        assert_eq!(names.begin(&arriving(Some(ObjectId::ROOT), 2)), second, "never in the complete one");
        assert!(![first, second].contains(&names.begin(&content)));
    }

    #[test]
    fn contents_of_unknown_objects_are_told_apart_and_the_oldest_makes_room() {
        let names = StageNames::default();
        for version in 0..PARTIAL_MAX as u64 {
            let arriving = arriving(None, version);
            let name = names.begin(&arriving);
            assert_eq!(names.broken(arriving, name), None);
        }
        let one_more = arriving(None, 1 << 40);
        let name = names.begin(&one_more);
        let dropped = names.broken(one_more, name).unwrap();
        assert_eq!(dropped, ("ns/v".to_owned(), arriving(None, 0).name(0)));
    }
}
