//! Files from which a replay has taken the last name.
//!
//! The kernel hears of it a moment later, and a program that is on its way to such a file by its old name may get there
//! in between. What it changed would be nobody's, so it is sent back to look the name up once more (ESTALE does that in
//! the kernel). Whoever had it open for writing before is an orphan's writer, and what that one leaves is kept.

use std::collections::BTreeSet;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::Volume;
use crate::lower::Lower;
use crate::lower::Stat;

/// From so many on, those that are really gone are forgotten now and then.
const MANY: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Taken {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeSet<FileId>,
    /// How many there were when it was looked last.
    kept: usize,
}

impl Taken {
    /// A replay has taken the last name of this file.
    pub fn note(&self, lower: &Lower, id: FileId) {
        let mut inner = self.inner.lock();
        inner.files.insert(id);
        if inner.files.len() >= MANY.max(inner.kept.saturating_mul(2)) {
            // A handle never means another file, so what cannot be opened any more is not asked for again.
            inner.files.retain(|id| !matches!(lower.path_fd(*id), Err(Errno::STALE | Errno::NOENT)));
            inner.kept = inner.files.len();
        }
    }

    fn contains(&self, id: FileId) -> bool {
        self.inner.lock().files.contains(&id)
    }
}

impl Volume {
    /// Whether a change of this file by its name comes too late: a replay has taken its last one. Its lock is held.
    pub(super) fn refuse_taken(&self, id: FileId, stat: &Stat) -> Result<(), Errno> {
        let late = self.is_removed(id, stat) && self.taken.contains(id) && !self.writers.is_orphan(id);
        if late { Err(Errno::STALE) } else { Ok(()) }
    }
}
