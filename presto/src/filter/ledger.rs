//! Files open for writing, on record: after presto was killed, these are the ones whose content may have changed with no
//! close in the journal. A small file beside the tree; page cache survives a kill, and a power cut is the scrub's business.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::lower::Lower;
use crate::lower::Shape;
use crate::lower::Words;

/// Inode number and generation.
const SLOT: u64 = 16;
/// So many slots are stored to in memory, where that is as good as writing.
const MAPPED: usize = 4096;

/// The record.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: OwnedFd,
    mapped: Option<Words>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<FileId, u64>,
    free: Vec<u64>,
    used: u64,
}

impl Ledger {
    /// Opens the record; the files an earlier run left in it.
    pub(crate) fn open(lower: &Lower) -> Result<(Ledger, Vec<FileId>), Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(lower.home(), "writers", flags, Mode::from_raw_mode(0o600))?;
        let mut state = State::default();
        for (slot, at) in whole(&file)?.as_chunks::<16>().0.iter().zip(0..) {
            let id = decode(*slot);
            if id.ino == 0 {
                state.free.push(at);
            } else {
                state.slots.insert(id, at);
            }
            state.used = at + 1;
        }
        state.free.reverse();
        let left = state.slots.keys().copied().collect();
        // Elsewhere a store may need room, and kill this process where there is none.
        let in_place = matches!(lower.shape(), Shape::Ext | Shape::Xfs | Shape::Tmpfs);
        let mapped = if in_place { Words::map(&file, MAPPED * 2).ok() } else { None };
        Ok((Ledger { file, mapped, state: Mutex::new(state) }, left))
    }

    /// It is open for writing from now on.
    pub(crate) fn add(&self, id: FileId) {
        let mut state = self.state.lock();
        if state.slots.contains_key(&id) {
            return;
        }
        let at = state.free.pop().unwrap_or(state.used);
        state.used = state.used.max(at + 1);
        state.slots.insert(id, at);
        self.write(at, id);
    }

    /// Everything that was written to it is journaled.
    pub(crate) fn remove(&self, id: FileId) {
        let mut state = self.state.lock();
        if let Some(at) = state.slots.remove(&id) {
            state.free.push(at);
            self.write(at, FileId::NONE);
        }
    }

    fn write(&self, at: u64, id: FileId) {
        let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(2);
        if let Some(words) = self.mapped.as_ref().filter(|words| first < words.count()) {
            // A slot without inode number is free: a kill between the stores leaves nobody half named.
            if words.store(first, 0) && words.store(first + 1, id.generation) && words.store(first, id.ino) {
                return;
            }
        }
        let mut slot = [0u8; 16];
        let (ino, generation) = slot.split_at_mut(8);
        ino.copy_from_slice(&id.ino.to_le_bytes());
        generation.copy_from_slice(&id.generation.to_le_bytes());
        if let Err(errno) = rustix::io::pwrite(&self.file, &slot, at * SLOT) {
            tracing::warn!(target: "filter", object = %id, %errno, "record of open files not written");
        }
    }
}

fn whole(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0u8; 4096];
        match rustix::io::pread(file, &mut part[..], bytes.len() as u64)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
}

fn decode(slot: [u8; 16]) -> FileId {
    let number = u128::from_le_bytes(slot);
    FileId {
        ino: u64::try_from(number & u128::from(u64::MAX)).unwrap_or(0),
        generation: u64::try_from(number >> 64).unwrap_or(0),
    }
}
