//! What /proc/self/mountinfo says of a path, without touching what is mounted there: that may hang.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The topmost mount at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Device number: major in the high half, minor in the low one.
    pub device: u64,
    /// Type of the file system.
    pub kind: Vec<u8>,
}

/// What is mounted last at this path, on top of anything else.
#[must_use]
pub fn top(at: &Path) -> Option<Top> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let wanted = escape(at);
    mounts.split(|byte| *byte == b'\n').filter_map(|line| parse(line, &wanted)).next_back()
}

/// Whether programs may write to the file system with this device number as far as the kernel decides, wherever it is mounted.
/// `None`: it is not mounted.
#[must_use]
pub fn is_writable(device: u64) -> Option<bool> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| writable(line, device))
        .reduce(|one, other| one || other)
}

fn writable(line: &[u8], wanted: u64) -> Option<bool> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    if number(words.get(2)?)? != wanted {
        return None;
    }
    let is_rw = |options: &&[u8]| options.split(|byte| *byte == b',').any(|option| option == b"rw");
    Some(words.get(5).is_some_and(is_rw) && words.last().is_some_and(is_rw))
}

fn number(device: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    Some(u64::from(major) << 32 | u64::from(minor))
}

fn parse(line: &[u8], wanted: &[u8]) -> Option<Top> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = words.nth(2)?;
    if words.nth(1)? != wanted {
        return None;
    }
    let kind = words.skip_while(|word| *word != b"-").nth(1)?.to_vec();
    Some(Top { device: number(device)?, kind })
}

/// As mountinfo writes paths.
fn escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
            out.extend(format!("\\{byte:03o}").bytes());
        } else {
            out.push(*byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_understood() {
        let line =
            b"36 35 0:98 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.intermezzo default/demo rw";
        let top = parse(line, &escape(Path::new("/mnt/a b"))).unwrap();
        assert_eq!(top, Top { device: 98, kind: b"fuse.intermezzo".to_vec() });
        assert_eq!(parse(line, b"/mnt"), None);
        assert_eq!(writable(line, 98), Some(true));
        assert_eq!(writable(line, 99), None);
        for mount in ["ro,noatime - fuse.intermezzo a/b rw", "rw - fuse.intermezzo a/b ro,user_id=0"] {
            assert_eq!(writable(format!("36 35 0:98 / / {mount}").as_bytes(), 98), Some(false));
        }
        assert!(super::top(Path::new("/proc")).is_some_and(|top| top.kind == b"proc"));
    }
}
