//! Files whose content is not here: a sparse file of the right size, and a mark that says which content it stands for.
//!
//! The mark counts only while the file has bytes: whoever empties it takes the content away first and the mark afterwards, and
//! may be killed in between.

use std::os::fd::AsFd;

use intermezzo_kml::record::Time;
use rustix::fs::AtFlags;
use rustix::fs::FallocateFlags;
use rustix::fs::OFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_OMIT;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::reopen;
use super::xattr;

/// The mark; on the root of a tree: there may be such files in it.
const MARK: &[u8] = b"trusted.intermezzo.lacks";

/// blake3 of a content.
pub type Hash = [u8; 32];

/// The mark of a file, whatever its size. `None`: it has none.
pub fn mark(fd: impl AsFd) -> Result<Option<Hash>, Errno> {
    match xattr::get(fd, MARK) {
        // No node has a content with another mark than this.
        Ok(value) => Ok(Some(Hash::try_from(value.as_slice()).unwrap_or_default())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Marks a file, or a root.
pub fn set_mark(fd: impl AsFd, hash: &Hash) -> Result<(), Errno> {
    xattr::set(fd, MARK, hash, XattrFlags::empty())
}

/// Takes the mark away, if there is one.
pub fn take_mark(fd: impl AsFd) -> Result<(), Errno> {
    match xattr::remove(fd, MARK) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Sets the modification time.
pub fn set_mtime(fd: impl AsFd, mtime: Time) -> Result<(), Errno> {
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let mtime = Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() };
    let times = Timestamps { last_access: keep, last_modification: mtime };
    rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)
}

/// Gives the space of a file back. It is as large as before, and its times are others.
pub fn punch(fd: impl AsFd, size: u64) -> Result<(), Errno> {
    let open = reopen(fd, OFlags::WRONLY)?;
    rustix::fs::fallocate(&open, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, size.max(1))
}
