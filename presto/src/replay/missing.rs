//! Contents that come into files which lack them: in place, so that the file stays what it was to everybody.
//!
//! The mark decides: as long as it is there, nobody sees what is in the file. It goes when the content is whole and durable. So an
//! interrupted step needs no entry in the LML.

use std::fs::File;
use std::io::Write;

use intermezzo_kml::record::{Intent, Opcode};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::apply::{Left, times};
use super::build::open_staged;
use super::plan::{By, Content, Item};
use super::{Applied, Replayer, Stop, copy, stage};
use crate::lower::{Stat, errno_of, missing, xattr};

impl Replayer {
    /// The content that a file stands for comes into it.
    pub(super) fn fill(&self, item: &Item, file: By, content: &Content) -> Result<Applied, Stop> {
        let (file, volume) = (self.find(file)?, &self.volume);
        let _held = volume.locks.lock(&[file]);
        self.refuse_unfinished(file)?;
        let stat = self.present(file)?;
        let fd = volume.lower.path_fd(file)?;
        let lacks = volume.lacking(&fd, &stat)?;
        if lacks != Some(item.origin.hash) || stat.attributes.size != content.size() {
            // Somebody has emptied it, or others have changed it meanwhile.
            let newest = volume.touched.newest(file).max(volume.replayed.newest(file));
            return Err(Stop::Stale(newest, None));
        }
        let staged = match content {
            Content::Staged(name, size) => Some(File::from(open_staged(&volume.lower, name, *size)?)),
            Content::Inline(_) | Content::Missing(_) => None,
        };
        let intent = Intent {
            opcode: Some(Opcode::Close),
            object: file,
            before: stat.attributes,
            ..Self::intent(item)
        };
        let applied = self.apply(&intent, &[], || {
            let open = File::from(volume.lower.open_id(file, OFlags::WRONLY)?);
            // The kernel takes them away with every store.
            let capability = xattr::get(&fd, xattr::CAPABILITY).ok();
            let filled = match (&staged, content) {
                (Some(from), _) => copy::copy(from, &open, content.size()),
                (None, Content::Inline(bytes)) => {
                    (&open).write_all(bytes).and_then(|()| open.sync_data()).map_err(errno_of)
                }
                (None, _) => Err(Errno::INVAL),
            };
            if let Some(value) = capability {
                xattr::set(&fd, xattr::CAPABILITY, &value, XattrFlags::empty())?;
            }
            if filled.is_err() {
                // What came before the disk was full is of no use to anybody.
                let _ = missing::punch(&fd, stat.attributes.size);
            }
            rustix::fs::futimens(&open, &times(stat.attributes.mtime))?;
            filled?;
            missing::take_mark(&fd)?;
            Ok(Left { file, after: Stat::of(&fd)?.attributes })
        })?;
        if let Content::Staged(name, _) = content {
            let _ = stage::remove(&volume.lower, name);
        }
        volume.notifier.attributes(file);
        Ok(applied)
    }
}
