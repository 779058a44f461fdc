//! Attributes and extended attributes of an object that exists.

use std::os::fd::OwnedFd;

use intermezzo_kml::record::{Intent, Mask, Opcode, Recno};
use rustix::fs::{AtFlags, FileType, Gid, Uid, XattrFlags};
use rustix::io::Errno;

use super::apply::{Left, times};
use super::plan::{By, Give, Item};
use super::{Applied, Replayer, Stop};
use crate::lower::{Stat, change_mode, xattr};

impl Replayer {
    pub(super) fn set_attr(
        &self,
        item: &Item,
        since: Recno,
        file: By,
        mask: Mask,
        give: &Give,
    ) -> Result<Applied, Stop> {
        let file = self.find(file)?;
        let volume = &self.volume;
        let _held = volume.locks.lock(&[file]);
        volume.stop_filling(file)?;
        self.refuse_unfinished(file)?;
        self.untouched(since, &[], &[file])?;
        let stat = self.present(file)?;
        // Links have no mode of their own.
        let mask = if stat.kind() == FileType::Symlink { mask.difference(Mask::MODE) } else { mask };
        let intent = Intent {
            opcode: Some(Opcode::Setattr),
            object: file,
            mask,
            before: stat.attributes,
            ..Self::intent(item)
        };
        if Self::agrees(mask, &stat.attributes, give) {
            return self.already(&intent, file, &[]);
        }
        let fd = volume.lower.path_fd(file)?;
        let applied = self.apply(&intent, &[], || {
            set_attributes(&fd, mask, give)?;
            Ok(Left { file, after: Stat::of(&fd)?.attributes })
        })?;
        volume.notifier.attributes(file);
        Ok(applied)
    }

    pub(super) fn set_xattr(
        &self,
        item: &Item,
        since: Recno,
        file: By,
        name: &[u8],
        value: Option<&Vec<u8>>,
    ) -> Result<Applied, Stop> {
        let file = self.find(file)?;
        let volume = &self.volume;
        let _held = volume.locks.lock(&[file]);
        volume.stop_filling(file)?;
        self.refuse_unfinished(file)?;
        self.untouched(since, &[], &[file])?;
        let stat = self.present(file)?;
        let intent = Intent {
            opcode: Some(if value.is_some() { Opcode::Setxattr } else { Opcode::Delxattr }),
            object: file,
            name: name.to_vec(),
            value: value.cloned().unwrap_or_default(),
            before: stat.attributes,
            ..Self::intent(item)
        };
        let fd = volume.lower.path_fd(file)?;
        if get_xattr(&fd, name)?.as_ref() == value {
            return self.already(&intent, file, &[]);
        }
        let applied = self.apply(&intent, &[], || {
            match value {
                Some(value) => xattr::set(&fd, name, value, XattrFlags::empty())?,
                None => xattr::remove(&fd, name)?,
            }
            Ok(Left { file, after: Stat::of(&fd)?.attributes })
        })?;
        if name == xattr::ACL_DEFAULT {
            volume.lower.acl_changed(file);
        }
        if name == xattr::CAPABILITY {
            volume.writers.set_capability(file, value.is_some());
        }
        // ACLs and capabilities are cached with the attributes.
        volume.notifier.attributes(file);
        Ok(applied)
    }
}

/// Owner before mode, because a change of owner takes set-user-id away; the time last.
pub(super) fn set_attributes(fd: &OwnedFd, mask: Mask, give: &Give) -> Result<(), Errno> {
    if mask.intersects(Mask::UID | Mask::GID) {
        let uid = mask.contains(Mask::UID).then(|| Uid::from_raw(give.uid));
        let gid = mask.contains(Mask::GID).then(|| Gid::from_raw(give.gid));
        let mode = Stat::of(fd)?.attributes.mode;
        rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        let special = FileType::from_raw_mode(mode) == FileType::RegularFile && mode & 0o6000 != 0;
        if special && !mask.contains(Mask::MODE) {
            change_mode(fd, mode)?;
        }
    }
    if mask.contains(Mask::MODE) {
        change_mode(fd, give.mode)?;
    }
    if let Some(mtime) = give.mtime.filter(|_| mask.contains(Mask::MTIME)) {
        rustix::fs::utimensat(fd, c"", &times(mtime), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Value of an extended attribute, `None` if there is none by that name.
pub(crate) fn get_xattr(fd: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    match xattr::get(fd, name) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}
