//! Going on where a dead presto stopped: its handles, its writers, the requests it was serving, and what the kernel
//! should have been told.
//!
//! Called after recovery and before the first request. `session/` says what was noted; here it gets its meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use intermezzo_kml::KmlError;
use intermezzo_kml::Reader;
use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::OriginKind;
use intermezzo_kml::record::Recno;
use intermezzo_kml::record::Record;
use intermezzo_kml::record::State;
use intermezzo_kml::record::Time;
use rustix::io::Errno;

use super::Access;
use super::Entry;
use super::Handle;
use super::OpenFile;
use super::Volume;
use super::attributes::has_capability;
use super::now;
use super::update::Stop;
use super::writers::Resume;
use crate::lower::Stat;
use crate::session::HeldHandle;
use crate::session::Memory;
use crate::session::Way;

/// Handles and streams of a presto have numbers of their own: this many for each.
const NUMBERS: u32 = 40;
/// Closes among so many newest records may lack their word to the kernel.
const RECENT: u64 = 4096;

/// A file that was open for writing when presto was killed, and its attributes in the record that recovery made of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupted {
    pub id: FileId,
    pub recorded: Option<(Attributes, Time)>,
}

/// What was taken over.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Open files, each with the way of its data as far as the kernel was told.
    pub files: BTreeMap<FileId, (Arc<OpenFile>, Way)>,
    /// Handles.
    pub handles: usize,
    /// Handles whose file has vanished with the dead presto.
    pub lost: usize,
    /// Requests whose outcome is known.
    pub requests: usize,
}

impl Volume {
    /// Notes there from now on what must outlive presto. The mount is new.
    pub fn keep_in(&self, memory: &Arc<Memory>) {
        memory.set_notified(self.journal.published());
        self.note_in(memory);
    }

    /// Takes over what an earlier presto noted. The kernel's threads are still waiting.
    pub fn resume(&self, memory: &Arc<Memory>) -> Result<Resumed, KmlError> {
        self.notifier.attach(true);
        let mut resumed = Resumed::default();
        let mut writing = BTreeMap::new();
        for held in memory.handles() {
            match self.resume_handle(&held, &mut resumed) {
                Ok(()) if held.access.writes() => {
                    let (open, mappable) = writing.entry(held.file).or_insert((0u32, false));
                    *open = open.saturating_add(1);
                    *mappable |= held.access == Access::ReadWrite;
                }
                Ok(()) => {}
                Err(errno) => {
                    tracing::warn!(target: "filter", volume = self.name, object = %held.file, %errno,
                        "an open file has vanished with the presto that had it open");
                    memory.remove_handle(held.slot);
                    resumed.lost += 1;
                }
            }
        }
        self.resume_writers(writing);
        let mut reader = Reader::open(&self.lower.path.join("kml"))?;
        self.tell_kernel(&mut reader, memory.notified())?;
        resumed.requests = memory
            .inherit(|recno| decided(&self.lower.path.join("kml"), recno), |id| self.lower.path_fd(id).ok());
        self.note_in(memory);
        Ok(resumed)
    }

    fn note_in(&self, memory: &Arc<Memory>) {
        let first = memory.next_epoch() << NUMBERS;
        self.files.keep_in(memory, first);
        self.streams.start_at(first);
        let _ = self.session.set(Arc::clone(memory));
    }

    fn resume_handle(&self, held: &HeldHandle, resumed: &mut Resumed) -> Result<(), Errno> {
        let file = match resumed.files.get(&held.file) {
            Some((file, _)) => Arc::clone(file),
            None => Arc::new(OpenFile::new(held.file, self.lower.path_fd(held.file)?)),
        };
        self.files.resume(held, Arc::clone(&file));
        if Stat::of(&*file).is_ok_and(|stat| stat.attributes.nlink == 0) {
            self.files.let_go(held.file);
        }
        let way = &mut resumed.files.entry(held.file).or_insert((file, Way::Unknown)).1;
        if *way == Way::Unknown {
            *way = held.way;
        }
        resumed.handles += 1;
        Ok(())
    }

    /// Files open for writing, and those that may still be mapped: the watch over them goes on.
    fn resume_writers(&self, mut writing: BTreeMap<FileId, (u32, bool)>) {
        let left = std::mem::take(&mut *self.left_open.lock());
        let mut recorded: BTreeMap<FileId, _> = left.iter().map(|left| (left.id, left.recorded)).collect();
        for id in writing.keys() {
            recorded.entry(*id).or_insert(None);
        }
        for (id, recorded) in recorded {
            let Ok(file) = self.object(id) else { continue };
            let read_at = now();
            let Ok(stat) = Stat::of(&file) else { continue };
            let (recorded, read_at) = recorded.unwrap_or((stat.attributes, read_at));
            let (open, mappable) = writing.remove(&id).unwrap_or((0, true));
            let capability = has_capability(&file, &stat);
            self.writers.resume(id, Resume { open, mappable, recorded, read_at, capability });
            // What was stored while nobody watched.
            self.notifier.attributes(id);
        }
        for id in self.limbo.orphans() {
            if self.writers.is_writing(id) {
                self.writers.orphan(id);
            }
        }
    }

    /// Whatever others' updates changed since the kernel was told for certain.
    fn tell_kernel(&self, reader: &mut Reader, since: Recno) -> Result<(), KmlError> {
        let recent = Recno(self.journal.published().0.saturating_sub(RECENT));
        let first = reader.first()?;
        reader.seek(first.max(since.next().min(recent)))?;
        while let Some(record) = reader.next()? {
            if record.state == State::Done {
                self.tell_of(&record, since);
            }
        }
        Ok(())
    }

    fn tell_of(&self, record: &Record, since: Recno) {
        let (intent, outcome) = (&record.intent, &record.outcome);
        // Who was on the way to it when presto was killed comes to the next one.
        if intent.origin.kind == OriginKind::Replay
            && let Some(taken) = taken_by(record)
        {
            self.taken.note(&self.lower, taken);
        }
        let others = intent.origin.kind == OriginKind::Replay || intent.caller == Caller::default();
        if others && record.recno > since {
            for (dir, name) in [(intent.parent, &intent.name), (intent.target_parent, &intent.target_name)] {
                if !dir.is_none() {
                    self.notifier.entry(dir, name);
                    self.listing_changed(dir);
                }
            }
            for id in [outcome.object, intent.object, intent.replaced] {
                if !id.is_none() {
                    self.notifier.inode(id);
                }
            }
        } else if record.opcode == Opcode::Close {
            self.notifier.attributes(outcome.object);
        }
    }

    /// An object that a request of an earlier presto has made.
    pub fn made_earlier(&self, id: FileId) -> Result<Entry, Errno> {
        Ok(Entry { id, stat: self.getattr(id)? })
    }

    /// The same for one that was to be opened as well; `handle` if it was.
    pub fn created_earlier(
        &self,
        id: FileId,
        access: Access,
        handle: Option<Arc<Handle>>,
    ) -> Result<(Entry, Arc<Handle>), Errno> {
        let entry = self.made_earlier(id)?;
        if let Some(handle) = handle {
            return Ok((entry, handle));
        }
        let _held = self.locks.lock(&[id]);
        let opened = match access {
            Access::Read => self.open_reading(id).map_err(Stop::Errno),
            Access::Write | Access::ReadWrite => self.open_writing(id, access),
        };
        match opened {
            Ok(handle) => Ok((entry, handle)),
            Err(Stop::Errno(errno)) => Err(errno),
            Err(Stop::Full | Stop::Again) => Err(Errno::BUSY),
        }
    }
}

/// The object of a record, if recovery found that it happened.
fn decided(kml: &std::path::Path, recno: Recno) -> Option<FileId> {
    let mut reader = Reader::open(kml).ok()?;
    reader.seek(recno).ok()?;
    let record = reader.next().ok()??;
    (record.recno == recno && record.state == State::Done).then_some(record.outcome.object)
}

/// The file whose last name a record took away.
fn taken_by(record: &Record) -> Option<FileId> {
    let (intent, outcome) = (&record.intent, &record.outcome);
    match record.opcode {
        Opcode::Unlink | Opcode::Rmdir if outcome.flags.contains(Flags::LAST_LINK) => Some(intent.object),
        Opcode::Rename if outcome.flags.contains(Flags::REPLACED_LAST_LINK) => Some(intent.replaced),
        Opcode::Close if intent.object != outcome.object => Some(intent.object),
        _ => None,
    }
}
