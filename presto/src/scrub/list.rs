//! The names of a directory, a page at a time, by the lower file system's own cookies.

use std::os::fd::AsFd;

use intermezzo_channel::v1;
use intermezzo_kml::record::{Attributes, FileId};
use rustix::io::Errno;

use super::Scrubber;
use crate::channel::convert;
use crate::filter::Entry;
use crate::lower::{Dir, Stat, xattr};

/// Entries of one page.
const MAX_ENTRIES: usize = 1000;
/// Bytes of one page, roughly.
const MAX_BYTES: usize = 128 << 10;
/// What an entry takes beside its name, at most.
const ENTRY_BYTES: usize = 112;

impl Scrubber {
    /// One page, from the cookie `after` on (0: from the beginning). What vanishes meanwhile is left out, and so is what
    /// is mounted there.
    ///
    /// # Errors
    /// The kernel's; ESTALE: there is no such directory any more.
    pub fn list(&self, dir: FileId, after: u64) -> Result<v1::Listed, Errno> {
        let volume = &self.volume;
        self.alive(&*volume.lower.dir(dir)?, dir)?;
        let stream = volume.opendir(dir)?;
        let mut page = Page::default();
        let read = volume.readdir(stream, after, |dir, name| {
            if matches!(name.name.as_slice(), b"." | b"..") {
                page.last = name.next;
                return true;
            }
            if page.is_full() {
                page.next = page.last;
                return false;
            }
            match self.listed(dir, &name.name) {
                Ok(Some(entry)) => page.add(&name.name, &entry),
                Ok(None) => {}
                Err(errno) => page.failed = Some(errno),
            }
            page.last = name.next;
            page.failed.is_none()
        });
        volume.releasedir(stream)?;
        read?;
        match page.failed {
            Some(errno) => Err(errno),
            None => Ok(v1::Listed { entries: page.entries, next: page.next }),
        }
    }

    /// A directory that was removed behind presto's back may still be open here.
    pub(super) fn alive(&self, fd: impl AsFd, dir: FileId) -> Result<(), Errno> {
        if Stat::of(fd)?.attributes.nlink == 0 {
            self.volume.lower.forget_dir(dir);
            return Err(Errno::STALE);
        }
        Ok(())
    }

    fn listed(&self, dir: &Dir, name: &[u8]) -> Result<Option<Entry>, Errno> {
        match self.volume.resolve(dir, name) {
            Ok(Some(entry)) if self.volume.is_aside(entry.id) => Ok(None),
            Ok(Some(entry)) => match self.volume.stays_here(dir, name, entry.stat.is_dir()) {
                Ok(false) => Ok(Some(entry)),
                Ok(true) | Err(Errno::NOENT | Errno::STALE) => Ok(None),
                Err(errno) => Err(errno),
            },
            Ok(None) => Ok(None),
            Err(Errno::XDEV) => {
                if self.crossed.lock().insert((dir.id, name.to_vec())) {
                    let path = rustix::fs::readlink(xattr::magic(dir), Vec::new()).unwrap_or_default();
                    tracing::warn!(target: "scrub", volume = self.volume.name,
                        dir = %path.as_bytes().escape_ascii(), name = %name.escape_ascii(),
                        "a mount point or subvolume in the tree is left out: it is not replicated");
                }
                Ok(None)
            }
            Err(Errno::STALE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

#[derive(Default)]
struct Page {
    entries: Vec<v1::ListedEntry>,
    bytes: usize,
    /// Cookie behind the last name looked at.
    last: u64,
    /// Where the next page begins; 0: there is none.
    next: u64,
    failed: Option<Errno>,
}

impl Page {
    fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES || self.bytes >= MAX_BYTES
    }

    fn add(&mut self, name: &[u8], entry: &Entry) {
        self.bytes += name.len() + ENTRY_BYTES;
        let attributes = &entry.stat.attributes;
        self.entries.push(v1::ListedEntry {
            name: name.to_vec().into(),
            file: Some(convert::to_file_id(entry.id)),
            attributes: Some(to_attributes(attributes)),
            version: Some(v1::Version {
                mtime: Some(convert::to_time(attributes.mtime)),
                ctime: Some(convert::to_time(attributes.ctime)),
                size: attributes.size,
            }),
        });
    }
}

fn to_attributes(attributes: &Attributes) -> v1::Attributes {
    v1::Attributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: Some(convert::to_time(attributes.mtime)),
        rdev: attributes.rdev,
    }
}
