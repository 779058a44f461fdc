//! New objects, built under a name of presto's own in stage/ so that they appear whole.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::{FileId, Origin};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::apply::times;
use super::plan::{Content, Give, Xattr};
use super::{Replayer, Stop};
use crate::lower::{Lower, Stat, errno_of, missing};

/// Names in stage/ that presto itself uses: Lento's have neither `m` nor `.`.
pub(crate) const PREFIX: &str = "make.";

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An object in stage/, complete but for its name.
pub(super) struct Built {
    pub file: FileId,
    name: String,
    kind: FileType,
    /// Lento staged it: on failure it stays for another try.
    staged: bool,
}

impl Built {
    /// Gives it its place, and says what it is there. Under its name users find it at once, and what they store is no
    /// part of this: the record would give their content the hash of this one.
    pub fn rename(
        &self,
        lower: &Lower,
        dir: impl AsFd,
        name: &[u8],
        flags: RenameFlags,
    ) -> Result<Attributes, Errno> {
        let built = Stat::at(lower.stage(), self.name.as_bytes())?.attributes;
        rustix::fs::renameat_with(lower.stage(), &self.name, &dir, name, flags)?;
        let placed = Stat::at(&dir, name).map_or(built, |stat| stat.attributes);
        // The rename stamps it; any other stamp comes with another content, and belongs to that.
        let untouched = (placed.size, placed.mtime) == (built.size, built.mtime);
        Ok(Attributes { ctime: if untouched { placed.ctime } else { built.ctime }, ..built })
    }

    /// Its name in stage/.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It is not wanted after all.
    pub fn discard(&self, lower: &Lower) {
        if !self.staged {
            self.remove(lower);
        }
    }

    fn remove(&self, lower: &Lower) {
        let flags = if self.kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if lower.find(lower.stage(), self.name.as_bytes()) == Ok(Some(self.file)) {
            let _ = rustix::fs::unlinkat(lower.stage(), &self.name, flags);
        }
    }
}

impl Replayer {
    /// Builds an object with all attributes, extended attributes, content and its modification time.
    pub(super) fn build(
        &self,
        give: &Give,
        symlink: &[u8],
        content: Option<&Content>,
        xattrs: &[Xattr],
        origin: &Origin,
    ) -> Result<Built, Stop> {
        let lower = &self.volume.lower;
        let kind = FileType::from_raw_mode(give.mode);
        if let Some(Content::Staged(name, size)) = content {
            let file = open_staged(lower, name, *size)?;
            let built = Built { file: lower.identify(&file)?, name: name.clone(), kind, staged: true };
            finish(lower, name, kind, give, xattrs).map_err(refused)?;
            return Ok(built);
        }
        let name = format!("{PREFIX}{:x}", NEXT.fetch_add(1, Ordering::Relaxed));
        if kind == FileType::RegularFile {
            let filling = match content {
                Some(Content::Inline(bytes)) => Filling::Bytes(bytes),
                Some(Content::Missing(size)) => {
                    self.volume.may_lack().map_err(refused)?;
                    Filling::Nothing(*size, origin.hash)
                }
                _ => Filling::Bytes(&[]),
            };
            return build_file(lower, name, &filling, give, xattrs);
        }
        clear(lower, &name)?;
        let stage = lower.stage();
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(stage, &name, Mode::from_raw_mode(0o700)).map_err(refused)?
            }
            FileType::Symlink => rustix::fs::symlinkat(symlink, stage, &name).map_err(refused)?,
            kind => {
                rustix::fs::mknodat(stage, &name, kind, Mode::from_raw_mode(0o600), give.rdev)
                    .map_err(refused)?;
            }
        }
        let file = lower.child(stage, name.as_bytes()).map_err(refused)?;
        let built = Built { file, name, kind, staged: false };
        if let Err(errno) = finish(lower, &built.name, kind, give, xattrs) {
            built.discard(lower);
            return Err(refused(errno));
        }
        Ok(built)
    }
}

/// A failure in stage/ is never a stale precondition.
fn refused(errno: Errno) -> Stop {
    Stop::Refused(errno, format!("while building in stage/: {errno}"))
}

/// Opens a staged file that is as complete as the item says.
pub(super) fn open_staged(lower: &Lower, name: &str, size: u64) -> Result<OwnedFd, Stop> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(lower.stage(), name, flags, Mode::empty())
        .map_err(|errno| Stop::Refused(errno, format!("staged file {name}: {errno}")))?;
    let stat = Stat::of(&file)?;
    if !stat.is_file() || stat.attributes.nlink != 1 || stat.attributes.size != size {
        let message = format!("staged file {name} has {} bytes, the item says {size}", stat.attributes.size);
        return Err(Stop::Refused(Errno::INVAL, message));
    }
    Ok(file)
}

/// What is put into a new file.
enum Filling<'a> {
    Bytes(&'a [u8]),
    /// So many bytes are to be there, of this content, and none is.
    Nothing(u64, missing::Hash),
}

/// Most of what a replica gets are small files, so all is done by one descriptor, and only what needs to be.
fn build_file(
    lower: &Lower,
    name: String,
    filling: &Filling<'_>,
    give: &Give,
    xattrs: &[Xattr],
) -> Result<Built, Stop> {
    let file = create(lower, &name, give.mode)?;
    let id = lower.identify(&file).map_err(refused)?;
    let built = Built { file: id, name, kind: FileType::RegularFile, staged: false };
    if let Err(errno) = fill(file, filling, give, xattrs) {
        built.discard(lower);
        return Err(refused(errno));
    }
    Ok(built)
}

fn create(lower: &Lower, name: &str, mode: u32) -> Result<File, Stop> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(lower.stage(), name, flags, Mode::from_raw_mode(mode & 0o777));
    match open() {
        Err(Errno::EXIST) => {
            clear(lower, name)?;
            open().map(File::from).map_err(refused)
        }
        made => made.map(File::from).map_err(refused),
    }
}

/// In the order of `finish`.
fn fill(mut file: File, filling: &Filling<'_>, give: &Give, xattrs: &[Xattr]) -> Result<(), Errno> {
    match filling {
        Filling::Bytes(bytes) => file.write_all(bytes).map_err(errno_of)?,
        Filling::Nothing(size, hash) => {
            missing::set_mark(&file, hash)?;
            file.set_len(*size).map_err(errno_of)?;
        }
    }
    let born = Stat::of(&file)?.attributes;
    if (born.uid, born.gid) != (give.uid, give.gid) {
        rustix::fs::fchown(&file, Some(Uid::from_raw(give.uid)), Some(Gid::from_raw(give.gid)))?;
    }
    if born.mode & 0o7777 != give.mode & 0o7777 {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(give.mode & 0o7777))?;
    }
    for (key, value) in xattrs {
        rustix::fs::fsetxattr(&file, key.as_slice(), value, XattrFlags::empty())?;
    }
    match give.mtime {
        Some(mtime) => rustix::fs::futimens(&file, &times(mtime)),
        None => Ok(()),
    }
}

/// A leftover of presto's own under this name goes first.
fn clear(lower: &Lower, name: &str) -> Result<(), Stop> {
    match rustix::fs::unlinkat(lower.stage(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            rustix::fs::unlinkat(lower.stage(), name, AtFlags::REMOVEDIR).map_err(refused)
        }
        Err(errno) => Err(refused(errno)),
    }
}

/// Owner, mode, extended attributes, then the time: each step may undo a later one's work, not an earlier one's.
fn finish(lower: &Lower, name: &str, kind: FileType, give: &Give, xattrs: &[Xattr]) -> Result<(), Errno> {
    let stage = lower.stage();
    rustix::fs::chownat(
        stage,
        name,
        Some(Uid::from_raw(give.uid)),
        Some(Gid::from_raw(give.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(stage, name, Mode::from_raw_mode(give.mode & 0o7777), AtFlags::empty())?;
    }
    if !xattrs.is_empty() {
        let path = format!("/proc/self/fd/{}/{name}", stage.as_raw_fd());
        for (key, value) in xattrs {
            rustix::fs::lsetxattr(&path, key.as_slice(), value, XattrFlags::empty())?;
        }
    }
    if let Some(mtime) = give.mtime {
        rustix::fs::utimensat(stage, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
