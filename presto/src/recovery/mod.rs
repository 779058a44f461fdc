//! Bringing journal and lower tree into agreement after presto died, before anybody uses the volume.
//!
//! In the order of the journal: each intent without an outcome is decided by looking at the tree (`decide.rs` says how
//! for each operation), interrupted installs in place are finished from the LML, and a file whose present content no
//! record vouches for gets its close, which says so after a power cut. Removes nothing but presto's own half-built objects
//! in stage/. Where the disk or the kernel does not answer, nothing is taken for gone: recovery ends with an error, and is
//! tried again.

mod decide;
mod memory;
mod missing;

use std::hash::{BuildHasher, RandomState};

use intermezzo_kml::record::{Attributes, FileId, Flags, Intent, Opcode, OriginKind, Outcome, Recno, Record};
use intermezzo_kml::{Class, KmlError, Reader};
use rustix::io::Errno;

use crate::filter::{self, Before, Volume};
use crate::replay::Replayer;
use crate::replay::lml::{Damaged, InPlace, Interrupted, Lml, held_name};
use crate::replay::stage;
use memory::Memory;
use missing::Stories;

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
        /// What it tried, and with which object.
        what: String,
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
    /// Those that will be tried again.
    pub unfinished: usize,
    /// Closes journaled for files that were being written.
    pub closes: usize,
    /// Half-built objects removed from stage/.
    pub swept: usize,
    /// Records that a power cut has left without their updates.
    pub disowned: usize,
}

/// Brings a volume in order. `unresolved` is what opening its journal gave.
///
/// # Errors
/// The volume must not be served.
pub fn run(volume: &Volume, replayer: &Replayer, unresolved: &[Record]) -> Result<Report, RecoveryError> {
    let recovery = Recovery {
        volume,
        replayer,
        memory: Memory::default(),
        stories: Stories::default(),
        synced: Recno::NONE,
        report: Report::default(),
    };
    recovery.run(unresolved)
}

/// What became of the entries in lml/.
#[derive(Default)]
struct InPlaces {
    /// Their files have the new content.
    redone: Vec<FileId>,
    /// What is in their files is neither the old content nor the new.
    torn: Vec<FileId>,
    /// The same, but they can still be finished.
    unfinished: Vec<(InPlace, Errno)>,
    /// Files whose entries may go.
    over: Vec<FileId>,
    /// Entries for people.
    damaged: Vec<Damaged>,
}

impl InPlaces {
    fn concern(&self, id: FileId) -> bool {
        let unfinished = self.unfinished.iter().map(|(entry, _)| entry.object());
        self.redone.iter().chain(&self.torn).copied().chain(unfinished).any(|other| other == id)
    }
}

struct Recovery<'a> {
    volume: &'a Volume,
    replayer: &'a Replayer,
    memory: Memory,
    /// Records that the tree may lack.
    stories: Stories,
    /// They come after this one.
    synced: Recno,
    report: Report,
}

impl Recovery<'_> {
    fn run(mut self, unresolved: &[Record]) -> Result<Report, RecoveryError> {
        let unclean = self.volume.journal.unclean_boot();
        self.synced = self
            .volume
            .lower
            .synced()
            .map_err(|errno| self.lower("read how far the tree is synced", errno))?;
        let mut in_places = self.in_places()?;
        let mut reader = self.reader()?;
        let mut journaled = Vec::new();
        for record in unresolved {
            self.read(&mut reader)?;
            let name = |what| {
                format!(
                    "{what} (record {}, {:?} of file {})",
                    record.recno, record.opcode, record.intent.object
                )
            };
            self.quiet_install(record)
                .map_err(|errno| self.lower(name("set back a directory's time"), errno))?;
            let outcome = decide::outcome(self.volume, record, &in_places.redone, &self.memory)
                .map_err(|errno| self.lower(name("look whether it happened"), errno))?;
            self.volume
                .mark_recovered(record, outcome.is_some())
                .map_err(|errno| self.lower(name("mark what stays here"), errno))?;
            match &outcome {
                Some(outcome) => {
                    self.report.done += 1;
                    journaled.push(outcome.object);
                }
                None => {
                    self.report.failed += 1;
                    decide::undo(self.volume, record)
                        .map_err(|errno| self.lower(name("clear limbo/"), errno))?;
                }
            }
            self.volume.journal.resolve(record.recno, outcome).map_err(|source| self.journal(source))?;
        }
        self.read(&mut reader)?;
        if unclean {
            self.disown()?;
        }
        self.closes(&in_places, &journaled)?;
        let is_recorded = |id, present: &Attributes| memory::is_as_recorded(self.memory.version(id), present);
        self.report.closes += self.volume.close_interrupted(is_recorded).map_err(|(id, errno)| {
            self.lower(format!("journal what was being written to file {id}"), errno)
        })?;
        self.report.closes += self.orphans()?;
        self.volume.limbo.inherited(self.volume.journal.published());
        let keep = self.end(&mut in_places, unresolved)?;
        self.report.swept =
            stage::sweep(&self.volume.lower, &keep).map_err(|errno| self.lower("sweep stage/", errno))?;
        self.agree(unclean)?;
        Ok(self.report)
    }

    /// Takes back what the journal tells of updates that went with the power.
    fn disown(&mut self) -> Result<(), RecoveryError> {
        let lower = &self.volume.lower;
        let noting = |errno| self.lower("note what the tree lacks", errno);
        let from = match lower.missing().map_err(noting)? {
            Some(from) => Some(from),
            None => self.stories.first_missing(self.volume).map_err(|(recno, errno)| {
                self.lower(format!("look whether record {recno} is in the tree"), errno)
            })?,
        };
        let Some(from) = from else { return Ok(()) };
        lower.note_missing(Some(from)).map_err(noting)?;
        self.report.disowned = self.volume.journal.disown(from).map_err(|source| self.journal(source))?;
        self.memory.disowned(from);
        Ok(())
    }

    /// From here on journal and tree say the same, as far as can be told without looking at all of it.
    fn agree(&self, unclean: bool) -> Result<(), RecoveryError> {
        let (lower, journal) = (&self.volume.lower, &self.volume.journal);
        let noting = |errno| self.lower("note that it is in order", errno);
        // Another journal may have begun in this cache.
        if journal.published() < self.synced {
            lower.note_synced(journal.published()).map_err(noting)?;
        }
        if !unclean {
            return Ok(());
        }
        self.volume.touched.watch_births();
        self.volume.replayed.watch_births();
        lower.note_loss(RandomState::new().hash_one(&self.volume.name) | 1).map_err(noting)?;
        journal.sync().map_err(|source| self.journal(source))?;
        journal.in_order().map_err(|source| self.journal(source))?;
        lower.note_missing(None).map_err(noting)
    }

    /// Finishes the overwritings in place that were interrupted, as far as they can be.
    fn in_places(&mut self) -> Result<InPlaces, RecoveryError> {
        let mut in_places = InPlaces::default();
        let found = self.replayer.lml().interrupted().map_err(|entry| self.lower(entry.what, entry.errno))?;
        for found in found {
            match found {
                Interrupted::Whole(entry) => self.redo(entry, &mut in_places),
                Interrupted::Fill(file, before) => self.as_before(file, before)?,
                Interrupted::Damaged(damaged) => {
                    tracing::error!(target: "recovery", volume = self.volume.name, entry = damaged.entry(),
                        file = %damaged.object, reason = damaged.reason,
                        "an entry of the LML is damaged: the file that it is about is taken for torn");
                    in_places.torn.push(damaged.object);
                    in_places.damaged.push(damaged);
                }
            }
        }
        Ok(in_places)
    }

    /// Nothing of a content that was on its way stays in its file.
    fn as_before(&self, file: FileId, before: Option<Before>) -> Result<(), RecoveryError> {
        let failed =
            |errno| self.lower(format!("take back what had come of the content of file {file}"), errno);
        let before = match before {
            Some(before) => before,
            None => {
                tracing::error!(target: "recovery", volume = self.volume.name, %file,
                    "a note of the LML is damaged: the file that it is about may show another time than it has");
                let mtime =
                    self.volume.lower.stat(file).map(|stat| stat.attributes.mtime).unwrap_or_default();
                Before { mtime, capability: None }
            }
        };
        self.volume.as_before(file, &before).map_err(failed)?;
        self.replayer.lml().end_fill(file).map_err(failed)
    }

    /// Removes what the entries have told, after it is journaled; those that cannot be finished now stay. Names what must
    /// stay in stage/ for them.
    fn end(&mut self, in_places: &mut InPlaces, unresolved: &[Record]) -> Result<Vec<String>, RecoveryError> {
        let lml = self.replayer.lml();
        for id in &in_places.over {
            lml.finish(*id, &self.volume.lower)
                .map_err(|errno| self.lower(format!("remove the entry of file {id} from lml/"), errno))?;
        }
        for damaged in &in_places.damaged {
            lml.set_aside(damaged)
                .map_err(|errno| self.lower(format!("set {} aside", damaged.entry()), errno))?;
        }
        let mut keep = Vec::new();
        for (entry, errno) in std::mem::take(&mut in_places.unfinished) {
            let id = entry.object();
            keep.push(held_name(id));
            let asked = unresolved.iter().map(|record| &record.intent).find(|intent| {
                intent.opcode == Some(Opcode::Close)
                    && intent.origin.kind == OriginKind::Replay
                    && intent.object == id
            });
            let intent = Intent {
                opcode: Some(Opcode::Close),
                object: id,
                before: asked.map(|intent| intent.before).unwrap_or_default(),
                origin: asked.map(|intent| intent.origin).unwrap_or_default(),
                flags: asked.map(|intent| intent.flags).unwrap_or_default(),
                ..Intent::default()
            };
            self.report.unfinished += 1;
            self.replayer.leave(entry, Some(intent), errno);
        }
        Ok(keep)
    }

    /// An install replaces a content under a name and means nothing for the directory, but its rename moves the
    /// directory's time; presto sets it back right after, unless it was killed in between.
    fn quiet_install(&self, record: &Record) -> Result<(), Errno> {
        let intent = &record.intent;
        if record.opcode != Opcode::Close || intent.parent.is_none() {
            return Ok(());
        }
        match self.memory.time(intent.parent) {
            Some(time) => decide::set_time(self.volume, intent.parent, time),
            None => Ok(()),
        }
    }

    /// What stops it is the disk, and says nothing about other files: it is tried again while the volume is used.
    fn redo(&mut self, entry: InPlace, in_places: &mut InPlaces) {
        let (id, path) = (entry.object(), entry.path());
        match Lml::redo(&entry, &self.volume.lower) {
            Ok(()) => {
                self.report.redone += 1;
                in_places.redone.push(id);
                in_places.over.push(id);
            }
            Err(Errno::STALE | Errno::NOENT) => {
                tracing::error!(target: "recovery", volume = self.volume.name, path, file = %id,
                    "an interrupted install cannot be finished: the object or its staged content is gone");
                in_places.torn.push(id);
                in_places.over.push(id);
            }
            Err(errno) => in_places.unfinished.push((entry, errno)),
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
            if record.recno > self.synced && self.volume.journal.unclean_boot() {
                self.stories.note(&record);
            }
        }
        Ok(())
    }

    /// Files that were open for writing when presto died: what they contain now is journaled, as their close would have
    /// been. Likewise a redone install whose record was already finished, and, vouched for by nobody, what is left of one
    /// that cannot be finished.
    fn closes(&mut self, in_places: &InPlaces, journaled: &[FileId]) -> Result<(), RecoveryError> {
        let InPlaces { redone, torn, .. } = in_places;
        if self.volume.journal.was_clean() && redone.is_empty() && torn.is_empty() {
            return Ok(());
        }
        let mut suspects = self.memory.suspects();
        suspects.retain(|(id, _)| !in_places.concern(*id));
        suspects.extend(torn.iter().map(|id| (*id, None)));
        suspects.extend(redone.iter().filter(|id| !journaled.contains(id)).map(|id| (*id, None)));
        for (id, recorded) in suspects {
            let stat = match self.volume.lower.stat(id) {
                Ok(stat) => stat,
                Err(Errno::STALE | Errno::NOENT) => continue,
                Err(errno) => return Err(self.lower(format!("look at file {id}"), errno)),
            };
            // What is in limbo or nameless is nobody's update any more.
            let removed = self.volume.is_removed(id, &stat);
            if !stat.is_file() || removed {
                continue;
            }
            if self.volume.lacking_file(id, &stat).is_ok_and(|hash| hash.is_some()) {
                continue;
            }
            let as_recorded = memory::is_as_recorded(recorded, &stat.attributes);
            if as_recorded && !self.memory.is_disowned(id) {
                continue;
            }
            // What a kill leaves is what programs wrote; what a power cut leaves may be anything.
            let unclean = self.volume.journal.unclean_boot() && !redone.contains(&id) && !as_recorded;
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
            if self.memory.is_promised(id, &stat.attributes) {
                self.volume.promised.lock().insert(id, stat.attributes.version().content());
            }
            self.volume.touched.object(id, recno);
            self.volume.limbo.note_close(id, recno);
            self.report.closes += 1;
        }
        Ok(())
    }

    /// What writers had left in files that a replay had replaced under them: their close would have made a record.
    fn orphans(&self) -> Result<usize, RecoveryError> {
        let mut told = 0;
        for id in self.volume.limbo.orphans() {
            let recorded = self.memory.version(id);
            let failed = |errno| self.lower(format!("journal what is left in orphan {id}"), errno);
            let stat = match self.volume.lower.stat(id) {
                Ok(stat) => stat,
                Err(Errno::STALE | Errno::NOENT) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            // Going to limbo moved its ctime; nobody but the writer moved the others.
            if memory::is_as_recorded(recorded, &stat.attributes) {
                continue;
            }
            self.volume.close_orphan(id, stat.attributes).map_err(failed)?;
            told += 1;
        }
        Ok(told)
    }

    fn journal(&self, source: KmlError) -> RecoveryError {
        RecoveryError::Journal { volume: self.volume.name.clone(), source }
    }

    fn lower(&self, what: impl Into<String>, errno: Errno) -> RecoveryError {
        let what = what.into();
        let path = self.volume.lower.path.display().to_string();
        RecoveryError::Lower { volume: self.volume.name.clone(), what, path, errno }
    }
}
