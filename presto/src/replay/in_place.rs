//! Overwriting in place: new content for a file with several names, guarded by the LML.
//!
//! Where the disk stops one in the middle, its entry stays and the file is nobody's to change until a later try has
//! finished it. Owns the list of these tries. What cannot be finished at all is journaled as vouched for by nobody.

use std::time::{Duration, Instant};

use intermezzo_kml::Class;
use intermezzo_kml::record::{Attributes, FileId, Flags, Intent, Origin, OriginKind, Outcome, Version};
use rustix::io::Errno;

use super::apply::Left;
use super::build::Built;
use super::check::absent;
use super::install::{Site, What};
use super::lml::{self, InPlace, Lml};
use super::plan::{Busy, Give};
use super::{Applied, Replayer, STALE, Stop};
use crate::filter;
use crate::lower::{Lower, missing};

/// Time to the next try; twice as long after each, up to `PAUSE_MAX`.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An overwriting whose entry stands.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    entry: InPlace,
    /// What its record is to say; `None`: it is journaled, only the entry has to go.
    intent: Option<Intent>,
    errno: Errno,
    again: Instant,
    pause: Duration,
}

impl Replayer {
    /// The inode has other names: its bytes are replaced, and the LML can do it again.
    pub(super) fn overwrite(
        &self,
        intent: &Intent,
        site: &Site<'_>,
        what: &What<'_>,
    ) -> Result<Applied, Stop> {
        let volume = &self.volume;
        let path = volume.lower.shown(site.dir, site.name);
        let give =
            Give { mode: site.stat.attributes.mode & 0o170_000 | what.give.mode & 0o7777, ..*what.give };
        let built = self.build(&give, &[], Some(what.content), &[], &intent.origin)?;
        if let Err(errno) = built.hold(&volume.lower, site.file) {
            built.discard(&volume.lower);
            return Err(untouched(&path, errno.into()));
        }
        let prepared = InPlace::new(&volume.lower, site.file, path.clone(), &give)
            .and_then(|entry| Lml::reserve(&entry, &volume.lower).map(|room| (entry, room)));
        let (entry, mut room) = match prepared {
            Ok(prepared) => prepared,
            Err(errno) => return Err(self.not_begun(&built, site.file, untouched(&path, errno.into()))),
        };
        if let Ok(file) = volume.lower.path_fd(site.file) {
            volume.keep_before(site.file, &file, &site.stat);
        }
        let applied = self.apply(intent, &[site.parent], || {
            self.lml.begin(&entry, &volume.lower)?;
            drop(room.take());
            Lml::copy(&entry, &volume.lower)?;
            // What is whole and durable now may have been missing.
            if volume.marks.on_demand.is_on() {
                missing::take_mark(volume.lower.path_fd(site.file)?)?;
            }
            Ok(Left { file: site.file, after: self.installed(&entry)? })
        });
        match applied {
            Ok(applied) => {
                if let Err(errno) = self.lml.finish(site.file, &volume.lower) {
                    self.leave(entry, None, errno);
                }
                volume.notifier.inode(site.file);
                Ok(applied)
            }
            Err(stop) if self.lml.has(site.file) => {
                let errno = stop.errno();
                // Its entry in the directory means nothing for the record that is still to come.
                let later =
                    Intent { parent: FileId::NONE, name: Vec::new(), parent_times: None, ..intent.clone() };
                self.leave(entry, Some(later), errno);
                volume.notifier.inode(site.file);
                let message =
                    format!("{path}: overwriting it in place stopped midway and will go on: {errno}");
                Err(Stop::Refused(errno, message))
            }
            Err(stop) => Err(self.not_begun(&built, site.file, untouched(&path, stop))),
        }
    }

    /// No entry stands: what was built is Lento's again, or goes.
    fn not_begun(&self, built: &Built, file: FileId, stop: Stop) -> Stop {
        built.give_back(&self.volume.lower, file);
        stop
    }

    /// What the record says of a file whose new content is whole. As in `Built::rename`: whoever has opened it meanwhile
    /// may have stored something.
    fn installed(&self, entry: &InPlace) -> Result<Attributes, Errno> {
        let now = self.volume.lower.stat(entry.object())?.attributes;
        Ok(Attributes { size: entry.size(), mtime: entry.mtime().unwrap_or(now.mtime), ..now })
    }

    /// The entries of this volume.
    pub(crate) fn lml(&self) -> &Lml {
        &self.lml
    }

    /// Nobody changes the file until a later try has removed the entry. The file's lock is held, or nobody uses the volume
    /// yet.
    pub(crate) fn leave(&self, entry: InPlace, intent: Option<Intent>, errno: Errno) {
        let (id, path) = (entry.object(), entry.path().to_owned());
        let what = if intent.is_some() { "the content is not whole" } else { "the content is whole" };
        tracing::error!(target: "replay", volume = self.volume.name, path, file = %id, %errno, what,
            "overwriting a file in place cannot be finished: nobody can change it until that is done; it is tried again");
        self.volume.unfinished.add(id, path);
        let left = Unfinished { entry, intent, errno, again: Instant::now() + PAUSE, pause: PAUSE };
        self.unfinished.lock().insert(id, left);
    }

    /// Tries to finish what could not be finished before.
    pub(crate) fn finish_left(&self) {
        self.look_ahead();
        let now = Instant::now();
        let due: Vec<FileId> = {
            let unfinished = self.unfinished.lock();
            unfinished.iter().filter(|(_, left)| left.again <= now).map(|(id, _)| *id).collect()
        };
        for id in due {
            let _held = self.volume.locks.lock(&[id]);
            let Some(left) = self.unfinished.lock().get(&id).cloned() else { continue };
            let path = left.entry.path();
            match self.finish(&left) {
                Ok(()) => {
                    self.unfinished.lock().remove(&id);
                    self.volume.unfinished.remove(id);
                    tracing::info!(target: "replay", volume = self.volume.name, path, file = %id,
                        "overwriting a file in place is finished");
                }
                Err(stop) => {
                    let errno = stop.errno();
                    if errno != left.errno {
                        tracing::error!(target: "replay", volume = self.volume.name, path, file = %id, %errno,
                            "overwriting a file in place still cannot be finished");
                    }
                    if let Some(left) = self.unfinished.lock().get_mut(&id) {
                        left.errno = errno;
                        left.pause = (left.pause * 2).min(PAUSE_MAX);
                        left.again = Instant::now() + left.pause;
                    }
                }
            }
        }
    }

    fn finish(&self, left: &Unfinished) -> Result<(), Stop> {
        let (volume, id) = (&self.volume, left.entry.object());
        if let Some(intent) = &left.intent {
            let there = match volume.lower.stat(id) {
                Ok(stat) if volume.is_removed(id, &stat) => None,
                Ok(stat) => Some(stat),
                Err(errno) if absent(errno) => None,
                Err(errno) => return Err(errno.into()),
            };
            // What has no name in the tree any more is nobody's update.
            if there.is_some() {
                self.finish_content(&left.entry, intent)?;
            }
            if let Some(left) = self.unfinished.lock().get_mut(&id) {
                left.intent = None;
            }
        }
        self.lml.finish(id, &volume.lower).map_err(Stop::from)
    }

    fn finish_content(&self, entry: &InPlace, intent: &Intent) -> Result<(), Stop> {
        let (volume, id) = (&self.volume, entry.object());
        let mut intent = Intent { time: filter::now(), ..intent.clone() };
        let after = match Lml::redo(entry, &volume.lower) {
            Ok(()) => self.installed(entry)?,
            Err(errno) if absent(errno) => {
                tracing::error!(target: "replay", volume = volume.name, path = entry.path(), file = %id,
                    "an interrupted overwriting can never be finished, its content is gone: the file is journaled as torn");
                intent.origin = Origin::default();
                intent.flags = Flags::UNVOUCHED;
                volume.lower.stat(id)?.attributes
            }
            Err(errno) => return Err(errno.into()),
        };
        let outcome = Outcome { object: id, after, flags: intent.flags, ..Outcome::default() };
        let recno = volume.journal.append(Class::Replay, &intent, &outcome)?;
        volume.counted(&intent, &outcome);
        if intent.origin.kind == OriginKind::Replay {
            volume.replayed.record(&intent, &outcome, recno);
        } else {
            volume.touched.object(id, recno);
            volume.limbo.note_close(id, recno);
        }
        self.versions.lock().content(id, after.version(), recno);
        volume.notifier.inode(id);
        volume.notifier.upto(recno);
        volume.upcalls.journal(&volume.name, recno);
        Ok(())
    }

    /// Others' changes of a file that is not whole wait.
    pub(super) fn refuse_unfinished(&self, id: FileId) -> Result<(), Stop> {
        let unfinished = self.unfinished.lock();
        let Some(left) = unfinished.get(&id) else { return Ok(()) };
        let (path, errno) = (left.entry.path(), left.errno);
        let message = format!("{path}: an earlier overwriting in place is not finished: {errno}");
        Err(Stop::Refused(errno, message))
    }

    /// A client's Lento puts off this file alone; a server's never waits for a file, but for the disk it must.
    pub(super) fn unfinished(&self, id: FileId, busy: Busy) -> Stop {
        match busy {
            Busy::Wait => Stop::Busy,
            Busy::Decide => self.refuse_unfinished(id).err().unwrap_or(STALE),
        }
    }

    /// The version that a file had before a part of it was overwritten.
    pub(super) fn before_unfinished(&self, id: FileId) -> Option<Version> {
        let unfinished = self.unfinished.lock();
        unfinished.get(&id)?.intent.as_ref().map(|intent| intent.before.version())
    }
}

impl Built {
    fn hold(&self, lower: &Lower, object: FileId) -> Result<(), Errno> {
        lml::hold(lower, self.name(), object)
    }

    fn give_back(&self, lower: &Lower, object: FileId) {
        if lml::give_back(lower, self.name(), object).is_ok() {
            self.discard(lower);
        }
    }
}

/// A stop before the first byte.
fn untouched(path: &str, stop: Stop) -> Stop {
    let errno = stop.errno();
    let reason = match stop {
        Stop::Refused(_, reason) => reason,
        Stop::Stale(..) | Stop::Busy => errno.to_string(),
    };
    Stop::Refused(errno, format!("{path}: it cannot be overwritten in place, nothing was changed: {reason}"))
}
