//! What a person sees: sentences on the console, and what presto has said in the kernel's log.

use std::fs::File;
use std::io::{Read, Write};

use rustix::fs::{Mode, OFlags};

/// A line to standard error, which is the console while the machine boots.
pub fn say(text: impl std::fmt::Display) {
    print(&format!("intermezzo: {text}\n"));
}

/// The same without a prefix.
pub fn print(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The kernel's log, for what comes later: there everybody looks, and it needs no disk.
pub fn log() -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open("/dev/kmsg", flags, Mode::empty())?))
}

/// What presto has complained of in the kernel's log.
pub fn complaints() -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(log) = rustix::fs::open("/dev/kmsg", flags, Mode::empty()) else { return Vec::new() };
    let mut log = File::from(log);
    let mut record = [0; 8192];
    let mut found = Vec::new();
    // One record at each read.
    while let Ok(length) = log.read(&mut record) {
        let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
        found.extend(complaint(&text));
    }
    found
}

fn complaint(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    let line = text.lines().next()?;
    // "2026-01-01T00:00:00.000000Z ERROR target: message".
    let (_, error) = line.split_once(" ERROR ")?;
    Some(error.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_found_among_the_kernels_lines() {
        assert_eq!(complaint("6,12,345,-;virtio_blk virtio1: [vda] 1024 blocks"), None);
        let line = "12,99,1000,-;2026-11-30T01:00:00.000000Z ERROR main: presto ends: no disk\n SUBSYSTEM=x";
        assert_eq!(complaint(line).unwrap(), "main: presto ends: no disk");
    }
}
