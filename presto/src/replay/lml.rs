//! The LML: files whose contents are being replaced in place, so that a crash in the middle can be finished.
//!
//! Owns `lml/` beside the tree: one small JSON file per install, named after the object, removed when the content is
//! whole. The new content lies in stage/ until then.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use intermezzo_kml::record::{FileId, Mask, Time};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attr::set_attributes;
use super::plan::Give;
use crate::lower::Lower;

const COPY: usize = 1 << 20;

/// One install in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    object: (u64, u64),
    staged: String,
    staged_file: (u64, u64),
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<(i64, u32)>,
}

impl InPlace {
    pub(super) fn new(object: FileId, staged: &str, staged_file: FileId, give: &Give) -> InPlace {
        InPlace {
            object: (object.ino, object.generation),
            staged: staged.to_owned(),
            staged_file: (staged_file.ino, staged_file.generation),
            mode: give.mode,
            uid: give.uid,
            gid: give.gid,
            mtime: give.mtime.map(|time| (time.sec, time.nsec)),
        }
    }

    /// The file that is being overwritten.
    #[must_use]
    pub fn object(&self) -> FileId {
        FileId { ino: self.object.0, generation: self.object.1 }
    }

    fn give(&self) -> Give {
        Give {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime.map(|(sec, nsec)| Time { sec, nsec }),
            rdev: 0,
        }
    }
}

/// The directory of entries.
#[derive(Debug)]
pub struct Lml {
    dir: OwnedFd,
}

impl Lml {
    /// Opens the LML of a volume.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(lower: &Lower) -> Result<Lml, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Lml { dir: rustix::fs::openat(lower.home(), "lml", flags, Mode::empty())? })
    }

    /// Durable before the first byte of the object changes: content first, then the entry.
    pub(super) fn begin(&self, entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        rustix::fs::fsync(&source(entry, lower)?)?;
        let text = serde_json::to_vec(entry).map_err(|_| Errno::INVAL)?;
        let name = name(entry.object());
        let temporary = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file =
            File::from(rustix::fs::openat(&self.dir, &temporary, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(&text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        rustix::fs::fsync(&file)?;
        rustix::fs::renameat(&self.dir, &temporary, &self.dir, &name)?;
        rustix::fs::fsync(&self.dir)
    }

    /// Whether an install of this object is under way.
    #[must_use]
    pub fn has(&self, object: FileId) -> bool {
        rustix::fs::statat(&self.dir, name(object), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Replaces the object's bytes by the staged ones, holes kept, and makes them durable. Can be repeated.
    pub(super) fn copy(&self, entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let from = source(entry, lower)?;
        let to = File::from(lower.open_id(entry.object(), OFlags::WRONLY)?);
        let size = from.metadata().map_err(io)?.len();
        to.set_len(size).map_err(io)?;
        let mut buffer = vec![0; COPY];
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => size,
                Err(errno) => return Err(errno),
            };
            zero(&to, at, data.saturating_sub(at))?;
            let hole =
                if data < size { rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(data))? } else { size };
            at = data;
            while at < hole {
                let want = usize::try_from(hole - at).unwrap_or(COPY).min(COPY);
                let chunk = buffer.get_mut(..want).ok_or(Errno::IO)?;
                from.read_exact_at(chunk, at).map_err(io)?;
                to.write_all_at(chunk, at).map_err(io)?;
                at += u64::try_from(want).map_err(|_| Errno::IO)?;
            }
        }
        to.sync_all().map_err(io)
    }

    /// The content is whole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&self, object: FileId) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.dir, name(object), AtFlags::empty())?;
        // Before anybody writes to the file: an entry that comes back after a power cut would undo that.
        rustix::fs::fsync(&self.dir)
    }

    /// Installs that a crash interrupted. Entries that were never complete are removed: nothing had begun.
    ///
    /// # Errors
    /// The kernel's; EINVAL for an entry that cannot be read.
    pub fn interrupted(&self) -> Result<Vec<InPlace>, Errno> {
        let mut entries = Vec::new();
        let mut dir = rustix::fs::Dir::read_from(&self.dir)?;
        while let Some(found) = dir.read() {
            let found = found?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if name.to_bytes().ends_with(b".new") {
                rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?;
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let mut text = Vec::new();
            File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?)
                .read_to_end(&mut text)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            entries.push(serde_json::from_slice(&text).map_err(|_| Errno::INVAL)?);
        }
        Ok(entries)
    }

    /// Finishes an interrupted install. The staged file goes with the entry.
    ///
    /// # Errors
    /// The kernel's. ESTALE: the object or the staged file is gone.
    pub fn redo(&self, entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        self.copy(entry, lower)?;
        let fd = lower.path_fd(entry.object())?;
        set_attributes(&fd, Mask::MODE | Mask::UID | Mask::GID | Mask::MTIME, &entry.give())
    }

    /// Removes entry and staged file, after the record of a redone install is resolved.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self, entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        self.end(entry.object())?;
        super::stage::remove(lower, &entry.staged)
    }
}

fn source(entry: &InPlace, lower: &Lower) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(lower.stage(), &entry.staged, flags, Mode::empty())?;
    let id = lower.identify(&file)?;
    if (id.ino, id.generation) == entry.staged_file { Ok(file.into()) } else { Err(Errno::STALE) }
}

/// Makes a range of the object read as zeros, as a hole where the file system can.
fn zero(to: &File, at: u64, length: u64) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(to, flags, at, length) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = vec![0; COPY];
            let mut done = 0;
            while done < length {
                let want = usize::try_from(length - done).unwrap_or(COPY).min(COPY);
                let chunk = zeros.get(..want).ok_or(Errno::IO)?;
                to.write_all_at(chunk, at + done)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                done += u64::try_from(want).map_err(|_| Errno::IO)?;
            }
            Ok(())
        }
        other => other,
    }
}

fn name(object: FileId) -> String {
    format!("{}-{}", object.ino, object.generation)
}
