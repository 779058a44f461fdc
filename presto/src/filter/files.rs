//! Open regular files: handles, and the data operations that reach presto.
//!
//! One descriptor per open inode keeps it reachable when its names are gone; it is never open for writing, or presto
//! itself would look like a writer. Where data does not pass in the kernel, a handle keeps a second one for data.
//! `open_files.rs` owns the table of these inodes.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::fs::FileType;
use rustix::fs::OFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Access;
use super::Changes;
use super::Volume;
use super::attributes::has_capability;
use super::now;
use super::open_files::AfterLast;
use super::open_files::OpenFile;
use super::quota::Part;
use super::update::Stop;
use crate::lower::Dir;
use crate::lower::Stat;
use crate::lower::dropping_privileges;
use crate::lower::reopen;
use crate::lower::start_writeback;
use crate::session::Slot;

/// At most this much per read.
const READ_LIMIT: usize = 16 << 20;

/// A descriptor of an object: one that is there anyway, or a fresh O_PATH one.
#[derive(Debug)]
pub enum Object {
    /// Somebody has it open.
    Open(Arc<OpenFile>),
    /// A directory in use.
    Dir(Arc<Dir>),
    /// Nobody has.
    Fresh(OwnedFd),
}

impl AsFd for Object {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Object::Open(open) => open.as_fd(),
            Object::Dir(dir) => dir.as_fd(),
            Object::Fresh(fd) => fd.as_fd(),
        }
    }
}

/// One user's open of a file.
#[derive(Debug)]
pub struct Handle {
    /// Number by which the kernel names it.
    pub number: u64,
    /// The inode.
    pub file: Arc<OpenFile>,
    /// What it was opened for.
    pub access: Access,
    /// Data passes in the kernel.
    passthrough: AtomicBool,
    /// Where it is noted for the next presto.
    pub(super) slot: Option<Slot>,
    data: Mutex<Option<Arc<OwnedFd>>>,
    /// For fsync, once there was one: who syncs once syncs often.
    syncing: OnceLock<OwnedFd>,
}

impl Handle {
    /// Data of this handle passes in the kernel, so presto keeps no descriptor for it.
    pub fn set_passthrough(&self) {
        self.passthrough.store(true, Ordering::Release);
        *self.data.lock() = None;
    }

    pub(super) fn new(number: u64, file: Arc<OpenFile>, access: Access, slot: Option<Slot>) -> Handle {
        Handle {
            number,
            file,
            access,
            passthrough: AtomicBool::new(false),
            slot,
            data: Mutex::new(None),
            syncing: OnceLock::new(),
        }
    }

    fn is_passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Acquire)
    }

    /// A descriptor for data.
    fn data(&self) -> Result<Arc<OwnedFd>, Errno> {
        let mut data = self.data.lock();
        if let Some(fd) = &*data {
            return Ok(Arc::clone(fd));
        }
        let flags = match self.access {
            Access::Read => OFlags::RDONLY,
            // The kernel reads pages around what is written, also on a descriptor that is open for writing only.
            Access::Write | Access::ReadWrite => OFlags::RDWR,
        };
        let fd = Arc::new(dropping_privileges(|| reopen(&*self.file, flags))?);
        if !self.is_passthrough() {
            *data = Some(Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// A descriptor for fsync. It reads only, so that it looks like no writer, and has seen no fewer errors of the disk than
    /// the calls before.
    fn syncing(&self) -> Result<BorrowedFd<'_>, Errno> {
        if let Some(fd) = self.syncing.get() {
            return Ok(fd.as_fd());
        }
        let fd = reopen(&*self.file, OFlags::RDONLY)?;
        Ok(self.syncing.get_or_init(|| fd).as_fd())
    }
}

fn is_regular(stat: &Stat) -> Result<(), Errno> {
    match stat.kind() {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::NXIO),
    }
}

impl Volume {
    /// Opens a regular file.
    pub fn open_file(
        &self,
        caller: Caller,
        id: FileId,
        access: Access,
        truncate: bool,
    ) -> Result<Arc<Handle>, Errno> {
        if truncate {
            self.setattr(caller, id, &Changes { size: Some(0), ..Changes::default() })?;
        }
        loop {
            self.fetch(caller, id)?;
            let handle = if access.writes() {
                self.update(caller, |_| {
                    let _held = self.locks.lock(&[id]);
                    self.open_writing(id, access)
                })?
            } else {
                self.open_reading(id)?
            };
            // From here on it does not leave. It may have left just before.
            match self.open_lacks(&handle.file) {
                Ok(false) => return Ok(handle),
                Ok(true) => self.release(caller, handle.number)?,
                Err(errno) => {
                    self.release(caller, handle.number)?;
                    return Err(errno);
                }
            }
        }
    }

    pub(super) fn open_reading(&self, id: FileId) -> Result<Arc<Handle>, Errno> {
        // Who takes a name away lets go, so what is in the table is as it was at the first open.
        if let Some(handle) = self.files.open_known(id) {
            return Ok(handle);
        }
        let file = Arc::new(OpenFile::new(id, self.lower.path_fd(id)?));
        let handle = self.files.register(file, Access::Read);
        // Looked at afterwards: from now on whoever takes the last name away finds it in the table.
        let looked = Stat::of(&*handle.file).and_then(|stat| is_regular(&stat).map(|()| stat));
        match looked {
            Ok(stat) => {
                if stat.attributes.nlink == 0 {
                    self.files.let_go(id);
                }
                Ok(handle)
            }
            Err(errno) => {
                self.files.remove(handle.number)?;
                self.files.closed(id, AfterLast::LetGo);
                Err(errno)
            }
        }
    }

    pub(super) fn open_writing(&self, id: FileId, access: Access) -> Result<Arc<Handle>, Stop> {
        let file = match self.files.find(id) {
            Some(file) => file,
            None => Arc::new(OpenFile::new(id, self.lower.path_fd(id)?)),
        };
        self.stop_filling(id)?;
        let read_at = now();
        let stat = Stat::of(&*file)?;
        is_regular(&stat)?;
        self.refuse_taken(id, &stat)?;
        self.refuse_unfinished(id)?;
        self.keep_before(id, &*file, &stat);
        let capability = has_capability(&*file, &stat);
        self.quota.opened(id, stat.attributes.size);
        let handle = self.files.open(&self.writers, &stat, file, access, read_at, capability);
        self.note_content(id, access, &*handle.file, &stat);
        Ok(handle)
    }

    /// Reads at most `size` bytes; fewer only at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let fd = self.files.handle(handle)?.data()?;
        let mut data = vec![0; size.min(READ_LIMIT)];
        let mut filled = 0;
        while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&*fd, rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(_) if filled > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    /// Writes all of it or says how much.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let handle = self.files.handle(handle)?;
        if !handle.access.writes() {
            return Err(Errno::BADF);
        }
        let fd = handle.data()?;
        self.written(&handle.file, (offset, data.len() as u64), Part::Welcome, |fits| {
            let data = data.get(..usize::try_from(fits).unwrap_or(usize::MAX)).unwrap_or(data);
            let mut written = 0;
            dropping_privileges(|| {
                while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
                    match rustix::io::pwrite(&*fd, rest, offset.saturating_add(written as u64)) {
                        Ok(0) => break,
                        Ok(count) => written = written.saturating_add(count),
                        Err(Errno::INTR) => {}
                        Err(_) if written > 0 => break,
                        Err(errno) => return Err(errno),
                    }
                }
                Ok(())
            })?;
            Ok(written)
        })
    }

    /// A descriptor is being closed (there may be others of the same open): what was written is complete.
    /// Says whether the file has lost its privilege bits, of which the kernel's caches do not know.
    pub fn flush(&self, caller: Caller, handle: u64) -> Result<bool, Errno> {
        let handle = self.files.handle(handle)?;
        if !handle.access.writes() {
            return Ok(false);
        }
        let lost = self.close_if_changed(caller, handle.file.id);
        self.tell_rest();
        lost
    }

    /// The last descriptor of an open is gone.
    pub fn release(&self, caller: Caller, handle: u64) -> Result<(), Errno> {
        let handle = self.files.remove(handle)?;
        // Our own descriptor for data must not look like a writer.
        *handle.data.lock() = None;
        if handle.access.writes() {
            self.writer_left(caller, handle.file.id);
        }
        // Where presto serves the data itself there is nothing worth keeping.
        let after = if handle.is_passthrough() { AfterLast::Keep } else { AfterLast::LetGo };
        self.files.closed(handle.file.id, after);
        self.files.forget(&handle);
        Ok(())
    }

    /// Makes the file's content and attributes, and the journal up to now, durable.
    pub fn fsync(&self, caller: Caller, handle: u64, only_data: bool) -> Result<(), Errno> {
        let handle = self.files.handle(handle)?;
        // Also by a descriptor for reading: fsync is about the file.
        self.close_for_sync(caller, handle.file.id)?;
        let fd = handle.syncing()?;
        self.sync_with_journal(fd, || {
            if only_data { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
        })?;
        let id = handle.file.id;
        let newest = self.newest(id).unwrap_or(Recno::NONE);
        self.wait_for_server(caller, id, newest)
    }

    /// Makes a directory's entries, and the journal up to now, durable.
    pub fn fsyncdir(&self, caller: Caller, id: FileId) -> Result<(), Errno> {
        let dir = self.lower.dir(id)?;
        self.sync_with_journal(&*dir, || rustix::fs::fsync(&*dir))?;
        // What happens in a directory is noted with what it happens to: all that has begun is waited for.
        self.wait_for_server(caller, id, self.journal.begun())
    }

    /// Runs `sync` of a lower file and makes the journal up to now durable: with the same flush of the device where that
    /// is how the lower file system does it.
    fn sync_with_journal(
        &self,
        lower: impl AsFd,
        sync: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.lower.flushes_journal()
            && let Ok(Some(records)) = self.journal.start_write_out()
        {
            // Both are under way at once.
            let _ = start_writeback(lower);
            if self.journal.wait_written_out(&records).is_ok() {
                return sync();
            }
        }
        sync()?;
        self.sync_journal()
    }

    pub(crate) fn sync_journal(&self) -> Result<(), Errno> {
        match self.journal.sync() {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(target: "filter", volume = self.name, %error, "journal not durable");
                Err(Errno::IO)
            }
        }
    }

    /// fallocate(2). The change of content is journaled at close.
    pub fn fallocate(&self, handle: u64, offset: u64, length: u64, mode: u32) -> Result<(), Errno> {
        let handle = self.files.handle(handle)?;
        if !handle.access.writes() {
            return Err(Errno::BADF);
        }
        let fd = handle.data()?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let allocate = || dropping_privileges(|| rustix::fs::fallocate(&*fd, mode, offset, length));
        if mode.contains(FallocateFlags::KEEP_SIZE) {
            return allocate();
        }
        let all = usize::try_from(length).unwrap_or(usize::MAX);
        self.written(&handle.file, (offset, length), Part::Never, |_| allocate().map(|()| all)).map(drop)
    }

    /// copy_file_range(2) between two open files.
    pub fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    ) -> Result<usize, Errno> {
        let source = self.files.handle(from)?.data()?;
        let to = self.files.handle(to)?;
        if !to.access.writes() {
            return Err(Errno::BADF);
        }
        let target = to.data()?;
        let mut from_offset = from_offset;
        self.written(&to.file, (to_offset, length.min(1 << 30)), Part::Welcome, |fits| {
            dropping_privileges(|| {
                rustix::fs::copy_file_range(
                    &*source,
                    Some(&mut from_offset),
                    &*target,
                    Some(&mut to_offset.clone()),
                    usize::try_from(fits).unwrap_or(usize::MAX),
                )
            })
        })
    }

    /// SEEK_DATA and SEEK_HOLE.
    pub fn lseek(&self, handle: u64, offset: u64, hole: Seek) -> Result<u64, Errno> {
        let handle = self.files.handle(handle)?;
        // A descriptor of its own: the position of a shared one is nobody's.
        let fd = reopen(&*handle.file, OFlags::RDONLY)?;
        match hole {
            Seek::Data => rustix::fs::seek(&fd, SeekFrom::Data(offset)),
            Seek::Hole => rustix::fs::seek(&fd, SeekFrom::Hole(offset)),
        }
    }
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}
