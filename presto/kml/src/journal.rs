//! The writer. (Signatures first; the body follows.)

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::KmlError;
use crate::fs::FileSystem;
use crate::record::{Intent, Outcome, Recno, Record};

/// Sizes, and whose journal it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all segments together may take on disk.
    pub max_bytes: u64,
    /// Size of one segment file.
    pub segment_bytes: u64,
    /// Part of `max_bytes` that only `Class::Replay` may use.
    pub reserve_bytes: u64,
    /// Uid of the volume, kept in each header.
    pub volume: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { max_bytes: 1 << 30, segment_bytes: 16 << 20, reserve_bytes: 32 << 20, volume: 0 }
    }
}

/// Who needs room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A user's update: leaves the reserve alone.
    User,
    /// A replay or a verdict.
    Replay,
}

/// A begun record. Dropped without `done`, it counts as failed.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    recno: Recno,
}

impl Ticket {
    /// The number the record has.
    #[must_use]
    pub fn recno(&self) -> Recno {
        self.recno
    }
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Journal;

#[allow(missing_docs, unused_variables, clippy::todo, clippy::needless_pass_by_value)]
impl Journal {
    pub fn open(fs: Arc<dyn FileSystem>, dir: &Path, config: Config) -> Result<(Journal, Vec<Record>), KmlError> {
        todo!()
    }
    pub fn resolve(&self, recno: Recno, outcome: Option<Outcome>) -> Result<(), KmlError> {
        todo!()
    }
    pub fn begin(&self, class: Class, intent: &Intent) -> Result<Ticket, KmlError> {
        todo!()
    }
    pub fn done(&self, ticket: Ticket, outcome: &Outcome) -> Recno {
        todo!()
    }
    pub fn failed(&self, ticket: Ticket) -> Recno {
        todo!()
    }
    pub fn append(&self, class: Class, intent: &Intent, outcome: &Outcome) -> Result<Recno, KmlError> {
        todo!()
    }
    pub fn sync(&self) -> Result<Recno, KmlError> {
        todo!()
    }
    pub fn published(&self) -> Recno {
        todo!()
    }
    pub fn first(&self) -> Recno {
        todo!()
    }
    pub fn truncate(&self, upto: Recno) -> Result<(), KmlError> {
        todo!()
    }
    pub fn wait_for_space(&self, timeout: Duration) -> bool {
        todo!()
    }
    pub fn bytes(&self) -> u64 {
        todo!()
    }
    pub fn mark_clean(&self) -> Result<(), KmlError> {
        todo!()
    }
    pub fn was_clean(&self) -> bool {
        todo!()
    }
    pub fn unclean_boot(&self) -> bool {
        todo!()
    }
}
