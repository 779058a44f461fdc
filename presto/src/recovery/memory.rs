//! What the journal's records say that must be known again after a restart.

use std::collections::{BTreeMap, BTreeSet};

use intermezzo_kml::record::{Attributes, FileId, Flags, Opcode, OriginKind, Record, State, Time, Version};
use rustix::fs::FileType;

use crate::filter::Volume;

/// Gathered in one pass over the journal.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Every object that a record names: it existed before the records that follow.
    seen: BTreeSet<FileId>,
    /// Regular files and the version that their newest record left.
    versions: BTreeMap<FileId, Version>,
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
        if is_file(&outcome.after) {
            self.versions.insert(outcome.object, outcome.after.version());
        }
    }

    /// What the records say of a directory's modification time.
    pub fn time(&self, dir: FileId) -> Option<Time> {
        self.times.get(&dir).copied()
    }

    /// The version that the newest record left.
    pub fn version(&self, id: FileId) -> Option<Version> {
        self.versions.get(&id).copied()
    }

    /// Whether a record before has named this object.
    pub fn seen(&self, id: FileId) -> bool {
        self.seen.contains(&id)
    }

    /// Files whose present version is worth a look, with the one on record.
    pub fn suspects(&self) -> Vec<(FileId, Option<Version>)> {
        self.versions.iter().map(|(id, version)| (*id, Some(*version))).collect()
    }
}

fn is_file(attributes: &Attributes) -> bool {
    FileType::from_raw_mode(attributes.mode) == FileType::RegularFile
}
