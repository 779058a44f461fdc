//! Writes presto's corrections of the kernel's caches to a session's device, in a thread for each session.
//!
//! The kernel may make the writer wait for a directory whose user waits for presto. A presto that were killed in such
//! a wait could not end; the holder's thread just waits until the next presto has answered.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::link::Link;

/// Length, code and a number that is zero.
const HEADER: usize = 16;
/// FUSE_NOTIFY_INVAL_INODE.
const INVAL_INODE: u32 = 2;
/// FUSE_NOTIFY_INVAL_ENTRY.
const INVAL_ENTRY: u32 = 3;
/// Its flag FUSE_EXPIRE_ONLY, and where the flags are.
const EXPIRE_ONLY: u32 = 1;
const FLAGS: usize = HEADER + 12;

/// Starts the thread. It ends with its presto, or with the mount.
pub(crate) fn spawn(link: Link, device: OwnedFd) -> std::io::Result<()> {
    std::thread::Builder::new().name("notices".to_owned()).spawn(move || {
        while let Ok((packet, _)) = link.receive() {
            let Some((number, messages)) = packet.split_first_chunk::<8>() else { return };
            if !write_all(&device, messages) || link.send(number, &[], SendFlags::empty()).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Whether the device takes any more.
fn write_all(device: &OwnedFd, mut messages: &[u8]) -> bool {
    while let Some((message, rest)) = split(messages) {
        // Any other error means not cached, or what another try would not change.
        if let Err(Errno::NODEV | Errno::PERM | Errno::NOTCONN) = rustix::io::write(device, message) {
            return false; // Unmounted.
        }
        messages = rest;
    }
    true
}

/// The first message, if it is one of those that presto may send: no answer to a request, and nothing that unmounts.
fn split(messages: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(number(messages, 0)?).ok().filter(|length| *length >= HEADER)?;
    let (message, rest) = messages.split_at_checked(length)?;
    let allowed = match number(message, 4)? {
        INVAL_INODE => true,
        INVAL_ENTRY => number(message, FLAGS) == Some(EXPIRE_ONLY),
        _ => false,
    };
    let unsolicited = message.get(8..HEADER).is_some_and(|unique| unique.iter().all(|byte| *byte == 0));
    (allowed && unsolicited).then_some((message, rest))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: u32, flags: u32, unique: u64) -> Vec<u8> {
        let mut bytes = 34u32.to_ne_bytes().to_vec();
        bytes.extend(code.to_ne_bytes());
        bytes.extend(unique.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(*b"x\0");
        bytes
    }

    #[test]
    fn only_corrections_that_unmount_nothing_pass() {
        let both = [message(INVAL_INODE, 0, 0), message(INVAL_ENTRY, EXPIRE_ONLY, 0)].concat();
        let (first, rest) = split(&both).unwrap();
        assert_eq!((first.len(), rest.len()), (34, 34));
        assert!(split(rest).is_some_and(|(_, rest)| rest.is_empty()));
        assert!(split(&message(INVAL_ENTRY, 0, 0)).is_none(), "it would unmount what is mounted there");
        assert!(split(&message(6, 0, 0)).is_none(), "another kind");
        assert!(split(&message(INVAL_INODE, 0, 7)).is_none(), "an answer to a request");
        assert!(split(&both[..20]).is_none(), "cut off");
        assert!(split(&[0; 40]).is_none());
    }
}
