//! The receiving side: a staged file that becomes a content, from what is here already and the pieces that come.
//!
//! The staged file itself says how far it is: it begins as a copy of the old version, or as what an interrupted
//! transfer left, is described by its blocks to the sender, and is checked as a whole before it counts.

use super::BLOCK;
use super::block::Layout;
use super::block::Value;
use super::block::describe;
use super::block::root;
use super::difference::Have;
use super::difference::Piece;
use super::difference::is_zero;
use super::source::SourceError;
use super::source::next_data;
use lento_core::types::Hash;
use rustix::fs::FallocateFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A staged file on its way to a content.
#[derive(Debug)]
pub struct Assembly {
    file: File,
    layout: Layout,
    /// The hash of each block, where it is known for what the file holds now.
    values: Vec<Option<Value>>,
    next: u64,
    ground: Ground,
}

/// What lies under the pieces that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    /// A hole: zeros need not be written.
    Hole,
    /// Other bytes.
    Bytes,
}

/// Why it is no content.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// Not a content that travels this way.
    #[error("a content of {0} bytes does not travel in pieces")]
    Size(u64),
    /// An earlier transfer still writes to the file.
    #[error("an earlier transfer of the same content has not ended yet")]
    Busy,
    /// Pieces overlap or go back.
    #[error("a piece at {0} where the content was already at {1}")]
    Order(u64, u64),
    /// A piece ends beyond the size.
    #[error("a piece that ends at {0}, beyond the content's {1} bytes")]
    Beyond(u64, u64),
    /// The bytes are not those that were promised.
    #[error("the content's hash is {found}, not {expected}")]
    Hash {
        /// Of what came.
        found: Hash,
        /// Of what was promised.
        expected: Hash,
    },
    /// The file system.
    #[error("write: {0}")]
    Io(#[from] io::Error),
    /// Reading it back.
    #[error("staged file: {0}")]
    Source(#[from] SourceError),
}

impl Assembly {
    /// Begins with what the staged file holds from an earlier try, else with `old`, else with nothing; says what the
    /// sender may leave out. The file is open for reading and writing. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn begin(file: File, size: u64, old: Option<&File>) -> Result<(Assembly, Have), AssemblyError> {
        let layout = Layout::of(size).ok_or(AssemblyError::Size(size))?;
        // Held until the last descriptor of this opening is closed: by whoever still writes for a transfer that broke.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(AssemblyError::Busy),
            locked => locked.map_err(io::Error::from)?,
        }
        if file.metadata()?.len() == 0
            && let Some(old) = old
        {
            seed(&file, old, size)?;
        }
        let ground = if file.metadata()?.len() == 0 { Ground::Hole } else { Ground::Bytes };
        file.set_len(size)?;
        let mut values = vec![None; layout.count()];
        let have = if ground == Ground::Hole {
            Have::Zeros
        } else {
            describe(&file, layout, &mut values)?;
            Have::Blocks(values.iter().flatten().map(Value::mark).collect())
        };
        Ok((Assembly { file, layout, values, next: 0, ground }, have))
    }

    /// Takes a piece; what lies between the last one and this stays as it is. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn take(&mut self, piece: &Piece) -> Result<(), AssemblyError> {
        let Piece { offset, bytes } = piece;
        let (start, size) = (*offset, self.layout.size());
        if start < self.next {
            return Err(AssemblyError::Order(start, self.next));
        }
        let end = start.saturating_add(bytes.len() as u64);
        if end > size {
            return Err(AssemblyError::Beyond(end, size));
        }
        self.next = end;
        self.write(start, bytes)?;
        let mut index = self.layout.index(start);
        while let Some(value) = self.values.get_mut(index) {
            let block = self.layout.range(index);
            if block.start >= end {
                break;
            }
            let at = |offset: u64| usize::try_from(offset.checked_sub(start)?).ok();
            let covered = at(block.start).zip(at(block.end)).and_then(|(from, to)| bytes.get(from..to));
            *value = covered.map(|bytes| Value::of(block.start, bytes));
            index += 1;
        }
        Ok(())
    }

    /// All of it is here: checks it and makes it durable. A wrong one is emptied, so that the next try begins anew.
    /// Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn finish(mut self, expected: Hash) -> Result<(), AssemblyError> {
        describe(&self.file, self.layout, &mut self.values)?;
        let values: Vec<Value> = self.values.iter().copied().flatten().collect();
        let found = root(self.layout, &values).ok_or(SourceError::Changed)?;
        if found != expected {
            self.file.set_len(0)?;
            return Err(AssemblyError::Hash { found, expected });
        }
        self.file.sync_all()?;
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), AssemblyError> {
        for (zero, run) in runs(bytes) {
            let at = offset.saturating_add(run.start as u64);
            let part = bytes.get(run).unwrap_or_default();
            match (zero, self.ground) {
                (true, Ground::Hole) => {}
                (true, Ground::Bytes) => self.punch(at, part)?,
                (false, _) => self.file.write_all_at(part, at)?,
            }
        }
        Ok(())
    }

    fn punch(&self, offset: u64, zeros: &[u8]) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, offset, zeros.len() as u64) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.write_all_at(zeros, offset),
            punched => Ok(punched?),
        }
    }
}

/// Copies the old version, no further than `size`: shared where the file system can, else with its holes. It may change
/// meanwhile; what counts is what the staged file holds then.
fn seed(file: &File, old: &File, size: u64) -> Result<(), AssemblyError> {
    let length = old.metadata()?.len().min(size);
    if length == 0 {
        return Ok(());
    }
    if rustix::fs::ioctl_ficlone(file, old).is_ok() {
        return Ok(());
    }
    let mut offset = 0;
    while offset < length {
        let (start, end) = next_data(old, offset, length)?;
        copy(file, old, start..end)?;
        offset = end.max(offset.saturating_add(1));
    }
    Ok(file.set_len(length)?)
}

fn copy(file: &File, old: &File, mut range: Range<u64>) -> Result<(), AssemblyError> {
    while range.start < range.end {
        let (mut from, mut to) = (range.start, range.start);
        let length = usize::try_from(range.end - range.start).unwrap_or(COPY).min(COPY);
        match rustix::fs::copy_file_range(old, Some(&mut from), file, Some(&mut to), length) {
            Ok(0) => break, // It is shorter now.
            Ok(copied) => range.start += copied as u64,
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let mut bytes = vec![0; length.min(super::CHUNK)];
                let count = old.read_at(&mut bytes, range.start)?;
                if count == 0 {
                    break;
                }
                file.write_all_at(bytes.get(..count).unwrap_or_default(), range.start)?;
                range.start += count as u64;
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Bytes of one `copy_file_range`.
const COPY: usize = 64 << 20;

/// `bytes` as runs of zeros (`true`) and of others.
fn runs(bytes: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let (zero, start) = (is_zero(block), index * BLOCK);
        match runs.last_mut() {
            Some((same, run)) if *same == zero => run.end = start + block.len(),
            _ => runs.push((zero, start..start + block.len())),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
