//! Reading directories, by the lower file system's own cookies, so that a stream survives anything but its directory.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RawDir;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Entry;
use super::Volume;
use crate::lower::Dir;

/// Bytes asked of the lower file system at once.
const CHUNK: usize = 32 << 10;

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// Where the stream goes on after it.
    pub next: u64,
    /// Type, where the lower file system tells.
    pub kind: FileType,
}

#[derive(Debug)]
struct Stream {
    dir: Arc<Dir>,
    fd: OwnedFd,
    /// Read and not yet delivered, the first of them at `position`.
    names: VecDeque<Name>,
    position: u64,
    at_end: bool,
    /// Changes of the directory that had come before any of these names was read.
    seen: u64,
}

/// Open directories of a volume.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Mutex<BTreeMap<u64, Arc<Mutex<Stream>>>>,
    changes: Mutex<BTreeMap<FileId, Changes>>,
    next: AtomicU64,
    /// Streams up to this number are an earlier presto's.
    first: AtomicU64,
}

/// What replays did to a directory while somebody reads it. The kernel may put names into its cache that it was given
/// before a change and after it was told to forget them: so it is told again when it has certainly taken them.
#[derive(Debug, Default)]
struct Changes {
    streams: u32,
    count: u64,
}

impl Streams {
    /// Gives out numbers above `first` only.
    pub(super) fn start_at(&self, first: u64) {
        self.first.store(first, Ordering::Relaxed);
        self.next.store(first, Ordering::Relaxed);
    }

    fn is_known(&self, number: u64) -> bool {
        self.streams.lock().contains_key(&number)
    }

    fn insert(&self, number: u64, dir: Arc<Dir>, fd: OwnedFd) {
        let seen = {
            let mut changes = self.changes.lock();
            let here = changes.entry(dir.id).or_default();
            here.streams = here.streams.saturating_add(1);
            here.count
        };
        let stream = Stream { dir, fd, names: VecDeque::new(), position: 0, at_end: false, seen };
        self.streams.lock().insert(number, Arc::new(Mutex::new(stream)));
    }

    /// One stream less; how many changes there were.
    fn leave(&self, dir: FileId) -> u64 {
        let mut changes = self.changes.lock();
        let Some(here) = changes.get_mut(&dir) else { return 0 };
        let count = here.count;
        here.streams = here.streams.saturating_sub(1);
        if here.streams == 0 {
            changes.remove(&dir);
        }
        count
    }

    fn changed(&self, dir: FileId) {
        if let Some(here) = self.changes.lock().get_mut(&dir) {
            here.count = here.count.wrapping_add(1);
        }
    }

    fn changes(&self, dir: FileId) -> u64 {
        self.changes.lock().get(&dir).map_or(0, |here| here.count)
    }
}

impl Volume {
    /// Opens a directory for reading; the number of the stream.
    pub fn opendir(&self, id: FileId) -> Result<u64, Errno> {
        let dir = self.lower.dir(id)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*dir, c".", flags, Mode::empty())?;
        let number = self.streams.next.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.streams.insert(number, dir, fd);
        Ok(number)
    }

    /// Makes a stream of an earlier presto one of this one: it goes on by the lower file system's cookies.
    pub fn resume_stream(&self, number: u64, id: FileId) -> Result<(), Errno> {
        if number > self.streams.first.load(Ordering::Relaxed) || self.streams.is_known(number) {
            return Ok(());
        }
        // It may have been removed meanwhile: then nothing is in it.
        let gone = |errno| if errno == Errno::STALE { Errno::NOENT } else { errno };
        let dir = self.lower.dir(id).map_err(gone)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*dir, c".", flags, Mode::empty()).map_err(gone)?;
        self.streams.insert(number, dir, fd);
        Ok(())
    }

    /// Hands out names from `offset` on, until there are no more or `take` says that it is full (`false`; that name is
    /// handed out again the next time). `.` and `..` are among them.
    pub fn readdir(
        &self,
        stream: u64,
        offset: u64,
        mut take: impl FnMut(&Dir, &Name) -> bool,
    ) -> Result<(), Errno> {
        let stream = self.streams.streams.lock().get(&stream).map(Arc::clone).ok_or(Errno::BADF)?;
        let mut stream = stream.lock();
        let changes = self.streams.changes(stream.dir.id);
        let is_changed = stream.seen != changes;
        if is_changed {
            // What was handed out before has been taken, or this would not be asked.
            self.notifier.inode(stream.dir.id);
            stream.seen = changes;
        }
        if stream.position != offset || offset == 0 || is_changed {
            rustix::fs::seek(&stream.fd, SeekFrom::Start(offset))?;
            stream.names.clear();
            stream.position = offset;
            stream.at_end = false;
        }
        loop {
            if stream.names.is_empty() {
                if stream.at_end || !stream.fill()? {
                    return Ok(());
                }
                continue;
            }
            let Some(name) = stream.names.front() else { return Ok(()) };
            if !self.lower.hides(stream.dir.id, &name.name) && !take(&stream.dir, name) {
                return Ok(());
            }
            if let Some(name) = stream.names.pop_front() {
                stream.position = name.next;
            }
        }
    }

    /// Closes a stream.
    pub fn releasedir(&self, number: u64) -> Result<(), Errno> {
        let stream = self.streams.streams.lock().remove(&number).ok_or(Errno::BADF)?;
        let stream = stream.lock();
        if self.streams.leave(stream.dir.id) != stream.seen {
            self.notifier.inode(stream.dir.id);
        }
        Ok(())
    }

    /// Names in this directory are not what the kernel was told. Called after the change.
    pub(crate) fn listing_changed(&self, dir: FileId) {
        self.streams.changed(dir);
        self.notifier.inode(dir);
    }

    /// What a name read from a directory means now; `None` if it is gone.
    pub fn resolve(&self, dir: &Dir, name: &[u8]) -> Result<Option<Entry>, Errno> {
        match self.entry_at(dir, name) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl Stream {
    /// Whether there was more.
    fn fill(&mut self) -> Result<bool, Errno> {
        let mut buffer = vec![MaybeUninit::uninit(); CHUNK];
        let mut raw = RawDir::new(&self.fd, &mut buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            self.names.push_back(Name {
                name: entry.file_name().to_bytes().to_vec(),
                next: entry.next_entry_cookie(),
                kind: entry.file_type(),
            });
            if raw.is_buffer_empty() {
                break;
            }
        }
        self.at_end = self.names.is_empty();
        Ok(!self.at_end)
    }
}
