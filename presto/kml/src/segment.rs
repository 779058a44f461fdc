//! One segment file: its map with the layout on top. Knows no order of segments and takes no locks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::KmlError;
use crate::format::{self, CHECKSUMS, Defect, OUTCOME, PREFIX, Slot, TRAILER};
use crate::fs::{Access, FileSystem, Map};
use crate::header::{BadHeader, HEADER, HEADER_LENGTH, Header, STATUS_AT, STATUS_LENGTH, Status};
use crate::record::{Outcome, Recno, Record, State};

const SUFFIX: &str = ".kml";
/// Ending of a segment that has no number yet.
pub(crate) const SPARE_SUFFIX: &str = ".spare";

/// Where segment `number` lies.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// Numbers of the segments in a directory, in order.
pub(crate) fn numbers(fs: &dyn FileSystem, dir: &Path) -> Result<Vec<u64>, KmlError> {
    let names = fs.names(dir).map_err(KmlError::io("cannot list", dir))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_suffix(SUFFIX))
        .filter(|stem| stem.len() == 16)
        .filter_map(|stem| u64::from_str_radix(stem, 16).ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A segment whose header is whole.
#[derive(Debug)]
pub(crate) struct Segment {
    pub path: PathBuf,
    pub header: Header,
    map: Box<dyn Map>,
}

/// A segment file as found: its header may be lost.
pub(crate) struct Found {
    pub path: PathBuf,
    pub segment: Result<Arc<Segment>, BadHeader>,
}

impl Segment {
    /// Opens a segment and looks at its header.
    pub(crate) fn find(
        fs: &dyn FileSystem,
        dir: &Path,
        number: u64,
        access: Access,
    ) -> Result<Found, KmlError> {
        let path = path(dir, number);
        let map = fs.open(&path, access).map_err(KmlError::io("cannot map", &path))?;
        let mut bytes = [0; HEADER_LENGTH];
        map.read(0, &mut bytes);
        if map.is_broken() {
            return Err(KmlError::Broken { segment: path });
        }
        let segment = match Header::decode(&bytes) {
            Ok(header) if header.number != number => Err(BadHeader::Damaged(24, "another segment's number")),
            Ok(header) if header.bytes != map.size() => {
                Err(BadHeader::Damaged(40, "size of the file is not the size in the header"))
            }
            Ok(header) => Ok(Arc::new(Segment { path: path.clone(), header, map })),
            Err(bad) => Err(bad),
        };
        Ok(Found { path, segment })
    }

    /// Opens a segment that must be whole.
    pub(crate) fn open(
        fs: &dyn FileSystem,
        dir: &Path,
        number: u64,
        access: Access,
    ) -> Result<Arc<Segment>, KmlError> {
        let found = Segment::find(fs, dir, number, access)?;
        found.segment.map_err(|bad| bad_header(&found.path, bad))
    }

    /// Gives an empty spare its header, its first status and its name.
    pub(crate) fn name(
        fs: &dyn FileSystem,
        dir: &Path,
        spare: Spare,
        header: Header,
        status: &Status,
    ) -> Result<Segment, (Spare, KmlError)> {
        let path = path(dir, header.number);
        spare.map.write(0, &header.encode());
        spare.map.write(status.place(), &status.encode(header.number));
        match fs.rename(&spare.path, &path) {
            Ok(()) => Ok(Segment { path, header, map: spare.map }),
            Err(e) => {
                let error = KmlError::io("cannot name segment", &path)(e);
                Err((spare, error))
            }
        }
    }

    /// Size of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.header.bytes
    }

    /// Whether a record of this length fits at `at`, with room for the seal behind it.
    pub(crate) fn fits(&self, at: u64, length: u64) -> Fit {
        let end = at.checked_add(length).and_then(|end| end.checked_add(8));
        if end.is_some_and(|end| end <= self.bytes()) { Fit::Yes } else { Fit::No }
    }

    /// What stands at `at`, where record `recno` would begin.
    pub(crate) fn slot(&self, at: u64, recno: Recno) -> Slot {
        if self.fits(at, 0) == Fit::No {
            return Slot::Bad("log runs past the end of the segment");
        }
        match format::slot(self.map.load(at), recno) {
            Slot::Record(length, _) if self.fits(at, length) == Fit::No => {
                Slot::Bad("record runs past the end of the segment")
            }
            slot => slot,
        }
    }

    /// Reads the record at `at`.
    pub(crate) fn record(
        &self,
        at: u64,
        recno: Recno,
        length: u64,
        state: State,
        buffer: &mut Vec<u8>,
    ) -> Result<Record, Defect> {
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        self.map.read(at, buffer);
        format::decode(buffer, recno, state)
    }

    /// Length of the record that ends at `at`.
    pub(crate) fn length_before(&self, at: u64) -> Option<u64> {
        let place = at.checked_sub(TRAILER).filter(|place| *place >= HEADER)?;
        let length = format::trailer_length(self.map.load(place))?;
        (at.checked_sub(length)? >= HEADER).then_some(length)
    }

    /// Writes an intent and publishes it as prepared. `partial` is the checksum of `intent`.
    pub(crate) fn prepare(&self, at: u64, recno: Recno, intent: &[u8], partial: u32) {
        let length = format::record_length(intent);
        let sum = format::intent_checksum(partial, recno, length);
        self.map.store(at + 8, recno.0);
        self.map.store(at + CHECKSUMS, u64::from(sum));
        self.map.write(at + PREFIX, intent);
        self.map.store(at + length - TRAILER, format::trailer(length));
        self.map.store(at, format::head(recno, length, State::Prepared));
    }

    /// Writes the outcome and publishes the record as done; as failed where there is none.
    pub(crate) fn finish(&self, at: u64, recno: Recno, length: u64, outcome: Option<&Outcome>) {
        let state = match outcome {
            Some(outcome) => {
                let mut bytes = Vec::with_capacity(OUTCOME as usize);
                format::encode_outcome(outcome, &mut bytes);
                let sum = format::outcome_checksum(&bytes, recno);
                self.map.write(at + CHECKSUMS + 4, &sum.to_le_bytes());
                self.map.write(at + length - TRAILER - OUTCOME, &bytes);
                State::Done
            }
            None => State::Failed,
        };
        self.map.store(at, format::head(recno, length, state));
    }

    /// Takes an outcome that did not reach the disk back, so that the record is an intent again.
    pub(crate) fn unfinish(&self, at: u64, recno: Recno, length: u64) {
        self.map.write(at + CHECKSUMS + 4, &[0; 4]);
        self.map.write(at + length - TRAILER - OUTCOME, &[0; OUTCOME as usize]);
        self.map.store(at, format::head(recno, length, State::Prepared));
    }

    /// Says that record `next` is the first of the next segment.
    pub(crate) fn seal(&self, at: u64, next: Recno) {
        self.map.store(at, format::seal(next));
    }

    /// The newest whole status.
    pub(crate) fn status(&self) -> Result<Option<Status>, KmlError> {
        let mut newest: Option<Status> = None;
        let mut damaged = 0;
        for at in STATUS_AT {
            let mut bytes = [0; STATUS_LENGTH];
            self.map.read(at, &mut bytes);
            match Status::decode(&bytes, self.header.number).filter(|status| status.place() == at) {
                Some(status) if newest.is_none_or(|n| n.sequence < status.sequence) => newest = Some(status),
                Some(_) => {}
                None if bytes == [0; STATUS_LENGTH] => {}
                None => damaged += 1,
            }
        }
        let [at, _] = STATUS_AT;
        if damaged == STATUS_AT.len() {
            return Err(KmlError::corrupt(&self.path, at, "neither status matches its checksum"));
        }
        Ok(newest)
    }

    pub(crate) fn write_status(&self, status: &Status) {
        self.map.write(status.place(), &status.encode(self.header.number));
    }

    /// Writes zeros from `at` to the end, where there are none.
    pub(crate) fn clear_from(&self, at: u64) {
        const STEP: usize = 4096;
        let mut at = at;
        let mut buffer = [0; STEP];
        while at < self.bytes() {
            let step = (STEP as u64 - at % STEP as u64).min(self.bytes() - at);
            let Some(part) = buffer.get_mut(..usize::try_from(step).unwrap_or(0)) else { return };
            self.map.read(at, part);
            if part.iter().any(|byte| *byte != 0) {
                part.fill(0);
                self.map.write(at, part);
            }
            at += step;
        }
    }

    pub(crate) fn sync(&self) -> Result<(), KmlError> {
        self.map.sync().map_err(KmlError::io("cannot sync", &self.path))?;
        self.whole()
    }

    /// What was read and stored so far is what the file holds; an error if that may not be so.
    pub(crate) fn whole(&self) -> Result<(), KmlError> {
        if self.map.is_broken() { Err(KmlError::Broken { segment: self.path.clone() }) } else { Ok(()) }
    }

    /// Marks it in the kernel's memory.
    pub(crate) fn mark(&self) {
        self.map.mark();
    }

    /// Whether it has been there since its last writer.
    pub(crate) fn was_kept(&self) -> bool {
        self.map.was_kept()
    }

    pub(crate) fn start_write_out(&self) -> Result<(), KmlError> {
        self.map.start_write_out().map_err(KmlError::io("cannot write out", &self.path))
    }

    pub(crate) fn wait_written_out(&self) -> Result<(), KmlError> {
        self.map.wait_written_out().map_err(KmlError::io("cannot write out", &self.path))
    }

    pub(crate) fn corrupt(&self, at: u64, reason: &'static str) -> KmlError {
        KmlError::corrupt(&self.path, at, reason)
    }
}

/// Answer to "does it fit?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Yes,
    No,
}

/// A file of zeros that waits to become a segment.
#[derive(Debug)]
pub(crate) struct Spare {
    path: PathBuf,
    map: Box<dyn Map>,
}

impl Spare {
    pub(crate) fn create(
        fs: &dyn FileSystem,
        dir: &Path,
        serial: u64,
        bytes: u64,
    ) -> Result<Spare, KmlError> {
        let path = dir.join(format!("{serial}{SPARE_SUFFIX}"));
        let map = fs.create(&path, bytes).map_err(KmlError::io("cannot make", &path))?;
        Ok(Spare { path, map })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.map.size()
    }
}

/// The error for a header that cannot be used.
pub(crate) fn bad_header(segment: &Path, bad: BadHeader) -> KmlError {
    match bad {
        BadHeader::Damaged(at, reason) => KmlError::corrupt(segment, at, reason),
        BadHeader::Version(found) => KmlError::Version { segment: segment.to_owned(), found },
    }
}
