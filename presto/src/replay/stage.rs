//! Lento's staged files: opened, dropped, and presto's own leftovers swept.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::build::PREFIX;
use super::lml::HELD;
use crate::lower::{Lower, Stat};

/// Opens (making or continuing) a staged file for writing, with space for `size` bytes (0: unknown).
///
/// # Errors
/// The kernel's; ENOSPC if the space is not there.
pub fn open(lower: &Lower, name: &str, size: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(lower.stage(), name, flags, Mode::from_raw_mode(0o600))?;
    let stat = Stat::of(&file)?;
    if !stat.is_file() {
        return Err(Errno::INVAL);
    }
    if size > 0 {
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(file)
}

/// Removes a staged file; one that is not there is fine.
///
/// # Errors
/// The kernel's.
pub fn remove(lower: &Lower, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(lower.stage(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes what presto itself was building when it died, but what is in `keep`. Lento's staged files stay. Says how many
/// went.
///
/// # Errors
/// The directory cannot be read.
pub fn sweep(lower: &Lower, keep: &[String]) -> Result<usize, Errno> {
    let mut swept = 0;
    let mut dir = rustix::fs::Dir::read_from(lower.stage())?;
    while let Some(entry) = dir.read() {
        let entry = entry?;
        let name = entry.file_name();
        let own = [PREFIX, HELD].iter().any(|prefix| name.to_bytes().starts_with(prefix.as_bytes()));
        if !own || keep.iter().any(|keep| keep.as_bytes() == name.to_bytes()) {
            continue;
        }
        let stat = Stat::at(lower.stage(), name.to_bytes())?;
        let flags = if stat.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(lower.stage(), name, flags)?;
        swept += 1;
    }
    Ok(swept)
}
