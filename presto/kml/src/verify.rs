//! Looks through a whole journal without changing it: what `intermezzo kml verify` prints.

use std::fmt;
use std::path::Path;

use crate::error::KmlError;
use crate::fs::{Access, FileSystem, Os};
use crate::header::Closed;
use crate::record::Recno;
use crate::recovery::{self, Cut};

/// What was found. A journal with damage before its durable bound has no report but `KmlError::Corrupt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Uid of the volume.
    pub volume: u64,
    /// Number of segments.
    pub segments: usize,
    /// Their size together, in bytes.
    pub bytes: u64,
    /// The oldest record that is kept.
    pub first: Recno,
    /// The last record (`first` - 1 if there is none).
    pub last: Recno,
    /// All up to here were done or failed, and durable, when the journal was last synced but one.
    pub durable: Recno,
    /// Records that are done.
    pub done: u64,
    /// Records that failed.
    pub failed: u64,
    /// Intents without outcome.
    pub unresolved: Vec<Recno>,
    /// Where opening would cut the log, if it would.
    pub cut: Option<Cut>,
    /// Whether the writer left in order.
    pub clean: bool,
}

/// Checks each record of the journal in `dir`. It may be in use: then the answer is about some moment of the walk.
pub fn verify(dir: &Path) -> Result<VerifyReport, KmlError> {
    verify_on(&Os, dir)
}

/// The same on another file system.
pub fn verify_on(fs: &dyn FileSystem, dir: &Path) -> Result<VerifyReport, KmlError> {
    let scan = recovery::scan(fs, dir, Access::Read)?;
    let oldest = scan.segments.first().map(|segment| segment.header);
    Ok(VerifyReport {
        volume: oldest.map_or(0, |header| header.volume),
        segments: scan.segments.len(),
        bytes: scan.segments.iter().map(|segment| segment.bytes()).sum(),
        first: oldest.map_or(Recno(1), |header| header.first),
        last: Recno(scan.next.0.saturating_sub(1)),
        durable: scan.status.settled,
        done: scan.done,
        failed: scan.failed,
        unresolved: scan.unresolved.iter().map(|(_, record)| record.recno).collect(),
        cut: scan.cut,
        clean: scan.status.closed == Closed::Clean,
    })
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "volume      {:#018x}", self.volume)?;
        writeln!(f, "segments    {} ({} bytes)", self.segments, self.bytes)?;
        writeln!(f, "records     {} to {}", self.first, self.last)?;
        writeln!(f, "done        {}", self.done)?;
        writeln!(f, "failed      {}", self.failed)?;
        writeln!(f, "durable     to {} at least", self.durable)?;
        writeln!(
            f,
            "left clean  {}",
            if self.clean { "yes" } else { "no: in use, or its writer was killed" }
        )?;
        if !self.unresolved.is_empty() {
            write!(f, "unresolved ")?;
            for recno in &self.unresolved {
                write!(f, " {recno}")?;
            }
            writeln!(f)?;
        }
        match &self.cut {
            Some(cut) => writeln!(
                f,
                "torn tail   at record {}, {} byte {}: {}; opening the journal cuts it off there",
                cut.recno,
                cut.segment.display(),
                cut.offset,
                cut.reason
            ),
            None => writeln!(f, "torn tail   none"),
        }
    }
}
