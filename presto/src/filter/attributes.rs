//! Changes of attributes: mode, owner, size, times, extended attributes.

use std::os::fd::AsFd;

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Time;
use rustix::fs::AtFlags;
use rustix::fs::Gid;
use rustix::fs::OFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_NOW;
use rustix::fs::UTIME_OMIT;
use rustix::fs::Uid;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::SAFE;
use super::Volume;
use super::now;
use super::update::Stop;
use super::update::Told;
use super::writers::PRIVILEGES;
use crate::lower::Stat;
use crate::lower::change_mode;
use crate::lower::dropping_privileges;
use crate::lower::missing;
use crate::lower::reopen;
use crate::lower::with_fsetid;
use crate::lower::xattr;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The kernel's present.
    Now,
    /// This one.
    At(Time),
}

/// What to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

impl Changes {
    fn mask(&self, before: &Stat) -> Mask {
        let mut mask = Mask::empty();
        mask.set(Mask::MODE, self.mode.is_some());
        mask.set(Mask::UID, self.uid.is_some());
        mask.set(Mask::GID, self.gid.is_some());
        mask.set(Mask::SIZE, self.size.is_some());
        mask.set(Mask::MTIME, self.mtime.is_some());
        mask.set(Mask::ATIME, self.atime.is_some());
        // The kernel takes set-user-id and set-group-id away with a new owner or content.
        let strips = self.uid.is_some() || self.gid.is_some() || self.size.is_some();
        mask.set(Mask::MODE, mask.contains(Mask::MODE) || strips && before.attributes.mode & PRIVILEGES != 0);
        mask
    }
}

impl Volume {
    /// Changes attributes; the new ones.
    pub fn setattr(&self, caller: Caller, id: FileId, changes: &Changes) -> Result<Stat, Errno> {
        loop {
            // What remains of a content must be here.
            if changes.size.is_some_and(|size| size > 0) {
                self.fetch(caller, id)?;
            }
            if let Some(stat) = self.set_attributes(caller, id, changes)? {
                return Ok(stat);
            }
        }
    }

    /// `None`: its content has just left.
    fn set_attributes(&self, caller: Caller, id: FileId, changes: &Changes) -> Result<Option<Stat>, Errno> {
        self.update(caller, |told| {
            let file = self.object(id)?;
            let _held = self.locks.lock(&[id]);
            self.stop_filling(id)?;
            let before = Stat::of(&file)?;
            let mut intent = Volume::intent(Opcode::Setattr, caller);
            intent.object = id;
            intent.mask = changes.mask(&before);
            intent.before = before.attributes;
            if intent.mask.is_empty() {
                return Ok(Some(self.as_seen(id, before)));
            }
            self.refuse_taken(id, &before)?;
            self.refuse_unfinished(id)?;
            if self.is_removed(id, &before) {
                // Only who has it open can see the change; there is nothing to replicate.
                self.change(&file, &before, changes)?;
                return Ok(Some(self.as_seen(id, Stat::of(&file)?)));
            }
            let lacks = changes.size.is_some() && self.lacking(&file, &before)?.is_some();
            if lacks && changes.size != Some(0) {
                return Ok(None);
            }
            if let Some(size) = changes.size {
                self.quota.may_resize(&self.name, id, before.attributes.size, size)?;
                if size != before.attributes.size {
                    self.keep_before(id, &file, &before);
                }
            }
            let capable =
                intent.mask.intersects(Mask::UID | Mask::GID | Mask::SIZE) && has_capability(&file, &before);
            let ((after, refused), _) = self.journaled(told, &intent, || {
                let result = self.change(&file, &before, changes);
                let after = Stat::of(&file)?;
                match result {
                    // Half done is done: the record says what is so now, the user gets the error.
                    Err(errno) if after.attributes == before.attributes => Err(errno),
                    result => {
                        let outcome = Outcome {
                            object: id,
                            after: after.attributes,
                            flags: intent.flags,
                            ..Outcome::default()
                        };
                        Ok(((after, result.err()), outcome))
                    }
                }
            })?;
            self.writers.attributes_changed(id, &before.attributes, &after.attributes, intent.mask, now());
            if capable {
                self.capability_gone(told, caller, id, &file, &after.attributes);
            }
            match refused {
                Some(errno) => Err(Stop::Errno(errno)),
                None => Ok(Some(self.as_seen(id, after))),
            }
        })
    }

    fn change(&self, file: impl AsFd, before: &Stat, changes: &Changes) -> Result<(), Errno> {
        if let Some(size) = changes.size {
            dropping_privileges(|| {
                let open = reopen(&file, OFlags::WRONLY)?;
                rustix::fs::ftruncate(&open, size)
            })?;
            if size == 0 && self.marks.on_demand.is_on() {
                missing::take_mark(&file)?;
            }
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let uid = changes.uid.map(Uid::from_raw);
            let gid = changes.gid.map(Gid::from_raw);
            let change = || rustix::fs::chownat(&file, c"", uid, gid, AtFlags::EMPTY_PATH);
            if before.attributes.mode & PRIVILEGES == 0 { change()? } else { with_fsetid(change)? }
        }
        if let Some(mode) = changes.mode {
            if mode & PRIVILEGES == 0 {
                change_mode(&file, mode)?;
            } else {
                with_fsetid(|| change_mode(&file, mode))?;
            }
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            rustix::fs::utimensat(&file, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        caller: Caller,
        id: FileId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        // Said before the intent: one that cannot fail any more is decided exactly after a kill.
        let refused = |file: std::os::fd::BorrowedFd<'_>| {
            if flags.is_empty() {
                return Ok(());
            }
            match xattr::get(file, name) {
                Ok(_) if flags.contains(XattrFlags::CREATE) => Err(Errno::EXIST),
                Err(Errno::NODATA) if flags.contains(XattrFlags::REPLACE) => Err(Errno::NODATA),
                _ => Ok(()),
            }
        };
        self.change_xattr(caller, id, name, (Opcode::Setxattr, value), refused, |file| {
            // An ACL sets the mode as well.
            with_fsetid(|| xattr::set(file, name, value, flags))
        })
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, caller: Caller, id: FileId, name: &[u8]) -> Result<(), Errno> {
        let refused = |file: std::os::fd::BorrowedFd<'_>| xattr::get(file, name).map(|_| ());
        self.change_xattr(caller, id, name, (Opcode::Delxattr, b""), refused, |file| {
            xattr::remove(file, name)
        })
    }

    fn change_xattr(
        &self,
        caller: Caller,
        id: FileId,
        name: &[u8],
        (opcode, value): (Opcode, &[u8]),
        refused: impl Fn(std::os::fd::BorrowedFd<'_>) -> Result<(), Errno>,
        change: impl Fn(std::os::fd::BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if name.starts_with(xattr::HIDDEN) || name == SAFE {
            return Err(Errno::PERM);
        }
        self.update(caller, |told| {
            let file = self.object(id)?;
            let _held = self.locks.lock(&[id]);
            self.stop_filling(id)?;
            let before = Stat::of(&file)?;
            self.refuse_taken(id, &before)?;
            self.refuse_unfinished(id)?;
            if self.is_removed(id, &before) {
                return change(file.as_fd()).map_err(Stop::Errno);
            }
            refused(file.as_fd())?;
            let mut intent = Volume::intent(opcode, caller);
            intent.object = id;
            intent.before = before.attributes;
            intent.name = name.to_vec();
            intent.value = value.to_vec();
            let (after, _) = self.journaled(told, &intent, || {
                change(file.as_fd())?;
                let after = Stat::of(&file).map(|stat| stat.attributes).unwrap_or_default();
                Ok((after, Outcome { object: id, after, flags: intent.flags, ..Outcome::default() }))
            })?;
            if name == xattr::ACL_DEFAULT {
                self.lower.acl_changed(id);
            }
            if name == xattr::CAPABILITY {
                self.writers.set_capability(id, opcode == Opcode::Setxattr);
            }
            self.writers.attributes_changed(id, &before.attributes, &after, Mask::empty(), now());
            Ok(())
        })
    }

    /// The kernel may have removed the file capabilities by itself; if so, the journal says it. The object's lock is
    /// held.
    pub(crate) fn capability_gone(
        &self,
        told: &mut Told,
        caller: Caller,
        id: FileId,
        file: impl AsFd,
        attributes: &Attributes,
    ) {
        if !matches!(xattr::get(file, xattr::CAPABILITY), Err(Errno::NODATA)) {
            return;
        }
        let mut intent = Volume::intent(Opcode::Delxattr, caller);
        intent.object = id;
        intent.before = *attributes;
        intent.name = xattr::CAPABILITY.to_vec();
        let outcome = Outcome { object: id, after: *attributes, ..Outcome::default() };
        if self.journaled(told, &intent, || Ok(((), outcome))).is_ok() {
            self.writers.set_capability(id, false);
        }
    }
}

/// Whether a file has capabilities; only programs have.
pub(crate) fn has_capability(file: impl AsFd, stat: &Stat) -> bool {
    stat.is_file() && stat.attributes.mode & 0o111 != 0 && xattr::get(file, xattr::CAPABILITY).is_ok()
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
    }
}
