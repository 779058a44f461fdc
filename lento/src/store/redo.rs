//! What was committed since the database was last durable, so that a kill of this process takes nothing back.
//!
//! Appended by plain writes before each commit: the kernel has them, and only a power cut takes them away. A file of
//! frames (all numbers little-endian): length of the changes u32, crc32c u32 of what follows, sequence number u64,
//! changes. A change: kind u8 (1 put, 2 delete, 3 clear), table u8, then length u32 and bytes of key and of value as far
//! as the kind has them.

use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::store::Table;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::path::Path;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const CLEAR: u8 = 3;
const HEADER: usize = 16;

/// The changes of one transaction, in their order.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<u8>);

impl Changes {
    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.0.extend([PUT, table as u8]);
        self.bytes(key);
        self.bytes(value);
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) {
        self.0.extend([DELETE, table as u8]);
        self.bytes(key);
    }

    pub(super) fn clear(&mut self, table: Table) {
        self.0.extend([CLEAR, table as u8]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // Rows are far below 4 GiB: their contents are limited where they come in.
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does it all once more. `None`: these are no changes.
    fn apply(&self, store: &mut dyn Store) -> Option<Result<(), StoreError>> {
        let mut rest = self.0.as_slice();
        while let Some(([kind, table], after)) = rest.split_first_chunk::<2>() {
            let table = *Table::ALL.get(usize::from(*table))?;
            rest = after;
            let done = match *kind {
                PUT => {
                    let key = take(&mut rest)?;
                    store.put(table, key, take(&mut rest)?)
                }
                DELETE => store.delete(table, take(&mut rest)?),
                CLEAR => store.clear(table),
                _ => return None,
            };
            if done.is_err() {
                return Some(done);
            }
        }
        rest.is_empty().then_some(Ok(()))
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some(bytes)
}

/// The file.
#[derive(Debug)]
pub(super) struct Redo {
    file: File,
    /// Sequence number of the newest frame; grows for ever.
    last: u64,
    length: u64,
    /// The file may end in what is no frame and could not be cut off: nothing after it would be found.
    spoilt: bool,
}

impl Redo {
    /// Opens or makes the file; the database has everything up to frame `durable`.
    pub(super) fn open(path: &Path, durable: u64) -> io::Result<Redo> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        Ok(Redo { file, last: durable, length: 0, spoilt: false })
    }

    /// Brings `store` from where it is durable to the newest commit; what a kill left half written was none.
    pub(super) fn replay(&mut self, store: &mut dyn Store) -> Result<(), ReplayError> {
        let mut left = self.file.metadata()?.len();
        let mut reader = BufReader::new(&self.file);
        while let Some((sequence, changes)) = frame(&mut reader, &mut left)? {
            if sequence <= self.last {
                continue;
            }
            if self.last.checked_add(1) != Some(sequence) {
                break;
            }
            match changes.apply(store) {
                Some(done) => done?,
                None => break,
            }
            self.last = sequence;
        }
        Ok(())
    }

    /// Writes down what is about to be committed.
    pub(super) fn append(&mut self, changes: &Changes) -> io::Result<()> {
        if self.spoilt {
            return Err(io::Error::other(
                "it could not be cut back after a failed write; waiting for a sync",
            ));
        }
        let sequence = self.last.checked_add(1).ok_or_else(|| io::Error::other("its numbers are used up"))?;
        let mut frame = Vec::with_capacity(HEADER + changes.0.len());
        let length = u32::try_from(changes.0.len()).map_err(io::Error::other)?;
        frame.extend(length.to_le_bytes());
        frame.extend([0; 4]);
        frame.extend(sequence.to_le_bytes());
        frame.extend(&changes.0);
        let checked = crc32c::crc32c(frame.get(8..).unwrap_or_default());
        if let Some(slot) = frame.get_mut(4..8) {
            slot.copy_from_slice(&checked.to_le_bytes());
        }
        if let Err(error) = self.file.write_all(&frame) {
            // Half a frame would hide all that follow it.
            self.spoilt = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.last = sequence;
        self.length += frame.len() as u64;
        Ok(())
    }

    /// The commit that was written down last did not happen.
    pub(super) fn take_back(&mut self, changes: &Changes) -> io::Result<()> {
        self.length = self.length.saturating_sub((HEADER + changes.0.len()) as u64);
        self.last = self.last.saturating_sub(1);
        let cut = self.file.set_len(self.length);
        self.spoilt = cut.is_err();
        cut
    }

    /// Sequence number of the newest frame.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The database has it all. What a failure here leaves is skipped by its numbers.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        self.spoilt = false;
        Ok(())
    }
}

/// Why frames could not be done again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The next whole frame. `left` bytes are there: no more is taken memory for.
fn frame(reader: &mut impl Read, left: &mut u64) -> io::Result<Option<(u64, Changes)>> {
    let mut header = [0; HEADER];
    if !read_whole(reader, &mut header)? {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h, sequence @ ..] = header;
    let (length, checked) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]));
    *left = left.saturating_sub(HEADER as u64);
    if length as u64 > *left {
        return Ok(None);
    }
    *left -= length as u64;
    let mut changes = vec![0; length];
    if !read_whole(reader, &mut changes)? {
        return Ok(None);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&sequence), &changes);
    Ok((crc == checked).then(|| (u64::from_le_bytes(sequence), Changes(changes))))
}

fn read_whole(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
