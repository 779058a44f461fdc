//! Which record last touched an object or an entry, so that a replay (for users' records) or a scrub (for replays' as
//! well) can tell whether Lento knew.
//!
//! Holds what Lento may not have read yet; `forget_upto` drops the rest.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Opcode;
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
    /// Objects made since a start after a power cut; `None`: that is not known.
    born: Option<BTreeSet<FileId>>,
}

/// More births than these are not remembered.
const BIRTHS: usize = 1 << 20;

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
        if matches!(
            intent.opcode,
            Some(Opcode::Create | Opcode::Mkdir | Opcode::Symlink | Opcode::Mknod | Opcode::Close)
        ) {
            self.born(outcome.object);
        }
    }

    fn born(&self, id: FileId) {
        let born = &mut self.inner.lock().born;
        if let Some(known) = born {
            known.insert(id);
            if known.len() > BIRTHS {
                *born = None;
            }
        }
    }

    /// From now on births are remembered.
    pub fn watch_births(&self) {
        self.inner.lock().born = Some(BTreeSet::new());
    }

    /// Whether nothing has been journaled of this object's making, or of its content, since then.
    #[must_use]
    pub fn is_unborn(&self, id: FileId) -> bool {
        self.inner.lock().born.as_ref().is_some_and(|born| !born.contains(&id))
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
