//! Preconditions: what must hold before a replay touches anything.

use intermezzo_kml as kml;
use intermezzo_kml::Class;
use intermezzo_kml::record::{Attributes, FileId, Intent, Opcode, Outcome, Recno, Version};
use rustix::io::Errno;

use super::plan::Busy;
use super::{Replayer, STALE, Stop};
use crate::filter;
use crate::lower::{ADOPTED, Stat};

/// Precondition on the content of a regular file that is about to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    /// The version it must have; `None`: any.
    pub version: Option<Version>,
    /// What to do if it is open for writing.
    pub busy: Busy,
}

/// What becomes of a content that passed its guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old {
    /// It may go.
    Free,
    /// Somebody still writes to it: it must be kept in limbo if its last name goes.
    Written,
}

impl Replayer {
    /// No user's record after `since` touches these (rule 13): values alone would allow "absent, made, renamed away,
    /// absent". And no entry is presto's own.
    pub(super) fn untouched(
        &self,
        since: Recno,
        entries: &[(FileId, &[u8])],
        objects: &[FileId],
    ) -> Result<(), Stop> {
        if entries.iter().any(|(dir, name)| self.volume.lower.hides(*dir, name)) {
            return Err(Stop::Refused(Errno::PERM, format!("{ADOPTED} in the root is presto's own here")));
        }
        let touched = &self.volume.touched;
        let entries = entries.iter().filter_map(|(dir, name)| touched.newest_entry(*dir, name));
        let objects = objects.iter().filter_map(|id| touched.newest(*id));
        match entries.chain(objects).max() {
            Some(newest) if newest > since => Err(Stop::Stale(Some(newest), None)),
            _ => Ok(()),
        }
    }

    /// Attributes of an object that must have a name somewhere.
    pub(super) fn present(&self, id: FileId) -> Result<Stat, Stop> {
        let stat = self.volume.lower.stat(id)?;
        // A name in limbo, or of an earlier file, is not one of the tree.
        let gone = stat.attributes.nlink == 0 || stat.attributes.nlink == 1 && self.volume.is_aside(id);
        if gone { Err(STALE) } else { Ok(stat) }
    }

    /// May this regular file's content go? Its lock is held.
    pub(super) fn guard(&self, id: FileId, stat: &Stat, guard: Guard) -> Result<Old, Stop> {
        if !stat.is_file() {
            return Ok(Old::Free);
        }
        if self.volume.writers.is_writing(id) {
            return match guard.busy {
                Busy::Wait => Err(Stop::Busy),
                // The version says nothing while somebody writes; what he leaves becomes a conflict at his close.
                Busy::Decide => Ok(Old::Written),
            };
        }
        if self.volume.lacking_file(id, stat)?.is_some() {
            // There is nothing in it that anybody could have stored.
            return Ok(Old::Free);
        }
        // What is there now is nobody's content; the one before is what Lento knows of.
        let unfinished = self.before_unfinished(id);
        let present = unfinished.unwrap_or(stat.attributes.version());
        let Some(expected) = guard.version else { return Ok(Old::Free) };
        let versions = self.versions.lock();
        if versions.same(id, expected, present) {
            return Ok(Old::Free);
        }
        let recorded = versions.recorded(id, present);
        drop(versions);
        // A record vouches for what is there: Lento expects something else. No record does: a store that nobody
        // reported (a mapping) left it, and Lento must hear of that content before it can go.
        match recorded {
            Some(recno) => Err(Stop::Stale(Some(recno), None)),
            None if unfinished.is_some() => Err(self.unfinished(id, guard.busy)),
            None => Err(Stop::Stale(Some(self.missed_close(id, &stat.attributes)?), None)),
        }
    }

    /// A file lost a name, or got another, by a record that is about something else; its lock is held. That moved its ctime,
    /// which is nobody's store.
    pub(super) fn name_moved(&self, id: FileId, before: &Stat, recno: Recno) {
        let read_at = filter::now();
        let Ok(after) = self.volume.lower.stat(id) else { return };
        let (before, after) = (&before.attributes, &after.attributes);
        self.volume.writers.attributes_changed(id, before, after, kml::Mask::empty(), read_at);
        if (before.mtime, before.size) == (after.mtime, after.size) {
            self.versions.lock().same_content(id, before.version(), after.version(), recno);
        }
    }

    /// A file went to limbo under its writer; its lock is held.
    pub(super) fn orphaned(&self, id: FileId, before: &Stat, recno: Recno) {
        self.volume.limbo.entered(id, recno);
        self.name_moved(id, before, recno);
    }

    fn missed_close(&self, id: FileId, present: &Attributes) -> Result<Recno, Stop> {
        let intent = Intent {
            opcode: Some(Opcode::Close),
            time: filter::now(),
            object: id,
            before: *present,
            ..Intent::default()
        };
        let outcome = Outcome { object: id, after: *present, ..Outcome::default() };
        let recno = self.volume.journal.append(Class::Replay, &intent, &outcome)?;
        self.volume.touched.object(id, recno);
        self.volume.limbo.note_close(id, recno);
        tracing::info!(target: "replay", volume = self.volume.name, file = %id, %recno, "a store without a close is journaled");
        Ok(recno)
    }

    /// Whether these attributes are what the bits of `mask` ask.
    pub(super) fn agrees(mask: kml::Mask, present: &Attributes, asked: &super::plan::Give) -> bool {
        let on = |bit| mask.contains(bit);
        (!on(kml::Mask::MODE) || present.mode & 0o7777 == asked.mode & 0o7777)
            && (!on(kml::Mask::UID) || present.uid == asked.uid)
            && (!on(kml::Mask::GID) || present.gid == asked.gid)
            && (!on(kml::Mask::MTIME) || asked.mtime.is_none_or(|mtime| present.mtime == mtime))
    }
}

/// The kernel's word for "nothing by that name".
pub(crate) fn absent(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::STALE)
}
