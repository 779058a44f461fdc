//! Reads a lower file whole: what was read is one version of it, or nothing.

use super::CHUNK;
use crate::clock;
use bytes::Bytes;
use lento_core::types::Hash;
use lento_core::types::INLINE_MAX;
use lento_core::types::Time;
use lento_core::types::Version;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;

/// A version younger than this may hide a store behind it: timestamps move in clock ticks.
const TICK_NANOS: i128 = 10_000_000;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// blake3 of all bytes, holes as zeros.
    pub hash: Hash,
    /// Bytes.
    pub size: u64,
    /// The version.
    pub version: Version,
    /// Younger than a tick.
    pub racy: bool,
    /// The bytes, where they are at most [`INLINE_MAX`].
    pub inline: Option<Vec<u8>>,
}

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It changed while it was read.
    #[error("the file changed while it was read")]
    Changed,
    /// Not a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// The file system.
    #[error("read: {0}")]
    Io(#[from] io::Error),
    /// Whoever takes the bytes wants no more.
    #[error("{0}")]
    Sink(String),
}

/// Version of an open file.
///
/// # Errors
/// The file system's, or not a regular file.
pub fn version(file: &File) -> Result<Version, SourceError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SourceError::NotAFile);
    }
    let time = |sec, nsec| Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Ok(Version {
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        size: metadata.size(),
    })
}

/// Reads the file. Small contents come back whole; pieces of larger ones go to `sink` with their offsets, in order,
/// without holes. Blocks.
///
/// # Errors
/// See [`SourceError`]; what `sink` got is void then.
pub fn read_whole(
    file: &File,
    sink: &mut dyn FnMut(u64, Bytes) -> Result<(), String>,
) -> Result<Whole, SourceError> {
    let version = version(file)?;
    let racy = is_racy(&version);
    let (hash, inline) = if version.size <= INLINE_MAX {
        let bytes = read_small(file, version.size)?;
        (Hash::of(&bytes), Some(bytes))
    } else {
        (read_large(file, version.size, sink)?, None)
    };
    if self::version(file)? != version {
        return Err(SourceError::Changed);
    }
    Ok(Whole { hash, size: version.size, version, racy, inline })
}

/// Whether a store may hide behind this version.
pub(super) fn is_racy(version: &Version) -> bool {
    clock::nanos_between(version.ctime, clock::wall()) < TICK_NANOS
}

fn read_small(file: &File, size: u64) -> Result<Vec<u8>, SourceError> {
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| SourceError::Changed)?];
    file.read_exact_at(&mut bytes, 0).map_err(shorter_means_changed)?;
    Ok(bytes)
}

fn read_large(
    file: &File,
    size: u64,
    sink: &mut dyn FnMut(u64, Bytes) -> Result<(), String>,
) -> Result<Hash, SourceError> {
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    while offset < size {
        let (data, end) = next_data(file, offset, size)?;
        hash_zeros(&mut hasher, data - offset);
        offset = data;
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map_err(shorter_means_changed)?;
            hasher.update(&bytes);
            sink(offset, bytes.into()).map_err(SourceError::Sink)?;
            offset += length as u64;
        }
    }
    Ok(Hash(*hasher.finalize().as_bytes()))
}

/// Where data begins at or after `offset`, and where it ends.
pub(super) fn next_data(file: &File, offset: u64, size: u64) -> Result<(u64, u64), SourceError> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data.clamp(offset, size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // Not every file system knows holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((offset, size)),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size);
    Ok((data, end.clamp(data, size)))
}

/// Hashes so many zeros.
pub(super) fn hash_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let length = usize::try_from(count).unwrap_or(ZEROS.len()).min(ZEROS.len());
        hasher.update(ZEROS.get(..length).unwrap_or_default());
        count -= length as u64;
    }
}

pub(super) fn shorter_means_changed(error: io::Error) -> SourceError {
    if error.kind() == io::ErrorKind::UnexpectedEof { SourceError::Changed } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(file: &File) -> (Result<Whole, SourceError>, Vec<(u64, usize)>) {
        let mut pieces = Vec::new();
        let result = read_whole(file, &mut |offset, bytes| {
            pieces.push((offset, bytes.len()));
            Ok(())
        });
        (result, pieces)
    }

    #[test]
    fn a_small_file_comes_whole_and_is_racy_while_young() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"hello").unwrap();
        let (whole, pieces) = collect(&File::open(&path).unwrap());
        let whole = whole.unwrap();
        assert_eq!((whole.hash, whole.size), (Hash::of(b"hello"), 5));
        assert_eq!(whole.inline.as_deref(), Some(&b"hello"[..]));
        assert!(pieces.is_empty());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!collect(&File::open(&path).unwrap()).0.unwrap().racy);
    }

    #[test]
    fn holes_are_hashed_as_zeros_and_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[7; 8192], 1 << 20).unwrap();
        let (whole, pieces) = collect(&file);
        let mut bytes = vec![0; 3 << 20];
        bytes[1 << 20..(1 << 20) + 8192].fill(7);
        assert_eq!(whole.unwrap().hash, Hash::of(&bytes));
        assert!(pieces.iter().map(|(_, length)| length).sum::<usize>() <= 1 << 20, "{pieces:?}");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 2 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        let result = read_whole(&file, &mut |_, _| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            writer.write_all_at(b"x", 0).map_err(|error| error.to_string())
        });
        assert!(matches!(result, Err(SourceError::Changed)), "{result:?}");
    }

    #[test]
    fn a_directory_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(collect(&File::open(dir.path()).unwrap()).0, Err(SourceError::NotAFile)));
    }
}
