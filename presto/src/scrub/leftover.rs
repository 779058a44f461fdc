//! What a power cut leaves of contents that were not synced: files that lost their bytes, and files in the place of others.
//!
//! The directory may be on the disk before the bytes of a new file are, and before the journal. Such a file is empty, nobody
//! was promised anything of it, and whoever made it in a replay does so again: it goes, as its name could have gone as well. A
//! file in the place of another one is that one's new content, which may be torn, unless an fsync has promised
//! what is there.

use intermezzo_kml::record::{FileId, Flags, Intent, Opcode, Outcome, Recno};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::plan::{Entry, Expected};
use super::{Scrubber, Seen};
use crate::filter::Found;
use crate::lower::{Dir, Stat};
use crate::replay::{Stop, times};

impl Scrubber {
    /// An empty file that was there before presto was, or one whose content never came, and of which no record tells.
    pub(super) fn is_unpromised(&self, file: FileId) -> Result<bool, Errno> {
        let volume = &self.volume;
        let stat = volume.lower.stat(file)?;
        if volume.lacking_file(file, &stat)?.is_some() {
            return Ok(true);
        }
        Ok(stat.is_file()
            && stat.attributes.size == 0
            && stat.attributes.nlink == 1
            && self.is_of_before(file)
            && !volume.writers.is_writing(file))
    }

    pub(super) fn drop_unpromised(&self, item: &Entry, dir: &Dir, file: FileId) -> Result<Seen, Stop> {
        let time = Stat::of(dir)?.attributes.mtime;
        rustix::fs::unlinkat(dir, &item.at.name, AtFlags::empty())?;
        rustix::fs::futimens(dir, &times(time))?;
        tracing::info!(target: "scrub", volume = self.volume.name, file = %file,
            name = %item.at.name.escape_ascii(), "an empty file that a power cut has left goes");
        self.forget(item, Some(file));
        Ok(Seen::Differs("empty since a power cut", Recno::NONE))
    }

    /// A regular file where another one was that is nowhere any more.
    pub(super) fn is_exchanged(&self, expect: Expected, file: FileId) -> Result<bool, Errno> {
        if !expect.is_file || !expect.is_last || !self.is_of_before(file) {
            return Ok(false);
        }
        match self.volume.lower.stat(expect.file) {
            Err(Errno::STALE | Errno::NOENT) => Ok(self.volume.lower.stat(file)?.is_file()),
            Ok(_) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn exchanged(
        &self,
        item: &Entry,
        dir: &Dir,
        expect: Expected,
        file: FileId,
    ) -> Result<Seen, Stop> {
        let stat = self.volume.lower.stat(file)?;
        let close = Found::of(Opcode::Close, file, stat.attributes);
        let close = match self.volume.lacking_file(file, &stat)? {
            Some(hash) => close.missing(hash),
            None if self.is_as_promised(file, &stat) => close,
            None => close.flag(Flags::UNVOUCHED),
        };
        let close = Found {
            intent: Intent {
                object: expect.file,
                parent: item.at.dir,
                name: item.at.name.clone(),
                ..close.intent
            },
            outcome: Outcome { parent_mtime: Stat::of(dir)?.attributes.mtime, ..close.outcome },
        };
        let recno = self.take(&[close])?;
        self.forget(item, Some(file));
        Ok(Seen::Differs("another file", recno))
    }

    /// An fsync has promised what is in it, and only the record of that is gone.
    fn is_as_promised(&self, file: FileId, stat: &Stat) -> bool {
        let promised = self.volume.promised.lock().get(&file).copied();
        promised == Some(stat.attributes.version().content())
    }

    fn is_of_before(&self, file: FileId) -> bool {
        self.volume.touched.is_unborn(file) && self.volume.replayed.is_unborn(file)
    }
}
