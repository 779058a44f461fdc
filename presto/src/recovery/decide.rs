//! Did it happen? For each operation, how the lower tree answers.
//!
//! Everything rests on the locks: an operation holds those of all objects and directories it names from its intent to
//! its outcome, so at most one intent without an outcome concerns any of them, and nobody else has changed them since.
//!
//! | operation | it happened if |
//! |---|---|
//! | create, mkdir, mknod, symlink of a replay | the entry is the object that was built before the intent |
//! | the same of a user | the entry is of the right type, no earlier record names the object, and it was not born before the intent (a name that was taken shows an older object) |
//! | link | the entry is the object and its link count is one more than before |
//! | unlink, rmdir | the entry is not the object any more |
//! | rename | the object is at the target and not (by the same name) at the source; exchange: the partner is at the source |
//! | setattr, a user's close | the object exists: the record tells the state found now, whatever part of it is new |
//! | a replayed close | the entry is another object than the old one (renamed over), or the LML has finished it in place |
//! | a replayed close without a name (a content came) | the mark of a missing content is gone |
//! | setxattr, delxattr | the attribute has the value, or is absent |
//! | noop | always |

use intermezzo_kml::record::{
    Attributes, FileId, Flags, Intent, Mask, Opcode, OriginKind, Outcome, Record, Time,
};
use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;

use super::memory::Memory;
use crate::filter::Volume;
use crate::lower::{Local, Stat, kind, missing};
use crate::replay::get_xattr;
use crate::replay::times;

/// Birth times come from a clock that ticks every few milliseconds, intents from a finer one.
const SLACK: i128 = 20_000_000;

/// The outcome if the operation happened, `None` if it did not.
pub(super) fn outcome(
    volume: &Volume,
    record: &Record,
    redone: &[FileId],
    memory: &Memory,
) -> Result<Option<Outcome>, Errno> {
    let intent = &record.intent;
    let look = Look { volume, intent };
    match record.opcode {
        Opcode::Create => look.made(memory, |kind| kind == FileType::RegularFile),
        Opcode::Mkdir => look.made(memory, |kind| kind == FileType::Directory),
        Opcode::Symlink => look.made(memory, |kind| kind == FileType::Symlink),
        Opcode::Mknod => look.made(memory, |kind| {
            matches!(
                kind,
                FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket
            )
        }),
        Opcode::Link => look.linked(),
        Opcode::Unlink | Opcode::Rmdir => look.removed(),
        Opcode::Rename => look.renamed(),
        Opcode::Close if is_about_missing(intent) => look.filled(),
        Opcode::Close if intent.origin.kind == OriginKind::Replay => look.installed(redone),
        Opcode::Setattr | Opcode::Close => look.emptied_or_present(),
        Opcode::Setxattr => look.xattr(Some(&intent.value)),
        Opcode::Delxattr => look.xattr(None),
        Opcode::Noop => Ok(Some(Outcome { flags: intent.flags, ..Outcome::default() })),
    }
}

/// Takes back what an operation that did not happen had prepared: the second name in limbo.
pub(super) fn undo(volume: &Volume, record: &Record) -> Result<(), Errno> {
    let intent = &record.intent;
    let kept = match record.opcode {
        Opcode::Rename if intent.flags.contains(Flags::REPLACED_LIMBO) => intent.replaced,
        Opcode::Close if is_about_missing(intent) => return unfill(volume, intent),
        Opcode::Close if intent.flags.contains(Flags::LIMBO) => intent.object,
        _ => return Ok(()),
    };
    match volume.lower.stat(kept) {
        // Its name in the tree and the one in limbo.
        Ok(stat) if stat.attributes.nlink > 1 => volume.limbo.abandon(&volume.lower, kept),
        Ok(_) => Ok(()),
        Err(errno) if gone(errno) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A content came into its file.
fn is_about_missing(intent: &Intent) -> bool {
    intent.origin.kind == OriginKind::Replay && intent.parent.is_none()
}

/// What had come of a content is of no use, and the file has its time back.
fn unfill(volume: &Volume, intent: &Intent) -> Result<(), Errno> {
    let fd = match volume.lower.path_fd(intent.object) {
        Ok(fd) => fd,
        Err(errno) if gone(errno) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if volume.lacking(&fd, &Stat::of(&fd)?)?.is_some() {
        missing::punch(&fd, intent.before.size)?;
        rustix::fs::utimensat(&fd, c"", &times(intent.before.mtime), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

struct Look<'a> {
    volume: &'a Volume,
    intent: &'a Intent,
}

impl Look<'_> {
    fn made(&self, memory: &Memory, right: impl Fn(FileType) -> bool) -> Result<Option<Outcome>, Errno> {
        let Some(child) = self.entry(self.intent.parent, &self.intent.name)? else { return Ok(None) };
        let after = self.attributes(child)?;
        let this = if self.intent.object.is_none() {
            right(kind(&after)) && !memory.seen(child) && self.born_since(child)?
        } else {
            child == self.intent.object
        };
        if this { self.done(child, after).map(Some) } else { Ok(None) }
    }

    fn linked(&self) -> Result<Option<Outcome>, Errno> {
        let object = self.intent.object;
        if self.entry(self.intent.parent, &self.intent.name)? != Some(object) {
            return Ok(None);
        }
        let after = self.attributes(object)?;
        if after.nlink > self.intent.before.nlink { self.done(object, after).map(Some) } else { Ok(None) }
    }

    fn removed(&self) -> Result<Option<Outcome>, Errno> {
        let object = self.intent.object;
        if self.entry(self.intent.parent, &self.intent.name)? == Some(object) && !self.is_left()? {
            return Ok(None);
        }
        let after = if self.intent.flags.contains(Flags::LAST_LINK) {
            Attributes::default()
        } else {
            self.attributes(object)?
        };
        self.done(object, after).map(Some)
    }

    /// A replay has removed a directory that stays for what is in it.
    fn is_left(&self) -> Result<bool, Errno> {
        if self.intent.origin.kind != OriginKind::Replay || !self.intent.flags.contains(Flags::LAST_LINK) {
            return Ok(false);
        }
        let lower = &self.volume.lower;
        let mark = lower.local_mark(&*lower.dir(self.intent.parent)?, &self.intent.name)?;
        Ok(mark == Some(Local::Left))
    }

    fn renamed(&self) -> Result<Option<Outcome>, Errno> {
        let intent = self.intent;
        let source = self.entry(intent.parent, &intent.name)?;
        let target = self.entry(intent.target_parent, &intent.target_name)?;
        let happened = target == Some(intent.object)
            && source != Some(intent.object)
            && (!intent.flags.contains(Flags::EXCHANGE) || source == Some(intent.replaced));
        if !happened {
            return Ok(None);
        }
        let after = self.attributes(intent.object)?;
        self.done(intent.object, after).map(Some)
    }

    /// Who emptied a file may not have come to say that its content is not missing any more.
    fn emptied_or_present(&self) -> Result<Option<Outcome>, Errno> {
        if self.intent.mask.contains(Mask::SIZE)
            && let Ok(fd) = self.volume.lower.path_fd(self.intent.object)
        {
            self.volume.lacking(&fd, &Stat::of(&fd)?)?;
        }
        self.present()
    }

    fn present(&self) -> Result<Option<Outcome>, Errno> {
        let after = self.attributes(self.intent.object)?;
        if after.nlink == 0 { Ok(None) } else { self.done(self.intent.object, after).map(Some) }
    }

    fn installed(&self, redone: &[FileId]) -> Result<Option<Outcome>, Errno> {
        let Some(child) = self.entry(self.intent.parent, &self.intent.name)? else { return Ok(None) };
        if child == self.intent.object && !redone.contains(&child) {
            return Ok(None);
        }
        let after = self.attributes(child)?;
        self.done(child, after).map(Some)
    }

    fn filled(&self) -> Result<Option<Outcome>, Errno> {
        let fd = match self.volume.lower.path_fd(self.intent.object) {
            Ok(fd) => fd,
            Err(errno) if gone(errno) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let lacks = self.volume.lacking(&fd, &Stat::of(&fd)?)?.is_some();
        if lacks { Ok(None) } else { self.present() }
    }

    fn xattr(&self, value: Option<&Vec<u8>>) -> Result<Option<Outcome>, Errno> {
        let fd = match self.volume.lower.path_fd(self.intent.object) {
            Ok(fd) => fd,
            Err(errno) if gone(errno) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if get_xattr(&fd, &self.intent.name)?.as_ref() == value { self.present() } else { Ok(None) }
    }

    fn done(&self, object: FileId, after: Attributes) -> Result<Outcome, Errno> {
        let [parent, target] = self.intent.parent_times.map_or([None; 2], |times| times.map(Some));
        // Between a replay's operation and its end a directory has the time of the operation.
        let mtime = |dir: FileId, wanted: Option<Time>| -> Result<Time, Errno> {
            if dir.is_none() {
                return Ok(Time::default());
            }
            if let Some(wanted) = wanted {
                set_time(self.volume, dir, wanted)?;
            }
            Ok(self.attributes(dir)?.mtime)
        };
        Ok(Outcome {
            object,
            after,
            parent_mtime: mtime(self.intent.parent, parent)?,
            target_parent_mtime: mtime(self.intent.target_parent, target)?,
            flags: self.intent.flags,
        })
    }

    /// What the entry is now; `None` also where the directory itself has gone.
    fn entry(&self, dir: FileId, name: &[u8]) -> Result<Option<FileId>, Errno> {
        match self.volume.lower.dir(dir) {
            Ok(dir) => self.volume.lower.find(&*dir, name),
            Err(errno) if gone(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Attributes, default if the object is gone.
    fn attributes(&self, id: FileId) -> Result<Attributes, Errno> {
        match self.volume.lower.stat(id) {
            Ok(stat) => Ok(stat.attributes),
            Err(errno) if gone(errno) => Ok(Attributes::default()),
            Err(errno) => Err(errno),
        }
    }

    fn born_since(&self, id: FileId) -> Result<bool, Errno> {
        let fd = self.volume.lower.path_fd(id)?;
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
        if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
            return Ok(true); // A file system that does not tell: the other two signs decide.
        }
        let born = nanoseconds(stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        Ok(born + SLACK >= nanoseconds(self.intent.time.sec, self.intent.time.nsec))
    }
}

/// Sets a directory's modification time, if it is still there.
pub(super) fn set_time(volume: &Volume, dir: FileId, time: Time) -> Result<(), Errno> {
    match volume.lower.dir(dir) {
        Ok(dir) => rustix::fs::futimens(&*dir, &times(time)),
        Err(errno) if gone(errno) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn nanoseconds(sec: i64, nsec: u32) -> i128 {
    i128::from(sec) * 1_000_000_000 + i128::from(nsec)
}

/// There is no such object any more.
pub(super) fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::STALE | Errno::NOENT | Errno::NOTDIR)
}
