//! Contents that come into files which lack them: in place, so that the file stays what it was to everybody.
//!
//! The mark decides: as long as it is there, nobody sees what is in the file. It goes when the content is whole and durable. So an
//! interrupted step needs no entry in the LML.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use intermezzo_kml::record::{FileId, Intent, Opcode};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::apply::Left;
use super::build::open_staged;
use super::plan::{By, Content, Item};
use super::{Applied, Replayer, Stop, ahead, copy, stage};
use crate::lower::{Stat, errno_of, missing, reopen, xattr};

impl Replayer {
    /// The content that a file stands for comes into it.
    pub(super) fn fill(&self, item: &Item, file: By, content: &Content) -> Result<Applied, Stop> {
        let (file, volume) = (self.find(file)?, &self.volume);
        let staged = match content {
            Content::Staged(name, size) => Some(File::from(open_staged(&volume.lower, name, *size)?)),
            Content::Inline(_) | Content::Missing(_) => None,
        };
        let large = staged.as_ref().filter(|_| content.size() > ahead::SMALL);
        if let Some(staged) = large {
            self.ahead(item, file, staged, content.size())?;
        }
        let held = volume.locks.lock(&[file]);
        self.refuse_unfinished(file)?;
        let (stat, fd) = self.lacks_this(item, file, content.size())?;
        if large.is_some() && !volume.filling.contains(file) {
            // Stopped a moment ago.
            return Err(Stop::Busy);
        }
        let intent = Intent {
            opcode: Some(Opcode::Close),
            object: file,
            before: volume.as_seen(file, stat).attributes,
            ..Self::intent(item)
        };
        let applied = self.apply(&intent, &[], || {
            if large.is_some() {
                volume.end_filling(file, &fd)?;
            } else {
                self.copy_now(&fd, staged.as_ref(), content, &stat)?;
            }
            missing::take_mark(&fd)?;
            Ok(Left { file, after: Stat::of(&fd)?.attributes })
        })?;
        drop(held);
        if large.is_some() {
            self.told(file);
        }
        if let Content::Staged(name, _) = content {
            let _ = stage::remove(&volume.lower, name);
        }
        volume.notifier.attributes(file);
        Ok(applied)
    }

    /// The file, if it lacks this very content. Its lock is held.
    pub(super) fn lacks_this(&self, item: &Item, file: FileId, size: u64) -> Result<(Stat, OwnedFd), Stop> {
        let volume = &self.volume;
        let stat = self.present(file)?;
        let fd = volume.lower.path_fd(file)?;
        if volume.lacking(&fd, &stat)? == Some(item.origin.hash) && stat.attributes.size == size {
            return Ok((stat, fd));
        }
        // Somebody has emptied it, or others have changed it meanwhile.
        let newest = volume.newest(file);
        Err(Stop::Stale(newest, None))
    }

    /// Copies a small content while its record is open.
    fn copy_now(
        &self,
        fd: &OwnedFd,
        staged: Option<&File>,
        content: &Content,
        before: &Stat,
    ) -> Result<(), Errno> {
        let open = File::from(reopen(fd, OFlags::WRONLY)?);
        // The kernel takes them away with every store.
        let capability = xattr::get(fd, xattr::CAPABILITY).ok();
        let filled = match (staged, content) {
            (Some(from), _) => copy::copy(from, &open, content.size()),
            (None, Content::Inline(bytes)) => {
                (&open).write_all(bytes).and_then(|()| open.sync_data()).map_err(errno_of)
            }
            (None, _) => Err(Errno::INVAL),
        };
        if let Some(value) = capability {
            xattr::set(fd, xattr::CAPABILITY, &value, XattrFlags::empty())?;
        }
        if filled.is_err() {
            // What came before the disk was full is of no use to anybody.
            let _ = missing::punch(fd, before.attributes.size);
        }
        missing::set_mtime(fd, before.attributes.mtime)?;
        filled
    }
}
