//! The file system as the journal sees it: whole files that are mapped, and a few directory operations.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reader in another process.
    Read,
    /// The writer.
    Write,
}

/// A file system. Tests have one that crashes at any write.
pub trait FileSystem: fmt::Debug + Send + Sync {
    /// Makes the directory if it is not there.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file for as long as the guard lives; `WouldBlock` if another has it.
    fn lock(&self, file: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// Names in a directory, in any order.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new file of zeros that really lie on the disk when this returns, mapped for writing.
    fn create(&self, file: &Path, bytes: u64) -> io::Result<Box<dyn Map>>;
    /// An existing file, mapped whole.
    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn Map>>;
    /// Renames within one directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, file: &Path) -> io::Result<()>;
    /// Makes earlier creations, renames and removals in the directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Something that differs after each boot of the kernel.
    fn boot_id(&self) -> [u8; 16];
    /// Whether segments may be prepared by a thread of their own (a test that counts writes says no).
    fn background(&self) -> bool {
        true
    }
}

/// A mapped file. Offsets outside of it read as zero and are not written; the segment above never uses any.
pub trait Map: fmt::Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Copies bytes out.
    fn read(&self, at: u64, into: &mut [u8]);
    /// Copies bytes in. Nobody else may read or write these until a `store` has published them.
    fn write(&self, at: u64, bytes: &[u8]);
    /// Reads a little-endian word at a multiple of 8, with acquire ordering.
    fn load(&self, at: u64) -> u64;
    /// Writes a little-endian word at a multiple of 8, with release ordering.
    fn store(&self, at: u64, word: u64);
    /// Makes everything written before durable.
    fn sync(&self) -> io::Result<()>;
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;
