//! Files that somebody may be changing: open for writing, or still mapped after the last close.
//!
//! Data goes past presto in the kernel, so "changed" is told by comparing versions. Owns what was last journaled of each
//! such file; journals nothing itself (`close.rs` does).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Time;
use intermezzo_kml::record::Version;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::ledger::Ledger;
use super::unseen::Seen;
use crate::lower::Lower;

/// Kernels stamp files with a clock that ticks every few milliseconds: a version younger than this may be shared by two
/// contents.
const TICK_NANOSECONDS: i128 = 10_000_000;
/// A mapping is looked for again after this, then after twice as long, up to `PROBE_MAX`.
const PROBE_MIN: Duration = Duration::from_millis(4);
const PROBE_MAX: Duration = Duration::from_millis(250);

/// Set-user-id and set-group-id, which the kernel takes away from a written file.
pub(crate) const PRIVILEGES: u32 = 0o6000;

/// What a descriptor is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing; cannot be mapped for writing.
    Write,
    /// Both; may be mapped shared and written by stores that nobody reports.
    ReadWrite,
}

impl Access {
    /// Whether it writes.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// A file that may be changing.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Descriptors open for writing.
    pub open: u32,
    /// When the newest of them was opened.
    pub opened: Instant,
    /// Some descriptor could map it shared and writable, so stores may happen at any time.
    pub mappable: bool,
    /// Attributes at the last close record, or at open.
    pub recorded: Attributes,
    /// When `recorded` was read.
    pub read_at: Time,
    /// The content then, where the lower file system does not tell of all stores and it was read.
    pub content: Option<Seen>,
    /// It had file capabilities at open.
    pub capability: bool,
    /// Stamps of this file system tell any two contents apart.
    fine_stamps: bool,
    /// After the last close: when to look again whether it is still mapped, and how long the wait was.
    pub probe: Option<(Instant, Duration)>,
}

impl Writer {
    /// Whether the content may differ from what was last journaled.
    #[must_use]
    pub fn changed(&self, now: &Attributes) -> bool {
        let recorded = self.recorded.version();
        if now.version() != recorded {
            return true;
        }
        // Two empty contents are equal whatever happened between them.
        !self.fine_stamps && now.size > 0 && is_racy(recorded, self.read_at)
    }
}

/// Whether a change in the same clock tick could have left this version as it is.
fn is_racy(version: Version, read_at: Time) -> bool {
    nanoseconds(read_at) - nanoseconds(version.ctime.max(version.mtime)) < TICK_NANOSECONDS
}

fn nanoseconds(time: Time) -> i128 {
    i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec)
}

/// What is known of a file whose writers go on under the next presto.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resume {
    pub open: u32,
    pub mappable: bool,
    pub recorded: Attributes,
    pub read_at: Time,
    pub capability: bool,
}

/// All such files of a volume.
#[derive(Debug)]
pub struct Writers {
    files: Mutex<BTreeMap<FileId, Writer>>,
    orphans: Mutex<BTreeSet<FileId>>,
    ledger: Ledger,
    fine_stamps: bool,
}

impl Writers {
    /// None yet; and the files that an earlier run, which was killed, had open for writing.
    pub(crate) fn open(lower: &Lower) -> Result<(Writers, Vec<FileId>), Errno> {
        let (ledger, interrupted) = Ledger::open(lower)?;
        let fine_stamps = lower.has_fine_stamps();
        Ok((Writers { files: Mutex::default(), orphans: Mutex::default(), ledger, fine_stamps }, interrupted))
    }

    /// A file that an earlier run had open needs no more attention.
    pub(crate) fn settled(&self, id: FileId) {
        if !self.files.lock().contains_key(&id) {
            self.ledger.remove(id);
        }
    }

    /// A descriptor for writing was opened. `attributes` were read at `read_at`, under the object's lock.
    pub fn opened(
        &self,
        id: FileId,
        access: Access,
        attributes: Attributes,
        read_at: Time,
        capability: bool,
    ) {
        if !access.writes() {
            return;
        }
        let mut files = self.files.lock();
        self.ledger.add(id);
        let writer = files.entry(id).or_insert(Writer {
            fine_stamps: self.fine_stamps,
            open: 0,
            opened: Instant::now(),
            mappable: false,
            recorded: attributes,
            read_at,
            content: (attributes.size == 0).then(Seen::nothing),
            capability,
            probe: None,
        });
        writer.open = writer.open.saturating_add(1);
        writer.opened = Instant::now();
        writer.mappable |= access == Access::ReadWrite;
        writer.probe = None;
    }

    /// A file that an earlier run left with `open` descriptors for writing, or only mapped if there is none.
    pub(super) fn resume(&self, id: FileId, writer: Resume) {
        let Resume { open, mappable, recorded, read_at, capability } = writer;
        let mut files = self.files.lock();
        self.ledger.add(id);
        let fine_stamps = self.fine_stamps;
        let opened = Instant::now();
        let (content, probe) = (None, None);
        let writer =
            Writer { open, opened, mappable, recorded, read_at, content, capability, fine_stamps, probe };
        files.insert(id, writer);
    }

    /// A descriptor for writing is gone. Says what remains.
    pub fn closed(&self, id: FileId) -> Option<Writer> {
        let mut files = self.files.lock();
        let writer = files.get_mut(&id)?;
        writer.open = writer.open.saturating_sub(1);
        Some(*writer)
    }

    /// What is known of a file that may be changing.
    #[must_use]
    pub fn get(&self, id: FileId) -> Option<Writer> {
        self.files.lock().get(&id).copied()
    }

    /// Whether somebody has it open for writing or still maps it.
    #[must_use]
    pub fn is_writing(&self, id: FileId) -> bool {
        self.files.lock().contains_key(&id)
    }

    /// Its state is journaled: `attributes`, read at `read_at`, and this content.
    pub fn recorded(&self, id: FileId, attributes: Attributes, read_at: Time, content: Option<Seen>) {
        if let Some(writer) = self.files.lock().get_mut(&id) {
            writer.recorded = attributes;
            writer.read_at = read_at;
            writer.content = content;
        }
    }

    /// The content as it was recorded, or as it was when the file was opened.
    pub(super) fn set_content(&self, id: FileId, content: Option<Seen>) {
        if let Some(writer) = self.files.lock().get_mut(&id) {
            writer.content = content;
        }
    }

    /// The file had these capabilities at the last look.
    pub fn set_capability(&self, id: FileId, capability: bool) {
        if let Some(writer) = self.files.lock().get_mut(&id) {
            writer.capability = capability;
        }
    }

    /// Attributes were changed by a record that says so: what differs from `before` to `after` is no change of content,
    /// as far as it was asked for. Stores go past presto at any time, and one in between moved more than that.
    pub fn attributes_changed(
        &self,
        id: FileId,
        before: &Attributes,
        after: &Attributes,
        asked: Mask,
        read_at: Time,
    ) {
        let stored = (!asked.contains(Mask::SIZE) && after.size != before.size)
            || (!asked.intersects(Mask::SIZE | Mask::MTIME) && after.mtime != before.mtime);
        if let Some(writer) = self.files.lock().get_mut(&id) {
            if stored || writer.changed(before) {
                // Content is pending: only the privilege bits are to be followed.
                writer.recorded.mode = after.mode;
            } else {
                writer.recorded = *after;
                writer.read_at = read_at;
            }
        }
    }

    /// Nobody has it open, but it may still be mapped: look again later.
    pub fn probe_later(&self, id: FileId, now: Instant) {
        if let Some(writer) = self.files.lock().get_mut(&id) {
            let wait = writer.probe.map_or(PROBE_MIN, |(_, wait)| (wait * 2).min(PROBE_MAX));
            writer.probe = Some((now + wait, wait));
        }
    }

    /// Nobody can change it any more.
    pub fn finished(&self, id: FileId) {
        let mut files = self.files.lock();
        if files.get(&id).is_some_and(|writer| writer.open == 0) {
            files.remove(&id);
            self.ledger.remove(id);
        }
    }

    /// Files open for writing, and files whose mapping is to be looked for now.
    #[must_use]
    pub fn due(&self, now: Instant) -> (Vec<FileId>, Vec<FileId>) {
        let files = self.files.lock();
        let open = files.iter().filter(|(_, writer)| writer.open > 0).map(|(id, _)| *id).collect();
        let probe = files
            .iter()
            .filter(|(_, writer)| writer.open == 0 && writer.probe.is_none_or(|(at, _)| at <= now))
            .map(|(id, _)| *id)
            .collect();
        (open, probe)
    }

    /// Whether a file that is open for writing was opened less than this long ago.
    #[must_use]
    pub fn has_opened_within(&self, limit: Duration) -> bool {
        self.files.lock().values().any(|writer| writer.open > 0 && writer.opened.elapsed() < limit)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<FileId> {
        self.files.lock().keys().copied().collect()
    }

    /// How many files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.lock().is_empty()
    }

    /// A replay took this file's name away although somebody still writes to it: its close becomes an orphan's.
    pub fn orphan(&self, id: FileId) {
        self.orphans.lock().insert(id);
    }

    /// Whether a replay did that.
    #[must_use]
    pub fn is_orphan(&self, id: FileId) -> bool {
        self.orphans.lock().contains(&id)
    }

    /// The orphan has no writer any more.
    pub fn adopt(&self, id: FileId) -> bool {
        self.orphans.lock().remove(&id)
    }
}
