//! What changes nothing: lookup, attributes, link targets, extended attributes, space.

use std::os::fd::AsFd;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::Object;
use super::SAFE;
use super::Volume;
use crate::lower::Stat;
use crate::lower::administers;
use crate::lower::xattr;

/// An object and what it looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Identity.
    pub id: FileId,
    /// Attributes.
    pub stat: Stat,
}

impl Volume {
    /// The object with this name, `None` if there is none.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Result<Option<Entry>, Errno> {
        if self.lower.hides(parent, name) {
            return Ok(None);
        }
        let dir = self.lower.dir(parent)?;
        match self.entry_at(&*dir, name) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Attributes.
    pub fn getattr(&self, id: FileId) -> Result<Stat, Errno> {
        Ok(self.as_seen(id, Stat::of(self.object(id)?)?))
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, id: FileId) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(self.lower.path_fd(id)?, c"", Vec::new())?.into_bytes())
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, id: FileId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if name.starts_with(xattr::HIDDEN) {
            return Err(Errno::NODATA);
        }
        if name == SAFE {
            return self.safe(id);
        }
        xattr::get(self.object(id)?, name)
    }

    /// Names of extended attributes, each ended by a zero byte. `trusted.` ones are for who administers the machine: the
    /// kernel leaves it to file systems to leave them out.
    pub fn listxattr(&self, caller: Caller, id: FileId) -> Result<Vec<u8>, Errno> {
        let mut names = xattr::list(self.object(id)?)?;
        names.retain(|name| !name.starts_with(xattr::HIDDEN));
        if names.iter().any(|name| name.starts_with(xattr::TRUSTED)) && !administers(caller.pid) {
            names.retain(|name| !name.starts_with(xattr::TRUSTED));
        }
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Space on the lower file system, within the volume's limits.
    pub fn statfs(&self) -> Result<StatVfs, Errno> {
        let space = rustix::fs::fstatvfs(&*self.lower.dir(self.lower.root())?)?;
        Ok(self.quota.limit(space))
    }

    /// A descriptor of an object, good for looking at it and for changing attributes. An open one is found even when
    /// it has no name any more.
    pub(crate) fn object(&self, id: FileId) -> Result<Object, Errno> {
        if let Some(open) = self.files.find(id) {
            return Ok(Object::Open(open));
        }
        if let Some(dir) = self.lower.kept_dir(id) {
            return Ok(Object::Dir(dir));
        }
        self.lower.path_fd(id).map(Object::Fresh)
    }

    /// Identity and attributes of an entry. If the name changes hands between the two questions it is asked again.
    pub(crate) fn entry_at(&self, dir: impl AsFd, name: &[u8]) -> Result<Entry, Errno> {
        for _ in 0..16 {
            let id = self.lower.child(&dir, name)?;
            let stat = Stat::at(&dir, name)?;
            if stat.ino == id.ino {
                return Ok(Entry { id, stat: self.as_seen(id, stat) });
            }
        }
        // Somebody renames over it without pause: a descriptor holds it still.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, rustix::fs::Mode::empty())?;
        let id = self.lower.identify(&fd)?;
        Ok(Entry { id, stat: self.as_seen(id, Stat::of(&fd)?) })
    }

    /// Attributes as users see them: neither the name in limbo, or of an earlier file, nor presto's own directory counts.
    pub(crate) fn as_seen(&self, id: FileId, mut stat: Stat) -> Stat {
        if stat.is_file() && self.is_aside(id) {
            stat.attributes.nlink = stat.attributes.nlink.saturating_sub(1);
        }
        if let Some(mtime) = self.filling.mtime(id) {
            stat.attributes.mtime = mtime;
        }
        if id == self.lower.root() && self.lower.source.is_some() && stat.attributes.nlink > 2 {
            stat.attributes.nlink -= 1; // The hidden directory's `..`.
        }
        stat
    }

    /// Whether no name in the tree leads to it any more.
    pub(crate) fn is_removed(&self, id: FileId, stat: &Stat) -> bool {
        stat.attributes.nlink == 0 || self.as_seen(id, *stat).attributes.nlink == 0
    }
}
