//! What the journal's records say that must be known again after a restart.

use std::collections::{BTreeMap, BTreeSet};

use intermezzo_kml::record::{
    Attributes, FileId, Flags, Mask, Opcode, OriginKind, Recno, Record, State, Time, Version,
};
use rustix::fs::FileType;

use crate::filter::Volume;

/// Gathered in one pass over the journal.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Every object that a record names: it existed before the records that follow.
    seen: BTreeSet<FileId>,
    /// Regular files and the version that the newest record about their content left, with that record.
    versions: BTreeMap<FileId, (Version, Recno)>,
    /// What an fsync has promised of a file.
    synced: BTreeMap<FileId, (Time, u64)>,
    /// Records from here on count no more.
    disowned: Option<Recno>,
    /// The modification time that the newest record left on each directory.
    times: BTreeMap<FileId, Time>,
}

impl Memory {
    /// Takes in one published record; what users did goes back into the volume's notes.
    pub fn note(&mut self, volume: &Volume, record: &Record) {
        if record.state != State::Done {
            return;
        }
        let (intent, outcome) = (&record.intent, &record.outcome);
        self.seen.extend([intent.object, outcome.object, intent.replaced]);
        if intent.origin.kind == OriginKind::User {
            volume.touched.record(intent, outcome, record.recno);
            if record.opcode == Opcode::Close && outcome.flags.contains(Flags::ORPHAN) {
                volume.limbo.note_orphan(outcome.object, record.recno);
            } else if record.opcode == Opcode::Close {
                volume.limbo.note_close(outcome.object, record.recno);
            }
        } else {
            volume.replayed.record(intent, outcome, record.recno);
        }
        for (dir, time) in
            [(intent.parent, outcome.parent_mtime), (intent.target_parent, outcome.target_parent_mtime)]
        {
            if !dir.is_none() && time != Time::default() {
                self.times.insert(dir, time);
            }
        }
        if FileType::from_raw_mode(outcome.after.mode) == FileType::Directory {
            self.times.insert(outcome.object, outcome.after.mtime);
        }
        self.vouch(record);
    }

    /// A record vouches for a content only if it is about the content. Those of other changes show a size and a time that
    /// a store may have left which nobody had closed.
    fn vouch(&mut self, record: &Record) {
        let (intent, outcome) = (&record.intent, &record.outcome);
        if !is_file(&outcome.after) {
            return;
        }
        let after = (outcome.after.version(), record.recno);
        if record.opcode == Opcode::Close && outcome.flags.contains(Flags::SYNCED) {
            self.synced.insert(outcome.object, after.0.content());
        }
        match record.opcode {
            Opcode::Create | Opcode::Close => drop(self.versions.insert(outcome.object, after)),
            Opcode::Setattr if intent.mask.contains(Mask::SIZE) => {
                self.versions.insert(outcome.object, after);
            }
            // Somebody who sets the time of what he has not closed vouches for nothing.
            Opcode::Setattr if intent.mask.contains(Mask::MTIME) => {
                let closed = intent.before.version().content();
                let known = self.versions.get_mut(&outcome.object);
                if let Some(known) = known.filter(|(version, _)| version.content() == closed) {
                    *known = after;
                }
            }
            _ => {}
        }
    }

    /// What the records say of a directory's modification time.
    pub fn time(&self, dir: FileId) -> Option<Time> {
        self.times.get(&dir).copied()
    }

    /// The version that the newest record left.
    pub fn version(&self, id: FileId) -> Option<Version> {
        self.versions.get(&id).map(|(version, _)| *version)
    }

    /// The records from here on are taken back. What they left in files that are as they say is a good content all the same.
    pub fn disowned(&mut self, from: Recno) {
        self.disowned = Some(from);
    }

    /// Whether the record of this file's content is one of those.
    pub fn is_disowned(&self, id: FileId) -> bool {
        let recorded = self.versions.get(&id);
        self.disowned.zip(recorded).is_some_and(|(from, (_, recno))| *recno >= from)
    }

    /// Whether an fsync has promised what is in this file.
    pub fn is_promised(&self, id: FileId, present: &Attributes) -> bool {
        self.synced.get(&id) == Some(&present.version().content())
    }

    /// Whether a record before has named this object.
    pub fn seen(&self, id: FileId) -> bool {
        self.seen.contains(&id)
    }

    /// Files whose present version is worth a look, with the one on record.
    pub fn suspects(&self) -> Vec<(FileId, Option<Version>)> {
        self.versions.iter().map(|(id, (version, _))| (*id, Some(*version))).collect()
    }
}

/// Whether a file still holds what its record says, as far as its time and size tell.
pub(super) fn is_as_recorded(recorded: Option<Version>, present: &Attributes) -> bool {
    recorded.is_some_and(|recorded| recorded.content() == present.version().content())
}

fn is_file(attributes: &Attributes) -> bool {
    FileType::from_raw_mode(attributes.mode) == FileType::RegularFile
}

#[cfg(test)]
mod tests {
    use super::*;
    use intermezzo_kml::record::{Intent, Outcome};

    const FILE: FileId = FileId { ino: 7, generation: 1 };

    fn at(sec: i64, size: u64) -> Attributes {
        let mtime = Time { sec, nsec: 0 };
        Attributes { mode: 0o100_644, mtime, ctime: mtime, size, ..Attributes::default() }
    }

    fn record(opcode: Opcode, mask: Mask, before: Attributes, after: Attributes) -> Record {
        let intent = Intent { opcode: Some(opcode), object: FILE, mask, before, ..Intent::default() };
        let outcome = Outcome { object: FILE, after, ..Outcome::default() };
        Record { recno: Recno(1), state: State::Done, opcode, intent, outcome }
    }

    #[test]
    fn a_chmod_does_not_vouch_for_what_was_stored_and_never_closed() {
        let (closed, stored) = (at(10, 100), at(20, 70));
        let mut memory = Memory::default();
        memory.vouch(&record(Opcode::Close, Mask::empty(), closed, closed));
        for (opcode, mask) in [
            (Opcode::Setattr, Mask::MODE),
            (Opcode::Setxattr, Mask::empty()),
            (Opcode::Link, Mask::empty()),
            (Opcode::Rename, Mask::empty()),
        ] {
            memory.vouch(&record(opcode, mask, stored, stored));
            assert_eq!(memory.version(FILE), Some(closed.version()), "{opcode:?}");
        }
        memory.vouch(&record(Opcode::Setattr, Mask::MTIME, stored, at(5, 70)));
        assert_eq!(memory.version(FILE), Some(closed.version()), "nor does a time");
        memory.vouch(&record(Opcode::Setattr, Mask::MTIME, closed, at(5, 100)));
        assert_eq!(memory.version(FILE), Some(at(5, 100).version()));
        memory.vouch(&record(Opcode::Setattr, Mask::SIZE, stored, at(30, 0)));
        assert_eq!(memory.version(FILE), Some(at(30, 0).version()), "a truncation is about the content");
    }
}
