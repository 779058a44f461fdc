//! Files that a replay overwrites in place and cannot finish for now.
//!
//! What is in such a file is neither the old content nor the new one. Until it is whole nobody here may change it: a close
//! would make a user's content of it. Owns only the list; `replay/in_place.rs` puts files on it, and finishes them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::Volume;

/// See the module.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Each file with a path for people.
    files: Mutex<BTreeMap<FileId, String>>,
    any: AtomicBool,
}

impl Unfinished {
    /// Nobody may change this file from now on. Its lock is held, or nobody uses the volume yet.
    pub(crate) fn add(&self, id: FileId, path: String) {
        self.files.lock().insert(id, path);
        self.any.store(true, Ordering::Release);
    }

    /// It is whole. Its lock is held.
    pub(crate) fn remove(&self, id: FileId) {
        let mut files = self.files.lock();
        files.remove(&id);
        self.any.store(!files.is_empty(), Ordering::Release);
    }

    /// Whether it is one of these.
    #[must_use]
    pub fn contains(&self, id: FileId) -> bool {
        self.any.load(Ordering::Acquire) && self.files.lock().contains_key(&id)
    }
}

impl Volume {
    /// Nobody changes a file that is not whole. Its lock is held.
    pub(super) fn refuse_unfinished(&self, id: FileId) -> Result<(), Errno> {
        if !self.unfinished.contains(id) {
            return Ok(());
        }
        let path = self.unfinished.files.lock().get(&id).cloned().unwrap_or_default();
        tracing::warn!(target: "filter", volume = self.name, path, file = %id,
            "a change is refused (EIO): another node's update overwrites the file and is not finished");
        Err(Errno::IO)
    }
}
