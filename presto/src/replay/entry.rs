//! Link and unlink: another name for an object, or one name fewer.

use intermezzo_kml::record::{Attributes, Flags, Intent, Opcode, Recno};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::apply::Left;
use super::check::{Guard, Old, absent};
use super::plan::{By, Entry, Item};
use super::{Applied, Replayer, STALE, Stop};
use crate::filter::LimboReason;
use crate::lower::Stat;

impl Replayer {
    pub(super) fn link(&self, item: &Item, since: Recno, file: By, at: &Entry) -> Result<Applied, Stop> {
        let (file, dir, name) = (self.find(file)?, self.find(at.dir)?, at.name.as_slice());
        let volume = &self.volume;
        let _held = volume.locks.lock(&[file, dir]);
        let parent = self.parent(dir, item.parent_mtime)?;
        self.untouched(since, &[(dir, name)], &[file])?;
        let stat = self.present(file)?;
        let lower = volume.lower.dir(dir)?;
        let intent = Intent {
            opcode: Some(Opcode::Link),
            object: file,
            parent: dir,
            name: name.to_vec(),
            before: stat.attributes,
            ..Self::intent(item)
        };
        match volume.lower.find(&*lower, name)? {
            Some(child) if child == file => return self.already(&intent, file, &[&parent]),
            Some(_) => {
                volume.give_up_local(&lower, name)?;
                return Err(STALE);
            }
            None => {}
        }
        let fd = volume.lower.path_fd(file)?;
        let applied = self.apply(&intent, &[&parent], || {
            rustix::fs::linkat(&fd, c"", &*lower, name, AtFlags::EMPTY_PATH)?;
            Ok(Left { file, after: Stat::of(&fd)?.attributes })
        })?;
        volume.notifier.entry(dir, name);
        volume.notifier.attributes(file);
        Ok(applied)
    }

    pub(super) fn unlink(
        &self,
        item: &Item,
        since: Recno,
        at: &Entry,
        expect: By,
        guard: Guard,
    ) -> Result<Applied, Stop> {
        let (expect, dir, name) = (self.find(expect)?, self.find(at.dir)?, at.name.as_slice());
        let volume = &self.volume;
        let _held = volume.locks.lock(&[expect, dir]);
        let parent = self.parent(dir, item.parent_mtime)?;
        self.untouched(since, &[(dir, name)], &[expect])?;
        let lower = volume.lower.dir(dir)?;
        let stat = match volume.lower.stat(expect) {
            Ok(stat) => stat,
            Err(errno) if absent(errno) => Stat::default(),
            Err(errno) => return Err(errno.into()),
        };
        let mut intent = Intent {
            opcode: Some(if stat.is_dir() { Opcode::Rmdir } else { Opcode::Unlink }),
            object: expect,
            parent: dir,
            name: name.to_vec(),
            before: stat.attributes,
            ..Self::intent(item)
        };
        match volume.lower.find(&*lower, name)? {
            None => return self.already(&intent, expect, &[&parent]),
            // What stays here is not in the way of a removal.
            Some(_) if volume.is_local_at(&lower, name)? => {
                return self.already(&intent, expect, &[&parent]);
            }
            Some(child) if child != expect => return Err(STALE),
            Some(_) => {}
        }
        let old = self.guard(expect, &stat, guard)?;
        let last = stat.is_dir() || stat.attributes.nlink <= 1;
        let orphan = last && old == Old::Written;
        let history = last && !orphan && volume.keeps_history_of(&stat);
        if last {
            intent.flags |= Flags::LAST_LINK;
        }
        if orphan {
            intent.flags |= Flags::LIMBO;
        }
        let applied = self.apply(&intent, &[&parent], || {
            if orphan {
                // Before the name goes: whoever closes it next must find it among the orphans.
                volume.writers.orphan(expect);
                if let Err(errno) =
                    volume.limbo.keep_by_rename(&volume.lower, &*lower, name, (expect, LimboReason::Orphan))
                {
                    volume.writers.adopt(expect);
                    return Err(errno);
                }
            } else if !history || !volume.keep_removed((&*lower, name), (expect, &stat)) {
                let flags = if stat.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                match rustix::fs::unlinkat(&*lower, name, flags) {
                    Err(Errno::NOTEMPTY) if volume.keep_for_locals(&lower, name, expect)? => {}
                    removed => removed?,
                }
            }
            let after = if last { Attributes::default() } else { volume.lower.stat(expect)?.attributes };
            Ok(Left { file: expect, after })
        })?;
        if orphan {
            self.orphaned(expect, &stat, applied.recno);
        }
        if stat.is_dir() {
            volume.lower.forget_dir(expect);
        }
        if last {
            volume.taken.note(&volume.lower, expect);
        }
        volume.files.let_go(expect);
        volume.notifier.entry(dir, name);
        volume.notifier.attributes(expect);
        Ok(applied)
    }
}
