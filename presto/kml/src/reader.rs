//! A reader in any process: follows the published prefix through read-only maps, forwards and backwards.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::KmlError;
use crate::format::Slot;
use crate::fs::{Access, FileSystem, Os};
use crate::header::HEADER;
use crate::record::{Recno, Record, State};
use crate::segment::{self, Segment};

/// How often a listing is repeated that truncation has overtaken.
const ATTEMPTS: usize = 64;

/// A position between two records. `next` and `previous` read the one after and the one before, and go past it.
#[derive(Debug)]
pub struct Reader {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    segment: Arc<Segment>,
    at: u64,
    next: Recno,
    buffer: Vec<u8>,
}

impl Reader {
    /// Stands before the oldest record. `Absent` while the writer has not made the journal.
    pub fn open(dir: &Path) -> Result<Reader, KmlError> {
        Reader::open_on(Arc::new(Os), dir)
    }

    /// The same on another file system.
    pub fn open_on(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Reader, KmlError> {
        let segment = oldest(&*fs, dir)?;
        let next = segment.header.first;
        Ok(Reader { fs, dir: dir.to_owned(), segment, at: HEADER, next, buffer: Vec::new() })
    }

    /// Uid of the volume whose journal this is.
    #[must_use]
    pub fn volume(&self) -> u64 {
        self.segment.header.volume
    }

    /// Number of the record that `next` will return.
    #[must_use]
    pub fn position(&self) -> Recno {
        self.next
    }

    /// Stands before record `next`, which may be the first that is not published yet (0 counts as 1).
    /// `Gone` if it was truncated, `Beyond` if the log does not reach so far.
    pub fn seek(&mut self, next: Recno) -> Result<(), KmlError> {
        let wanted = next.max(Recno(1));
        if wanted < self.segment.header.first || self.is_far(wanted) {
            self.segment = self.segment_of(wanted)?;
            self.at = HEADER;
            self.next = self.segment.header.first;
        } else if wanted < self.next {
            self.at = HEADER;
            self.next = self.segment.header.first;
        }
        while self.next < wanted {
            match self.slot(self.at, self.next)? {
                Slot::Record(length, State::Done | State::Failed) => {
                    self.at += length;
                    self.next = self.next.next();
                }
                Slot::Record(_, State::Prepared) | Slot::Empty => {
                    return Err(KmlError::Beyond { next: self.next });
                }
                Slot::Seal => self.follow()?,
                Slot::Bad(reason) => return Err(self.segment.corrupt(self.at, reason)),
            }
        }
        Ok(())
    }

    /// Whether a later segment may hold `wanted`: then a search is shorter than reading on.
    fn is_far(&self, wanted: Recno) -> bool {
        const NEAR: u64 = 1000;
        wanted.0 > self.next.0.saturating_add(NEAR)
    }

    /// The next published record, or `None` for now.
    #[allow(clippy::should_implement_trait, reason = "the end is not an end: more may follow")]
    pub fn next(&mut self) -> Result<Option<Record>, KmlError> {
        loop {
            match self.slot(self.at, self.next)? {
                Slot::Record(length, state @ (State::Done | State::Failed)) => {
                    let record = self.read(self.at, self.next, length, state)?;
                    self.at += length;
                    self.next = self.next.next();
                    return Ok(Some(record));
                }
                Slot::Record(_, State::Prepared) | Slot::Empty => return Ok(None),
                Slot::Seal => self.follow()?,
                Slot::Bad(reason) => return Err(self.segment.corrupt(self.at, reason)),
            }
        }
    }

    /// The record before this position, or `None` before the oldest that is kept.
    pub fn previous(&mut self) -> Result<Option<Record>, KmlError> {
        if self.at == HEADER {
            let Some(number) = self.segment.header.number.checked_sub(1).filter(|number| *number > 0) else {
                return Ok(None);
            };
            let at = self.segment.header.previous_end;
            match Segment::open(&*self.fs, &self.dir, number, Access::Read) {
                Ok(segment) => self.segment = segment,
                Err(e) if is_missing(&e) => return Ok(None),
                Err(e) => return Err(e),
            }
            self.at = at;
        }
        let length = self.segment.length_before(self.at);
        self.segment.whole()?;
        let Some(length) = length else {
            return Err(self.segment.corrupt(self.at, "no record ends here"));
        };
        let (at, recno) = (self.at.saturating_sub(length), Recno(self.next.0.saturating_sub(1)));
        match self.slot(at, recno)? {
            Slot::Record(front, state @ (State::Done | State::Failed)) if front == length => {
                let record = self.read(at, recno, length, state)?;
                (self.at, self.next) = (at, recno);
                Ok(Some(record))
            }
            _ => Err(self.segment.corrupt(at, "length at the end leads to no published record")),
        }
    }

    /// The oldest record that is kept.
    pub fn first(&mut self) -> Result<Recno, KmlError> {
        Ok(oldest(&*self.fs, &self.dir)?.header.first)
    }

    fn read(&mut self, at: u64, recno: Recno, length: u64, state: State) -> Result<Record, KmlError> {
        let Reader { segment, buffer, .. } = self;
        let read = segment.record(at, recno, length, state, buffer);
        segment.whole()?;
        read.map_err(|defect| segment.corrupt(at + defect.at, defect.reason))
    }

    fn slot(&self, at: u64, recno: Recno) -> Result<Slot, KmlError> {
        let slot = self.segment.slot(at, recno);
        self.segment.whole()?;
        Ok(slot)
    }

    /// Goes on in the next segment.
    fn follow(&mut self) -> Result<(), KmlError> {
        let number = self.segment.header.number.saturating_add(1);
        match Segment::open(&*self.fs, &self.dir, number, Access::Read) {
            Ok(next) if next.header.first == self.next => {
                self.segment = next;
                self.at = HEADER;
                Ok(())
            }
            Ok(next) => Err(next.corrupt(32, "records between this segment and the one before are missing")),
            Err(e) if is_missing(&e) => Err(KmlError::Gone { first: self.first()? }),
            Err(e) => Err(e),
        }
    }

    /// The segment that holds `wanted`, or would.
    fn segment_of(&self, wanted: Recno) -> Result<Arc<Segment>, KmlError> {
        let fs = &*self.fs;
        let numbers = segment::numbers(fs, &self.dir)?;
        for number in numbers.into_iter().rev() {
            match Segment::open(fs, &self.dir, number, Access::Read) {
                Ok(segment) if segment.header.first <= wanted => return Ok(segment),
                Ok(_) => {}
                Err(e) if is_missing(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Err(KmlError::Gone { first: oldest(fs, &self.dir)?.header.first })
    }
}

fn oldest(fs: &dyn FileSystem, dir: &Path) -> Result<Arc<Segment>, KmlError> {
    let absent = || KmlError::Absent { dir: dir.to_owned() };
    for _ in 0..ATTEMPTS {
        let numbers = match segment::numbers(fs, dir) {
            Err(e) if is_missing(&e) => return Err(absent()),
            numbers => numbers?,
        };
        let number = numbers.first().copied().ok_or_else(absent)?;
        match Segment::open(fs, dir, number, Access::Read) {
            Err(e) if is_missing(&e) => {} // Truncated since the listing.
            segment => return segment,
        }
    }
    Err(absent())
}

fn is_missing(e: &KmlError) -> bool {
    matches!(e, KmlError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
