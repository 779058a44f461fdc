//! The permit: whether users' updates are let in just now, and how they are kept out again.
//!
//! Where a volume needs none, nobody notices. Where it does, Lento says until when; each of its words has a serial, so that
//! one that was overtaken by its revocation opens nothing. Nobody waits here with a lock: neither replays nor readers wait for
//! whoever waits for the permit.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;
use parking_lot::RwLockReadGuard;
use rustix::io::Errno;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

use super::PermitAnswer;
use super::Volume;
use super::Wait;

/// How long an update waits for the permit. Whoever holds it may have large contents to send first.
const DEADLINE: Duration = Duration::from_secs(60);
/// A Lento that does not answer may be about to begin again: it is waited for so long before the volume's policy decides.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(50);
/// A file that was opened for writing less than so long ago is about to be closed, and is waited for.
const YOUNG: Duration = Duration::from_secs(2);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(1);

/// The kernel's own "run that again" (ERESTARTSYS), which no program ever sees: this thread may not wait, another one may.
pub(crate) const ELSEWHERE: Errno = Errno::from_raw_os_error(512);

/// What a thread may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    /// Wait.
    Patient,
    /// Everything but wait.
    Hurried,
    /// The same, and its updates are let in already.
    Admitted,
}

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Patient) };
}

/// See the module.
#[derive(Debug)]
pub struct Permit {
    needed: AtomicBool,
    /// On the clock that counts from boot, in milliseconds; 0: it is not here.
    until: AtomicU64,
    stolen: AtomicU64,
    words: Mutex<Words>,
}

/// Lento's words.
#[derive(Debug)]
struct Words {
    serial: u64,
    revoked: u64,
    /// Since when it has not answered.
    away_since: Option<Instant>,
    /// Users have been told of what goes on without it.
    warned: bool,
}

impl Default for Permit {
    fn default() -> Permit {
        let words = Words { serial: 0, revoked: 0, away_since: None, warned: false };
        Permit {
            needed: AtomicBool::new(false),
            until: AtomicU64::new(0),
            stolen: AtomicU64::new(0),
            words: Mutex::new(words),
        }
    }
}

impl Permit {
    /// Whether users' updates need it.
    pub fn set_needed(&self, needed: bool) {
        self.needed.store(needed, Ordering::Release);
    }

    /// Whether updates are let in.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.needed.load(Ordering::Acquire)
            || match self.until.load(Ordering::Acquire) {
                0 => false,
                u64::MAX => true,
                until => from_boot() < until,
            }
    }

    /// Lento lets updates in until then.
    pub fn admit(&self, serial: u64, until: u64) {
        let mut words = self.words.lock();
        words.away_since = None;
        if serial > words.revoked && serial >= words.serial {
            words.serial = serial;
            words.warned = false;
            self.until.store(until, Ordering::Release);
        }
    }

    /// No more of what was let in with this serial or a smaller one.
    fn revoke(&self, serial: u64) {
        let mut words = self.words.lock();
        words.away_since = None;
        words.revoked = words.revoked.max(serial);
        if words.serial <= words.revoked {
            self.until.store(0, Ordering::Release);
        }
    }

    /// Updates that were let in without it.
    #[must_use]
    pub fn stolen(&self) -> u64 {
        self.stolen.load(Ordering::Relaxed)
    }

    fn steal(&self, volume: &str) {
        self.stolen.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.words.lock().warned, true) {
            tracing::warn!(target: "filter", volume,
                "Lento is away: users write without the permit, and conflicts are possible");
        }
    }

    /// Lento did not answer. Whether it may have ended just now, to begin again.
    fn is_lento_expected(&self) -> bool {
        self.words.lock().away_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    /// It did.
    fn lento_is_here(&self) {
        self.words.lock().away_since = None;
    }
}

/// Milliseconds since boot, sleep included, as Lento counts them.
fn from_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let milliseconds = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(milliseconds).unwrap_or(0)
}

/// While it lives, what this thread updates is let in, and who revokes the permit waits. So it waits for nothing: what would
/// have to ends with `ELSEWHERE`.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    _gate: RwLockReadGuard<'a, ()>,
    _hurried: Hurried,
}

/// While it lives, this thread waits for nothing: what would have to ends with `ELSEWHERE`.
#[derive(Debug)]
pub(crate) struct Hurried(());

impl Drop for Hurried {
    fn drop(&mut self) {
        THREAD.set(Thread::Patient);
    }
}

impl Volume {
    /// Lets this thread's updates in, if nobody has to be asked or waited for.
    pub(crate) fn admit(&self) -> Option<Admitted<'_>> {
        if !self.lets_in() {
            return None;
        }
        let gate = self.gate.try_read()?;
        // Revoked meanwhile, whoever did that waits for the gate and finds us gone.
        self.lets_in().then(|| {
            THREAD.set(Thread::Admitted);
            Admitted { _gate: gate, _hurried: Hurried(()) }
        })
    }

    /// Keeps this thread from waiting.
    pub(crate) fn hurry() -> Hurried {
        THREAD.set(Thread::Hurried);
        Hurried(())
    }

    /// Whether this thread may wait now.
    pub(super) fn may_wait() -> bool {
        THREAD.get() == Thread::Patient
    }

    /// Whether an update that was let in may still begin.
    pub(super) fn still_lets_in(&self, entry: &Entry) -> bool {
        entry.stolen || self.lets_in()
    }

    fn lets_in(&self) -> bool {
        self.permit.is_held() || self.marks.no_filter.is_on()
    }

    /// The way in for one attempt at an update. `None`: look again.
    pub(super) fn enter(&self, caller: Caller, entry: &mut Entry) -> Result<Option<Inside<'_>>, Errno> {
        if THREAD.get() == Thread::Admitted {
            return if self.lets_in() { Ok(Some(Inside(None))) } else { Err(ELSEWHERE) };
        }
        if !entry.stolen && !self.lets_in() {
            if !Volume::may_wait() {
                return Err(ELSEWHERE);
            }
            self.ask_for_permit(caller, entry)?;
            return Ok(None);
        }
        let gate = self.gate.read();
        Ok((entry.stolen || self.lets_in()).then_some(Inside(Some(gate))))
    }

    fn ask_for_permit(&self, caller: Caller, entry: &mut Entry) -> Result<(), Errno> {
        let left = DEADLINE.saturating_sub(entry.since.get_or_insert_with(Instant::now).elapsed());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        match self.upcalls.get_permit(&self.name, Wait::of(caller, left)) {
            PermitAnswer::Granted { serial, until } => self.permit.admit(serial, until),
            PermitAnswer::Refused(errno) => {
                self.permit.lento_is_here();
                return Err(errno);
            }
            PermitAnswer::Stolen | PermitAnswer::ReadOnly if self.permit.is_lento_expected() => {
                std::thread::sleep(AGAIN);
            }
            PermitAnswer::ReadOnly => return Err(Errno::ROFS),
            PermitAnswer::Stolen => {
                self.permit.steal(&self.name);
                entry.stolen = true;
            }
        }
        Ok(())
    }

    /// Keeps updates out that were let in with this serial, and waits for those that run and for files that are about to be
    /// closed. The last record that any of them made.
    ///
    /// # Errors
    /// TIMEDOUT: some of them do not end. Nobody is let in all the same.
    pub fn revoke_permit(&self, serial: u64, deadline: Duration) -> Result<Recno, Errno> {
        self.permit.revoke(serial);
        drop(self.gate.try_write_for(deadline).ok_or(Errno::TIMEDOUT)?);
        while self.writers.has_opened_within(YOUNG) {
            std::thread::sleep(LOOK);
        }
        // What stays open, or mapped, is complete as far as the next holder is to know.
        for id in self.writers.all() {
            if let Err(errno) = self.look_at(id) {
                tracing::debug!(target: "filter", volume = self.name, object = %id, %errno, "file open at the revocation");
            }
        }
        // What others' replays hold up counts: Lento reads on to there.
        Ok(self.journal.begun())
    }
}

/// How far an update has come with getting in.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    stolen: bool,
    since: Option<Instant>,
}

/// While it lives, an update runs.
#[derive(Debug)]
pub(super) struct Inside<'a>(#[allow(dead_code, reason = "held, not read")] Option<RwLockReadGuard<'a, ()>>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_its_revocation_has_overtaken_opens_nothing() {
        let permit = Permit::default();
        assert!(permit.is_held(), "not needed");
        permit.set_needed(true);
        assert!(!permit.is_held());
        permit.admit(3, u64::MAX);
        assert!(permit.is_held());
        permit.revoke(3);
        permit.admit(3, u64::MAX);
        permit.admit(2, u64::MAX);
        assert!(!permit.is_held());
        permit.admit(4, u64::MAX);
        permit.revoke(3);
        assert!(permit.is_held(), "the later word counts");
    }

    #[test]
    fn a_lease_ends_by_itself() {
        let permit = Permit::default();
        permit.set_needed(true);
        permit.admit(1, from_boot() + 30);
        assert!(permit.is_held());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!permit.is_held());
        permit.admit(1, from_boot() + 60_000);
        assert!(permit.is_held(), "renewed");
    }
}
