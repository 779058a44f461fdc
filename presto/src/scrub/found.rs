//! Records of what was found: how they begin, and how those of one item come into the journal together or not at all.

use intermezzo_kml::Class;
use intermezzo_kml::record::{Attributes, Caller, FileId, Flags, Intent, Mask, Opcode, Outcome, Recno};

use super::Scrubber;
use crate::filter::Volume;
use crate::replay::Stop;

/// One record to be made.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub intent: Intent,
    pub outcome: Outcome,
}

impl Found {
    /// About this object, which is there and stays as it is.
    pub fn of(opcode: Opcode, object: FileId, present: Attributes) -> Found {
        let intent = Intent {
            object,
            before: present,
            flags: Flags::FOUND,
            ..Volume::intent(opcode, Caller::default())
        };
        let outcome = Outcome { object, after: present, flags: Flags::FOUND, ..Outcome::default() };
        Found { intent, outcome }
    }

    /// Of its attributes, these as they are.
    pub fn setattr(object: FileId, present: Attributes, mask: Mask) -> Found {
        let mut found = Found::of(Opcode::Setattr, object, present);
        found.intent.mask = mask;
        found
    }

    /// Its extended attribute of this name: the value that is there, or that there is none.
    pub fn xattr(object: FileId, present: Attributes, name: &[u8], value: Option<&[u8]>) -> Found {
        let opcode = if value.is_some() { Opcode::Setxattr } else { Opcode::Delxattr };
        let mut found = Found::of(opcode, object, present);
        found.intent.name = name.to_vec();
        found.intent.value = value.unwrap_or_default().to_vec();
        found
    }

    /// With this flag besides.
    pub fn flag(mut self, flag: Flags) -> Found {
        self.intent.flags |= flag;
        self.outcome.flags |= flag;
        self
    }
}

impl Scrubber {
    /// Journals all of them, or none where there is no room. The locks of all objects concerned are held.
    pub(super) fn take(&self, records: &[Found]) -> Result<Recno, Stop> {
        let volume = &self.volume;
        // A ticket that is dropped is a failed record, which means nothing.
        let begin = |found: &Found| volume.journal.begin(Class::User, &found.intent);
        let tickets = records.iter().map(begin).collect::<Result<Vec<_>, _>>()?;
        let mut last = Recno::NONE;
        for (ticket, Found { intent, outcome }) in tickets.into_iter().zip(records) {
            last = volume.journal.done(ticket, outcome);
            volume.touched.record(intent, outcome, last);
            if intent.opcode == Some(Opcode::Close) {
                volume.limbo.note_close(outcome.object, last);
            }
            tracing::debug!(target: "scrub", volume = volume.name, recno = %last, opcode = ?intent.opcode,
                object = %outcome.object, "journaled as found");
        }
        Ok(last)
    }
}
