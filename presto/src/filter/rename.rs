//! Rename, with all that renameat2(2) can do: plain, NOREPLACE, EXCHANGE, WHITEOUT.

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::LimboReason;
use super::Volume;
use super::local::Crossing;
use super::local::Way;
use super::make::mtime;
use super::update::Stop;
use crate::lower::Local;
use crate::lower::Stat;

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Directory.
    pub dir: FileId,
    /// Name in it.
    pub name: &'a [u8],
}

impl Volume {
    /// Moves `from` to `to`.
    pub fn rename(
        &self,
        caller: Caller,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        self.update(caller, |told| {
            if self.lower.hides(from.dir, from.name) {
                return Err(Stop::Errno(Errno::NOENT));
            }
            self.may_make(to.dir, to.name)?;
            let source = self.lower.dir(from.dir)?;
            let target = self.lower.dir(to.dir)?;
            let mut held = self.locks.lock(&[from.dir, to.dir]);
            let object = self.lower.child(&source, from.name)?;
            let replaced = self.lower.find(&target, to.name)?;
            if !held.take_free(object) || !replaced.is_none_or(|replaced| held.take_free(replaced)) {
                drop(held);
                held = self.locks.lock(&[from.dir, to.dir, object, replaced.unwrap_or_default()]);
                if self.lower.find(&source, from.name)? != Some(object)
                    || self.lower.find(&target, to.name)? != replaced
                {
                    return Err(Stop::Again);
                }
            }
            let _held = held;
            let exchange = flags.contains(RenameFlags::EXCHANGE);
            match replaced {
                Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Stop::Errno(Errno::EXIST)),
                None if exchange => return Err(Stop::Errno(Errno::NOENT)),
                // Two names of one object: POSIX has rename do nothing at all.
                Some(replaced) if replaced == object => return Ok(()),
                _ => {}
            }
            let before = Stat::at(&source, from.name)?;
            let names = [(&*source, from.name), (&*target, to.name)];
            let Way { crossing, replaces_local, told: about } =
                self.way(names, (object, &before), replaced.is_some(), flags)?;
            if !about.intersects(Flags::LOCAL | Flags::LEFT) {
                self.rejoin(&target)?;
            }
            let mut intent = Volume::intent(Opcode::Rename, caller);
            intent.object = object;
            intent.parent = from.dir;
            intent.name = from.name.to_vec();
            intent.target_parent = to.dir;
            intent.target_name = to.name.to_vec();
            // Others never heard of what stayed here.
            intent.replaced = replaced.filter(|_| exchange || !replaces_local).unwrap_or_default();
            intent.before = before.attributes;
            intent.flags = about;
            intent.flags.set(Flags::EXCHANGE, exchange);
            intent.flags.set(Flags::NOREPLACE, flags.contains(RenameFlags::NOREPLACE));
            intent.flags.set(Flags::WHITEOUT, flags.contains(RenameFlags::WHITEOUT));
            let mut keep = None;
            let mut history = None;
            let mut gone = None;
            let mut last_of = None;
            if let Some(replaced) = replaced
                && !exchange
            {
                let stat = Stat::at(&target, to.name)?;
                let last = stat.is_dir() || stat.attributes.nlink == 1;
                intent.flags.set(Flags::REPLACED_LAST_LINK, last);
                if last && !replaces_local && stat.is_file() && self.limbo.needs(replaced) {
                    intent.flags |= Flags::REPLACED_LIMBO;
                    keep = Some(replaced);
                } else if last && !replaces_local && self.keeps_history_of(&stat) {
                    history = Some((replaced, stat));
                }
                gone = stat.is_dir().then_some(replaced);
                last_of = last.then_some((replaced, stat));
            }
            let joining = match crossing {
                Some(Crossing::Joins) => {
                    self.made(object, &target, Place { name: &object.joining_name(), ..to })?
                }
                _ => Vec::new(),
            };
            let tickets = self.begin_found(&joining).map_err(|error| self.refused(&error))?;
            let ((), recno) = self.journaled(told, &intent, || {
                if crossing == Some(Crossing::Leaves) {
                    self.lower.set_local(&source, from.name, Some(Local::Excluded))?;
                }
                if let Some(replaced) = keep {
                    self.limbo.keep_by_link(
                        &self.lower,
                        &target,
                        to.name,
                        (replaced, LimboReason::Verdict),
                    )?;
                }
                if let Some((replaced, stat)) = &history {
                    self.keep_replaced((&*target, to.name), (*replaced, stat));
                }
                let moved = rustix::fs::renameat_with(&source, from.name, &target, to.name, flags);
                if moved.is_err() && crossing == Some(Crossing::Leaves) {
                    self.lower.set_local(&source, from.name, None)?;
                }
                if moved.is_err()
                    && let Some(replaced) = keep
                    && let Err(errno) = self.limbo.abandon(&self.lower, replaced)
                {
                    tracing::warn!(target: "filter", volume = self.name, object = %replaced, %errno,
                        "a file that was not replaced keeps a name in limbo");
                }
                if let (Err(_), Some((replaced, _))) = (moved, &history)
                    && let Err(errno) = self.history.abandon(&self.lower, *replaced)
                {
                    tracing::warn!(target: "filter", volume = self.name, object = %replaced, %errno,
                        "a file that was not replaced keeps a name among the earlier ones until the next start");
                }
                moved?;
                if crossing == Some(Crossing::Joins)
                    && let Err(errno) = self.lower.set_local(&target, to.name, None)
                {
                    tracing::warn!(target: "filter", volume = self.name, object = %object, %errno,
                        "a file that is replicated now keeps the mark of one that stays here");
                }
                let after = Stat::at(&target, to.name).map(|stat| stat.attributes).unwrap_or_default();
                let parent_mtime = mtime(&source);
                let target_parent_mtime = if from.dir == to.dir { parent_mtime } else { mtime(&target) };
                let outcome =
                    Outcome { object, after, parent_mtime, target_parent_mtime, flags: intent.flags };
                Ok(((), outcome))
            })?;
            self.end_found(tickets, &joining).map_err(|error| self.refused(&error))?;
            if let Some((replaced, stat)) = last_of {
                self.quota.replaced(replaced, &stat.attributes);
            }
            if flags.contains(RenameFlags::WHITEOUT)
                && let Ok(whiteout) = self.lower.child(&source, from.name)
            {
                self.quota.appeared(whiteout);
            }
            if let Some(kept) = keep {
                self.limbo.entered(kept, recno);
            }
            if let Some(gone) = gone {
                self.lower.forget_dir(gone);
            }
            if let Some(replaced) = replaced {
                self.files.let_go(replaced);
            }
            Ok(())
        })
    }
}
