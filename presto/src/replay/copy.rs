//! Bytes of an overwriting in place: room for them, their checksum, and the copy. Holes stay holes.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::lower::{Lower, Shape, errno_of};

const COPY: usize = 1 << 20;
/// Unit of the checksum. Those of zeros do not count, so that it does not matter where the file system keeps holes.
const BLOCK: u64 = 4096;

/// What of a file is no hole, from a place on and up to another.
struct Data<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Iterator for Data<'_> {
    type Item = Result<Range<u64>, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let from = std::mem::replace(&mut self.at, self.end);
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(from)) {
            Ok(start) if start < self.end => start,
            Ok(_) | Err(Errno::NXIO) => return None,
            Err(errno) => return Some(Err(errno)),
        };
        match rustix::fs::seek(self.file, SeekFrom::Hole(start)) {
            Ok(hole) => {
                self.at = hole.min(self.end);
                Some(Ok(start..self.at))
            }
            Err(errno) => Some(Err(errno)),
        }
    }
}

fn data(file: &File, range: Range<u64>) -> Data<'_> {
    Data { file, at: range.start, end: range.end }
}

/// Takes the space that the copy will need, so that it does not run out of space in the middle. The target itself is not
/// touched: that would give it another version. `None`: nothing is needed, or the file system cannot say.
///
/// # Errors
/// The kernel's; ENOSPC or EDQUOT if the space is not there.
pub(super) fn reserve(lower: &Lower, from: &File, to: &File, size: u64) -> Result<Option<OwnedFd>, Errno> {
    // What is there is overwritten where it lies, but not on btrfs.
    let in_place = !matches!(lower.shape(), Shape::Btrfs { .. });
    let mut need = 0u64;
    for range in data(from, 0..size) {
        let range = range?;
        let mut there = 0;
        if in_place {
            for range in data(to, range.clone()) {
                there += length(&range?);
            }
        }
        need = need.saturating_add(length(&range).saturating_sub(there));
    }
    if need == 0 {
        return Ok(None);
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let room = match rustix::fs::openat(lower.stage(), c".", flags, Mode::from_raw_mode(0o600)) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(None),
        opened => opened?,
    };
    allocate(&room, 0..need)?;
    Ok(Some(room))
}

/// Of the content.
pub(super) fn checksum(file: &File, size: u64) -> Result<u32, Errno> {
    let (mut sum, mut done) = (0, 0);
    let mut buffer = vec![0; COPY];
    for range in data(file, 0..size) {
        let range = range?;
        let mut at = done.max(range.start - range.start % BLOCK);
        while at < range.end {
            let part = part(&mut buffer, size - at)?;
            file.read_exact_at(part, at).map_err(errno_of)?;
            for block in part.chunks(4096) {
                if block.iter().any(|byte| *byte != 0) {
                    sum = crc32c::crc32c_append(sum, &at.to_le_bytes());
                    sum = crc32c::crc32c_append(sum, block);
                }
                at += BLOCK;
            }
        }
        done = at;
    }
    Ok(sum)
}

/// Replaces the bytes of one file by those of another, which has `size` of them, and makes them durable. Can be repeated.
pub(super) fn copy(from: &File, to: &File, size: u64) -> Result<(), Errno> {
    copy_by(from, to, size, |step| step())
}

/// The same by steps, each of which `step` runs; where the file system can, both share the blocks. The source is made durable
/// first, so that what follows is short there.
pub(super) fn by_steps(
    from: &File,
    to: &File,
    size: u64,
    step: impl Fn(&mut dyn FnMut() -> Result<(), Errno>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    from.sync_data().map_err(errno_of)?;
    match step(&mut || rustix::fs::ioctl_ficlone(to, from)) {
        Ok(()) => to.sync_all().map_err(errno_of),
        Err(errno @ (Errno::STALE | Errno::NOTCONN)) => Err(errno),
        Err(_) => copy_by(from, to, size, step),
    }
}

fn copy_by(
    from: &File,
    to: &File,
    size: u64,
    step: impl Fn(&mut dyn FnMut() -> Result<(), Errno>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    // What may lack space comes first: the old bytes are whole as long as that may fail.
    for range in data(from, 0..size) {
        let range = range?;
        step(&mut || allocate(to, range.clone()))?;
    }
    step(&mut || to.set_len(size).map_err(errno_of))?;
    let mut buffer = vec![0; COPY];
    let mut at = 0;
    for range in data(from, 0..size) {
        let range = range?;
        step(&mut || zero(to, at..range.start))?;
        at = range.start;
        while at < range.end {
            let part = part(&mut buffer, range.end - at)?;
            from.read_exact_at(part, at).map_err(errno_of)?;
            step(&mut || to.write_all_at(part, at).map_err(errno_of))?;
            at += part.len() as u64;
        }
    }
    step(&mut || zero(to, at..size))?;
    to.sync_all().map_err(errno_of)
}

/// Space for this range, where the file system can.
fn allocate(to: impl AsFd, range: Range<u64>) -> Result<(), Errno> {
    match rustix::fs::fallocate(to, FallocateFlags::KEEP_SIZE, range.start, length(&range)) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes a range read as zeros, as a hole where the file system can.
fn zero(to: &File, range: Range<u64>) -> Result<(), Errno> {
    if range.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(to, flags, range.start, length(&range)) {
        Err(Errno::OPNOTSUPP) => {
            let mut zeros = vec![0; COPY];
            let mut at = range.start;
            while at < range.end {
                let part = part(&mut zeros, range.end - at)?;
                to.write_all_at(part, at).map_err(errno_of)?;
                at += part.len() as u64;
            }
            Ok(())
        }
        other => other,
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// As much of the buffer as is left to do.
fn part(buffer: &mut [u8], left: u64) -> Result<&mut [u8], Errno> {
    let length = usize::try_from(left).unwrap_or(COPY).min(COPY);
    buffer.get_mut(..length).ok_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(parts: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn the_checksum_is_that_of_the_bytes_wherever_holes_are() {
        let zeros = vec![0; 3 << 20];
        let text = b"some text".as_slice();
        let (sparse, full) = (file(&[(3 << 20, text)]), file(&[(0, &zeros), (3 << 20, text)]));
        let size = sparse.metadata().unwrap().len();
        let sum = checksum(&sparse, size).unwrap();
        assert_eq!(sum, checksum(&full, size).unwrap());
        full.write_all_at(b"x", 5000).unwrap();
        assert_ne!(sum, checksum(&full, size).unwrap());
        assert_ne!(sum, checksum(&file(&[((3 << 20) - 4096, text)]), size - 4096).unwrap(), "elsewhere");
        assert_eq!(checksum(&file(&[]), 0), Ok(0));
    }

    #[test]
    fn a_copy_is_the_same_over_anything() {
        let text = vec![b'x'; 3 << 20];
        let from = file(&[(10, b"head"), (5 << 20, &text), (9 << 20, b"tail")]);
        let size = from.metadata().unwrap().len();
        let bytes = std::fs::read(crate::lower::xattr::magic(&from)).unwrap();
        for before in [file(&[]), file(&[(0, &[b'o'; 12 << 20])]), file(&[(6 << 20, &text)])] {
            copy(&from, &before, size).unwrap();
            assert!(std::fs::read(crate::lower::xattr::magic(&before)).unwrap() == bytes);
        }
    }
}
