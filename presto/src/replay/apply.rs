//! One way to do a replay: intent, lower operation, directory times, outcome, then the kernel's caches.

use intermezzo_kml::Class;
use intermezzo_kml::record::{Attributes, FileId, Intent, Outcome, Recno, Time};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::plan::Item;
use super::{Applied, Replayer, Stop};
use crate::filter;
use crate::lower::Stat;

/// A directory whose entries are about to change, and the time it is to have after.
pub(super) struct Parent {
    pub id: FileId,
    keep: Time,
}

/// What a lower operation leaves.
pub(super) struct Left {
    /// The object after.
    pub file: FileId,
    /// Its attributes; default when it is gone.
    pub after: Attributes,
}

impl Replayer {
    /// The directory with the modification time it will be left with: the one asked for, or the present one.
    pub(super) fn parent(&self, id: FileId, asked: Option<Time>) -> Result<Parent, Stop> {
        let dir = self.volume.lower.dir(id)?;
        let stat = Stat::of(&*dir)?;
        if stat.attributes.nlink == 0 {
            return Err(super::STALE);
        }
        Ok(Parent { id, keep: asked.unwrap_or(stat.attributes.mtime) })
    }

    /// The intent of an item, with what every record of a replay carries.
    pub(super) fn intent(item: &Item) -> Intent {
        Intent { time: filter::now(), origin: item.origin, flags: item.flags, ..Intent::default() }
    }

    /// Journals the intent, does it, sets the directories' times, journals the outcome. Locks are held by the caller.
    pub(super) fn apply(
        &self,
        intent: &Intent,
        parents: &[&Parent],
        operation: impl FnOnce() -> Result<Left, Errno>,
    ) -> Result<Applied, Stop> {
        let wanted = parents.first().zip(parents.last());
        let parent_times = wanted.map(|(source, goal)| [source.keep, goal.keep]);
        let intent = &Intent { parent_times, ..intent.clone() };
        let ticket = self.volume.journal.begin(Class::Replay, intent)?;
        let left = match operation() {
            Ok(left) => left,
            Err(errno) => {
                self.volume.journal.failed(ticket);
                return Err(errno.into());
            }
        };
        let times: Vec<Time> = parents.iter().map(|parent| self.restore_time(parent)).collect();
        let outcome = Outcome {
            object: left.file,
            after: left.after,
            parent_mtime: times.first().copied().unwrap_or_default(),
            target_parent_mtime: times
                .last()
                .copied()
                .filter(|_| !intent.target_parent.is_none())
                .unwrap_or_default(),
            flags: intent.flags,
        };
        let recno = self.volume.journal.done(ticket, &outcome)?;
        self.volume.replayed.record(intent, &outcome, recno);
        self.volume.counted(intent, &outcome);
        self.account(intent, &left, recno);
        Ok(Applied { file: left.file, recno, already: false })
    }

    /// Journals that it was so before.
    pub(super) fn already(
        &self,
        intent: &Intent,
        file: FileId,
        parents: &[&Parent],
    ) -> Result<Applied, Stop> {
        let after = self.volume.lower.stat(file).map(|stat| stat.attributes).unwrap_or_default();
        let outcome = Outcome {
            object: file,
            after,
            parent_mtime: parents.first().map(|parent| self.restore_time(parent)).unwrap_or_default(),
            target_parent_mtime: if intent.target_parent.is_none() {
                Time::default()
            } else {
                parents.last().map(|parent| self.restore_time(parent)).unwrap_or_default()
            },
            flags: intent.flags,
        };
        let recno = self.volume.journal.append(Class::Replay, intent, &outcome)?;
        self.volume.replayed.record(intent, &outcome, recno);
        Ok(Applied { file, recno, already: true })
    }

    fn restore_time(&self, parent: &Parent) -> Time {
        let set =
            self.volume.lower.dir(parent.id).and_then(|dir| rustix::fs::futimens(&*dir, &times(parent.keep)));
        self.volume.listing_changed(parent.id);
        match set {
            Ok(()) => parent.keep,
            // Only a time: the record tells what is there.
            Err(_) => self.volume.lower.stat(parent.id).map(|stat| stat.attributes.mtime).unwrap_or_default(),
        }
    }

    /// Keeps the notes about versions and writers true after a change of `intent.object`.
    fn account(&self, intent: &Intent, left: &Left, recno: Recno) {
        if left.after.mode == 0 {
            return;
        }
        let now = left.after.version();
        let mut versions = self.versions.lock();
        if intent.object == left.file
            && intent.before.mode != 0
            && intent.opcode != Some(intermezzo_kml::Opcode::Close)
        {
            versions.same_content(left.file, intent.before.version(), now, recno);
            let writers = &self.volume.writers;
            writers.attributes_changed(left.file, &intent.before, &left.after, intent.mask, filter::now());
        } else {
            versions.content(left.file, now, recno);
        }
    }
}

/// Sets the modification time, leaves the access time.
pub(crate) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) },
    }
}
