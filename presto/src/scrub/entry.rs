//! What a name leads to: still the same, nothing, something new, another file, or one that has moved here.

use intermezzo_kml::record::{Attributes, FileId, Flags, Intent, Opcode, Outcome, Recno, Time};
use rustix::io::Errno;

use super::plan::{Entry, Expected, Place};
use super::{Mode, Scrubber, Seen};
use crate::filter::{self, Found};
use crate::lower::{ADOPTED, Dir, Local, Stat};
use crate::replay::{STALE, Stop};

/// How often an entry may change hands while its locks are being taken.
const ATTEMPTS: u32 = 16;

impl Scrubber {
    pub(super) fn entry(&self, item: &Entry, since: Recno, mode: Mode) -> Result<Seen, Stop> {
        let (volume, at) = (&self.volume, &item.at);
        if volume.lower.hides(at.dir, &at.name) {
            let message = format!("{ADOPTED} in the root is no part of the tree");
            return Err(Stop::Refused(Errno::INVAL, message));
        }
        if item.left {
            return self.left_the_tree(item, since, mode);
        }
        let dir = volume.lower.dir(at.dir)?;
        let expect = item.expect.map(|expect| expect.file);
        let known_dir = item.known.as_ref().map(|place| place.dir);
        for _ in 0..ATTEMPTS {
            let found = self.standing(&dir, &at.name)?;
            let objects = [Some(at.dir), found, expect, known_dir].map(Option::unwrap_or_default);
            let _held = volume.locks.lock(&objects);
            if self.standing(&dir, &at.name)? != found {
                continue;
            }
            self.alive(&*dir, at.dir)?;
            let known = item.known.as_ref().filter(|_| found.is_some());
            let mut entries = vec![(at.dir, at.name.as_slice())];
            entries.extend(known.map(|place| (place.dir, place.name.as_slice())));
            self.untouched(since, &entries, &[found.unwrap_or_default(), expect.unwrap_or_default()])?;
            return self.compare(item, &dir, found, mode);
        }
        Err(STALE)
    }

    /// What stands there now. A file that is kept aside has no name in the tree, whatever it looks like.
    fn standing(&self, dir: &Dir, name: &[u8]) -> Result<Option<FileId>, Stop> {
        let volume = &self.volume;
        match volume.lower.find(dir, name) {
            Ok(Some(id)) if volume.is_aside(id) => Ok(None),
            Ok(Some(_))
                if volume.has_locals() && volume.stays_here(dir, name, Stat::at(dir, name)?.is_dir())? =>
            {
                Ok(None)
            }
            Ok(found) => Ok(found),
            Err(Errno::XDEV) => {
                let message = "a mount point or subvolume is no part of the tree".to_owned();
                Err(Stop::Refused(Errno::XDEV, message))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// What was in a directory that is no part of the tree any more, or is gone: there is nothing to look at.
    fn left_the_tree(&self, item: &Entry, since: Recno, mode: Mode) -> Result<Seen, Stop> {
        let Some(expect) = item.expect else { return Ok(Seen::Same) };
        let _held = self.volume.locks.lock(&[item.at.dir, expect.file]);
        self.untouched(since, &[(item.at.dir, item.at.name.as_slice())], &[expect.file])?;
        if self.is_elsewhere(item, expect)? {
            return Err(STALE);
        }
        if mode == Mode::Look {
            return Ok(Seen::Differs("gone", Recno::NONE));
        }
        let recno = self.take(&[self.lost(item, filter::now(), expect)?])?;
        self.forget(item, None);
        Ok(Seen::Differs("gone", recno))
    }

    fn compare(&self, item: &Entry, dir: &Dir, found: Option<FileId>, mode: Mode) -> Result<Seen, Stop> {
        let expect = item.expect;
        let aside = item.at.dir == self.volume.lower.staging();
        // What lies aside belongs to replays; only after a power cut it is listed.
        if found == expect.map(|expect| expect.file) || aside && found.is_some() && found != item.listed {
            return Ok(Seen::Same);
        }
        if found.is_some() && found != item.listed {
            // Whether Lento knows it has not been said.
            return Err(STALE);
        }
        if let Some(file) = found
            && item.known.is_none()
            && self.volume.has_locals()
            && self.volume.will_stay(dir, &item.at.name, self.volume.lower.stat(file)?.is_dir())?
        {
            return self.excluded(item, dir, mode);
        }
        if mode == Mode::Mend
            && let Some(file) = found
            && item.known.is_none()
        {
            match expect {
                None if self.is_unpromised(file)? => return self.drop_unpromised(item, dir, file),
                Some(expect) if self.is_exchanged(expect, file)? => {
                    return self.exchanged(item, dir, expect, file);
                }
                _ => {}
            }
        }
        if let Some(expect) = expect
            && self.is_elsewhere(item, expect)?
        {
            return self.changed_places(item, dir, found, expect, mode);
        }
        let mut records = Vec::new();
        let mut what = "gone";
        if let Some(expect) = expect {
            records.push(self.lost(item, mtime(dir)?, expect)?);
        }
        if let Some(file) = found {
            what = self.appeared(item, dir, file, &mut records)?;
            if expect.is_some() {
                what = "another file";
            }
        }
        if mode == Mode::Look {
            return Ok(Seen::Differs(what, Recno::NONE));
        }
        let recno = self.take(&records)?;
        if found.is_some() {
            // Its name may have been excluded once.
            self.volume.share(dir, &item.at.name)?;
        }
        self.forget(item, found);
        Ok(Seen::Differs(what, recno))
    }

    /// What is new here has an excluded name: it stays on this node.
    fn excluded(&self, item: &Entry, dir: &Dir, mode: Mode) -> Result<Seen, Stop> {
        let mut seen = Seen::Same;
        if let Some(expect) = item.expect {
            let lost = self.lost(item, mtime(dir)?, expect)?;
            let recno = if mode == Mode::Look { Recno::NONE } else { self.take(&[lost])? };
            seen = Seen::Differs("gone", recno);
        }
        if mode != Mode::Look {
            self.volume.lower.set_local(dir, &item.at.name, Some(Local::Excluded))?;
        }
        Ok(seen)
    }

    /// What was expected has a name all the same: it has moved, and is told at its new place.
    fn is_elsewhere(&self, item: &Entry, expect: Expected) -> Result<bool, Errno> {
        if item.given_up || !(expect.is_last || expect.is_dir) {
            return Ok(false);
        }
        match self.volume.lower.stat(expect.file) {
            Ok(stat) => Ok(stat.attributes.nlink > 0 && !self.volume.is_aside(expect.file)),
            Err(Errno::STALE | Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Two files that are each in the other's way, or in that of a third: told as an exchange, the one that stands here is in
    /// its place, and the other one a step further.
    fn changed_places(
        &self,
        item: &Entry,
        dir: &Dir,
        found: Option<FileId>,
        expect: Expected,
        mode: Mode,
    ) -> Result<Seen, Stop> {
        let (Some(file), Some(place), true) = (found, &item.known, item.may_exchange) else {
            return Err(STALE);
        };
        let Some(there) = self.left(place, file)? else { return Err(STALE) };
        if mode == Mode::Look {
            return Ok(Seen::Differs("another file", Recno::NONE));
        }
        let moved = Found::of(Opcode::Rename, file, self.attributes(file)?).flag(Flags::EXCHANGE);
        let moved = Found {
            intent: Intent {
                parent: place.dir,
                name: place.name.clone(),
                target_parent: item.at.dir,
                target_name: item.at.name.clone(),
                replaced: expect.file,
                ..moved.intent
            },
            outcome: Outcome { parent_mtime: there, target_parent_mtime: mtime(dir)?, ..moved.outcome },
        };
        let recno = self.take(&[moved])?;
        self.forget(item, found);
        Ok(Seen::Differs("another file", recno))
    }

    /// The name does not lead to what was expected any more.
    fn lost(&self, item: &Entry, dir_mtime: Time, expect: Expected) -> Result<Found, Stop> {
        let last = expect.is_last || expect.is_dir;
        let after = if last { Attributes::default() } else { self.attributes(expect.file)? };
        let opcode = if expect.is_dir { Opcode::Rmdir } else { Opcode::Unlink };
        let found = at(Found::of(opcode, expect.file, after), item, dir_mtime);
        Ok(if last { found.flag(Flags::LAST_LINK) } else { found })
    }

    /// The name leads to a file that was not expected there.
    fn appeared(
        &self,
        item: &Entry,
        dir: &Dir,
        file: FileId,
        records: &mut Vec<Found>,
    ) -> Result<&'static str, Stop> {
        let Some(place) = &item.known else {
            if self.volume.lacking_file(file, &self.volume.lower.stat(file)?)?.is_some() {
                let message =
                    "a file whose content never came here, and that no record made: remove it".to_owned();
                return Err(Stop::Refused(Errno::NODATA, message));
            }
            let at = filter::Place { dir: item.at.dir, name: &item.at.name };
            let made = self.volume.made(file, dir, at)?;
            if item.at.dir == self.volume.lower.staging() {
                // A replay made it. Whether all of its content is there, nobody knows.
                let close = |found: &Found| found.intent.opcode == Some(Opcode::Close);
                let (closes, mut made): (Vec<_>, Vec<_>) = made.into_iter().partition(close);
                made.truncate(1);
                records.extend(made);
                records.extend(closes.into_iter().map(|found| found.flag(Flags::UNVOUCHED)));
                return Ok("new");
            }
            records.extend(made);
            return Ok("new");
        };
        let present = self.attributes(file)?;
        let here = mtime(dir)?;
        match self.left(place, file)? {
            None => {
                records.push(at(Found::of(Opcode::Link, file, present), item, here));
                Ok("new")
            }
            Some(there) => {
                let moved = Found::of(Opcode::Rename, file, present);
                records.push(Found {
                    intent: Intent {
                        parent: place.dir,
                        name: place.name.clone(),
                        target_parent: item.at.dir,
                        target_name: item.at.name.clone(),
                        ..moved.intent
                    },
                    outcome: Outcome { parent_mtime: there, target_parent_mtime: here, ..moved.outcome },
                });
                Ok("moved")
            }
        }
    }

    /// The modification time of the directory where the file was known to be, if it is not there any more.
    fn left(&self, place: &Place, file: FileId) -> Result<Option<Time>, Stop> {
        let lower = &self.volume.lower;
        let dir = match lower.dir(place.dir) {
            Ok(dir) => dir,
            // The directory went as well; its own record is still to come.
            Err(Errno::STALE | Errno::NOENT | Errno::NOTDIR) => return Ok(Some(filter::now())),
            Err(errno) => return Err(errno.into()),
        };
        match lower.find(&*dir, &place.name) {
            Ok(Some(there)) if there == file => Ok(None),
            Ok(_) | Err(Errno::XDEV) => Ok(Some(mtime(&dir)?)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Attributes, default if the object is gone.
    fn attributes(&self, id: FileId) -> Result<Attributes, Stop> {
        match self.volume.lower.stat(id) {
            Ok(stat) => Ok(stat.attributes),
            Err(Errno::STALE | Errno::NOENT) => Ok(Attributes::default()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What caches say of these names and files no longer holds.
    pub(super) fn forget(&self, item: &Entry, found: Option<FileId>) {
        let (volume, at) = (&self.volume, &item.at);
        volume.notifier.entry(at.dir, &at.name);
        volume.listing_changed(at.dir);
        if let Some(expect) = item.expect {
            if expect.is_dir {
                volume.lower.forget_dir(expect.file);
            }
            volume.notifier.inode(expect.file);
        }
        if let Some(found) = found {
            volume.notifier.inode(found);
        }
        if let Some(place) = &item.known {
            volume.notifier.entry(place.dir, &place.name);
            volume.listing_changed(place.dir);
        }
    }
}

/// At the entry's name.
fn at(found: Found, item: &Entry, parent_mtime: Time) -> Found {
    let intent = Intent { parent: item.at.dir, name: item.at.name.clone(), ..found.intent };
    Found { intent, outcome: Outcome { parent_mtime, ..found.outcome } }
}

fn mtime(dir: &Dir) -> Result<Time, Errno> {
    Ok(Stat::of(dir)?.attributes.mtime)
}
