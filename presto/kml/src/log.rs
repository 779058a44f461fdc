//! The writer's state under its one short mutex: which segments there are, where the next record goes, who may have room.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::KmlError;
use crate::fs::FileSystem;
use crate::header::{Closed, HEADER, Header, Status};
use crate::journal::{Class, Config};
use crate::record::Recno;
use crate::recovery::Place;
use crate::segment::{Fit, Segment, Spare};

/// What the mutex guards.
#[derive(Debug)]
pub(crate) struct Log {
    /// Oldest first; never empty, the last is the current one.
    pub segments: VecDeque<Arc<Segment>>,
    /// The last of them.
    pub current: Arc<Segment>,
    /// Where the next record goes.
    pub end: u64,
    /// Its number.
    pub next: Recno,
    /// What the newest status slot says.
    pub status: Status,
    /// Segments from this number on may hold what no sync has seen.
    pub unsynced: u64,
    /// Segments up to this number are on disk with name and header.
    pub durable: u64,
    /// Where the log is full; may change at any time.
    max_bytes: u64,
    /// Intents of an earlier writer that nobody has resolved yet.
    pub unresolved: BTreeMap<Recno, Place>,
    spares: Vec<Spare>,
    spare_serial: u64,
    /// Segment for which the preparing thread was called.
    asked_for: u64,
    preparer: Preparer,
    room: Room,
    truncations: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparer {
    Idle,
    Asked,
    Busy,
    Stop,
}

/// What the last attempt to make a segment said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    DiskFull,
}

/// The log with all that waits for it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub fs: Arc<dyn FileSystem>,
    pub dir: PathBuf,
    pub config: Config,
    log: Mutex<Log>,
    /// To the preparing thread.
    asked: Condvar,
    /// From the preparing thread.
    prepared: Condvar,
    /// From `truncate`.
    space: Condvar,
}

impl Log {
    pub(crate) fn new(segments: VecDeque<Arc<Segment>>, current: Arc<Segment>, end: u64, next: Recno) -> Log {
        let unsynced = segments.front().map_or(1, |oldest| oldest.header.number);
        Log {
            segments,
            current,
            end,
            next,
            status: Status::default(),
            unsynced,
            durable: 0,
            max_bytes: 0,
            unresolved: BTreeMap::new(),
            spares: Vec::new(),
            spare_serial: 0,
            asked_for: 0,
            preparer: Preparer::Idle,
            room: Room::Enough,
            truncations: 0,
        }
    }

    /// Writes a new status into the current segment. At most one may be unsynced at any time.
    pub(crate) fn write_status(&mut self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status);
        self.status.sequence += 1;
        self.current.write_status(&self.status);
    }

    /// Before the first record after a clean mark: takes the mark back, durably.
    pub(crate) fn in_use(&mut self) -> Result<(), KmlError> {
        if self.status.closed == Closed::Clean {
            self.write_status(|status| status.closed = Closed::Open);
            self.current.sync()?;
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes()).sum()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.used() + self.spares.iter().map(Spare::bytes).sum::<u64>()
    }
}

impl Shared {
    pub(crate) fn new(fs: Arc<dyn FileSystem>, dir: PathBuf, config: Config, mut log: Log) -> Shared {
        log.max_bytes = config.max_bytes;
        Shared {
            fs,
            dir,
            config,
            log: Mutex::new(log),
            asked: Condvar::new(),
            prepared: Condvar::new(),
            space: Condvar::new(),
        }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// The log with room for a record of `length` bytes at `end`.
    pub(crate) fn with_room(&self, class: Class, length: u64) -> Result<MutexGuard<'_, Log>, KmlError> {
        let limit = self.config.segment_bytes.saturating_sub(HEADER + 8);
        if length > limit {
            return Err(KmlError::TooLarge { bytes: length, limit });
        }
        let mut log = self.log.lock();
        // Before a new segment may come, whose name is not durable yet and would be lost together with this.
        log.in_use()?;
        loop {
            if log.used() > self.limit(&log, class) {
                return Err(self.full(&log));
            }
            if log.current.fits(log.end, length) == Fit::Yes {
                self.prepare_ahead(&mut log);
                return Ok(log);
            }
            self.make_room(&mut log, class)?;
        }
    }

    /// What a class may use of the limit.
    fn limit(&self, log: &Log, class: Class) -> u64 {
        match class {
            Class::User => log.max_bytes.saturating_sub(self.config.reserve_bytes),
            Class::Replay => log.max_bytes,
        }
    }

    /// Another limit, of as much as the journal needs at least.
    pub(crate) fn set_max_bytes(&self, bytes: u64) {
        let least = self.config.reserve_bytes + 2 * self.config.segment_bytes;
        self.log.lock().max_bytes = bytes.max(least);
        self.space.notify_all();
    }

    fn full(&self, log: &Log) -> KmlError {
        KmlError::Full { dir: self.dir.clone(), bytes: log.bytes() }
    }

    fn may_grow(&self, log: &Log, class: Class) -> bool {
        log.used() + self.config.segment_bytes <= self.limit(log, class)
    }

    /// Spares that must be there before this class takes one. A user leaves one for replays, so that a full disk
    /// does not stop them at once.
    fn spares_wanted(&self, class: Class) -> usize {
        match class {
            Class::User if self.config.reserve_bytes >= self.config.segment_bytes => 2,
            _ => 1,
        }
    }

    /// One step towards a new current segment; the caller looks again afterwards.
    fn make_room(&self, log: &mut MutexGuard<'_, Log>, class: Class) -> Result<(), KmlError> {
        if !self.may_grow(log, class) {
            return Err(self.full(log));
        }
        if log.spares.len() >= self.spares_wanted(class) {
            return self.turn_over(log);
        }
        if matches!(log.preparer, Preparer::Busy) {
            self.prepared.wait(log);
            return Ok(());
        }
        log.spare_serial += 1;
        let spare = Spare::create(&*self.fs, &self.dir, log.spare_serial, self.config.segment_bytes);
        self.keep(log, spare)
    }

    fn keep(&self, log: &mut Log, spare: Result<Spare, KmlError>) -> Result<(), KmlError> {
        match spare {
            Ok(spare) => {
                log.room = Room::Enough;
                log.spares.push(spare);
                Ok(())
            }
            Err(e) => {
                log.room = if e.is_full() { Room::DiskFull } else { Room::Enough };
                Err(e)
            }
        }
    }

    /// Names a spare and seals the current segment, in this order: a seal always has a successor.
    fn turn_over(&self, log: &mut Log) -> Result<(), KmlError> {
        let Some(spare) = log.spares.pop() else { return Ok(()) };
        let header = Header {
            volume: self.config.volume,
            number: log.current.header.number.saturating_add(1),
            first: log.next,
            bytes: spare.bytes(),
            previous_end: log.end,
        };
        match Segment::name(&*self.fs, &self.dir, spare, header, &log.status) {
            Ok(segment) => {
                let segment = Arc::new(segment);
                log.current.seal(log.end, log.next);
                log.current.whole()?;
                log.segments.push_back(segment.clone());
                log.current = segment;
                log.end = HEADER;
                Ok(())
            }
            Err((spare, e)) => {
                log.spares.push(spare);
                Err(e)
            }
        }
    }

    /// Calls the preparing thread once per segment, when it is half full.
    fn prepare_ahead(&self, log: &mut Log) {
        let number = log.current.header.number;
        if log.end > log.current.bytes() / 2 && log.asked_for != number && log.preparer == Preparer::Idle {
            log.asked_for = number;
            log.preparer = Preparer::Asked;
            self.asked.notify_one();
        }
    }

    /// The preparing thread's whole life.
    pub(crate) fn prepare_spares(&self) {
        let mut log = self.log.lock();
        loop {
            match log.preparer {
                Preparer::Stop => return,
                Preparer::Idle | Preparer::Busy => self.asked.wait(&mut log),
                Preparer::Asked => {
                    log.preparer = Preparer::Busy;
                    while log.preparer == Preparer::Busy
                        && log.spares.len() < self.spares_wanted(Class::User)
                        && log.bytes() + self.config.segment_bytes <= log.max_bytes
                    {
                        log.spare_serial += 1;
                        let serial = log.spare_serial;
                        let made = MutexGuard::unlocked(&mut log, || {
                            Spare::create(&*self.fs, &self.dir, serial, self.config.segment_bytes)
                        });
                        // Whoever needs the segment tries again and reports.
                        if self.keep(&mut log, made).is_err() {
                            break;
                        }
                        self.prepared.notify_all();
                    }
                    if log.preparer == Preparer::Busy {
                        log.preparer = Preparer::Idle;
                    }
                    self.prepared.notify_all();
                }
            }
        }
    }

    pub(crate) fn stop_preparing(&self) {
        self.log.lock().preparer = Preparer::Stop;
        self.asked.notify_all();
    }

    /// Removes the oldest segment if all its records are at most `upto`.
    pub(crate) fn remove_oldest(&self, upto: Recno) -> Result<Removed, KmlError> {
        let oldest = {
            let mut log = self.log.lock();
            match log.segments.get(1) {
                Some(second) if second.header.first <= upto.next() => {}
                _ => return Ok(Removed::Nothing),
            }
            let Some(oldest) = log.segments.pop_front() else { return Ok(Removed::Nothing) };
            oldest
        };
        if let Err(e) = self.fs.remove(&oldest.path) {
            let error = KmlError::io("cannot remove", &oldest.path)(e);
            self.log.lock().segments.push_front(oldest);
            return Err(error);
        }
        // For good, before a younger one goes: a power cut must not leave a gap.
        let synced = self.fs.sync_dir(&self.dir).map_err(KmlError::io("cannot sync", &self.dir));
        let mut log = self.log.lock();
        log.truncations += 1;
        log.room = Room::Enough;
        log.asked_for = 0;
        self.space.notify_all();
        synced.map(|()| Removed::One)
    }

    pub(crate) fn wait_for_space(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut log = self.log.lock();
        let before = log.truncations;
        loop {
            let room = log.room == Room::Enough && self.may_grow(&log, Class::User);
            if room || log.truncations != before {
                return true;
            }
            if self.space.wait_until(&mut log, deadline).timed_out() {
                return false;
            }
        }
    }
}

/// Answer of `remove_oldest`.
#[derive(PartialEq, Eq)]
pub(crate) enum Removed {
    One,
    Nothing,
}
