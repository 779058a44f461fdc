//! The scrub: the lower tree compared, piece by piece, with what Lento believes, and what differs journaled as found.
//!
//! Owns the answers to `List` and `Scrub`. Changes nothing in the tree; takes the same locks as replays, so that what is
//! compared and what is journaled are one moment. What it journals are users' updates with the flag FOUND.

mod entry;
mod leftover;
mod list;
mod object;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::scrub_outcome::Result as Kind;
use intermezzo_kml::record::{FileId, Recno};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::filter::{Found, Volume};
use crate::replay::Stop;
use plan::{Item, MAX_ITEMS};

/// How a comparison came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// As Lento believes.
    Same,
    /// Something else: what, for people, and the newest record made for it.
    Differs(&'static str, Recno),
}

/// Whether what differs is journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Compare only.
    Look,
    /// Journal it.
    Take,
    /// The same after a power cut: nobody vouches for contents.
    Mend,
}

/// Scrubs of one volume.
pub struct Scrubber {
    volume: Arc<Volume>,
    /// Names in the tree that lead elsewhere, each told once.
    crossed: Mutex<BTreeSet<(FileId, Vec<u8>)>>,
}

impl Scrubber {
    /// For a volume that recovery has brought in order.
    #[must_use]
    pub fn new(volume: Arc<Volume>) -> Scrubber {
        Scrubber { volume, crossed: Mutex::default() }
    }

    /// Compares all items, each by itself.
    pub fn run(&self, batch: v1::Scrub) -> v1::Scrubbed {
        let since = Recno(batch.untouched_since);
        let mode = match (batch.take, batch.unvouched) {
            (false, _) => Mode::Look,
            (true, false) => Mode::Take,
            (true, true) => Mode::Mend,
        };
        let outcomes = batch
            .items
            .into_iter()
            .take(MAX_ITEMS)
            .map(|item| match Item::try_from(item) {
                Ok(Item::Entry(entry)) => outcome(self.entry(&entry, since, mode)),
                Ok(Item::Object(object)) => outcome(self.object(&object, since, mode)),
                Err(malformed) => outcome(Err(Stop::Refused(Errno::INVAL, malformed.to_string()))),
            })
            .collect();
        let last = self.volume.journal.published();
        if mode != Mode::Look {
            self.volume.upcalls.journal(&self.volume.name, last);
        }
        v1::Scrubbed { outcomes, last_recno: last.0 }
    }

    /// No record after `since` touches these. A replay's counts as well: Lento compares with what it has read.
    fn untouched(&self, since: Recno, entries: &[(FileId, &[u8])], objects: &[FileId]) -> Result<(), Stop> {
        let newest = [&self.volume.touched, &self.volume.replayed].into_iter().flat_map(|touched| {
            let entries = entries.iter().filter_map(|(dir, name)| touched.newest_entry(*dir, name));
            entries.chain(objects.iter().filter_map(|id| touched.newest(*id)))
        });
        match newest.max() {
            Some(newest) if newest > since => Err(Stop::Stale(Some(newest), None)),
            _ => Ok(()),
        }
    }

    /// Journals all of them, or none where there is no room. The locks of all objects concerned are held.
    fn take(&self, records: &[Found]) -> Result<Recno, Stop> {
        let tickets = self.volume.begin_found(records)?;
        Ok(self.volume.end_found(tickets, records)?)
    }
}

fn outcome(result: Result<Seen, Stop>) -> v1::ScrubOutcome {
    let mut outcome = v1::ScrubOutcome::default();
    match result {
        Ok(Seen::Same) => outcome.set_result(Kind::Same),
        Ok(Seen::Differs(what, recno)) => {
            outcome.set_result(Kind::Found);
            outcome.what = what.to_owned();
            outcome.recno = recno.0;
        }
        Err(Stop::Stale(recno, errno)) => {
            outcome.set_result(Kind::Stale);
            outcome.recno = recno.unwrap_or_default().0;
            outcome.errno = errno.map_or(0, Errno::raw_os_error);
        }
        Err(Stop::Busy) => outcome.set_result(Kind::Busy),
        Err(Stop::Refused(errno, message)) => {
            outcome.set_result(Kind::Refused);
            outcome.errno = errno.raw_os_error();
            outcome.message = message;
        }
    }
    outcome
}
