//! Memory that outlives presto: a sealed memfd, mapped, read and written as atomic words.
//!
//! A store is there for the next presto once it has happened: a kill takes no stores back, only a power cut does, and that
//! takes the mounts along. And the two calls on a FUSE device that the library keeps to itself.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

const WORD: usize = size_of::<u64>();
/// FUSE_DEV_IOC_BACKING_CLOSE: _IOW(229, 2, uint32_t).
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502u32 as libc::Ioctl;

/// The mapped words.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
    base: *mut libc::c_void,
    words: usize,
}

// SAFETY: the mapping lives as long as the value, is not moved, and is only ever reached through atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// New words, all zero. Those never touched take no memory.
    pub fn create(words: usize) -> Result<Shared, Errno> {
        let fd = rustix::fs::memfd_create(c"presto", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let bytes = u64::try_from(words.saturating_mul(WORD)).map_err(|_| Errno::NOMEM)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Shared::map(fd, words)
    }

    /// What an earlier presto made, if it has this many words and cannot lose any.
    pub fn open(fd: OwnedFd, words: usize) -> Result<Shared, Errno> {
        let sealed = rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK);
        let bytes = usize::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        if !sealed || Some(bytes) != words.checked_mul(WORD) {
            return Err(Errno::INVAL);
        }
        Shared::map(fd, words)
    }

    fn map(fd: OwnedFd, words: usize) -> Result<Shared, Errno> {
        let length = words.checked_mul(WORD).filter(|length| *length > 0).ok_or(Errno::INVAL)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice; the file is sealed against shrinking, so no access
        // within `length` can fault.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, &fd, 0)? };
        Ok(Shared { fd, base, words })
    }

    /// One word; `None` past the end.
    #[must_use]
    pub fn word(&self, at: usize) -> Option<&AtomicU64> {
        if at >= self.words {
            return None;
        }
        // SAFETY: within the mapping, which is aligned to a page and lives as long as `self`; all access is atomic.
        Some(unsafe { &*self.base.cast::<AtomicU64>().add(at) })
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base, self.words * WORD) };
    }
}

/// Puts a copy of `device` in the place of an open descriptor, whose number stays.
pub fn put_in_place(device: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both numbers are open descriptors; dup3 changes what `place` refers to, and its owner goes on owning it.
    let result = unsafe { libc::dup3(device.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Closes a backing id of a FUSE device.
pub fn close_backing(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the request reads one u32, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_are_seen_through_another_mapping() {
        let first = Shared::create(1 << 20).unwrap();
        first.word(1000).unwrap().store(7, Ordering::Release);
        assert!(first.word(1 << 20).is_none());
        let fd = rustix::io::fcntl_dupfd_cloexec(&first, 3).unwrap();
        let second = Shared::open(fd, 1 << 20).unwrap();
        drop(first);
        assert_eq!(second.word(1000).unwrap().load(Ordering::Acquire), 7);
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let first = Shared::create(512).unwrap();
        let fd = || rustix::io::fcntl_dupfd_cloexec(&first, 3).unwrap();
        assert_eq!(Shared::open(fd(), 1024).unwrap_err(), Errno::INVAL);
        assert!(Shared::open(fd(), 512).is_ok());
    }
}
