//! A file system at rest: on disk it is as if it were unmounted, and writers wait. For the end of a machine, when its root
//! cannot be unmounted because everything runs from it.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::errno_of;

/// ioctl(2) requests of linux/fs.h that the libc crate does not name.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// Brings the descriptor's file system to rest. EOPNOTSUPP: it has nothing to bring in order (tmpfs).
pub fn freeze(fd: impl AsFd) -> Result<(), Errno> {
    ioctl(fd, FIFREEZE)
}

/// Lets writers go on.
pub fn thaw(fd: impl AsFd) -> Result<(), Errno> {
    ioctl(fd, FITHAW)
}

fn ioctl(fd: impl AsFd, request: libc::Ioctl) -> Result<(), Errno> {
    // SAFETY: both requests ignore their argument; the descriptor is borrowed for the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, 0) };
    if result == 0 { Ok(()) } else { Err(errno_of(std::io::Error::last_os_error())) }
}
