//! The table of open files: one entry per inode that somebody has open, and per open one handle.
//!
//! What an inode needs to be open (a descriptor, the kernel's backing id) is kept for a while after the last close: most
//! files are opened again soon, and making these anew costs more than the rest of an open. What is kept is nobody's: it
//! does not count as open, and it goes when a name of it goes (at the last close where somebody has it open then), so
//! that it holds no space.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Time;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::Access;
use super::Handle;
use super::writers::Writers;
use crate::lower::Stat;
use crate::session::HeldHandle;
use crate::session::Memory;
use crate::session::Way;

/// At most so many inodes are kept that nobody has open: each costs two open files and one lower inode in memory.
const KEPT: usize = 4096;
/// At most this part of the descriptors that presto may have: other volumes keep some too, and users need them more.
const SHARE: u64 = 16;

/// An inode that somebody has open, or had until a moment ago.
pub struct OpenFile {
    /// Identity.
    pub id: FileId,
    fd: OwnedFd,
    serving: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Its content was found to be here.
    whole: AtomicBool,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OpenFile {
    pub(super) fn new(id: FileId, fd: OwnedFd) -> OpenFile {
        OpenFile { id, fd, serving: OnceLock::new(), whole: AtomicBool::new(false) }
    }

    /// Its content is here, and does not leave as long as somebody has it open.
    pub(super) fn note_whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Whether that was noted.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// What those who serve this inode's data need for it: made once, lives as long as the inode is here. Always called
    /// with the same type, or there is none.
    pub(crate) fn serving<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.serving.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

/// What becomes of an inode that nobody has open any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AfterLast {
    /// It stays for a while.
    Keep,
    /// It goes.
    LetGo,
}

/// All open files of a volume.
#[derive(Debug, Default)]
pub struct Files {
    table: Mutex<Table>,
    handles: Mutex<BTreeMap<u64, Arc<Handle>>>,
    next: AtomicU64,
    /// Where handles are noted for the next presto.
    memory: OnceLock<Arc<Memory>>,
    /// Handles of an earlier presto by the request that opened them: one of which the kernel heard nothing asks again.
    unclaimed: Mutex<BTreeMap<u64, u64>>,
    /// How many are kept; found out at the first close, when the limit of descriptors is what it will be.
    most: OnceLock<usize>,
}

#[derive(Debug, Default)]
struct Table {
    files: BTreeMap<FileId, Slot>,
    /// Those that nobody has open, by the turn of their last close.
    kept: BTreeMap<u64, FileId>,
    turn: u64,
    /// Turn at the last `let_go_old`.
    old: u64,
}

#[derive(Debug)]
struct Slot {
    file: Arc<OpenFile>,
    opens: u32,
    /// What becomes of it when nobody has it open any more.
    after: AfterLast,
    /// Turn of its last close, while nobody has it open.
    turn: u64,
}

impl Slot {
    fn open(&mut self, kept: &mut BTreeMap<u64, FileId>) {
        if self.opens == 0 {
            kept.remove(&self.turn);
        }
        self.opens = self.opens.saturating_add(1);
    }
}

impl Table {
    fn remove_kept(&mut self, id: FileId) -> Option<Arc<OpenFile>> {
        let slot = self.files.get(&id).filter(|slot| slot.opens == 0)?;
        self.kept.remove(&slot.turn);
        self.files.remove(&id).map(|slot| slot.file)
    }

    fn remove_oldest(&mut self) -> Option<Arc<OpenFile>> {
        let (_, id) = self.kept.pop_first()?;
        self.files.remove(&id).map(|slot| slot.file)
    }
}

impl Files {
    /// Registers an open of a regular file for writing. `file` is used if it is not in the table.
    pub(super) fn open(
        &self,
        writers: &Writers,
        stat: &Stat,
        file: Arc<OpenFile>,
        access: Access,
        read_at: Time,
        capability: bool,
    ) -> Arc<Handle> {
        writers.opened(file.id, access, stat.attributes, read_at, capability);
        self.register(file, access)
    }

    /// Registers an open that changes nothing. `file` is used if it is not in the table.
    pub(super) fn register(&self, file: Arc<OpenFile>, access: Access) -> Arc<Handle> {
        self.handle_of(self.count(file), access)
    }

    /// One more open of the inode: of this one, or of what is in the table for it.
    fn count(&self, file: Arc<OpenFile>) -> Arc<OpenFile> {
        let mut table = self.table.lock();
        let Table { files, kept, .. } = &mut *table;
        let id = file.id;
        let slot = files.entry(id).or_insert(Slot { file, opens: 0, after: AfterLast::Keep, turn: 0 });
        slot.open(kept);
        Arc::clone(&slot.file)
    }

    /// Registers another open, for reading, of an inode that is in the table. `None`: it is not there.
    pub(super) fn open_known(&self, id: FileId) -> Option<Arc<Handle>> {
        let file = {
            let mut table = self.table.lock();
            let Table { files, kept, .. } = &mut *table;
            let slot = files.get_mut(&id)?;
            slot.open(kept);
            Arc::clone(&slot.file)
        };
        Some(self.handle_of(file, Access::Read))
    }

    fn handle_of(&self, file: Arc<OpenFile>, access: Access) -> Arc<Handle> {
        let number = self.next.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let slot = self.memory.get().and_then(|memory| memory.add_handle(number, file.id, access));
        let handle = Arc::new(Handle::new(number, file, access, slot));
        self.handles.lock().insert(number, Arc::clone(&handle));
        handle
    }

    /// Notes handles there from now on, with numbers above `first`.
    pub(super) fn keep_in(&self, memory: &Arc<Memory>, first: u64) {
        self.next.store(first, Ordering::Relaxed);
        let _ = self.memory.set(Arc::clone(memory));
    }

    /// Takes over a handle of an earlier presto.
    pub(super) fn resume(&self, held: &HeldHandle, file: Arc<OpenFile>) {
        let file = self.count(file);
        let handle = Handle::new(held.number, file, held.access, Some(held.slot));
        if held.way == Way::Kernel {
            handle.set_passthrough();
        }
        self.handles.lock().insert(held.number, Arc::new(handle));
        if held.unique != 0 {
            self.unclaimed.lock().insert(held.unique, held.number);
        }
    }

    /// The handle that this request has opened when an earlier presto served it.
    pub fn claim(&self, unique: u64) -> Option<Arc<Handle>> {
        let number = self.unclaimed.lock().remove(&unique)?;
        self.handle(number).ok()
    }

    /// No request will ask any more.
    pub fn let_go_unclaimed(&self) {
        self.unclaimed.lock().clear();
    }

    /// Decides how the data of this handle goes, before the kernel is told.
    pub fn set_way(&self, handle: &Handle, way: Way) {
        if way == Way::Kernel {
            handle.set_passthrough();
        }
        if let (Some(memory), Some(slot)) = (self.memory.get(), handle.slot) {
            memory.set_way(slot, way);
        }
    }

    /// A handle is gone with all that followed from it.
    pub(super) fn forget(&self, handle: &Handle) {
        if let (Some(memory), Some(slot)) = (self.memory.get(), handle.slot) {
            memory.remove_handle(slot);
        }
    }

    /// The inode, open or kept.
    #[must_use]
    pub fn find(&self, id: FileId) -> Option<Arc<OpenFile>> {
        self.table.lock().files.get(&id).map(|slot| Arc::clone(&slot.file))
    }

    /// The handle with this number.
    pub fn handle(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.lock().get(&number).map(Arc::clone).ok_or(Errno::BADF)
    }

    /// How many handles there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.lock().len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handles.lock().is_empty()
    }

    pub(super) fn remove(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.lock().remove(&number).ok_or(Errno::BADF)
    }

    /// One open less.
    pub(super) fn closed(&self, id: FileId, after: AfterLast) {
        let most = *self.most.get_or_init(most_kept);
        // What goes is closed when the table is free again.
        let _gone = {
            let mut table = self.table.lock();
            let Table { files, kept, turn, .. } = &mut *table;
            let Some(slot) = files.get_mut(&id) else { return };
            slot.opens = slot.opens.saturating_sub(1);
            if slot.opens > 0 {
                return;
            }
            *turn = turn.saturating_add(1);
            slot.turn = *turn;
            kept.insert(*turn, id);
            match after.max(slot.after) {
                AfterLast::LetGo => table.remove_kept(id),
                AfterLast::Keep if table.kept.len() > most => table.remove_oldest(),
                AfterLast::Keep => None,
            }
        };
    }

    /// A name of this inode has gone: nothing of it is kept, or will be when it is closed.
    pub(crate) fn let_go(&self, id: FileId) {
        let _gone = {
            let mut table = self.table.lock();
            if let Some(slot) = table.files.get_mut(&id) {
                slot.after = AfterLast::LetGo;
            }
            table.remove_kept(id)
        };
    }

    /// Lets go all that is kept.
    pub(super) fn let_go_kept(&self) {
        loop {
            let gone = self.table.lock().remove_oldest();
            if gone.is_none() {
                return;
            }
        }
    }

    /// Lets go what has been kept since before the last call.
    pub(super) fn let_go_old(&self) {
        loop {
            let _gone = {
                let mut table = self.table.lock();
                if table.kept.first_key_value().is_none_or(|(turn, _)| *turn > table.old) {
                    table.old = table.turn;
                    return;
                }
                table.remove_oldest()
            };
        }
    }
}

fn most_kept() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / SHARE).unwrap_or(KEPT).min(KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::Lower;

    fn open(files: &Files, writers: &Writers, id: FileId) -> Arc<Handle> {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let file = Arc::new(OpenFile::new(id, fd));
        files.open(writers, &Stat::default(), file, Access::Read, Time::default(), false)
    }

    fn close(files: &Files, handle: &Handle, after: AfterLast) {
        files.remove(handle.number).unwrap();
        files.closed(handle.file.id, after);
    }

    fn id(ino: u64) -> FileId {
        FileId { ino, generation: 1 }
    }

    fn world() -> (tempfile::TempDir, Files, Writers) {
        let dir = tempfile::tempdir().unwrap();
        let (writers, _) = Writers::open(&Lower::open(dir.path(), None).unwrap()).unwrap();
        (dir, Files::default(), writers)
    }

    #[test]
    fn a_file_opened_again_soon_is_the_same() {
        let (_dir, files, writers) = world();
        let first = open(&files, &writers, id(1));
        assert_eq!(first.file.serving(|| 7), Some(&7));
        close(&files, &first, AfterLast::Keep);
        assert!(files.is_empty(), "what is kept is not open");
        let second = open(&files, &writers, id(1));
        assert!(Arc::ptr_eq(&first.file, &second.file));
        assert_eq!(second.file.serving(|| 8), Some(&7));
        files.let_go(id(1));
        assert!(files.find(id(1)).is_some(), "what is open stays");
        let third = files.open_known(id(1)).unwrap();
        close(&files, &second, AfterLast::Keep);
        assert!(files.find(id(1)).is_some(), "somebody has it open");
        close(&files, &third, AfterLast::Keep);
        assert!(files.find(id(1)).is_none(), "a name of it went while it was open");
    }

    #[test]
    fn what_is_kept_goes() {
        let (_dir, files, writers) = world();
        let gone = |n| files.find(id(n)).is_none();
        close(&files, &open(&files, &writers, id(1)), AfterLast::LetGo);
        assert!(gone(1), "it was not to be kept");
        close(&files, &open(&files, &writers, id(2)), AfterLast::Keep);
        files.let_go(id(2));
        assert!(gone(2), "its name went");
        close(&files, &open(&files, &writers, id(3)), AfterLast::Keep);
        files.let_go_old();
        assert!(!gone(3));
        files.let_go_old();
        assert!(gone(3), "its time was over");
        for n in 10..=10 + most_kept() as u64 {
            close(&files, &open(&files, &writers, id(n)), AfterLast::Keep);
        }
        assert!(gone(10) && !gone(11), "there were too many");
    }
}
