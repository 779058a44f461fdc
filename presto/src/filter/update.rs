//! The frame around every user's update: may it happen, room in the journal, intent, outcome, and the word to Lento.

use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::Class;
use intermezzo_kml::KmlError;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Recno;
use rustix::io::Errno;

use super::Volume;
use super::WhenFull;
use super::faults;
use super::faults::Point;
use super::now;
use super::permit::ELSEWHERE;
use super::permit::Entry;

/// How long it waits for room in the journal.
const SPACE_DEADLINE: Duration = Duration::from_secs(30);
/// How often it looks whether the volume has changed under its hands before it gives up.
const ATTEMPTS: u32 = 1000;

/// Why an attempt did not come to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// No room in the journal. Nothing happened.
    Full,
    /// An entry meant another object once its lock was held. Nothing happened.
    Again,
    /// The answer to the user.
    Errno(Errno),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}

/// Records made by one update, to be told to Lento when the locks are gone.
#[derive(Debug, Default)]
pub(crate) struct Told {
    newest: Recno,
    soon: bool,
    /// How it was let in, if it is a user's update: looked at once more right before its intent.
    entry: Option<Entry>,
}

impl Told {
    /// Another call about the same file is on its way, and its record will be told as well: one word is enough for both.
    pub(crate) fn more_follows(&mut self) {
        self.soon = true;
    }
}

impl Volume {
    /// Runs one user's update. The closure takes the locks it needs and gives them back before it returns; it is run
    /// again when there was no room or an entry had changed.
    pub(crate) fn update<T>(
        &self,
        caller: Caller,
        mut attempt: impl FnMut(&mut Told) -> Result<T, Stop>,
    ) -> Result<T, Errno> {
        if !self.is_writable() {
            return Err(Errno::ROFS);
        }
        let mut entry = Entry::default();
        let mut full_since = None;
        let mut changed = 0;
        while changed < ATTEMPTS {
            if self.marks.ended.is_on() {
                return Err(Errno::NOTCONN);
            }
            let Some(inside) = self.enter(caller, &mut entry)? else { continue };
            let mut told = Told { entry: Some(entry.clone()), ..Told::default() };
            let result = attempt(&mut told);
            drop(inside);
            self.tell(&told);
            match result {
                Ok(value) => return Ok(value),
                Err(Stop::Errno(errno)) => return Err(errno),
                Err(Stop::Again) => changed += 1,
                // Without the gate: whoever revokes the permit meanwhile need not wait, and it is asked for anew.
                Err(Stop::Full) => self.wait_for_space(full_since.get_or_insert_with(Instant::now))?,
            }
        }
        Err(Errno::BUSY)
    }

    pub(crate) fn wait_for_space(&self, since: &Instant) -> Result<(), Errno> {
        let limit = match *self.when_full.read() {
            WhenFull::Block(limit) => limit,
            WhenFull::Default => SPACE_DEADLINE,
            WhenFull::ReadOnly => {
                if !self.marks.full.set(true) {
                    tracing::warn!(target: "filter", volume = self.name, bytes = self.journal.bytes(),
                        "journal full: updates are refused until Lento has taken it in");
                }
                return Err(Errno::ROFS);
            }
        };
        if !Volume::may_wait() {
            return Err(ELSEWHERE);
        }
        let left = limit.saturating_sub(since.elapsed());
        if left.is_zero() {
            tracing::warn!(target: "filter", volume = self.name, bytes = self.journal.bytes(),
                "journal full: an update failed with ENOSPC");
            return Err(Errno::NOSPC);
        }
        // In slices: what makes room may also be the disk, which nobody reports.
        self.journal.wait_for_space(left.min(Duration::from_millis(500)));
        Ok(())
    }

    pub(crate) fn tell(&self, told: &Told) {
        if told.newest == Recno::NONE {
            return;
        }
        if told.soon {
            self.untold.fetch_max(told.newest.0, Ordering::AcqRel);
        } else {
            self.tell_published();
        }
    }

    /// What Lento can read by now: records end out of order, and one that waits for an older one is told when that ends.
    fn tell_published(&self) {
        self.upcalls.journal(&self.name, self.journal.published());
    }

    /// Tells Lento what was put off. A later record that was told meanwhile told of these as well, and hearing of them
    /// twice does no harm.
    pub(crate) fn tell_rest(&self) {
        if self.untold.load(Ordering::Acquire) == 0 {
            return;
        }
        if self.untold.swap(0, Ordering::AcqRel) > 0 {
            self.tell_published();
        }
    }

    /// Intent, lower operation, outcome. The caller holds the locks of all objects concerned.
    pub(crate) fn journaled<T>(
        &self,
        told: &mut Told,
        intent: &Intent,
        operation: impl FnOnce() -> Result<(T, Outcome), Errno>,
    ) -> Result<(T, Recno), Stop> {
        // It may have waited for a lock in between, and its lease may have ended.
        if told.entry.as_ref().is_some_and(|entry| !self.still_lets_in(entry)) {
            return Err(Stop::Again);
        }
        let ticket = self.journal.begin(Class::User, intent).map_err(|error| self.refused(&error))?;
        if self.marks.full.is_on() {
            self.marks.full.set(false);
        }
        // Before the operation: a request that comes again finds out what became of it.
        let noted = self.session.get().and_then(|memory| memory.begun(ticket.recno()));
        faults::reached(Point::Intent, intent.opcode);
        match operation() {
            Ok((value, outcome)) => {
                faults::reached(Point::Operation, intent.opcode);
                let recno = self.journal.done(ticket, &outcome).map_err(|error| self.refused(&error))?;
                faults::reached(Point::Record, intent.opcode);
                if let Some(noted) = noted {
                    noted.done(outcome.object);
                }
                faults::reached(Point::Answer, intent.opcode);
                self.touched.record(intent, &outcome, recno);
                self.counted(intent, &outcome);
                told.newest = told.newest.max(recno);
                Ok((value, recno))
            }
            Err(errno) => {
                // Later records may have waited for this one to end.
                told.newest = told.newest.max(self.journal.failed(ticket));
                if let Some(noted) = noted {
                    noted.failed();
                }
                Err(Stop::Errno(errno))
            }
        }
    }

    /// What it means for an update that the journal does not take an intent.
    pub(super) fn refused(&self, error: &KmlError) -> Stop {
        if error.is_full() {
            return Stop::Full;
        }
        if self.journal.is_broken() {
            self.tell_broken();
            return Stop::Errno(Errno::IO);
        }
        tracing::error!(target: "filter", volume = self.name, %error, "journal refused an intent");
        Stop::Errno(Errno::IO)
    }

    /// Says once that the disk has refused a page of the journal, and what that means.
    pub(crate) fn tell_broken(&self) {
        if !self.marks.broken.set(true) {
            tracing::error!(target: "filter", volume = self.name, "{}", self.broken());
        }
    }

    /// Why nobody may write any more; empty: they may, as far as the journal goes.
    pub(crate) fn broken(&self) -> String {
        if !self.journal.is_broken() {
            return String::new();
        }
        format!(
            "volume {}: its disk refuses a page of the journal in {}: users may only read, and nothing of others is taken in. What \
             was changed last may not be on record. Look at the kernel's log, mend the disk, and start presto again",
            self.name,
            self.lower.path.join("kml").display()
        )
    }

    pub(crate) fn intent(opcode: Opcode, caller: Caller) -> Intent {
        Intent { opcode: Some(opcode), time: now(), caller, ..Intent::default() }
    }
}
