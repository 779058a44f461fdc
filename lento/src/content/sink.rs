//! Writes a content that arrives in pieces, in order: holes stay holes, and it is hashed on the way.

use super::BLOCK;
use super::source::hash_zeros;
use lento_core::types::Hash;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file being written.
#[derive(Debug)]
pub struct Sink {
    file: File,
    hasher: blake3::Hasher,
    offset: u64,
}

/// Why it is not complete.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Pieces overlap or end beyond the size.
    #[error("a piece at {0} where the content was already at {1}")]
    Order(u64, u64),
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
}

impl Sink {
    /// Begins anew: whatever the file held is gone. Blocks.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(file: File) -> Result<Sink, SinkError> {
        file.set_len(0)?;
        Ok(Sink { file, hasher: blake3::Hasher::new(), offset: 0 })
    }

    /// Takes a piece; between the last one and this is a hole. Blocks.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if offset < self.offset {
            return Err(SinkError::Order(offset, self.offset));
        }
        hash_zeros(&mut self.hasher, offset - self.offset);
        self.hasher.update(bytes);
        self.offset = offset.saturating_add(bytes.len() as u64);
        for (start, run) in runs(bytes) {
            self.file.write_all_at(run, offset + start as u64)?;
        }
        Ok(())
    }

    /// All of it is here: checks it and makes it durable. Blocks.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub fn finish(mut self, size: u64, expected: Hash) -> Result<(), SinkError> {
        if size < self.offset {
            return Err(SinkError::Order(self.offset, size));
        }
        hash_zeros(&mut self.hasher, size - self.offset);
        let found = Hash(*self.hasher.finalize().as_bytes());
        if found != expected {
            return Err(SinkError::Hash { found, expected });
        }
        self.file.set_len(size)?;
        self.file.sync_all()?;
        Ok(())
    }
}

/// The parts of `bytes` that are not blocks of zeros, with their starts.
fn runs(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs = Vec::new();
    let mut begin = None;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let at = index * BLOCK;
        let zero = block.iter().all(|byte| *byte == 0);
        match (zero, begin) {
            (false, None) => begin = Some(at),
            (true, Some(start)) => {
                runs.push((start, bytes.get(start..at).unwrap_or_default()));
                begin = None;
            }
            _ => {}
        }
    }
    if let Some(start) = begin {
        runs.push((start, bytes.get(start..).unwrap_or_default()));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn sink(dir: &tempfile::TempDir) -> (std::path::PathBuf, Sink) {
        let path = dir.path().join("f");
        std::fs::write(&path, b"left over from an earlier try").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        (path, Sink::new(file).unwrap())
    }

    #[test]
    fn what_is_written_is_what_was_sent_with_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut sink) = sink(&dir);
        let mut bytes = vec![0; 1 << 20];
        bytes[5000..6000].fill(1);
        bytes[900_000..900_010].fill(2);
        sink.write(0, &bytes[..300_000]).unwrap();
        sink.write(800_000, &bytes[800_000..1_000_000]).unwrap();
        sink.finish(1 << 20, Hash::of(&bytes)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 <= 64 << 10, "{blocks} blocks for two small runs");
    }

    #[test]
    fn a_wrong_hash_and_a_wrong_order_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut first) = sink(&dir);
        first.write(0, b"abc").unwrap();
        assert!(matches!(first.finish(3, Hash::of(b"abd")), Err(SinkError::Hash { .. })));
        let (_, mut second) = sink(&dir);
        second.write(10, b"abc").unwrap();
        assert!(matches!(second.write(12, b"x"), Err(SinkError::Order(12, 13))));
        assert!(matches!(second.finish(12, Hash::empty()), Err(SinkError::Order(13, 12))));
    }
}
