//! What stands in a journal that nobody writes: walks it, tells the end, and what is damaged.
//!
//! Reading is apart from repairing, so that `verify` can use the first without the second.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::KmlError;
use crate::format::{OutcomeOnly, Slot};
use crate::fs::{Access, FileSystem};
use crate::header::{BadHeader, HEADER, Status};
use crate::record::{Recno, Record, State};
use crate::segment::{self, Found, Segment};

/// A place in the log.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub segment: Arc<Segment>,
    pub at: u64,
    pub recno: Recno,
    pub length: u64,
}

/// Where a log ended although bytes follow, because they are not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub segment: PathBuf,
    /// Byte in it.
    pub offset: u64,
    /// What is wrong there.
    pub reason: &'static str,
    /// Number of the record that would have been there.
    pub recno: Recno,
}

/// All that a walk finds.
pub(crate) struct Scan {
    /// The segments that belong to the log, in order.
    pub segments: Vec<Arc<Segment>>,
    /// Number of segments at the end of the directory that do not, newest last.
    pub dropped: Vec<PathBuf>,
    /// Where the next record goes, in the last of `segments`.
    pub end: u64,
    /// Its number.
    pub next: Recno,
    /// Newest status.
    pub status: Status,
    /// Intents without outcome.
    pub unresolved: Vec<(Place, Record)>,
    /// Those of them whose outcome was begun and is not whole.
    pub half_finished: Vec<Place>,
    /// Records of each kind.
    pub done: u64,
    pub failed: u64,
    /// Set where the log ends at something that is not whole.
    pub cut: Option<Cut>,
    /// Place of a missing seal: the next segment got its name, then the writer died.
    pub unsealed: Option<(Arc<Segment>, u64, Recno)>,
}

/// Walks the journal in `dir`.
pub(crate) fn scan(fs: &dyn FileSystem, dir: &Path, access: Access) -> Result<Scan, KmlError> {
    let mut found = Vec::new();
    for number in segment::numbers(fs, dir)? {
        found.push(Segment::find(fs, dir, number, access)?);
    }
    let status = newest_status(&found)?;
    let mut files = found.into_iter();
    let Some(oldest) = files.next() else { return Err(KmlError::Absent { dir: dir.to_owned() }) };
    let oldest = oldest.segment.map_err(|bad| segment::bad_header(&oldest.path, bad))?;
    let mut scan = Scan {
        end: HEADER,
        next: oldest.header.first,
        segments: vec![oldest.clone()],
        dropped: Vec::new(),
        status,
        unresolved: Vec::new(),
        half_finished: Vec::new(),
        done: 0,
        failed: 0,
        cut: None,
        unsealed: None,
    };
    let mut current = oldest;
    let mut buffer = Vec::new();
    loop {
        let slot = current.slot(scan.end, scan.next);
        // What the disk does not give is no end of the log.
        current.whole()?;
        match slot {
            Slot::Record(length, state) => {
                let place = Place { segment: current.clone(), at: scan.end, recno: scan.next, length };
                if scan.take(place, state, &mut buffer)? == Go::Stop {
                    break;
                }
                scan.end += length;
                scan.next = scan.next.next();
            }
            slot @ (Slot::Seal | Slot::Empty) => match scan.next_segment(files.next(), slot)? {
                Some(next) => current = next,
                None => break,
            },
            Slot::Bad(reason) => {
                scan.stop_at(&current.path.clone(), scan.end, reason)?;
                break;
            }
        }
    }
    scan.dropped.extend(files.map(|file| file.path));
    Ok(scan)
}

/// Whether the walk goes on.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

impl Scan {
    fn take(&mut self, place: Place, state: State, buffer: &mut Vec<u8>) -> Result<Go, KmlError> {
        let Place { ref segment, at, recno, length } = place;
        let settled = self.status.settled;
        let read = segment.record(at, recno, length, state, buffer);
        segment.whole()?;
        match read {
            Ok(_) if state == State::Done => self.done += 1,
            Ok(_) if state == State::Failed => self.failed += 1,
            Ok(_) if recno <= settled => {
                return Err(segment.corrupt(at, "record that was durable as done is an intent again"));
            }
            Ok(record) => self.unresolved.push((place, record)),
            Err(defect) if defect.outcome_only == OutcomeOnly::Yes && recno > settled => {
                // The power went between the outcome's sector and the head's. The intent is whole: ask the lower tree.
                match segment.record(at, recno, length, State::Prepared, buffer) {
                    Ok(record) => {
                        self.half_finished.push(place.clone());
                        self.unresolved.push((place, record));
                    }
                    Err(defect) => return Err(segment.corrupt(at + defect.at, defect.reason)),
                }
            }
            Err(defect) => {
                self.stop_at(&segment.path.clone(), at + defect.at, defect.reason)?;
                return Ok(Go::Stop);
            }
        }
        Ok(Go::On)
    }

    /// At a seal, or at nothing: goes to `file` if the log continues there.
    fn next_segment(&mut self, file: Option<Found>, slot: Slot) -> Result<Option<Arc<Segment>>, KmlError> {
        let Some(last) = self.segments.last().cloned() else { return Ok(None) };
        let Some(file) = file else {
            if slot == Slot::Seal {
                self.stop_at(&last.path, self.end, "sealed, but the next segment is missing")?;
            } else if self.next <= self.status.written {
                return Err(last.corrupt(self.end, "durable record is missing"));
            }
            return Ok(None);
        };
        let problem = match &file.segment {
            Err(BadHeader::Version(_)) => {
                return Err(file.segment.err().map_or_else(
                    || KmlError::Absent { dir: file.path.clone() },
                    |bad| segment::bad_header(&file.path, bad),
                ));
            }
            Err(BadHeader::Damaged(at, reason)) => Some((*at, *reason)),
            Ok(next) if next.header.volume != last.header.volume => Some((16, "another volume's segment")),
            Ok(next) if next.header.number != last.header.number.saturating_add(1) => {
                Some((24, "a segment before this one is missing"))
            }
            Ok(next) if next.header.first != self.next => {
                Some((32, "records between this segment and the one before are missing"))
            }
            Ok(next) if next.header.previous_end != self.end => {
                Some((48, "the segment before this one ends elsewhere"))
            }
            Ok(_) => None,
        };
        if let Some((at, reason)) = problem {
            // Where the slot is empty the log may simply have lost its tail; the blame then falls there.
            let (path, at) = if slot == Slot::Empty { (&last.path, self.end) } else { (&file.path, at) };
            self.stop_at(path, at, reason)?;
            self.dropped.push(file.path);
            return Ok(None);
        }
        let Ok(next) = file.segment else { return Ok(None) };
        if slot == Slot::Empty {
            self.unsealed = Some((last, self.end, self.next));
        }
        self.end = HEADER;
        self.segments.push(next.clone());
        Ok(Some(next))
    }

    /// Ends the log here, unless something durable would be lost by that.
    fn stop_at(&mut self, segment: &Path, offset: u64, reason: &'static str) -> Result<(), KmlError> {
        if self.next <= self.status.written {
            return Err(KmlError::corrupt(segment, offset, reason));
        }
        self.cut = Some(Cut { segment: segment.to_owned(), offset, reason, recno: self.next });
        Ok(())
    }

    /// Number of the last record that is done or failed with all before it.
    pub(crate) fn settled(&self) -> Recno {
        let blocked = self.unresolved.first().map_or(self.next, |(place, _)| place.recno);
        Recno(blocked.0.saturating_sub(1))
    }

    /// Makes the files say what the walk found. Needs maps for writing; a crash in between leads here again.
    pub(crate) fn repair(&self, fs: &dyn FileSystem, dir: &Path) -> Result<(), KmlError> {
        // From the newest down, each for good before the next, so that no gap can ever appear.
        for path in self.dropped.iter().rev() {
            fs.remove(path).map_err(KmlError::io("cannot remove", path))?;
            fs.sync_dir(dir).map_err(KmlError::io("cannot sync", dir))?;
        }
        for place in &self.half_finished {
            place.segment.unfinish(place.at, place.recno, place.length);
        }
        if let Some((segment, at, next)) = &self.unsealed {
            segment.seal(*at, *next);
        }
        if let Some(last) = self.segments.last() {
            // Stale bytes behind the end could later look like records.
            last.clear_from(self.end);
        }
        for segment in &self.segments {
            segment.sync()?;
        }
        fs.sync_dir(dir).map_err(KmlError::io("cannot sync", dir))
    }
}

fn newest_status(found: &[Found]) -> Result<Status, KmlError> {
    let mut newest = Status::default();
    for segment in found.iter().filter_map(|file| file.segment.as_ref().ok()) {
        let status = segment.status();
        segment.whole()?;
        if let Some(status) = status?.filter(|status| status.sequence > newest.sequence) {
            newest = status;
        }
    }
    Ok(newest)
}
