//! Make: a new object at an absent entry. Built whole in stage/, then renamed into place.

use intermezzo_kml::record::{Flags, Intent, Opcode, Recno, xattr};
use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::apply::Left;
use super::plan::{Content, Entry, Give, Item, Xattr};
use super::{Applied, Replayer, STALE, Stop};

/// What to make.
pub(super) struct What<'a> {
    pub give: &'a Give,
    pub symlink: &'a [u8],
    pub content: Option<&'a Content>,
    pub xattrs: &'a [Xattr],
}

impl Replayer {
    pub(super) fn make(
        &self,
        item: &Item,
        since: Recno,
        at: &Entry,
        what: &What<'_>,
    ) -> Result<Applied, Stop> {
        let (dir, name) = (self.find(at.dir)?, at.name.as_slice());
        let opcode = opcode(what)?;
        let volume = &self.volume;
        let _held = volume.locks.lock(&[dir]);
        let parent = self.parent(dir, item.parent_mtime)?;
        self.untouched(since, &[(dir, name)], &[])?;
        let lower = volume.lower.dir(dir)?;
        let mut intent =
            Intent { opcode: Some(opcode), parent: dir, name: name.to_vec(), ..Self::intent(item) };
        if opcode == Opcode::Symlink {
            intent.value = what.symlink.to_vec();
        } else if !what.xattrs.is_empty() {
            intent.value = xattr::encode(what.xattrs);
            intent.flags |= Flags::XATTRS;
        }
        if let Some(child) = volume.lower.find(&*lower, name)? {
            // The same object, made by an earlier try of this batch.
            let known = self.tags.lock().find(super::By::Tag(item.origin.object));
            if known == Some(child) {
                return self.already(&intent, child, &[&parent]);
            }
            volume.give_up_local(&lower, name)?;
            return Err(STALE);
        }
        let built = self.build(what.give, what.symlink, what.content, what.xattrs, &item.origin)?;
        // The identity is known before the name is there: after a crash the entry tells whether this happened.
        intent.object = built.file;
        let applied = self.apply(&intent, &[&parent], || {
            let after = built.rename(&volume.lower, &*lower, name, RenameFlags::NOREPLACE)?;
            Ok(Left { file: built.file, after })
        });
        match applied {
            Ok(applied) => {
                volume.notifier.entry(dir, name);
                Ok(applied)
            }
            Err(stop) => {
                built.discard(&volume.lower);
                Err(stop)
            }
        }
    }

    pub(super) fn noop(&self, item: &Item) -> Result<Applied, Stop> {
        let intent = Intent { opcode: Some(Opcode::Noop), ..Self::intent(item) };
        let outcome = intermezzo_kml::record::Outcome { flags: intent.flags, ..Default::default() };
        let recno = self.volume.journal.append(intermezzo_kml::Class::Replay, &intent, &outcome)?;
        Ok(Applied { file: intermezzo_kml::FileId::NONE, recno, already: false })
    }
}

fn opcode(what: &What<'_>) -> Result<Opcode, Stop> {
    match FileType::from_raw_mode(what.give.mode) {
        FileType::RegularFile => Ok(Opcode::Create),
        FileType::Directory => Ok(Opcode::Mkdir),
        FileType::Symlink if !what.symlink.is_empty() => Ok(Opcode::Symlink),
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
            Ok(Opcode::Mknod)
        }
        _ => Err(Stop::Refused(Errno::INVAL, "mode names no type of file that can be made".to_owned())),
    }
}
