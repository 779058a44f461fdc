//! The close record: "this file's content is complete".
//!
//! Data passes presto by, so it looks at versions. A file that can be mapped is looked at in a fixed order: fingerprint,
//! then start of writeback, then the record. A store before the writeback is in what readers of the record will see;
//! a store after it faults and gives the file a new version, which the next look finds. Where it does not, `unseen` looks at
//! the content.

use std::os::fd::AsFd;
use std::time::Instant;

use intermezzo_kml::Class;
use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Recno;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Volume;
use super::Writer;
use super::now;
use super::resume::Interrupted;
use super::update::Stop;
use super::update::Told;
use super::writers::PRIVILEGES;
use crate::lower::Stat;
use crate::lower::is_written;
use crate::lower::reopen;
use crate::lower::start_writeback;

/// How much doubt is enough for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Somebody closes it: as `Young`.
    Closed,
    /// It stays open, or mapped: as `Young`, but a content that has to be read is not read each time.
    Passing,
    /// A version too young to be trusted counts as changed.
    Young,
    /// Only another version counts; who else has it open, or has mapped it, is seen to later.
    Left,
    /// Only another version counts, or another content.
    Differs,
    /// Stores may have gone unseen: record in any case.
    Certain,
}

/// Whether to wait when the journal is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As the volume's policy says.
    Policy,
    /// Not at all: it will be tried again.
    None,
}

impl Volume {
    /// The same without a caller, and without being held up by a full journal.
    pub(crate) fn look_at(&self, id: FileId) -> Result<bool, Errno> {
        self.record_close_within(Caller::default(), id, Doubt::Young, Patience::None, Flags::empty())
    }

    /// The same again and again, of a file that stays open or mapped.
    pub(crate) fn look_in_passing(&self, id: FileId) -> Result<bool, Errno> {
        self.record_close_within(Caller::default(), id, Doubt::Passing, Patience::None, Flags::empty())
    }

    /// Journals a close if the content may have changed since the last record. Says whether privilege bits were lost.
    pub(crate) fn close_if_changed(&self, caller: Caller, id: FileId) -> Result<bool, Errno> {
        self.record_close(caller, id, Doubt::Closed)
    }

    /// Closes for the files that were open for writing when presto was killed: what their writers had left is complete
    /// as far as anybody will ever know. After a power cut that holds for those that are as recorded: what fsync has promised
    /// of them is there. Recovery calls it once, after it has resolved the intents. An error names the file.
    pub fn close_interrupted(
        &self,
        is_recorded: impl Fn(FileId, &Attributes) -> bool,
    ) -> Result<usize, (FileId, Errno)> {
        let mut closed = 0;
        let interrupted = self.interrupted.lock().clone();
        for id in interrupted {
            let found = self.close_one_interrupted(id, &is_recorded).map_err(|errno| (id, errno))?;
            closed += usize::from(found.recorded.is_some());
            self.left_open.lock().push(found);
            self.interrupted.lock().retain(|other| *other != id);
            self.writers.settled(id);
        }
        Ok(closed)
    }

    fn close_one_interrupted(
        &self,
        id: FileId,
        is_recorded: impl Fn(FileId, &Attributes) -> bool,
    ) -> Result<Interrupted, Errno> {
        let nothing = Interrupted { id, recorded: None };
        let file = match self.object(id) {
            Ok(file) => file,
            Err(Errno::STALE | Errno::NOENT) => return Ok(nothing),
            Err(errno) => return Err(errno),
        };
        let _held = self.locks.lock(&[id]);
        let read_at = now();
        let stat = Stat::of(&file)?;
        if !stat.is_file() || self.is_removed(id, &stat) {
            return Ok(nothing);
        }
        start_writeback(&file)?;
        // Stores may have reached the disk without their time: whoever reads the record reads what is there.
        let torn = self.journal.unclean_boot() && !is_recorded(id, &stat.attributes);
        let flags = if torn { Flags::UNVOUCHED } else { Flags::empty() };
        let recno = self.close_at_start(id, stat.attributes, flags)?;
        self.limbo.note_close(id, recno);
        Ok(Interrupted { id, recorded: Some((stat.attributes, read_at)) })
    }

    /// The same for one that a replay had replaced under its writer.
    pub fn close_orphan(&self, id: FileId, present: Attributes) -> Result<(), Errno> {
        let recno = self.close_at_start(id, present, Flags::ORPHAN)?;
        self.limbo.note_orphan(id, recno);
        Ok(())
    }

    /// From the reserve: a journal without room for users must not keep a volume from coming up, since only Lento can
    /// make room then.
    fn close_at_start(&self, id: FileId, present: Attributes, flags: Flags) -> Result<Recno, Errno> {
        let mut intent = Volume::intent(Opcode::Close, Caller::default());
        intent.object = id;
        intent.before = present;
        intent.flags = flags;
        let outcome = Outcome { object: id, after: present, flags, ..Outcome::default() };
        let recno = self.journal.append(Class::Replay, &intent, &outcome).map_err(|error| {
            tracing::error!(target: "filter", volume = self.name, %error, "an interrupted write is not journaled");
            if error.is_full() { Errno::NOSPC } else { Errno::IO }
        })?;
        self.touched.record(&intent, &outcome, recno);
        Ok(recno)
    }

    /// The same for an fsync, before the sync that makes content and record durable.
    pub(crate) fn close_for_sync(&self, caller: Caller, id: FileId) -> Result<bool, Errno> {
        // What is recorded and not sent is recorded once more: only a close that says so is a promise.
        let doubt = if self.limbo.lacks_synced(id) { Doubt::Certain } else { Doubt::Young };
        self.record_close_within(caller, id, doubt, Patience::Policy, Flags::SYNCED)
    }

    fn record_close(&self, caller: Caller, id: FileId, doubt: Doubt) -> Result<bool, Errno> {
        self.record_close_within(caller, id, doubt, Patience::Policy, Flags::empty())
    }

    fn record_close_within(
        &self,
        caller: Caller,
        id: FileId,
        doubt: Doubt,
        patience: Patience,
        flags: Flags,
    ) -> Result<bool, Errno> {
        let mut told = Told::default();
        let mut since = None;
        let result = loop {
            let attempt = {
                let _held = self.locks.lock(&[id]);
                self.record_close_locked(&mut told, caller, id, doubt, flags)
            };
            match attempt {
                Ok(lost) => break Ok(lost),
                Err(Stop::Errno(errno)) => break Err(errno),
                Err(Stop::Again) => {}
                Err(Stop::Full) if patience == Patience::None => break Err(Errno::NOSPC),
                Err(Stop::Full) => {
                    if let Err(errno) = self.wait_for_space(since.get_or_insert_with(Instant::now)) {
                        break Err(errno);
                    }
                }
            }
        };
        self.tell(&told);
        result
    }

    fn record_close_locked(
        &self,
        told: &mut Told,
        caller: Caller,
        id: FileId,
        doubt: Doubt,
        flags: Flags,
    ) -> Result<bool, Stop> {
        let Some(writer) = self.writers.get(id) else {
            if flags.contains(Flags::SYNCED) && self.limbo.lacks_synced(id) {
                self.record_promise(told, caller, id)?;
            }
            return Ok(false);
        };
        let file = self.object(id)?;
        let read_at = now();
        let stat = Stat::of(&file)?;
        let after = stat.attributes;
        let look = self.compare(&writer, &file, &stat, doubt);
        if !look.changed {
            if look.content.is_some() {
                self.writers.set_content(id, look.content);
            }
            return Ok(false);
        }
        let orphan = self.writers.is_orphan(id);
        if self.is_removed(id, &stat) && !orphan {
            self.writers.recorded(id, after, read_at, look.content);
            return Ok(false);
        }
        if writer.mappable {
            start_writeback(&file)?;
        }
        let mut intent = Volume::intent(Opcode::Close, caller);
        intent.object = id;
        intent.before = writer.recorded;
        intent.flags = flags;
        intent.flags.set(Flags::ORPHAN, orphan);
        let outcome = Outcome { object: id, after, flags: intent.flags, ..Outcome::default() };
        let ((), recno) = self.journaled(told, &intent, || Ok(((), outcome)))?;
        if orphan {
            self.limbo.note_orphan(id, recno);
        } else if flags.contains(Flags::SYNCED) {
            self.limbo.note_synced(id, recno);
        } else {
            self.limbo.note_close(id, recno);
        }
        self.writers.recorded(id, after, read_at, look.content);
        if writer.mappable {
            // Stores leave the kernel's copy of size and times as it was.
            self.notifier.attributes(id);
        }
        if writer.capability {
            self.capability_gone(told, caller, id, &file, &after);
        }
        let lost = writer.recorded.mode & PRIVILEGES & !after.mode != 0;
        if lost {
            let mut intent = Volume::intent(Opcode::Setattr, caller);
            intent.object = id;
            intent.mask = Mask::MODE;
            intent.before = writer.recorded;
            let outcome = Outcome { object: id, after, ..Outcome::default() };
            self.journaled(told, &intent, || Ok(((), outcome)))?;
        }
        Ok(lost)
    }

    /// Nobody has it open for writing any more: what its last close left is about to be durable.
    fn record_promise(&self, told: &mut Told, caller: Caller, id: FileId) -> Result<(), Stop> {
        let stat = Stat::of(&self.object(id)?)?;
        if !stat.is_file() || self.is_removed(id, &stat) {
            return Ok(());
        }
        let flags = Flags::SYNCED;
        let before = stat.attributes;
        let intent = Intent { object: id, before, flags, ..Volume::intent(Opcode::Close, caller) };
        let outcome = Outcome { object: id, after: before, flags, ..Outcome::default() };
        let ((), recno) = self.journaled(told, &intent, || Ok(((), outcome)))?;
        self.limbo.note_synced(id, recno);
        Ok(())
    }

    pub(super) fn is_changed(&self, writer: &Writer, stat: &Stat, doubt: Doubt) -> bool {
        match doubt {
            Doubt::Certain => true,
            Doubt::Closed | Doubt::Passing | Doubt::Young if !self.lower.has_fine_stamps() => {
                writer.changed(&stat.attributes)
            }
            _ => writer.recorded.version() != stat.attributes.version(),
        }
    }

    /// A descriptor for writing is gone: the safety net behind flush, and the beginning of the watch over mappings.
    pub(crate) fn writer_left(&self, caller: Caller, id: FileId) {
        let left = self.writers.closed(id);
        // Each descriptor was flushed before; only a store since then is news.
        // Nobody waits for a release, so it waits for nobody: a full journal is met again in the background.
        let recorded = self.record_close_within(caller, id, Doubt::Left, Patience::None, Flags::empty());
        if let Err(errno) = &recorded {
            tracing::warn!(target: "filter", volume = self.name, object = %id, %errno,
                "close not journaled yet; it will be tried again");
        }
        match left {
            Some(writer) if writer.open == 0 => {
                if writer.mappable || recorded.is_err() {
                    self.probe(id);
                } else {
                    self.finish(id);
                }
            }
            _ => {}
        }
    }

    /// Looks whether a closed file is still mapped for writing, and journals what was stored meanwhile.
    pub(crate) fn probe(&self, id: FileId) {
        if self.writers.get(id).is_none_or(|writer| writer.open > 0) {
            return;
        }
        let mapped = self.is_mapped(id);
        match mapped {
            Ok(false) => {
                // Nobody can store any more: this look is the last.
                let doubt = Doubt::Differs;
                match self.record_close_within(Caller::default(), id, doubt, Patience::None, Flags::empty()) {
                    Ok(_) => self.finish(id),
                    Err(Errno::STALE | Errno::NOENT) => self.finish(id), // Removed with its last mapping.
                    Err(_) => self.writers.probe_later(id, Instant::now()),
                }
            }
            Ok(true) => {
                if let Err(errno) = self.look_in_passing(id) {
                    tracing::debug!(target: "filter", volume = self.name, object = %id, %errno, "mapped file");
                }
                self.writers.probe_later(id, Instant::now());
            }
            Err(Errno::STALE | Errno::NOENT) => self.finish(id),
            Err(errno) => {
                tracing::debug!(target: "filter", volume = self.name, object = %id, %errno, "lease not tried");
                self.writers.probe_later(id, Instant::now());
            }
        }
    }

    fn is_mapped(&self, id: FileId) -> Result<bool, Errno> {
        // Under the lock nobody opens or truncates it through us, so the lease is never in anybody's way.
        let _held = self.locks.lock(&[id]);
        if self.writers.get(id).is_none_or(|writer| writer.open > 0) {
            return Ok(true);
        }
        let file = self.object(id)?;
        let fd = reopen(file.as_fd(), OFlags::RDONLY)?;
        is_written(&fd)
    }

    fn finish(&self, id: FileId) {
        let _held = self.locks.lock(&[id]);
        self.writers.finished(id);
        if self.writers.is_writing(id) {
            return;
        }
        self.writers.adopt(id);
        self.keep_after(id);
        self.quota.finished(id, || {
            let stat = self.object(id).and_then(Stat::of).ok()?;
            (!self.is_removed(id, &stat)).then_some(stat.attributes.size)
        });
        if let Err(errno) = self.limbo.writer_left(&self.lower, id) {
            tracing::warn!(target: "filter", volume = self.name, object = %id, %errno,
                "a file that nobody needs stays in limbo until the next start");
        }
    }
}
