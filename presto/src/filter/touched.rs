//! Which record last touched an object or an entry, so that a replay (for users' records) or a scrub (for replays' as
//! well) can tell whether Lento knew.
//!
//! Holds what Lento may not have read yet; `forget_upto` drops the rest.

use std::collections::BTreeMap;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;

/// Newest record per object and per entry.
#[derive(Debug, Default)]
pub struct Touched {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<FileId, Recno>,
    entries: BTreeMap<(FileId, Vec<u8>), Recno>,
}

impl Touched {
    /// Notes an object.
    pub fn object(&self, id: FileId, recno: Recno) {
        if !id.is_none() {
            newest_of(self.inner.lock().objects.entry(id).or_default(), recno);
        }
    }

    /// Notes an entry.
    pub fn entry(&self, dir: FileId, name: &[u8], recno: Recno) {
        if !dir.is_none() && !name.is_empty() {
            newest_of(self.inner.lock().entries.entry((dir, name.to_vec())).or_default(), recno);
        }
    }

    /// Notes all that a record names: its object, what it replaced, and its entries.
    pub fn record(&self, intent: &Intent, outcome: &Outcome, recno: Recno) {
        self.object(intent.object, recno);
        self.object(outcome.object, recno);
        self.object(intent.replaced, recno);
        self.entry(intent.parent, &intent.name, recno);
        self.entry(intent.target_parent, &intent.target_name, recno);
    }

    /// Newest record about an object.
    #[must_use]
    pub fn newest(&self, id: FileId) -> Option<Recno> {
        self.inner.lock().objects.get(&id).copied()
    }

    /// Newest record about an entry.
    #[must_use]
    pub fn newest_entry(&self, dir: FileId, name: &[u8]) -> Option<Recno> {
        self.inner.lock().entries.get(&(dir, name.to_vec())).copied()
    }

    /// Forgets everything not newer than this record.
    pub fn forget_upto(&self, recno: Recno) {
        let mut inner = self.inner.lock();
        inner.objects.retain(|_, at| *at > recno);
        inner.entries.retain(|_, at| *at > recno);
    }
}

fn newest_of(slot: &mut Recno, recno: Recno) {
    *slot = (*slot).max(recno);
}
