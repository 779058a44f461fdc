//! What an object is like: content, attributes, extended attributes.
//!
//! The records come in the order in which a reader ends with exactly what is on disk: a close takes set-user-id,
//! set-group-id and file capabilities away, an ACL changes the mode, and a change of owner takes away what a close does.

use std::collections::BTreeMap;

use intermezzo_kml::record::{Attributes, FileId, Flags, Mask, Opcode, Recno};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::plan::Object;
use super::{Mode, Scrubber, Seen};
use crate::filter::{Found, PRIVILEGES};
use crate::lower::missing::Hash;
use crate::lower::{Stat, kind, xattr};
use crate::replay::{STALE, Stop};

/// What is to be said of a content.
#[derive(Clone, Copy)]
enum Content {
    Whole,
    Unvouched,
    Missing(Hash),
}

/// Where an object differs from what Lento believes.
struct Difference {
    content: bool,
    attributes: Mask,
    /// Names with the value that is there, if one is.
    xattrs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Scrubber {
    pub(super) fn object(&self, item: &Object, since: Recno, mode: Mode) -> Result<Seen, Stop> {
        let (volume, file) = (&self.volume, item.file);
        let _held = volume.locks.lock(&[file]);
        volume.stop_filling(file)?;
        self.untouched(since, &[], &[file])?;
        let fd = match volume.lower.path_fd(file) {
            Ok(fd) => fd,
            // Its entries tell.
            Err(Errno::STALE | Errno::NOENT) => return Ok(Seen::Same),
            Err(errno) => return Err(errno.into()),
        };
        let stat = Stat::of(&fd)?;
        if volume.is_removed(file, &stat) {
            return Ok(Seen::Same);
        }
        if stat.kind() != FileType::from_raw_mode(item.mode) {
            return Err(STALE);
        }
        let present: BTreeMap<_, _> = xattr::all(&fd)?.into_iter().collect();
        let lacks = volume.lacking(&fd, &stat)?;
        let mut difference = compare(item, &stat, &present);
        difference.content |= lacks != item.missing;
        if difference.what().is_some() && volume.unfinished.contains(file) {
            return Err(Stop::Busy);
        }
        // The content is its writer's business, nothing else is.
        let busy = difference.content && volume.writers.is_writing(file);
        difference.content &= !busy;
        let Some(what) = difference.what() else {
            return if busy { Err(Stop::Busy) } else { Ok(Seen::Same) };
        };
        if mode == Mode::Look {
            return Ok(Seen::Differs(what, Recno::NONE));
        }
        let capability = present.get(xattr::CAPABILITY);
        let left = match lacks {
            Some(hash) => Content::Missing(hash),
            None if mode == Mode::Mend => Content::Unvouched,
            None => Content::Whole,
        };
        let recno = self.take(&difference.records(file, &stat.attributes, capability, left))?;
        for (name, value) in &difference.xattrs {
            if name == xattr::ACL_DEFAULT {
                volume.lower.acl_changed(file);
            }
            if name == xattr::CAPABILITY {
                volume.writers.set_capability(file, value.is_some());
            }
        }
        volume.notifier.inode(file);
        Ok(Seen::Differs(what, recno))
    }
}

fn compare(item: &Object, stat: &Stat, present: &BTreeMap<Vec<u8>, Vec<u8>>) -> Difference {
    let now = &stat.attributes;
    let mut attributes = Mask::empty();
    // Links have no mode of their own.
    attributes.set(Mask::MODE, stat.kind() != FileType::Symlink && (now.mode ^ item.mode) & 0o7777 != 0);
    attributes.set(Mask::UID, now.uid != item.uid);
    attributes.set(Mask::GID, now.gid != item.gid);
    attributes.set(Mask::MTIME, !stat.is_file() && now.mtime != item.mtime);
    let mut xattrs: Vec<_> = present
        .iter()
        .filter(|(name, value)| item.xattrs.get(*name) != Some(value))
        .map(|(name, value)| (name.clone(), Some(value.clone())))
        .collect();
    let gone = item.xattrs.keys().filter(|name| !present.contains_key(*name));
    xattrs.extend(gone.map(|name| (name.clone(), None)));
    Difference {
        content: stat.is_file() && (now.mtime, now.size) != (item.mtime, item.size),
        attributes,
        xattrs,
    }
}

impl Difference {
    /// The most important of it, for people.
    fn what(&self) -> Option<&'static str> {
        if self.content {
            Some("content")
        } else if !self.attributes.is_empty() {
            Some("attributes")
        } else if !self.xattrs.is_empty() {
            Some("extended attributes")
        } else {
            None
        }
    }

    /// `left`: what is to be said of the content.
    fn records(
        &self,
        file: FileId,
        present: &Attributes,
        capability: Option<&Vec<u8>>,
        left: Content,
    ) -> Vec<Found> {
        let set = |name: &[u8], value: Option<&Vec<u8>>| {
            Found::xattr(file, *present, name, value.map(Vec::as_slice))
        };
        let mut records = Vec::new();
        if self.content {
            let close = Found::of(Opcode::Close, file, *present);
            records.push(match left {
                Content::Whole => close,
                Content::Unvouched => close.flag(Flags::UNVOUCHED),
                Content::Missing(hash) => close.missing(hash),
            });
        }
        let is_set = |name: &[u8], value: &Option<Vec<u8>>| name == xattr::CAPABILITY && value.is_some();
        let others = self.xattrs.iter().filter(|(name, value)| !is_set(name, value));
        records.extend(others.map(|(name, value)| set(name, value.as_ref())));
        let owner = self.attributes.intersects(Mask::UID | Mask::GID);
        let privileged = kind(present) != FileType::Directory && present.mode & PRIVILEGES != 0;
        let again = privileged && (self.content || owner);
        let mask = self.attributes | if again { Mask::MODE } else { Mask::empty() };
        if !mask.is_empty() {
            records.push(Found::setattr(file, *present, mask));
        }
        let differs = self.xattrs.iter().any(|(name, value)| is_set(name, value));
        if let Some(value) = capability.filter(|_| differs || self.content || owner) {
            records.push(set(xattr::CAPABILITY, Some(value)));
        }
        records
    }
}
