//! Limbo: contents of files that lost their last name before the server had a verdict on their content, and orphans:
//! files that a replay replaced while somebody wrote to them.
//!
//! Owns `limbo/` beside the tree: names there are `<ino>-<generation>`, with `-orphan` behind it for those, and nothing else
//! is ever unlinked there. Lento says what
//! may go, and up to which record it knows: a file about which there is a later one stays.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::ops::Bound;
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
    /// Those of them that say that they were synced.
    synced: BTreeSet<FileId>,
    /// Files whose last close does not say so, the newest ones, also where limbo is never needed.
    unsynced: BTreeMap<FileId, Recno>,
    /// These in their order, with some that are no longer among them.
    order: VecDeque<(FileId, Recno)>,
    kept: BTreeMap<FileId, Kept>,
}

/// One file there.
#[derive(Clone, Copy, Debug)]
struct Kept {
    why: Why,
    /// The newest record about it. The largest number while that is not journaled.
    newest: Recno,
    /// Lento needs nothing of what records up to here say.
    dealt_with: Recno,
    /// An orphan whose writer has left nothing so far: no record will ever make Lento ask for its release.
    silent: bool,
}

/// Closes remembered for a later fsync: Lento knows by then what older ones left.
const UNSYNCED: usize = 65_536;

impl State {
    fn note_unsynced(&mut self, id: FileId, recno: Recno) {
        self.unsynced.insert(id, recno);
        self.order.push_back((id, recno));
        while self.order.len() > UNSYNCED {
            let Some((oldest, recno)) = self.order.pop_front() else { return };
            if self.unsynced.get(&oldest) == Some(&recno) {
                self.unsynced.remove(&oldest);
            }
        }
    }
}

/// End of an orphan's name.
const ORPHAN: &str = "-orphan";

/// What must be dealt with before a file may go, as long as that record has no number.
const UNKNOWN: Recno = Recno(u64::MAX);

impl Kept {
    fn new(why: Why) -> Kept {
        Kept { why, newest: UNKNOWN, dealt_with: Recno::NONE, silent: why == Why::Orphan }
    }
}

impl Limbo {
    /// Knows what an earlier run left there.
    pub fn open(lower: &Lower) -> Result<Limbo, Errno> {
        let limbo = Limbo::default();
        let dir = rustix::fs::Dir::read_from(lower.limbo())?;
        for entry in dir {
            if let Some((id, why)) = parse(entry?.file_name().to_bytes()) {
                limbo.state.lock().kept.insert(id, Kept { silent: false, ..Kept::new(why) });
            }
        }
        Ok(limbo)
    }

    /// Recovery has read and completed the journal, whose last record is this: nothing an earlier run left here is newer.
    pub fn inherited(&self, last: Recno) {
        for kept in self.state.lock().kept.values_mut() {
            if kept.newest == UNKNOWN {
                kept.newest = last;
            }
        }
    }

    /// The record that put this file here has its number.
    pub fn entered(&self, id: FileId, recno: Recno) {
        if let Some(kept) = self.state.lock().kept.get_mut(&id)
            && kept.newest == UNKNOWN
        {
            kept.newest = recno;
        }
    }

    /// What the writer of an orphan left was journaled.
    pub fn note_orphan(&self, id: FileId, recno: Recno) {
        if let Some(kept) = self.state.lock().kept.get_mut(&id) {
            kept.silent = false;
            kept.newest = recno;
        }
    }

    /// Every record up to here has its verdict; the largest number means that this node never needs limbo.
    pub fn set_settled(&self, recno: Recno) {
        self.settled.store(recno.0, Ordering::Release);
        let mut state = self.state.lock();
        state.last_close.retain(|_, at| *at > recno);
        let State { last_close, synced, .. } = &mut *state;
        synced.retain(|id| last_close.contains_key(id));
    }

    /// The mark set last.
    #[must_use]
    pub fn settled(&self) -> Recno {
        Recno(self.settled.load(Ordering::Acquire))
    }

    /// A user's close of this file was journaled.
    pub fn note_close(&self, id: FileId, recno: Recno) {
        let settled = self.settled();
        let mut state = self.state.lock();
        if recno > settled {
            state.last_close.insert(id, recno);
            state.synced.remove(&id);
        }
        state.note_unsynced(id, recno);
    }

    /// The same of a close that says that its content was made durable.
    pub fn note_synced(&self, id: FileId, recno: Recno) {
        self.note_close(id, recno);
        let mut state = self.state.lock();
        state.unsynced.remove(&id);
        if state.last_close.contains_key(&id) {
            state.synced.insert(id);
        }
    }

    /// Whether others may lack this file's content, and no record says yet that it was synced. A server does not know what
    /// others have.
    #[must_use]
    pub fn lacks_synced(&self, id: FileId) -> bool {
        let state = self.state.lock();
        let is_server = self.settled() == Recno(u64::MAX);
        let lacks = state.last_close.contains_key(&id) && !state.synced.contains(&id);
        lacks || is_server && state.unsynced.contains_key(&id)
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
        self.state.lock().kept.contains_key(&id)
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
        (id, why): (FileId, Why),
    ) -> Result<(), Errno> {
        rustix::fs::renameat(dir, name, lower.limbo(), entry_name(id, why))?;
        self.state.lock().kept.insert(id, Kept::new(why));
        Ok(())
    }

    /// Gives the file a second name in limbo, before the entry is replaced. `abandon` takes it back.
    pub fn keep_by_link(
        &self,
        lower: &Lower,
        dir: impl AsFd,
        name: &[u8],
        (id, why): (FileId, Why),
    ) -> Result<(), Errno> {
        match rustix::fs::linkat(dir, name, lower.limbo(), entry_name(id, why), AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {
                self.state.lock().kept.insert(id, Kept::new(why));
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// The replacement did not happen: the file keeps its name in the tree and loses the one in limbo.
    pub fn abandon(&self, lower: &Lower, id: FileId) -> Result<(), Errno> {
        self.drop_file(lower, id)
    }

    /// Lento needs nothing of what records up to `upto` say about this file. The caller holds the file's lock.
    pub fn release(&self, lower: &Lower, id: FileId, upto: Recno, is_written: bool) -> Result<(), Errno> {
        let may_go = {
            let mut state = self.state.lock();
            let Some(kept) = state.kept.get_mut(&id) else { return Ok(()) };
            kept.dealt_with = kept.dealt_with.max(upto);
            !is_written && kept.newest <= kept.dealt_with
        };
        if may_go { self.drop_file(lower, id) } else { Ok(()) }
    }

    /// Nobody writes to this orphan any more. The caller holds the file's lock.
    pub fn writer_left(&self, lower: &Lower, id: FileId) -> Result<(), Errno> {
        let may_go = {
            let state = self.state.lock();
            state.kept.get(&id).is_some_and(|kept| kept.silent || kept.newest <= kept.dealt_with)
        };
        if may_go { self.drop_file(lower, id) } else { Ok(()) }
    }

    /// Orphans.
    #[must_use]
    pub fn orphans(&self) -> Vec<FileId> {
        let state = self.state.lock();
        state.kept.iter().filter(|(_, kept)| kept.why == Why::Orphan).map(|(id, _)| *id).collect()
    }

    /// The files here with `after` < id <= `to`.
    #[must_use]
    pub fn between(&self, after: Option<FileId>, to: Option<FileId>) -> Vec<FileId> {
        let state = self.state.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        if let (Some(after), Some(to)) = (after, to)
            && after >= to
        {
            return Vec::new();
        }
        state.kept.range((from, to.map_or(Bound::Unbounded, Bound::Included))).map(|(id, _)| *id).collect()
    }

    fn drop_file(&self, lower: &Lower, id: FileId) -> Result<(), Errno> {
        let Some(why) = self.state.lock().kept.get(&id).map(|kept| kept.why) else { return Ok(()) };
        let name = entry_name(id, why);
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
        Ok(())
    }
}

/// Why a file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its content has no verdict.
    Verdict,
    /// A replay took its name while somebody wrote to it.
    Orphan,
}

/// Name of a file in limbo.
fn entry_name(id: FileId, why: Why) -> String {
    let mark = if why == Why::Orphan { ORPHAN } else { "" };
    format!("{}-{}{mark}", id.ino, id.generation)
}

fn parse(name: &[u8]) -> Option<(FileId, Why)> {
    let name = std::str::from_utf8(name).ok()?;
    let (id, why) = name.strip_suffix(ORPHAN).map_or((name, Why::Verdict), |id| (id, Why::Orphan));
    let (ino, generation) = id.split_once('-')?;
    Some((FileId { ino: ino.parse().ok()?, generation: generation.parse().ok()? }, why))
}
