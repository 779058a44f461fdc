//! Files into which a content is being copied ahead of its record. They lack it until the record says otherwise, and what the
//! copy does to them meanwhile (their time, their file capabilities) nobody sees.
//!
//! No lock of an object is held while such a copy goes on. Whoever changes the file stops it first, and finds the file as it was.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Time;
use parking_lot::Mutex;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Volume;
use crate::lower::Stat;
use crate::lower::missing;
use crate::lower::xattr;

/// What a file has to have again when the copy has come to its end, or to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// When it was changed.
    pub mtime: Time,
    /// Its capabilities: the kernel takes them away with every store.
    pub capability: Option<Vec<u8>>,
}

/// One copy.
#[derive(Debug)]
pub(crate) struct Copying {
    before: Before,
    stopped: Mutex<bool>,
}

impl Copying {
    /// Does one step of it; who stops it waits that long.
    ///
    /// # Errors
    /// The step's. STALE: it is stopped.
    pub fn step<T>(&self, step: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let stopped = self.stopped.lock();
        if *stopped { Err(Errno::STALE) } else { step() }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Filling {
    any: AtomicBool,
    files: Mutex<BTreeMap<FileId, Arc<Copying>>>,
}

impl Filling {
    fn get(&self, id: FileId) -> Option<Arc<Copying>> {
        if self.any.load(Ordering::Acquire) { self.files.lock().get(&id).cloned() } else { None }
    }

    fn remove(&self, id: FileId) -> Option<Arc<Copying>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut files = self.files.lock();
        let removed = files.remove(&id);
        self.any.store(!files.is_empty(), Ordering::Release);
        removed
    }

    /// The time that users see meanwhile.
    pub(super) fn mtime(&self, id: FileId) -> Option<Time> {
        self.get(id).map(|copying| copying.before.mtime)
    }

    /// Whether one goes on, or waits for its record.
    #[must_use]
    pub fn contains(&self, id: FileId) -> bool {
        self.get(id).is_some()
    }
}

impl Volume {
    /// A copy begins. The file's lock is held.
    pub(crate) fn begin_filling(&self, id: FileId, before: Before) -> Arc<Copying> {
        let copying = Arc::new(Copying { before, stopped: Mutex::new(false) });
        self.filling.files.lock().insert(id, Arc::clone(&copying));
        self.filling.any.store(true, Ordering::Release);
        copying
    }

    /// It is whole, and about to be told of. The file's lock is held.
    pub(crate) fn end_filling(&self, id: FileId, file: impl AsFd) -> Result<(), Errno> {
        let copying = self.filling.get(id).ok_or(Errno::STALE)?;
        give_back(&file, &copying.before)?;
        self.filling.remove(id);
        Ok(())
    }

    /// It ends here, if there is one: the file is as it was before. Its lock is held.
    pub(crate) fn stop_filling(&self, id: FileId) -> Result<(), Errno> {
        let Some(copying) = self.filling.remove(id) else { return Ok(()) };
        *copying.stopped.lock() = true;
        self.as_before(id, &copying.before)
    }

    /// Nothing of a content that was on its way stays in a file that lacks it.
    pub(crate) fn as_before(&self, id: FileId, before: &Before) -> Result<(), Errno> {
        let file = match self.lower.path_fd(id) {
            Err(Errno::STALE | Errno::NOENT) => return Ok(()),
            file => file?,
        };
        let stat = Stat::of(&file)?;
        if self.lacking(&file, &stat)?.is_none() {
            return Ok(());
        }
        missing::punch(&file, stat.attributes.size)?;
        give_back(&file, before)
    }
}

fn give_back(file: impl AsFd, before: &Before) -> Result<(), Errno> {
    if let Some(value) = &before.capability {
        xattr::set(&file, xattr::CAPABILITY, value, XattrFlags::empty())?;
    }
    missing::set_mtime(&file, before.mtime)
}
