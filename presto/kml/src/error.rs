//! What can go wrong with a journal, in words that name the file and the place in it.

use std::io;
use std::path::{Path, PathBuf};

use crate::record::Recno;

/// Why a journal refused.
#[derive(Debug, thiserror::Error)]
pub enum KmlError {
    /// The log has reached its limit for this class of records. Truncation makes room: `Journal::wait_for_space`.
    #[error("journal {dir} is full ({bytes} bytes); it shrinks when Lento has taken in what it says", dir = dir.display())]
    Full {
        /// Directory of the journal.
        dir: PathBuf,
        /// What it takes on disk.
        bytes: u64,
    },
    /// The file system has no room for another segment.
    #[error("no space left on the file system for the journal segment {file}", file = file.display())]
    DiskFull {
        /// The segment that could not be made.
        file: PathBuf,
    },
    /// One record is larger than a segment can hold.
    #[error("a record of {bytes} bytes does not fit into a segment (limit {limit})")]
    TooLarge {
        /// What was asked.
        bytes: u64,
        /// What fits.
        limit: u64,
    },
    /// The caller's intent says nothing that could be written.
    #[error("not a record: {reason}")]
    BadIntent {
        /// What is missing.
        reason: &'static str,
    },
    /// The sizes in the configuration do not go together.
    #[error("journal configuration: {reason}")]
    BadConfig {
        /// Which sizes, and what they must be.
        reason: &'static str,
    },
    /// Another process writes this journal.
    #[error("journal {dir} is in use by another process", dir = dir.display())]
    Locked {
        /// Directory of the journal.
        dir: PathBuf,
    },
    /// There is no segment in the directory (yet).
    #[error("no journal in {dir}", dir = dir.display())]
    Absent {
        /// Directory looked at.
        dir: PathBuf,
    },
    /// The journal belongs to another volume.
    #[error("segment {segment} belongs to volume {found:#x}, not to {expected:#x}", segment = segment.display())]
    WrongVolume {
        /// The segment.
        segment: PathBuf,
        /// Uid in its header.
        found: u64,
        /// Uid of the volume that opens it.
        expected: u64,
    },
    /// A segment of a newer (or no known) format.
    #[error("segment {segment} has format version {found}, which this program does not read", segment = segment.display())]
    Version {
        /// The segment.
        segment: PathBuf,
        /// Version in its header.
        found: u32,
    },
    /// The journal cannot be marked clean while operations run.
    #[error("record {recno} is still an intent, so the journal is not left clean")]
    Unfinished {
        /// The oldest such record.
        recno: Recno,
    },
    /// Bytes that were durable are not what was written. Nothing has been changed.
    #[error("segment {segment} is damaged at byte {offset}: {reason}", segment = segment.display())]
    Corrupt {
        /// The segment.
        segment: PathBuf,
        /// Byte in it.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The disk has refused a page of a segment: it could not be read back, or not be written. Nothing is journaled any more;
    /// what was is on the disk as far as it has been synced.
    #[error("the disk refuses a page of the journal segment {segment}: look at the kernel's log, mend the disk, start presto again", segment = segment.display())]
    Broken {
        /// The segment.
        segment: PathBuf,
    },
    /// Records before `first` have been truncated.
    #[error("the record asked for is gone; the oldest kept is {first}")]
    Gone {
        /// Oldest record that is kept.
        first: Recno,
    },
    /// The log is shorter than the reader's position: it lost its tail, or is another log.
    #[error("the record asked for is not there; the log ends before {next}")]
    Beyond {
        /// Number that the next published record will have.
        next: Recno,
    },
    /// `resolve` was asked for a record that is not an unresolved intent.
    #[error("record {recno} is not an unresolved intent")]
    NotUnresolved {
        /// The record.
        recno: Recno,
    },
    /// An earlier sync failed: the kernel may have thrown dirty pages away, so nothing is promised durable any more.
    /// Open the journal again.
    #[error("an earlier sync of journal {dir} failed ({kind}); open it again", dir = dir.display())]
    SyncFailed {
        /// Directory of the journal.
        dir: PathBuf,
        /// What the first failure was.
        kind: io::ErrorKind,
    },
    /// The file system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl KmlError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KmlError {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => KmlError::DiskFull { file: path },
            _ => KmlError::Io { action, path, source },
        }
    }

    pub(crate) fn corrupt(segment: &Path, offset: u64, reason: &'static str) -> KmlError {
        KmlError::Corrupt { segment: segment.to_owned(), offset, reason }
    }

    /// Whether there is just no room now: the caller may wait, or answer ENOSPC.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, KmlError::Full { .. } | KmlError::DiskFull { .. })
    }
}
