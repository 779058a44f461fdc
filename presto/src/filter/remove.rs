//! Names that go: unlink and rmdir. Limbo keeps what may still be asked for.

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::LimboReason;
use super::Volume;
use super::make::mtime;
use super::update::Stop;
use crate::lower::Stat;

impl Volume {
    /// Removes a name of something that is no directory.
    pub fn unlink(&self, caller: Caller, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        self.update(|told| {
            let dir = self.lower.dir(parent)?;
            let object = self.lower.child(&dir, name)?;
            let _held = self.locks.lock(&[parent, object]);
            if self.lower.find(&dir, name)? != Some(object) {
                return Err(Stop::Again);
            }
            let before = Stat::at(&dir, name)?;
            if before.is_dir() {
                return Err(Stop::Errno(Errno::ISDIR));
            }
            let mut intent = Volume::intent(Opcode::Unlink, caller);
            intent.object = object;
            intent.parent = parent;
            intent.name = name.to_vec();
            intent.before = before.attributes;
            let last = before.attributes.nlink == 1;
            let keep = last && before.is_file() && self.limbo.needs(object);
            intent.flags.set(Flags::LAST_LINK, last);
            intent.flags.set(Flags::LIMBO, keep);
            let ((), recno) = self.journaled(told, &intent, || {
                if keep {
                    self.limbo.keep_by_rename(&self.lower, &dir, name, (object, LimboReason::Verdict))?;
                } else {
                    rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                }
                let after = if last {
                    Default::default()
                } else {
                    self.lower.stat(object).map(|stat| stat.attributes).unwrap_or_default()
                };
                Ok((
                    (),
                    Outcome {
                        object,
                        after,
                        parent_mtime: mtime(&dir),
                        flags: intent.flags,
                        ..Outcome::default()
                    },
                ))
            })?;
            if keep {
                self.limbo.entered(object, recno);
            }
            Ok(())
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        self.update(|told| {
            let dir = self.lower.dir(parent)?;
            let object = self.lower.child(&dir, name)?;
            let _held = self.locks.lock(&[parent, object]);
            if self.lower.find(&dir, name)? != Some(object) {
                return Err(Stop::Again);
            }
            let before = Stat::at(&dir, name)?;
            if !before.is_dir() {
                return Err(Stop::Errno(Errno::NOTDIR));
            }
            let mut intent = Volume::intent(Opcode::Rmdir, caller);
            intent.object = object;
            intent.parent = parent;
            intent.name = name.to_vec();
            intent.before = before.attributes;
            intent.flags = Flags::LAST_LINK;
            self.journaled(told, &intent, || {
                rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
                Ok((
                    (),
                    Outcome { object, parent_mtime: mtime(&dir), flags: intent.flags, ..Outcome::default() },
                ))
            })?;
            self.lower.forget_dir(object);
            Ok(())
        })
    }
}
