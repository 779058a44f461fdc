//! The words between presto and the holder, version 1. One packet is one word; descriptors ride beside it.
//!
//! ```text
//! 0  u32 "HOLD"   4  u16 version   6  u16 kind   8  u16 length of name   10  name
//! ```
//! Little-endian. A newer version must be understood by an older holder, or refused by it: the holder is the part that
//! is replaced last. Corrections travel on a socket of their own, which presto sends with its session:
//! `u64 number, messages of the FUSE device` one way, `u64 number` back when they are written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Of this protocol.
pub const VERSION: u16 = 1;
/// Longest name of a session.
pub const MAX_NAME: usize = 1024;
/// Longest packet, corrections included.
pub const MAX_PACKET: usize = 32 << 10;

/// Descriptors of a session: device, memory, and the directory that its mount covers if there is one.
#[derive(Debug)]
pub struct Kept {
    /// The FUSE device of the mount.
    pub device: OwnedFd,
    /// What its presto must not forget.
    pub memory: OwnedFd,
    /// The adopted directory: while it is covered there is no path to it.
    pub tree: Option<OwnedFd>,
}

impl Kept {
    /// Of what came beside an answer; `None`: these are not a session's.
    pub(crate) fn found(fds: Vec<OwnedFd>) -> Option<Kept> {
        let mut fds = fds.into_iter();
        let kept = Kept { device: fds.next()?, memory: fds.next()?, tree: fds.next() };
        fds.next().is_none().then_some(kept)
    }

    /// Of what came beside a question, with the socket for corrections.
    pub(crate) fn asked(fds: Vec<OwnedFd>) -> Option<(Kept, OwnedFd)> {
        let mut fds = fds.into_iter();
        let (device, memory, corrections) = (fds.next()?, fds.next()?, fds.next()?);
        let kept = Kept { device, memory, tree: fds.next() };
        fds.next().is_none().then_some((kept, corrections))
    }

    /// What goes beside a packet: with the socket for corrections a question, without it an answer.
    pub(crate) fn beside<'a>(&'a self, corrections: Option<BorrowedFd<'a>>) -> Vec<BorrowedFd<'a>> {
        let own = [self.device.as_fd(), self.memory.as_fd()];
        own.into_iter().chain(corrections).chain(self.tree.as_ref().map(AsFd::as_fd)).collect()
    }
}

const MAGIC: u32 = u32::from_le_bytes(*b"HOLD");
const HEAD: usize = 10;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Presto: keep this session (device, memory, corrections, directory if any); it takes the place of an earlier one.
    Keep = 1,
    /// Presto: which descriptors has this session?
    Find = 2,
    /// Presto: the session is over.
    Forget = 3,
    /// Holder: done.
    Done = 0x81,
    /// Holder: here they are (device, memory, directory if any).
    Found = 0x82,
    /// Holder: there is no such session.
    Absent = 0x83,
    /// Holder: not this; the name says why.
    Refused = 0x84,
}

/// A packet without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub kind: Kind,
    pub name: Vec<u8>,
}

/// Why bytes are no word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short, or not of this protocol.
    #[error("not a packet of this protocol")]
    Foreign,
    /// Of another version.
    #[error("version {0} of the protocol is not known here")]
    Version(u16),
    /// A kind that nobody knows.
    #[error("kind {0} is not known here")]
    Kind(u16),
    /// Its length is not what it says.
    #[error("the name's length is wrong")]
    Length,
}

impl Word {
    pub fn new(kind: Kind, name: &[u8]) -> Word {
        Word { kind, name: name.to_vec() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let name = self.name.get(..self.name.len().min(MAX_NAME)).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEAD + MAX_NAME);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.kind as u16).to_le_bytes());
        bytes.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Word, Malformed> {
        let (head, name) = bytes.split_first_chunk::<HEAD>().ok_or(Malformed::Foreign)?;
        let [m0, m1, m2, m3, v0, v1, k0, k1, l0, l1] = *head;
        if u32::from_le_bytes([m0, m1, m2, m3]) != MAGIC {
            return Err(Malformed::Foreign);
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let kind = match u16::from_le_bytes([k0, k1]) {
            1 => Kind::Keep,
            2 => Kind::Find,
            3 => Kind::Forget,
            0x81 => Kind::Done,
            0x82 => Kind::Found,
            0x83 => Kind::Absent,
            0x84 => Kind::Refused,
            other => return Err(Malformed::Kind(other)),
        };
        if usize::from(u16::from_le_bytes([l0, l1])) != name.len() || name.len() > MAX_NAME {
            return Err(Malformed::Length);
        }
        Ok(Word { kind, name: name.to_vec() })
    }
}

/// A packet of corrections: its number, then messages for the device, each with its length in its first four bytes.
#[must_use]
pub fn batch(number: u64, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = number.to_ne_bytes().to_vec();
    bytes.extend(messages.iter().flatten());
    bytes
}

/// The number in an answer to a packet of corrections.
#[must_use]
pub fn ack(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_wire() {
        for kind in
            [Kind::Keep, Kind::Find, Kind::Forget, Kind::Done, Kind::Found, Kind::Absent, Kind::Refused]
        {
            let word = Word::new(kind, b"default/demo");
            assert_eq!(Word::decode(&word.encode()), Ok(word));
        }
    }

    #[test]
    fn what_is_no_word_is_refused() {
        let good = Word::new(Kind::Keep, b"v").encode();
        assert_eq!(Word::decode(&good[..9]), Err(Malformed::Foreign));
        assert_eq!(Word::decode(&good[..10]), Err(Malformed::Length));
        assert_eq!(Word::decode(&[&good[..], b"x"].concat()), Err(Malformed::Length));
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Word::decode(&bytes)
        };
        assert_eq!(changed(0, 0), Err(Malformed::Foreign));
        assert_eq!(changed(4, 9), Err(Malformed::Version(9)));
        assert_eq!(changed(6, 99), Err(Malformed::Kind(99)));
    }
}
