//! Names that go: unlink and rmdir. Limbo keeps what may still be asked for.

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Recno;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::LimboReason;
use super::Volume;
use super::make::mtime;
use super::update::Stop;
use super::update::Told;
use crate::lower::Dir;
use crate::lower::Stat;

impl Volume {
    /// Removes a name of something that is no directory.
    pub fn unlink(&self, caller: Caller, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        self.removing(caller, parent, name, |told, dir, object, before| {
            if before.is_dir() {
                return Err(Stop::Errno(Errno::ISDIR));
            }
            let last = before.attributes.nlink == 1;
            let local = self.is_local_at(dir, name)?;
            let keep = last && !local && before.is_file() && self.limbo.needs(object);
            let history = last && !local && !keep && self.keeps_history_of(&before);
            let mut intent = removal(Opcode::Unlink, caller, parent, name, (object, before));
            intent.flags.set(Flags::LOCAL, local);
            intent.flags.set(Flags::LAST_LINK, last);
            intent.flags.set(Flags::LIMBO, keep);
            let recno = self.journal_removal(told, &intent, dir, || {
                if keep {
                    self.limbo.keep_by_rename(&self.lower, dir, name, (object, LimboReason::Verdict))?;
                } else if !history || !self.keep_removed((dir, name), (object, &before)) {
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                }
                Ok(if last { None } else { self.lower.stat(object).ok() })
            })?;
            if keep {
                self.limbo.entered(object, recno);
            }
            self.files.let_go(object);
            Ok(())
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        self.removing(caller, parent, name, |told, dir, object, before| {
            if !before.is_dir() {
                return Err(Stop::Errno(Errno::NOTDIR));
            }
            let mut intent = removal(Opcode::Rmdir, caller, parent, name, (object, before));
            intent.flags = Flags::LAST_LINK;
            intent.flags.set(Flags::LOCAL, self.is_local_at(dir, name)?);
            self.journal_removal(told, &intent, dir, || {
                rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
                Ok(None)
            })?;
            self.lower.forget_dir(object);
            Ok(())
        })
    }

    /// Runs an update that removes a name, under the locks of the directory and of what the name stands for.
    fn removing(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        remove: impl Fn(&mut Told, &Dir, FileId, Stat) -> Result<(), Stop>,
    ) -> Result<(), Errno> {
        self.update(caller, |told| {
            if self.lower.hides(parent, name) {
                return Err(Stop::Errno(Errno::NOENT));
            }
            let dir = self.lower.dir(parent)?;
            let mut held = self.locks.lock(&[parent]);
            let object = self.lower.child(&dir, name)?;
            if !held.take_free(object) {
                drop(held);
                held = self.locks.lock(&[parent, object]);
                if self.lower.find(&dir, name)? != Some(object) {
                    return Err(Stop::Again);
                }
            }
            let _held = held;
            remove(told, &dir, object, Stat::at(&dir, name)?)
        })
    }

    /// Journals a removal; the closure does it and says what is left of the object.
    fn journal_removal(
        &self,
        told: &mut Told,
        intent: &Intent,
        dir: &Dir,
        remove: impl FnOnce() -> Result<Option<Stat>, Errno>,
    ) -> Result<Recno, Stop> {
        let ((), recno) = self.journaled(told, intent, || {
            let after = remove()?.map(|stat| stat.attributes).unwrap_or_default();
            let flags = intent.flags;
            let parent_mtime = mtime(dir);
            Ok(((), Outcome { object: intent.object, after, parent_mtime, flags, ..Outcome::default() }))
        })?;
        Ok(recno)
    }
}

fn removal(
    opcode: Opcode,
    caller: Caller,
    parent: FileId,
    name: &[u8],
    (object, before): (FileId, Stat),
) -> Intent {
    let mut intent = Volume::intent(opcode, caller);
    intent.object = object;
    intent.parent = parent;
    intent.name = name.to_vec();
    intent.before = before.attributes;
    intent
}
