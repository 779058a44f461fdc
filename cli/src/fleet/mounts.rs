//! Which mounts lie below a directory, and taking them away without waiting for anybody.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Mount points at or below `dir`, deepest (and latest) first. `dir` must be absolute and free of symbolic links.
#[must_use]
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = points(&table).filter(|path| path.starts_with(dir)).collect();
    found.reverse();
    found
}

/// Whether something is mounted exactly here. Looks only at the table, so a dead file system cannot block it.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    points(&table).any(|point| point == path)
}

/// Takes a mount away at once; who still uses it keeps what he has (`umount -l`).
///
/// # Errors
/// No root, or not a mount point.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Fifth field of each line (proc(5)), octal escapes undone.
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    let lines = table.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
}

fn unescape(mut field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    while let Some((first, rest)) = field.split_first() {
        if *first == b'\\'
            && let Some((digits, after)) = rest.split_at_checked(3)
            && let Some(byte) = octal(digits)
        {
            out.push(byte);
            field = after;
        } else {
            out.push(*first);
            field = rest;
        }
    }
    OsString::from_vec(out)
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n\
            40 22 0:50 / /tmp/a\\040b\\134c rw - fuse presto rw\n";
        let found: Vec<_> = points(table).collect();
        assert_eq!(found, [PathBuf::from("/proc"), PathBuf::from("/tmp/a b\\c")]);
    }

    #[test]
    fn this_machine_has_a_proc() {
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
        assert!(below(Path::new("/nowhere")).is_empty());
    }
}
