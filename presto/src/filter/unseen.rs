//! Stores into shared mappings of which the lower file system says nothing.
//!
//! tmpfs stamps a file when a store faults, and few do: a page that was read through the mapping before is mapped for writing
//! from then on. There the content itself is compared with what it was at the last record. Reading it costs a part of what
//! reading, hashing and sending it costs Lento, which a record for each doubt would make it do.

use std::hash::Hasher;
use std::os::fd::AsFd;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::FileId;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Access;
use super::Volume;
use super::Writer;
use super::close::Doubt;
use crate::lower::Shape;
use crate::lower::Stat;
use crate::lower::reopen;

/// Who waits for open(2), close(2) or fsync(2) waits for the content of no longer file than this, in bytes. A longer one counts as
/// changed then.
const AT_ONCE: u64 = 16 << 20;
/// How often a file that stays open, or mapped, is read; less often if that takes longer than the part `SHARE` of the time.
const OFTEN: Duration = Duration::from_secs(2);
const SHARE: u32 = 50;
/// Read at once, in bytes.
const PIECE: usize = 128 << 10;

/// A content as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    digest: u64,
    at: Instant,
    took: Duration,
}

impl Seen {
    /// Of a file without any.
    pub(super) fn nothing() -> Seen {
        Seen { digest: std::hash::DefaultHasher::new().finish(), at: Instant::now(), took: Duration::ZERO }
    }

    fn of(file: impl AsFd) -> Result<Seen, Errno> {
        let at = Instant::now();
        let fd = reopen(file, OFlags::RDONLY)?;
        let (mut hasher, mut piece, mut offset) = (std::hash::DefaultHasher::new(), vec![0; PIECE], 0);
        loop {
            match rustix::io::pread(&fd, &mut *piece, offset) {
                Ok(0) => return Ok(Seen { digest: hasher.finish(), at, took: at.elapsed() }),
                Ok(length) => {
                    hasher.write(piece.get(..length).unwrap_or_default());
                    offset = offset.saturating_add(length as u64);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn is_old(&self) -> bool {
        self.at.elapsed() >= OFTEN.max(self.took.saturating_mul(SHARE))
    }
}

/// What a look at a file that may be changing has found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// It may be another content than the one that was last recorded.
    pub changed: bool,
    /// What its content is now, where it was read.
    pub content: Option<Seen>,
}

impl Volume {
    /// A file was opened: what is in it before anybody can store into it. The caller holds its lock.
    pub(super) fn note_content(&self, id: FileId, access: Access, file: impl AsFd, stat: &Stat) {
        let is_wanted = access == Access::ReadWrite
            && matches!(self.lower.shape(), Shape::Tmpfs)
            && stat.attributes.size <= AT_ONCE
            && self.writers.get(id).is_some_and(|writer| writer.content.is_none());
        if is_wanted {
            self.writers.set_content(id, Seen::of(file).ok());
        }
    }

    /// Compares version and, where that does not tell, content with what was last recorded.
    pub(super) fn compare(&self, writer: &Writer, file: impl AsFd, stat: &Stat, doubt: Doubt) -> Look {
        let changed = self.is_changed(writer, stat, doubt);
        if !writer.mappable || !matches!(self.lower.shape(), Shape::Tmpfs) {
            return Look { changed, content: None };
        }
        let is_long = stat.attributes.size > AT_ONCE;
        let (is_read, else_changed) = match doubt {
            Doubt::Closed | Doubt::Young | Doubt::Certain => (!is_long, true),
            Doubt::Passing if changed && is_long => (false, true),
            Doubt::Passing => (changed || writer.content.is_none_or(|content| content.is_old()), false),
            Doubt::Left => (false, false),
            Doubt::Differs => (true, true),
        };
        if !is_read {
            return Look { changed: changed || else_changed, content: None };
        }
        let content = Seen::of(file).ok();
        let same = writer.content.zip(content).is_some_and(|(before, now)| before.digest == now.digest);
        Look { changed: changed || !same, content }
    }
}
