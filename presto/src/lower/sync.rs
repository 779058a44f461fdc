//! Mode, writeback, and whether anybody can still write: by any descriptor. An O_PATH one is good for none of it and takes
//! the way round by /proc, several times as long.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::xattr::magic;

/// fcntl(2) command that the libc crate does not name.
const F_SETSIG: i32 = 10;

/// Opens the file of another descriptor (O_PATH included) anew with these flags.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(magic(&fd), flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
}

/// Sets permission bits.
pub fn change_mode(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rustix::fs::fchmod(&fd, mode) {
        Err(Errno::BADF) => rustix::fs::chmod(magic(&fd), mode),
        result => result,
    }
}

/// Starts writing the file's dirty pages. After that the next store into a mapping faults and stamps the file anew.
///
/// Waits for writeback under way before: pages dirtied during it would be passed over, and stores to them stay unseen.
pub fn start_writeback(fd: impl AsFd) -> Result<(), Errno> {
    match write_back(&fd) {
        Err(Errno::BADF) => write_back(reopen(fd, OFlags::RDONLY)?),
        result => result,
    }
}

fn write_back(fd: impl AsFd) -> Result<(), Errno> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: plain numbers and a descriptor that is borrowed for the call.
    let result = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Whether the file is open for writing or mapped writable by anybody. `fd` must be open for reading only, and the
/// caller must keep its own side from opening it for writing meanwhile (that would have to wait for the lease to go).
pub fn is_written(fd: impl AsFd) -> Result<bool, Errno> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: plain numbers and a descriptor that is borrowed for the calls. The signal that a broken lease sends is
    // one whose default is to be ignored (SIGIO would end the process).
    let result = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG);
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    if result == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        return Ok(false);
    }
    match last_error() {
        Errno::AGAIN => Ok(true),
        errno => Err(errno),
    }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
