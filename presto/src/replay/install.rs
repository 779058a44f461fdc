//! Install: new content for a regular file. One link: renamed over. More: `in_place.rs`.

use intermezzo_kml::record::{FileId, Flags, Intent, Opcode, Recno, xattr};
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::apply::{Left, Parent};
use super::check::{Guard, Old};
use super::plan::{By, Content, Entry, Give, Item, Xattr};
use super::{Applied, Replayer, STALE, Stop};
use crate::filter::LimboReason;
use crate::lower::Stat;

/// What to install.
pub(super) struct What<'a> {
    pub content: &'a Content,
    pub give: &'a Give,
    pub xattrs: &'a [Xattr],
}

/// Where, and what is there.
pub(super) struct Site<'a> {
    pub file: FileId,
    pub stat: Stat,
    pub dir: FileId,
    pub name: &'a [u8],
    pub parent: &'a Parent,
    old: Old,
}

impl Replayer {
    pub(super) fn install(
        &self,
        item: &Item,
        since: Recno,
        file: By,
        at: &Entry,
        what: &What<'_>,
        guard: Guard,
    ) -> Result<Applied, Stop> {
        let (file, dir, name) = (self.find(file)?, self.find(at.dir)?, at.name.as_slice());
        let volume = &self.volume;
        let _held = volume.locks.lock(&[file, dir]);
        volume.stop_filling(file)?;
        let parent = self.parent(dir, item.parent_mtime)?;
        self.untouched(since, &[(dir, name)], &[file])?;
        if volume.lower.find(&*volume.lower.dir(dir)?, name)? != Some(file) {
            return Err(STALE);
        }
        let stat = self.present(file)?;
        if !stat.is_file() {
            return Err(Stop::Refused(
                Errno::INVAL,
                "content for something that is no regular file".to_owned(),
            ));
        }
        let old = self.guard(file, &stat, guard)?;
        let mut intent = Intent {
            opcode: Some(Opcode::Close),
            object: file,
            parent: dir,
            name: name.to_vec(),
            before: stat.attributes,
            ..Self::intent(item)
        };
        let site = Site { file, stat, dir, name, parent: &parent, old };
        if matches!(what.content, Content::Missing(_)) && (old == Old::Written || stat.attributes.nlink > 1) {
            // Whoever has it open would see it empty.
            return Err(Stop::Busy);
        }
        if stat.attributes.nlink <= 1 {
            if !what.xattrs.is_empty() {
                intent.value = xattr::encode(what.xattrs);
                intent.flags |= Flags::XATTRS;
            }
            self.replace(intent, &site, what)
        } else if old == Old::Written {
            // The writer's stores and the new content would mix in one inode, and its other names are not known here.
            Err(Stop::Busy)
        } else if volume.unfinished.contains(file) {
            Err(self.unfinished(file, guard.busy))
        } else {
            self.overwrite(&intent, &site, what)
        }
    }

    /// A new inode takes the name; whoever has the old one open keeps it.
    fn replace(&self, mut intent: Intent, site: &Site<'_>, what: &What<'_>) -> Result<Applied, Stop> {
        let volume = &self.volume;
        let orphan = site.old == Old::Written;
        let history = !orphan && volume.keeps_history_of(&site.stat);
        if orphan {
            intent.flags |= Flags::LIMBO;
        }
        // The type is the old one's; the wire's mode may carry permission bits alone.
        let give =
            Give { mode: site.stat.attributes.mode & 0o170_000 | what.give.mode & 0o7777, ..*what.give };
        let built = self.build(&give, &[], Some(what.content), what.xattrs, &intent.origin)?;
        let dir = volume.lower.dir(site.dir)?;
        let applied = self.apply(&intent, &[site.parent], || {
            if orphan {
                volume.writers.orphan(site.file);
                if let Err(errno) = volume.limbo.keep_by_link(
                    &volume.lower,
                    &*dir,
                    site.name,
                    (site.file, LimboReason::Orphan),
                ) {
                    volume.writers.adopt(site.file);
                    return Err(errno);
                }
            }
            if history {
                volume.keep_replaced((&*dir, site.name), (site.file, &site.stat));
            }
            let renamed = built.rename(&volume.lower, &*dir, site.name, RenameFlags::empty());
            if renamed.is_err() && history {
                volume.history.abandon(&volume.lower, site.file)?;
            }
            if renamed.is_err() && orphan {
                volume.writers.adopt(site.file);
                volume.limbo.abandon(&volume.lower, site.file)?;
            }
            Ok(Left { file: built.file, after: renamed? })
        });
        if applied.is_err() {
            built.discard(&volume.lower);
        }
        let applied = applied?;
        if orphan {
            self.orphaned(site.file, &site.stat, applied.recno);
        }
        volume.taken.note(&volume.lower, site.file);
        volume.files.let_go(site.file);
        volume.notifier.entry(site.dir, site.name);
        volume.notifier.attributes(site.file);
        Ok(applied)
    }
}
