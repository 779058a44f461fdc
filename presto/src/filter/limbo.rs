//! Limbo: contents of files that lost their last name before the server had a verdict on their content.
//!
//! Owns `limbo/` of the cache: names there are `<ino>-<generation>`, nothing else is ever unlinked there.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::lower::Lower;

/// What waits, and what would have to.
#[derive(Debug, Default)]
pub struct Limbo {
    settled: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_close: BTreeMap<FileId, Recno>,
    kept: BTreeSet<FileId>,
}

impl Limbo {
    /// Knows what an earlier run left there.
    pub fn open(lower: &Lower) -> Result<Limbo, Errno> {
        let limbo = Limbo::default();
        let dir = rustix::fs::Dir::read_from(lower.limbo())?;
        for entry in dir {
            if let Some(id) = parse(entry?.file_name().to_bytes()) {
                limbo.state.lock().kept.insert(id);
            }
        }
        Ok(limbo)
    }

    /// Every record up to here has its verdict; the largest number means that this node never needs limbo.
    pub fn set_settled(&self, recno: Recno) {
        self.settled.store(recno.0, Ordering::Release);
        self.state.lock().last_close.retain(|_, at| *at > recno);
    }

    /// The mark set last.
    #[must_use]
    pub fn settled(&self) -> Recno {
        Recno(self.settled.load(Ordering::Acquire))
    }

    /// A user's close of this file was journaled.
    pub fn note_close(&self, id: FileId, recno: Recno) {
        if recno > self.settled() {
            self.state.lock().last_close.insert(id, recno);
        }
    }

    /// Whether this file's content must be kept when its last name goes.
    #[must_use]
    pub fn needs(&self, id: FileId) -> bool {
        let settled = self.settled();
        self.state.lock().last_close.get(&id).is_some_and(|at| *at > settled)
    }

    /// Whether this file has no name but the one in limbo.
    #[must_use]
    pub fn contains(&self, id: FileId) -> bool {
        self.state.lock().kept.contains(&id)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().kept.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the entry, which is this file's last name, into limbo: in one step it is gone from the tree and kept.
    pub fn keep_by_rename(
        &self,
        lower: &Lower,
        dir: impl AsFd,
        name: &[u8],
        id: FileId,
    ) -> Result<(), Errno> {
        rustix::fs::renameat(dir, name, lower.limbo(), entry_name(id))?;
        self.state.lock().kept.insert(id);
        Ok(())
    }

    /// Gives the file a second name in limbo, before the entry is replaced. `abandon` takes it back.
    pub fn keep_by_link(&self, lower: &Lower, dir: impl AsFd, name: &[u8], id: FileId) -> Result<(), Errno> {
        match rustix::fs::linkat(dir, name, lower.limbo(), entry_name(id), AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {
                self.state.lock().kept.insert(id);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// The replacement did not happen: the file keeps its name in the tree and loses the one in limbo.
    pub fn abandon(&self, lower: &Lower, id: FileId) -> Result<(), Errno> {
        self.release(lower, id).map(|_| ())
    }

    /// The content is no longer needed. Says whether it was there.
    pub fn release(&self, lower: &Lower, id: FileId) -> Result<bool, Errno> {
        let name = entry_name(id);
        let there = lower.find(lower.limbo(), name.as_bytes())?;
        if there.is_some_and(|there| there != id) {
            // Not the file that the name says: never unlink what we did not put there.
            return Err(Errno::STALE);
        }
        if there.is_some() {
            rustix::fs::unlinkat(lower.limbo(), name, AtFlags::empty())?;
        }
        let mut state = self.state.lock();
        state.last_close.remove(&id);
        state.kept.remove(&id);
        Ok(there.is_some())
    }
}

/// Name of a file in limbo.
#[must_use]
pub fn entry_name(id: FileId) -> String {
    format!("{}-{}", id.ino, id.generation)
}

fn parse(name: &[u8]) -> Option<FileId> {
    let (ino, generation) = std::str::from_utf8(name).ok()?.split_once('-')?;
    Some(FileId { ino: ino.parse().ok()?, generation: generation.parse().ok()? })
}
