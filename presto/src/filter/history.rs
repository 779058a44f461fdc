//! Earlier contents, where the volume wants them kept: files that lost their last name, whole, and copies of what was about
//! to be changed in place.
//!
//! Owns `history/` beside the tree. A name there is `<record>-<ino>-<generation>`, for a copy with the time and size of the
//! content and `+` its ctime behind it; nothing else is ever unlinked. The record is the newest one that had been begun: it only gives the order
//! in which they go. A content is looked for by file, time and size, so that a power cut which takes records back does not
//! give it to another file; there are several where somebody put the time back (their ctimes differ), and the hash tells which is
//! meant. Lento keeps the story and says from which record on it goes; space is counted here.

mod names;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use intermezzo_kml::record::Time;
use parking_lot::Mutex;
use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Volume;
use crate::lower::Dir;
use crate::lower::Lower;
use crate::lower::Stat;
use crate::lower::reopen;
use crate::lower::xattr::magic;
use names::entry_name;
use names::parse;

/// One round of the sweep may take so long.
const ROUND: Duration = Duration::from_millis(20);
/// Where less than this part of the disk is free, and less than so many bytes, the oldest go.
const SHORT_PART: u64 = 20;
/// No content is kept that takes more than this part of all that may be kept.
const LARGEST_PART: u64 = 4;
const SHORT_BYTES: u64 = 1 << 30;
/// Of a file that is changed in place again and again, one copy for so much time is enough.
const OFTEN: Duration = Duration::from_secs(60);
/// Most contents that are kept, whatever they take: each is known in memory.
const MOST: usize = 1_000_000;
/// Files whose last copies are remembered for that.
const REMEMBERED: usize = 4096;
/// A content younger than this may share its time with the next one.
const YOUNG: i64 = 1;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Bytes on the disk; beyond that the oldest go.
    pub bytes: u64,
    /// Longest content that is copied before it is changed in place, where the file system cannot share its extents.
    pub copy: u64,
}

/// A content of a file, as far as its file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// The file that had it.
    pub file: FileId,
    /// When it was written.
    pub mtime: Time,
    /// Its length.
    pub size: u64,
}

impl Content {
    fn of(file: FileId, attributes: &Attributes) -> Content {
        Content { file, mtime: attributes.mtime, size: attributes.size }
    }
}

/// A content, and when the file was last touched while it had it: a time that is put back leaves that as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Was {
    content: Content,
    /// Not known of copies that an earlier presto has made.
    ctime: Option<Time>,
}

impl Was {
    fn of(file: FileId, attributes: &Attributes) -> Was {
        Was { content: Content::of(file, attributes), ctime: Some(attributes.ctime) }
    }
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    /// The file itself, with its last content.
    Whole(FileId),
    /// A copy of an earlier one.
    Copy(Was),
}

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    /// Something is to be kept, and something is: what everybody asks without the lock.
    on: AtomicBool,
    any: AtomicBool,
    /// The disk was nearly full at the last look.
    short: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keep: Option<Keep>,
    /// Lento needs nothing of what records before this one ended.
    floor: Recno,
    known: BTreeMap<Kept, Recno>,
    /// The same in the order in which they go, with the bytes of each; `None`: not looked at yet.
    order: BTreeMap<(Recno, Kept), Option<u64>>,
    /// How far those that an earlier run left are looked at; `None`: all of them are.
    counting: Option<Bound<(Recno, Kept)>>,
    bytes: u64,
    /// The last copies of a file and when they were made, for those that are changed often.
    last: BTreeMap<FileId, Vec<(Was, Instant)>>,
}

/// What a file takes on the disk.
fn bytes_of(stat: &Stat) -> u64 {
    stat.blocks.saturating_mul(512)
}

impl State {
    fn add(&mut self, kept: Kept, recno: Recno, bytes: Option<u64>) {
        self.remove(kept);
        self.known.insert(kept, recno);
        self.order.insert((recno, kept), bytes);
        self.bytes = self.bytes.saturating_add(bytes.unwrap_or(0));
    }

    /// The next one of which the bytes are not known.
    fn next_uncounted(&mut self) -> Option<Kept> {
        let mut rest = self.order.range((self.counting?, Bound::Unbounded));
        let next = rest.find(|(_, bytes)| bytes.is_none()).map(|(turn, _)| *turn);
        self.counting = next.map(Bound::Excluded);
        next.map(|(_, kept)| kept)
    }

    fn counted(&mut self, kept: Kept, found: u64) {
        let Some(recno) = self.known.get(&kept) else { return };
        if let Some(bytes @ None) = self.order.get_mut(&(*recno, kept)) {
            *bytes = Some(found);
            self.bytes = self.bytes.saturating_add(found);
        }
    }

    /// Copies of this content, the newest first.
    fn copies(&self, content: Content) -> Vec<(Recno, Kept)> {
        let latest = Some(Time { sec: i64::MAX, nsec: u32::MAX });
        let [from, to] = [None, latest].map(|ctime| Kept::Copy(Was { content, ctime }));
        let mut copies: Vec<_> = self.known.range(from..=to).map(|(kept, recno)| (*recno, *kept)).collect();
        copies.sort_unstable_by(|one, other| other.cmp(one));
        copies
    }

    fn remove(&mut self, kept: Kept) {
        self.give_up(kept);
        self.known.remove(&kept);
    }

    /// It stays, and has no turn to go any more.
    fn give_up(&mut self, kept: Kept) {
        let turn = self.known.get(&kept).map(|recno| (*recno, kept));
        let bytes = turn.and_then(|turn| self.order.remove(&turn)).flatten().unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The next one to go, if one has to.
    fn due(&self, is_short: bool) -> Option<Kept> {
        let ((recno, kept), _) = self.order.first_key_value()?;
        let too_much = self.keep.is_none_or(|keep| self.bytes > keep.bytes) || self.known.len() > MOST;
        (too_much || is_short || *recno < self.floor).then_some(*kept)
    }

    /// Notes a copy of this file; the one that is not worth keeping beside it.
    fn copied(&mut self, was: Was) -> Option<Was> {
        let file = was.content.file;
        if self.last.len() >= REMEMBERED && !self.last.contains_key(&file) {
            self.last.pop_first();
        }
        let now = Instant::now();
        let last = self.last.entry(file).or_default();
        last.push((was, now));
        let [.., (_, before), (middle, _), _] = last.as_slice() else { return None };
        let needless = (now.duration_since(*before) < OFTEN).then_some(*middle);
        let at = last.len() - if needless.is_some() { 2 } else { 3 };
        last.remove(at);
        needless
    }
}

impl History {
    /// Knows what an earlier run left there, by the names alone: how much each takes is looked at later. Those that an
    /// operation had put there which was cut short (`is_doubtful` by the record) are looked at now: a file that has a name in the
    /// tree as well was not removed after all.
    pub fn open(lower: &Lower, is_doubtful: impl Fn(Recno) -> bool) -> Result<History, Errno> {
        let mut state = State { counting: Some(Bound::Unbounded), ..State::default() };
        for entry in rustix::fs::Dir::read_from(lower.history())? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let Some((recno, kept)) = parse(name) else { continue };
            if matches!(kept, Kept::Whole(_))
                && is_doubtful(recno)
                && Stat::at(lower.history(), name)?.attributes.nlink > 1
            {
                rustix::fs::unlinkat(lower.history(), name, AtFlags::empty())?;
                continue;
            }
            state.add(kept, recno, None);
        }
        let any = AtomicBool::new(!state.known.is_empty());
        Ok(History { any, state: Mutex::new(state), ..History::default() })
    }

    /// From now on so much is kept; `None`: nothing, and what is there goes.
    pub fn set_keep(&self, keep: Option<Keep>) {
        self.state.lock().keep = keep;
        self.on.store(keep.is_some(), Ordering::Release);
    }

    /// Lento needs nothing of what records before this one ended.
    pub fn set_floor(&self, floor: Recno) {
        let mut state = self.state.lock();
        state.floor = state.floor.max(floor);
    }

    /// Whether anything is to be kept: it is wanted, and there is room for more than users need.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire) && !self.short.load(Ordering::Acquire)
    }

    /// Whether this file has no name but the one here.
    #[must_use]
    pub fn contains(&self, id: FileId) -> bool {
        self.any.load(Ordering::Acquire) && self.state.lock().known.contains_key(&Kept::Whole(id))
    }

    /// How many contents are kept, and their bytes on the disk, as far as they are counted since the start.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.known.len(), state.bytes)
    }

    /// Moves the entry, which is this file's last name, here: in one step it is gone from the tree and kept.
    fn keep_by_rename(
        &self,
        lower: &Lower,
        (dir, name): (&Dir, &[u8]),
        (id, stat): (FileId, &Stat),
        after: Recno,
    ) -> Result<(), Errno> {
        let kept = Kept::Whole(id);
        rustix::fs::renameat(dir, name, lower.history(), entry_name(after, kept))?;
        self.add(kept, after, stat);
        Ok(())
    }

    /// Gives the file a second name here, before the entry is replaced. `abandon` takes it back.
    fn keep_by_link(
        &self,
        lower: &Lower,
        (dir, name): (&Dir, &[u8]),
        (id, stat): (FileId, &Stat),
        after: Recno,
    ) -> Result<(), Errno> {
        let kept = Kept::Whole(id);
        match rustix::fs::linkat(dir, name, lower.history(), entry_name(after, kept), AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {
                self.add(kept, after, stat);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// The replacement did not happen: the file keeps its name in the tree and loses the one here.
    pub fn abandon(&self, lower: &Lower, id: FileId) -> Result<(), Errno> {
        self.drop_one(lower, Kept::Whole(id))
    }

    /// A copy of what the file holds, which is about to be changed in place. `Ok(false)`: it is too long for that.
    fn keep_copy(&self, lower: &Lower, file: impl AsFd, was: Was, after: Recno) -> Result<bool, Errno> {
        let (kept, content) = (Kept::Copy(was), was.content);
        let longest = {
            let state = self.state.lock();
            let Some(keep) = state.keep else { return Ok(false) };
            if state.known.contains_key(&kept) {
                return Ok(true);
            }
            keep.copy
        };
        let from = reopen(file, OFlags::RDONLY | OFlags::NOATIME)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let to = rustix::fs::openat(lower.history(), c".", flags, Mode::from_raw_mode(0o600))?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            if content.size > longest {
                return Ok(false);
            }
            copy(&from, &to, content.size)?;
        }
        let name = entry_name(after, kept);
        match rustix::fs::linkat(rustix::fs::CWD, magic(&to), lower.history(), &name, AtFlags::SYMLINK_FOLLOW)
        {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.add(kept, after, &Stat::of(&to)?);
        let needless = self.state.lock().copied(was);
        needless.map_or(Ok(()), |needless| self.drop_one(lower, Kept::Copy(needless)))?;
        Ok(true)
    }

    /// Nobody writes to the file any more, and this is its content. A copy of just that is good for nothing.
    fn not_changed(&self, lower: &Lower, was: Was, now: Time) -> Result<(), Errno> {
        if now.sec.saturating_sub(was.content.mtime.sec) <= YOUNG {
            return Ok(());
        }
        if let Some(last) = self.state.lock().last.get_mut(&was.content.file) {
            last.retain(|(known, _)| *known != was);
        }
        self.drop_one(lower, Kept::Copy(was))
    }

    /// Opens a content for reading, wherever it is: a copy, the file itself here, or in the tree if that still holds it. What
    /// seems to be it may be several; `nth` of them.
    pub fn find(&self, lower: &Lower, content: Content, nth: usize) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut before = 0;
        let copies = self.state.lock().copies(content);
        for (recno, copy) in copies {
            if before < nth {
                before += 1;
                continue;
            }
            match rustix::fs::openat(lower.history(), entry_name(recno, copy), flags, Mode::empty()) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        if before < nth {
            return Ok(None);
        }
        let there = |stat: Stat| stat.is_file() && Content::of(content.file, &stat.attributes) == content;
        match lower.stat(content.file) {
            Ok(stat) if there(stat) => {
                lower.open_id(content.file, OFlags::RDONLY | OFlags::NOATIME).map(Some)
            }
            Ok(_) | Err(Errno::STALE | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a content is kept at all. One that is a large part of what may be kept would push out all others.
    fn has_room_for(&self, stat: &Stat) -> bool {
        // Without the lock where nothing is kept: each removal asks.
        self.is_on() && self.state.lock().keep.is_some_and(|keep| bytes_of(stat) <= keep.bytes / LARGEST_PART)
    }

    /// Lets go what is too old or too much, for a moment. Says whether there is more to do.
    pub fn sweep(&self, lower: &Lower) -> Result<bool, Errno> {
        if !self.on.load(Ordering::Acquire) && !self.any.load(Ordering::Acquire) {
            return Ok(false);
        }
        let disk = rustix::fs::fstatvfs(lower.history())?;
        let is_short = disk.f_bavail < (disk.f_blocks / SHORT_PART).min(SHORT_BYTES / disk.f_frsize.max(1));
        if is_short && !self.short.swap(is_short, Ordering::AcqRel) {
            tracing::warn!(target: "history", cache = %lower.path.display(),
                "the disk is nearly full: earlier contents go before their time, and no more are kept");
        }
        self.short.store(is_short, Ordering::Release);
        let until = Instant::now() + ROUND;
        while Instant::now() < until
            && let Some(kept) = self.uncounted()
        {
            self.count(lower, kept)?;
        }
        while Instant::now() < until {
            let Some(kept) = self.state.lock().due(is_short) else { return Ok(false) };
            if let Err(errno) = self.drop_one(lower, kept) {
                // The others must go all the same. The next start counts it again.
                self.state.lock().give_up(kept);
                tracing::warn!(target: "history", cache = %lower.path.display(), ?kept, %errno,
                    "an earlier content cannot be removed; it takes its room");
            }
        }
        Ok(true)
    }

    fn uncounted(&self) -> Option<Kept> {
        self.state.lock().next_uncounted()
    }

    /// Looks at one that an earlier run left.
    fn count(&self, lower: &Lower, kept: Kept) -> Result<(), Errno> {
        let Some(recno) = self.state.lock().known.get(&kept).copied() else { return Ok(()) };
        match Stat::at(lower.history(), entry_name(recno, kept).as_bytes()) {
            // Its removal had failed, and so had taking this name away.
            Ok(stat) if matches!(kept, Kept::Whole(_)) && stat.attributes.nlink > 1 => {
                self.drop_one(lower, kept)
            }
            Ok(stat) => {
                self.state.lock().counted(kept, bytes_of(&stat));
                Ok(())
            }
            Err(Errno::NOENT) => {
                self.state.lock().remove(kept);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    fn add(&self, kept: Kept, after: Recno, stat: &Stat) {
        self.state.lock().add(kept, after, Some(bytes_of(stat)));
        self.any.store(true, Ordering::Release);
    }

    fn drop_one(&self, lower: &Lower, kept: Kept) -> Result<(), Errno> {
        let Some(recno) = self.state.lock().known.get(&kept).copied() else { return Ok(()) };
        let name = entry_name(recno, kept);
        if let Kept::Whole(id) = kept
            && lower.find(lower.history(), name.as_bytes())?.is_some_and(|there| there != id)
        {
            // Not the file that the name says: never unlink what we did not put there.
            return Err(Errno::STALE);
        }
        match rustix::fs::unlinkat(lower.history(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        self.state.lock().remove(kept);
        Ok(())
    }
}

impl Volume {
    /// Whether this file has no name in the tree, whatever its link count says: it is in limbo or kept as an earlier one.
    pub(crate) fn is_aside(&self, id: FileId) -> bool {
        self.limbo.contains(id) || self.history.contains(id)
    }

    /// Whether a file that loses its last name is to be kept.
    pub(crate) fn keeps_history_of(&self, stat: &Stat) -> bool {
        stat.is_file() && stat.attributes.size > 0 && self.history.has_room_for(stat)
    }

    /// Moves the entry, a file's last name, among the earlier ones. Says whether: a removal must not fail for want of it.
    pub(crate) fn keep_removed(&self, place: (&Dir, &[u8]), file: (FileId, &Stat)) -> bool {
        let kept = self.history.keep_by_rename(&self.lower, place, file, self.journal.begun());
        self.has_kept(file.0, kept)
    }

    /// Gives a file that is about to be replaced a second name among the earlier ones. `History::abandon` takes it back.
    pub(crate) fn keep_replaced(&self, place: (&Dir, &[u8]), file: (FileId, &Stat)) -> bool {
        let kept = self.history.keep_by_link(&self.lower, place, file, self.journal.begun());
        self.has_kept(file.0, kept)
    }

    fn has_kept(&self, id: FileId, kept: Result<(), Errno>) -> bool {
        if let Err(errno) = kept {
            tracing::warn!(target: "history", volume = self.name, object = %id, %errno,
                "a file that goes is not kept");
        }
        kept.is_ok()
    }

    /// What a file holds is about to be changed in place: a copy is kept, if that can be done. Its lock is held.
    pub(crate) fn keep_before(&self, id: FileId, file: impl AsFd, stat: &Stat) {
        // Who has it open for writing has changed it by now, or may have.
        let is_open = || self.writers.get(id).is_some_and(|writer| writer.open > 0);
        if !self.keeps_history_of(stat) || self.is_removed(id, stat) || is_open() {
            return;
        }
        let was = Was::of(id, &stat.attributes);
        let kept = self.is_local(&file).and_then(|local| {
            if local {
                Ok(true)
            } else {
                self.history.keep_copy(&self.lower, &file, was, self.journal.begun())
            }
        });
        match kept {
            Ok(true) => {}
            Ok(false) => {
                tracing::debug!(target: "history", volume = self.name, object = %id, size = was.content.size,
                "too long to be copied: what it holds now is not kept")
            }
            Err(errno) => tracing::warn!(target: "history", volume = self.name, object = %id, %errno,
                "what a file holds before it is changed is not kept"),
        }
    }

    /// The last writer of a file has left it. Its lock is held.
    pub(super) fn keep_after(&self, id: FileId) {
        if !self.history.is_on() {
            return;
        }
        let left = self.lower.stat(id).and_then(|stat| {
            self.history.not_changed(&self.lower, Was::of(id, &stat.attributes), super::now())
        });
        if let Err(errno) = left
            && !matches!(errno, Errno::STALE | Errno::NOENT)
        {
            tracing::warn!(target: "history", volume = self.name, object = %id, %errno, "a copy that is not needed stays");
        }
    }
}

fn copy(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    let mut left = size;
    while left > 0 {
        let step = usize::try_from(left.min(1 << 30)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, None, to, None, step) {
            Ok(0) => return Ok(()),
            Ok(copied) => left = left.saturating_sub(copied as u64),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn was(ino: u64, sec: i64) -> Was {
        let content = Content { file: FileId { ino, generation: 1 }, mtime: Time { sec, nsec: 7 }, size: 3 };
        Was { content, ctime: Some(Time { sec: sec - 1, nsec: 9 }) }
    }

    #[test]
    fn of_many_copies_the_newest_stays_and_one_for_a_while() {
        let mut state = State::default();
        assert_eq!(state.copied(was(1, 1)), None);
        assert_eq!(state.copied(was(1, 2)), None);
        assert_eq!(state.copied(was(1, 3)), Some(was(1, 2)));
        assert_eq!(state.copied(was(2, 9)), None, "another file");
        assert_eq!(state.copied(was(1, 4)), Some(was(1, 3)));
    }

    #[test]
    fn the_oldest_goes_first_and_only_what_must() {
        let whole = |ino| Kept::Whole(FileId { ino, generation: 1 });
        let mut state = State { keep: Some(Keep { bytes: 10, copy: 0 }), ..State::default() };
        state.add(whole(1), Recno(5), Some(4));
        state.add(whole(2), Recno(3), Some(4));
        assert_eq!(state.due(false), None);
        assert_eq!(state.due(true), Some(whole(2)), "the disk is short");
        state.add(whole(3), Recno(9), Some(4));
        assert_eq!(state.due(false), Some(whole(2)));
        state.remove(whole(2));
        assert_eq!((state.due(false), state.bytes), (None, 8));
        state.floor = Recno(6);
        assert_eq!(state.due(false), Some(whole(1)));
        state.keep = None;
        state.remove(whole(1));
        assert_eq!(state.due(false), Some(whole(3)), "nothing is wanted any more");
    }

    #[test]
    fn what_was_left_is_counted_bit_by_bit_and_only_once() {
        let whole = |ino| Kept::Whole(FileId { ino, generation: 1 });
        let mut state = State { counting: Some(Bound::Unbounded), ..State::default() };
        for (ino, recno) in [(1, 5), (2, 3), (3, 9)] {
            state.add(whole(ino), Recno(recno), None);
        }
        assert_eq!(state.next_uncounted(), Some(whole(2)));
        state.counted(whole(2), 7);
        state.counted(whole(2), 7);
        state.add(whole(4), Recno(6), Some(1));
        state.remove(whole(1));
        assert_eq!(state.next_uncounted(), Some(whole(3)));
        state.counted(whole(3), 2);
        assert_eq!((state.next_uncounted(), state.bytes), (None, 10));
        assert_eq!(state.next_uncounted(), None);
    }
}
