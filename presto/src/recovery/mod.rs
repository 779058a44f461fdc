//! Bringing journal and lower tree into agreement after presto died, before anybody uses the volume.
//!
//! In the order of the journal: each intent without an outcome is decided by looking at the tree (`decide.rs` says how
//! for each operation), interrupted installs in place are finished from the LML, and a file whose present content no
//! record vouches for gets its close, which says so after a power cut. Removes nothing but presto's own half-built objects in stage/.

mod decide;
mod memory;

use intermezzo_kml::record::{FileId, Flags, Intent, Opcode, Outcome, Record};
use intermezzo_kml::{Class, KmlError, Reader};
use rustix::io::Errno;

use crate::filter::{self, Volume};
use crate::replay::Replayer;
use crate::replay::lml::{InPlace, Lml};
use crate::replay::stage;
use memory::Memory;

/// Why a volume cannot be brought in order; it stays unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The journal.
    #[error("volume {volume}: {source}")]
    Journal {
        /// Volume.
        volume: String,
        /// Reason.
        source: KmlError,
    },
    /// The lower tree.
    #[error("volume {volume}: recovery cannot {what} in {path}: {errno}")]
    Lower {
        /// Volume.
        volume: String,
        /// What it tried.
        what: &'static str,
        /// Cache directory.
        path: String,
        /// The kernel's word.
        errno: Errno,
    },
}

/// What recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Intents that had happened.
    pub done: usize,
    /// Intents that had not.
    pub failed: usize,
    /// Installs in place that were finished.
    pub redone: usize,
    /// Closes journaled for files that were being written.
    pub closes: usize,
    /// Half-built objects removed from stage/.
    pub swept: usize,
}

/// Brings a volume in order. `unresolved` is what opening its journal gave.
///
/// # Errors
/// The volume must not be served.
pub fn run(volume: &Volume, replayer: &Replayer, unresolved: &[Record]) -> Result<Report, RecoveryError> {
    let recovery = Recovery { volume, replayer, memory: Memory::default(), report: Report::default() };
    recovery.run(unresolved)
}

struct Recovery<'a> {
    volume: &'a Volume,
    replayer: &'a Replayer,
    memory: Memory,
    report: Report,
}

impl Recovery<'_> {
    fn run(mut self, unresolved: &[Record]) -> Result<Report, RecoveryError> {
        let lml = Lml::open(&self.volume.lower).map_err(|errno| self.lower("open lml/", errno))?;
        let interrupted = lml.interrupted().map_err(|errno| self.lower("read lml/", errno))?;
        let (mut redone, mut torn) = (Vec::new(), Vec::new());
        for entry in &interrupted {
            let into = if self.redo(&lml, entry)? { &mut redone } else { &mut torn };
            into.push(entry.object());
        }
        let mut reader = self.reader()?;
        let mut journaled = Vec::new();
        for record in unresolved {
            self.read(&mut reader)?;
            self.quiet_install(record);
            let outcome = decide::outcome(self.volume, record, &redone, &self.memory)
                .map_err(|errno| self.lower("look", errno))?;
            match &outcome {
                Some(outcome) => {
                    self.report.done += 1;
                    journaled.push(outcome.object);
                }
                None => {
                    self.report.failed += 1;
                    decide::undo(self.volume, record).map_err(|errno| self.lower("clear limbo/", errno))?;
                }
            }
            self.volume.journal.resolve(record.recno, outcome).map_err(|source| self.journal(source))?;
        }
        self.read(&mut reader)?;
        self.closes(&redone, &torn, &journaled)?;
        self.report.closes += self
            .volume
            .close_interrupted()
            .map_err(|errno| self.lower("journal interrupted writes", errno))?;
        self.report.closes += self.orphans().map_err(|errno| self.lower("journal orphans", errno))?;
        self.volume.limbo.inherited(self.volume.journal.published());
        for entry in &interrupted {
            lml.finish(entry, &self.volume.lower).map_err(|errno| self.lower("clear lml/", errno))?;
        }
        self.report.swept =
            stage::sweep(&self.volume.lower).map_err(|errno| self.lower("sweep stage/", errno))?;
        Ok(self.report)
    }

    /// An install replaces a content under a name and means nothing for the directory, but its rename moves the
    /// directory's time; presto sets it back right after, unless it was killed in between.
    fn quiet_install(&self, record: &Record) {
        let intent = &record.intent;
        if record.opcode != Opcode::Close || intent.parent.is_none() {
            return;
        }
        let Some(time) = self.memory.time(intent.parent) else { return };
        let keep = rustix::fs::Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) };
        let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = rustix::fs::Timestamps { last_access: omit, last_modification: keep };
        let set = self.volume.lower.dir(intent.parent).and_then(|dir| rustix::fs::futimens(&*dir, &times));
        if let Err(errno) = set {
            tracing::warn!(target: "recovery", volume = self.volume.name, dir = %intent.parent, %errno,
                "a directory's modification time cannot be set back");
        }
    }

    /// `false`: it cannot be finished, and if the file is still there, what is in it is neither the old content nor the new.
    fn redo(&mut self, lml: &Lml, entry: &InPlace) -> Result<bool, RecoveryError> {
        match lml.redo(entry, &self.volume.lower) {
            Ok(()) => {
                self.report.redone += 1;
                Ok(true)
            }
            Err(Errno::STALE | Errno::NOENT) => {
                tracing::error!(target: "recovery", volume = self.volume.name, file = %entry.object(),
                    "an interrupted install cannot be finished: the object or its staged content is gone");
                Ok(false)
            }
            Err(errno) => Err(self.lower("finish an install", errno)),
        }
    }

    fn reader(&self) -> Result<Reader, RecoveryError> {
        let mut reader =
            Reader::open(&self.volume.lower.path.join("kml")).map_err(|source| self.journal(source))?;
        let first = reader.first().map_err(|source| self.journal(source))?;
        reader.seek(first).map_err(|source| self.journal(source))?;
        Ok(reader)
    }

    /// Reads on to the end of the published records: each resolved intent publishes those behind it.
    fn read(&mut self, reader: &mut Reader) -> Result<(), RecoveryError> {
        while let Some(record) = reader.next().map_err(|source| self.journal(source))? {
            self.memory.note(self.volume, &record);
            self.replayer.remember(&record);
        }
        Ok(())
    }

    /// Files that were open for writing when presto died: what they contain now is journaled, as their close would have
    /// been. Likewise a redone install whose record was already finished, and, vouched for by nobody, what is left of one
    /// that cannot be finished.
    fn closes(
        &mut self,
        redone: &[FileId],
        torn: &[FileId],
        journaled: &[FileId],
    ) -> Result<(), RecoveryError> {
        if self.volume.journal.was_clean() && redone.is_empty() && torn.is_empty() {
            return Ok(());
        }
        let mut suspects = self.memory.suspects();
        suspects.retain(|(id, _)| !torn.contains(id) && !redone.contains(id));
        suspects.extend(torn.iter().map(|id| (*id, None)));
        suspects.extend(redone.iter().filter(|id| !journaled.contains(id)).map(|id| (*id, None)));
        for (id, recorded) in suspects {
            let Ok(stat) = self.volume.lower.stat(id) else { continue };
            // What is in limbo or nameless is nobody's update any more.
            let removed = self.volume.is_removed(id, &stat);
            if !stat.is_file()
                || removed
                || recorded.is_some_and(|recorded| {
                    memory::content(&recorded) == memory::content(&stat.attributes.version())
                })
            {
                continue;
            }
            // What a kill leaves is what programs wrote; what a power cut leaves may be anything.
            let unclean = self.volume.journal.unclean_boot() && !redone.contains(&id);
            let flags = if unclean || torn.contains(&id) { Flags::UNVOUCHED } else { Flags::empty() };
            let intent = Intent {
                opcode: Some(Opcode::Close),
                time: filter::now(),
                object: id,
                before: stat.attributes,
                flags,
                ..Intent::default()
            };
            let outcome = Outcome { object: id, after: stat.attributes, flags, ..Outcome::default() };
            let recno = self
                .volume
                .journal
                .append(Class::Replay, &intent, &outcome)
                .map_err(|source| self.journal(source))?;
            self.volume.touched.object(id, recno);
            self.volume.limbo.note_close(id, recno);
            self.report.closes += 1;
        }
        Ok(())
    }

    /// What writers had left in files that a replay had replaced under them: their close would have made a record.
    fn orphans(&self) -> Result<usize, Errno> {
        let mut told = 0;
        for id in self.volume.limbo.orphans() {
            let recorded = self.memory.version(id);
            let stat = match self.volume.lower.stat(id) {
                Ok(stat) => stat,
                Err(Errno::STALE | Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            // Going to limbo moved its ctime; nobody but the writer moved the others.
            let present = stat.attributes.version();
            if recorded
                .is_some_and(|recorded| (recorded.mtime, recorded.size) == (present.mtime, present.size))
            {
                continue;
            }
            self.volume.close_orphan(id, stat.attributes)?;
            told += 1;
        }
        Ok(told)
    }

    fn journal(&self, source: KmlError) -> RecoveryError {
        RecoveryError::Journal { volume: self.volume.name.clone(), source }
    }

    fn lower(&self, what: &'static str, errno: Errno) -> RecoveryError {
        let path = self.volume.lower.path.display().to_string();
        RecoveryError::Lower { volume: self.volume.name.clone(), what, path, errno }
    }
}
