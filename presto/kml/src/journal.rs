//! The writer: one per volume, many threads.
//!
//! A short mutex gives out number and place and publishes the intent; outcomes are written without it.
//! `log.rs` has the state under the mutex, `segment.rs` the stores, `sync.rs` the sharing of syncs.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::KmlError;
use crate::format::{self, Slot};
use crate::fs::{Access, FileSystem};
use crate::header::{Closed, HEADER, Header, Status};
use crate::log::{Log, Removed, Shared};
use crate::record::{Intent, Outcome, Recno, Record, State};
use crate::recovery::{self, Cut, Place};
use crate::segment::{self, Segment, Spare};
use crate::sync::{GroupCommit, Refused};

/// Smallest segment: a header and a few records.
const SMALLEST_SEGMENT: u64 = 16 << 10;

/// Sizes, and whose journal it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all segments together may take on disk.
    pub max_bytes: u64,
    /// Size of one segment file; a multiple of 4096. Segments that are there already keep theirs.
    pub segment_bytes: u64,
    /// Part of `max_bytes` that only `Class::Replay` may use. At least two segments must remain for users: the
    /// current one is never removed.
    pub reserve_bytes: u64,
    /// Uid of the volume, kept in each header.
    pub volume: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { max_bytes: 1 << 30, segment_bytes: 16 << 20, reserve_bytes: 32 << 20, volume: 0 }
    }
}

impl Config {
    fn check(&self) -> Result<(), KmlError> {
        let reason = if self.segment_bytes < SMALLEST_SEGMENT || !self.segment_bytes.is_multiple_of(4096) {
            "segment_bytes must be a multiple of 4096, and at least 16384"
        } else if u32::try_from(self.segment_bytes).is_err() {
            "segment_bytes must be below 4 GiB"
        } else if self.max_bytes.saturating_sub(self.reserve_bytes) < 2 * self.segment_bytes {
            "max_bytes must hold two segments besides reserve_bytes"
        } else {
            return Ok(());
        };
        Err(KmlError::BadConfig { reason })
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
#[must_use = "a dropped ticket is a failed record"]
pub struct Ticket {
    place: Place,
    state: State,
}

impl Ticket {
    /// The number the record has.
    #[must_use]
    pub fn recno(&self) -> Recno {
        self.place.recno
    }

    fn finish(&mut self, outcome: Option<&Outcome>) -> Recno {
        let Place { segment, at, recno, length } = &self.place;
        segment.finish(*at, *recno, *length, outcome);
        self.state = if outcome.is_some() { State::Done } else { State::Failed };
        *recno
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.state == State::Prepared {
            self.finish(None);
        }
    }
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    /// First slot that was not done or failed when somebody last looked. Taken before the log's mutex, never after.
    published: Mutex<Cursor>,
    commit: GroupCommit,
    truncating: Mutex<()>,
    preparer: Option<JoinHandle<()>>,
    opened: Opened,
    /// The segment of which the disk has refused a page.
    broken: OnceLock<PathBuf>,
    _lock: Box<dyn Any + Send + Sync>,
}

#[derive(Debug)]
struct Cursor {
    segment: Arc<Segment>,
    at: u64,
    next: Recno,
}

/// How the journal was found.
#[derive(Debug)]
struct Opened {
    closed: Closed,
    /// The file system under it has been mounted all the time since its last writer.
    stayed: bool,
    cut: Option<Cut>,
}

impl Opened {
    fn is_unclean(&self) -> bool {
        self.closed != Closed::Clean && (!self.stayed || self.cut.is_some())
    }
}

thread_local! {
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Records on their way to the device.
#[derive(Debug)]
pub struct WriteOut {
    segments: Vec<Arc<Segment>>,
}

impl Journal {
    /// Opens the journal in `dir`, or makes one. Returns the intents that have no outcome, oldest first; readers do
    /// not get past them until each was given to `resolve`.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        dir: &Path,
        config: Config,
    ) -> Result<(Journal, Vec<Record>), KmlError> {
        config.check()?;
        fs.make_dir(dir).map_err(KmlError::io("cannot make", dir))?;
        let lock = lock(&*fs, dir)?;
        remove_spares(&*fs, dir)?;
        let instance = fs.instance(dir);
        if segment::numbers(&*fs, dir)?.is_empty() {
            first_segment(&*fs, dir, &config, instance)?;
        }
        let scan = recovery::scan(&*fs, dir, Access::Write)?;
        if let Some(segment) = scan.segments.iter().find(|segment| segment.header.volume != config.volume) {
            return Err(KmlError::WrongVolume {
                segment: segment.path.clone(),
                found: segment.header.volume,
                expected: config.volume,
            });
        }
        scan.repair(&*fs, dir)?;
        let settled = scan.settled();
        let (Some(first), Some(current)) = (scan.segments.first().cloned(), scan.segments.last().cloned())
        else {
            return Err(KmlError::Absent { dir: dir.to_owned() });
        };
        let cursor = Cursor { at: HEADER, next: first.header.first, segment: first };
        let mut log = Log::new(VecDeque::from(scan.segments), current, scan.end, scan.next);
        let written = Recno(scan.next.0.saturating_sub(1));
        let noted = scan.status.instance;
        let stayed = noted == instance || (noted != Status::NO_INSTANCE && log.current.was_kept());
        let opened = Opened { closed: scan.status.closed, stayed, cut: scan.cut };
        log.status = scan.status;
        log.durable = log.current.header.number;
        // Noted when journal and tree agree: a start that is interrupted is made once more as what it was.
        let noted = if opened.is_unclean() { Status::NO_INSTANCE } else { instance };
        log.write_status(|status| {
            *status = Status { settled, written, instance: noted, closed: Closed::Open, ..*status };
        });
        log.current.sync()?;
        // Not before: a start that is interrupted until here has noted nothing.
        log.current.mark();
        let mut records = Vec::with_capacity(scan.unresolved.len());
        for (place, record) in scan.unresolved {
            log.unresolved.insert(record.recno, place);
            records.push(record);
        }
        let shared = Arc::new(Shared::new(fs, dir.to_owned(), config, log));
        let preparer = spawn_preparer(&shared);
        let journal = Journal {
            shared,
            published: Mutex::new(cursor),
            commit: GroupCommit::default(),
            truncating: Mutex::new(()),
            preparer,
            opened,
            broken: OnceLock::new(),
            _lock: lock,
        };
        journal.published();
        Ok((journal, records))
    }

    /// Says how an intent that `open` returned ended; `None` = it failed.
    pub fn resolve(&self, recno: Recno, outcome: Option<Outcome>) -> Result<(), KmlError> {
        let mut log = self.shared.log();
        log.in_use()?;
        let place = log.unresolved.remove(&recno).ok_or(KmlError::NotUnresolved { recno })?;
        place.segment.finish(place.at, place.recno, place.length, outcome.as_ref());
        self.look_at(&place.segment)
    }

    /// Whether the disk has refused a page: nothing is journaled any more.
    pub fn is_broken(&self) -> bool {
        self.broken.get().is_some()
    }

    fn refuse_broken(&self) -> Result<(), KmlError> {
        self.broken.get().map_or(Ok(()), |segment| Err(KmlError::Broken { segment: segment.clone() }))
    }

    /// What was stored there is in the file, or nothing more is taken.
    fn look_at(&self, segment: &Segment) -> Result<(), KmlError> {
        segment.whole().inspect_err(|_| {
            self.broken.get_or_init(|| segment.path.clone());
        })
    }

    /// Writes an intent. `Full` and `DiskFull` come at once; the caller decides whether to wait. `Broken`: it is not on record,
    /// and nothing will be.
    pub fn begin(&self, class: Class, intent: &Intent) -> Result<Ticket, KmlError> {
        self.refuse_broken()?;
        ENCODED.with_borrow_mut(|encoded| {
            encoded.clear();
            format::encode_intent(intent, encoded)?;
            let partial = crc32c::crc32c(encoded);
            let length = format::record_length(encoded);
            let mut log = self.shared.with_room(class, length)?;
            let (at, recno) = (log.end, log.next);
            log.current.prepare(at, recno, encoded, partial);
            self.look_at(&log.current)?;
            log.end += length;
            log.next = recno.next();
            let place = Place { segment: log.current.clone(), at, recno, length };
            Ok(Ticket { place, state: State::Prepared })
        })
    }

    /// The operation happened. `Broken`: it did, and is perhaps not on record.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used once")]
    pub fn done(&self, mut ticket: Ticket, outcome: &Outcome) -> Result<Recno, KmlError> {
        let recno = ticket.finish(Some(outcome));
        self.look_at(&ticket.place.segment)?;
        Ok(recno)
    }

    /// The operation did not happen.
    #[allow(clippy::needless_pass_by_value, reason = "a ticket is used once")]
    pub fn failed(&self, mut ticket: Ticket) -> Recno {
        ticket.finish(None)
    }

    /// `begin` and `done` in one.
    pub fn append(&self, class: Class, intent: &Intent, outcome: &Outcome) -> Result<Recno, KmlError> {
        let ticket = self.begin(class, intent)?;
        self.done(ticket, outcome)
    }

    /// Makes all that was begun before the call durable. Returns the highest record such that all up to it are
    /// published and durable; finished records behind an unfinished one are durable too, but not counted.
    pub fn sync(&self) -> Result<Recno, KmlError> {
        self.commit.join(|| self.sync_now()).map_err(|refused| match refused {
            Refused::Now(e) => e,
            Refused::Before(kind) => KmlError::SyncFailed { dir: self.shared.dir.clone(), kind },
        })
    }

    /// Starts to bring all that was begun before the call to the device, for a caller who is about to flush that device
    /// anyway. `None`: that would not be enough, call [`Journal::sync`].
    pub fn start_write_out(&self) -> Result<Option<WriteOut>, KmlError> {
        if self.commit.has_failed() || self.is_broken() {
            return Ok(None);
        }
        let segments: Vec<_> = {
            let log = self.shared.log();
            if log.current.header.number > log.durable {
                // Its name is not durable.
                return Ok(None);
            }
            let unsynced = |segment: &&Arc<Segment>| segment.header.number >= log.unsynced;
            log.segments.iter().filter(unsynced).cloned().collect()
        };
        let write_out = WriteOut { segments };
        self.each_of(&write_out, Segment::start_write_out)?;
        Ok(Some(write_out))
    }

    /// Waits until the device has them: the next flush of it makes them durable.
    pub fn wait_written_out(&self, records: &WriteOut) -> Result<(), KmlError> {
        self.each_of(records, Segment::wait_written_out)
    }

    /// The kernel says once that a page could not be written; from then on nothing is durable.
    fn each_of(
        &self,
        records: &WriteOut,
        each: impl Fn(&Segment) -> Result<(), KmlError>,
    ) -> Result<(), KmlError> {
        let result = records.segments.iter().try_for_each(|segment| each(segment));
        result.inspect_err(|error| self.commit.fail(error))
    }

    fn sync_now(&self) -> Result<Recno, KmlError> {
        self.refuse_broken()?;
        let (settled, settled_segment) = {
            let mut cursor = self.published.lock();
            self.advance(&mut cursor);
            (Recno(cursor.next.0.saturating_sub(1)), cursor.segment.header.number)
        };
        let (segments, written, durable) = {
            let log = self.shared.log();
            let from = log.unsynced;
            let segments: Vec<_> =
                log.segments.iter().filter(|segment| segment.header.number >= from).cloned().collect();
            (segments, Recno(log.next.0.saturating_sub(1)), log.durable)
        };
        let newest = segments.last().map_or(durable, |segment| segment.header.number);
        if newest > durable {
            let dir = &self.shared.dir;
            self.shared.fs.sync_dir(dir).map_err(KmlError::io("cannot sync", dir))?;
        }
        for segment in &segments {
            self.look_at(segment)?;
            segment.sync()?;
        }
        let mut log = self.shared.log();
        log.unsynced = settled_segment;
        log.durable = newest;
        // Durable with the next sync: the bound on disk lags behind by one, and is never too high.
        log.write_status(|status| {
            status.settled = settled;
            status.written = written;
        });
        Ok(settled)
    }

    /// All records up to here are done or failed.
    pub fn published(&self) -> Recno {
        let mut cursor = self.published.lock();
        self.advance(&mut cursor);
        Recno(cursor.next.0.saturating_sub(1))
    }

    /// The newest record that was begun.
    pub fn begun(&self) -> Recno {
        Recno(self.shared.log().next.0.saturating_sub(1))
    }

    fn advance(&self, cursor: &mut Cursor) {
        loop {
            let slot = cursor.segment.slot(cursor.at, cursor.next);
            if self.look_at(&cursor.segment).is_err() {
                return;
            }
            match slot {
                Slot::Record(length, State::Done | State::Failed) => {
                    cursor.at += length;
                    cursor.next = cursor.next.next();
                }
                Slot::Seal => {
                    let number = cursor.segment.header.number.saturating_add(1);
                    let log = self.shared.log();
                    let Some(next) = log.segments.iter().find(|s| s.header.number == number) else { return };
                    cursor.segment = next.clone();
                    cursor.at = HEADER;
                }
                Slot::Record(_, State::Prepared) | Slot::Empty | Slot::Bad(_) => return,
            }
        }
    }

    /// The oldest record that is kept (the next one's number while there is none).
    pub fn first(&self) -> Recno {
        self.shared.log().segments.front().map_or(Recno(1), |segment| segment.header.first)
    }

    /// Removes the segments whose records are all published and at most `upto`; never the current one.
    pub fn truncate(&self, upto: Recno) -> Result<(), KmlError> {
        let _one = self.truncating.lock();
        let upto = upto.min(self.published());
        let must_sync = {
            let log = self.shared.log();
            log.durable < log.current.header.number
                && log.segments.get(1).is_some_and(|second| second.header.first <= upto.next())
        };
        if must_sync {
            // The successor carries the numbering on, so it must be on disk first.
            self.sync()?;
        }
        while self.shared.remove_oldest(upto)? == Removed::One {}
        Ok(())
    }

    /// Waits until a user's record may find room; false after `timeout`.
    pub fn wait_for_space(&self, timeout: Duration) -> bool {
        self.shared.wait_for_space(timeout)
    }

    /// Another limit in place of `Config::max_bytes`; never less than what the journal needs.
    pub fn set_max_bytes(&self, bytes: u64) {
        self.shared.set_max_bytes(bytes);
    }

    /// What the journal takes on disk, prepared segments included.
    pub fn bytes(&self) -> u64 {
        self.shared.log().bytes()
    }

    /// Syncs, and notes that nothing was lost. The next record takes the note back.
    pub fn mark_clean(&self) -> Result<(), KmlError> {
        let settled = self.sync()?;
        let mut log = self.shared.log();
        if settled.next() != log.next {
            return Err(KmlError::Unfinished { recno: settled.next() });
        }
        log.current.sync()?;
        log.write_status(|status| status.closed = Closed::Clean);
        log.current.sync()
    }

    /// Whether the journal was new, or marked clean, when it was opened.
    pub fn was_clean(&self) -> bool {
        self.opened.closed == Closed::Clean
    }

    /// Whether the kernel or the file system went down over the open journal (or its tail is torn): the lower tree and the
    /// journal may disagree about the last second.
    pub fn unclean_boot(&self) -> bool {
        self.opened.is_unclean()
    }

    /// After an unclean boot, before anything is journaled: the records from here on say what is not in the lower tree. They
    /// count as failed from now on, durably. Says how many there were.
    pub fn disown(&self, from: Recno) -> Result<usize, KmlError> {
        let mut disowned = 0;
        let segments: Vec<_> = self.shared.log().segments.iter().cloned().collect();
        for segment in segments {
            let (mut at, mut recno) = (HEADER, segment.header.first);
            let before = disowned;
            while let Slot::Record(length, state) = segment.slot(at, recno) {
                if recno >= from && state == State::Done {
                    segment.finish(at, recno, length, None);
                    disowned += 1;
                }
                at += length;
                recno = recno.next();
            }
            if disowned > before {
                segment.sync()?;
            }
            self.look_at(&segment)?;
        }
        Ok(disowned)
    }

    /// Journal and lower tree agree: from now on it is this mount's.
    pub fn in_order(&self) -> Result<(), KmlError> {
        if !self.unclean_boot() {
            return Ok(());
        }
        let instance = self.shared.fs.instance(&self.shared.dir);
        let current = {
            let mut log = self.shared.log();
            log.write_status(|status| status.instance = instance);
            log.current.clone()
        };
        current.sync()
    }

    /// Where the log was cut at `open`, because what followed had not reached the disk whole.
    pub fn cut(&self) -> Option<&Cut> {
        self.opened.cut.as_ref()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(preparer) = self.preparer.take() {
            self.shared.stop_preparing();
            // It can only have ended.
            let _ = preparer.join();
        }
    }
}

fn lock(fs: &dyn FileSystem, dir: &Path) -> Result<Box<dyn Any + Send + Sync>, KmlError> {
    let file = dir.join("lock");
    fs.lock(&file).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => KmlError::Locked { dir: dir.to_owned() },
        _ => KmlError::io("cannot lock", &file)(e),
    })
}

/// Files of zeros that a dead writer left.
fn remove_spares(fs: &dyn FileSystem, dir: &Path) -> Result<(), KmlError> {
    let names = fs.names(dir).map_err(KmlError::io("cannot list", dir))?;
    for name in names.iter().filter(|name| name.ends_with(segment::SPARE_SUFFIX)) {
        let path = dir.join(name);
        fs.remove(&path).map_err(KmlError::io("cannot remove", &path))?;
    }
    Ok(())
}

/// Makes segment 1, durable before it is used.
fn first_segment(
    fs: &dyn FileSystem,
    dir: &Path,
    config: &Config,
    instance: [u8; 16],
) -> Result<(), KmlError> {
    let spare = Spare::create(fs, dir, 0, config.segment_bytes)?;
    let bytes = spare.bytes();
    let header = Header { volume: config.volume, number: 1, first: Recno(1), bytes, previous_end: 0 };
    let status = Status { sequence: 1, instance, closed: Closed::Clean, ..Status::default() };
    let segment = Segment::name(fs, dir, spare, header, &status).map_err(|(_, e)| e)?;
    segment.sync()?;
    fs.sync_dir(dir).map_err(KmlError::io("cannot sync", dir))
}

fn spawn_preparer(shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    if !shared.fs.background() {
        return None;
    }
    let shared = shared.clone();
    // Without the thread, whoever fills a segment makes the next.
    thread::Builder::new().name("kml-prepare".to_owned()).spawn(move || shared.prepare_spares()).ok()
}
