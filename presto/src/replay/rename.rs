//! Rename: an object moves to an absent name, over another object, or changes places with it.

use intermezzo_kml::record::{FileId, Flags, Intent, Opcode, Recno};
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::apply::Left;
use super::check::{Guard, Old};
use super::plan::{By, Entry, Item};
use super::{Applied, Replayer, STALE, Stop};
use crate::filter::LimboReason;
use crate::lower::Stat;

/// What must be at the target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Absent,
    Replace(FileId, Guard),
    Exchange(FileId),
}

impl Target {
    fn object(self) -> Option<FileId> {
        match self {
            Target::Absent => None,
            Target::Replace(object, _) | Target::Exchange(object) => Some(object),
        }
    }

    fn flags(self) -> (RenameFlags, Flags) {
        match self {
            Target::Absent => (RenameFlags::NOREPLACE, Flags::NOREPLACE),
            Target::Replace(..) => (RenameFlags::empty(), Flags::empty()),
            Target::Exchange(_) => (RenameFlags::EXCHANGE, Flags::EXCHANGE),
        }
    }
}

impl Replayer {
    pub(super) fn rename(
        &self,
        item: &Item,
        since: Recno,
        (from, to): (&Entry, &Entry),
        expect: By,
        target: Target,
    ) -> Result<Applied, Stop> {
        let object = self.find(expect)?;
        let (from_dir, to_dir) = (self.find(from.dir)?, self.find(to.dir)?);
        let (from_name, to_name) = (from.name.as_slice(), to.name.as_slice());
        let other = target.object();
        if other == Some(object) {
            // The kernel leaves both names then; whoever wants one of them gone says Unlink.
            return Err(Stop::Refused(Errno::INVAL, "rename of an object over itself".to_owned()));
        }
        let volume = &self.volume;
        let _held = volume.locks.lock(&[object, from_dir, to_dir, other.unwrap_or_default()]);
        let source = self.parent(from_dir, item.parent_mtime)?;
        let goal = self.parent(to_dir, item.target_parent_mtime)?;
        let entries = [(from_dir, from_name), (to_dir, to_name)];
        self.untouched(since, &entries, &[object, other.unwrap_or_default()])?;
        let stat = self.present(object)?;
        let (lower_from, lower_to) = (volume.lower.dir(from_dir)?, volume.lower.dir(to_dir)?);
        let (kernel_flags, flags) = target.flags();
        let common = Self::intent(item);
        let mut intent = Intent {
            opcode: Some(Opcode::Rename),
            object,
            parent: from_dir,
            name: from_name.to_vec(),
            target_parent: to_dir,
            target_name: to_name.to_vec(),
            replaced: other.unwrap_or_default(),
            before: stat.attributes,
            flags: common.flags | flags,
            ..common
        };
        let at_source = volume.lower.find(&*lower_from, from_name)?;
        let at_target = volume.lower.find(&*lower_to, to_name)?;
        let partner = if let Target::Exchange(partner) = target { Some(partner) } else { None };
        let parents = if from_dir == to_dir { [&source, &source] } else { [&source, &goal] };
        if at_target == Some(object) && at_source == partner && at_source != Some(object) {
            return self.already(&intent, object, &parents);
        }
        if at_source != Some(object) || at_target != other {
            if at_target.is_some() {
                volume.give_up_local(&lower_to, to_name)?;
            }
            return Err(STALE);
        }
        let mut kept: Option<(FileId, Stat)> = None;
        let mut history: Option<(FileId, Stat)> = None;
        let mut last_of = None;
        let mut replaced_dir = None;
        // What stays in the tree under another name.
        let mut stays = match partner {
            Some(partner) => Some((partner, volume.lower.stat(partner)?)),
            None => None,
        };
        if let Target::Replace(replaced, guard) = target {
            let old = volume.lower.stat(replaced)?;
            let state = self.guard(replaced, &old, guard)?;
            if old.is_dir() {
                replaced_dir = Some(replaced);
            }
            if old.is_dir() || old.attributes.nlink <= 1 {
                intent.flags |= Flags::REPLACED_LAST_LINK;
                last_of = Some((replaced, old));
                if state == Old::Written {
                    intent.flags |= Flags::REPLACED_LIMBO;
                    kept = Some((replaced, old));
                } else if volume.keeps_history_of(&old) {
                    history = Some((replaced, old));
                }
            } else {
                stays = Some((replaced, old));
            }
        }
        let applied = self.apply(&intent, &parents, || {
            if let Some((replaced, _)) = kept {
                volume.writers.orphan(replaced);
                if let Err(errno) = volume.limbo.keep_by_link(
                    &volume.lower,
                    &*lower_to,
                    to_name,
                    (replaced, LimboReason::Orphan),
                ) {
                    volume.writers.adopt(replaced);
                    return Err(errno);
                }
            }
            if let Some((replaced, old)) = &history {
                volume.keep_replaced((&*lower_to, to_name), (*replaced, old));
            }
            let renamed =
                rustix::fs::renameat_with(&*lower_from, from_name, &*lower_to, to_name, kernel_flags);
            if let (Err(_), Some((replaced, _))) = (renamed, kept) {
                volume.writers.adopt(replaced);
                volume.limbo.abandon(&volume.lower, replaced)?;
            }
            if let (Err(_), Some((replaced, _))) = (renamed, &history) {
                volume.history.abandon(&volume.lower, *replaced)?;
            }
            if let (Err(Errno::NOTEMPTY), Some(replaced)) = (renamed, replaced_dir) {
                volume.give_up_locals_in(replaced)?;
            }
            renamed?;
            Ok(Left { file: object, after: Stat::at(&*lower_to, to_name)?.attributes })
        })?;
        if let Some((replaced, old)) = last_of {
            volume.quota.replaced(replaced, &old.attributes);
        }
        if let Some((replaced, old)) = kept {
            self.orphaned(replaced, &old, applied.recno);
        }
        if let Some((other, old)) = stays {
            self.name_moved(other, &old, applied.recno);
        }
        if let Some(dir) = replaced_dir {
            volume.lower.forget_dir(dir);
        }
        volume.notifier.entry(from_dir, from_name);
        volume.notifier.entry(to_dir, to_name);
        volume.notifier.attributes(object);
        if let Some(other) = other {
            if intent.flags.contains(Flags::REPLACED_LAST_LINK) {
                volume.taken.note(&volume.lower, other);
            }
            volume.files.let_go(other);
            volume.notifier.attributes(other);
        }
        Ok(applied)
    }
}
