//! Records of what stands in the lower tree without one, as if users had made it: one of these and their journaling.

use intermezzo_kml::Class;
use intermezzo_kml::KmlError;
use intermezzo_kml::Ticket;
use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Recno;

use super::Volume;
use crate::lower::missing::Hash;

/// One record to be made.
#[derive(Clone, Debug)]
pub(crate) struct Found {
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

    /// A content that is not here: this one.
    pub fn missing(mut self, hash: Hash) -> Found {
        self.intent.origin.hash = hash;
        self.flag(Flags::MISSING | Flags::HASHED)
    }

    /// With this flag besides.
    pub fn flag(mut self, flag: Flags) -> Found {
        self.intent.flags |= flag;
        self.outcome.flags |= flag;
        self
    }
}

impl Volume {
    /// Intents of all of them, or of none where there is no room. The locks of all objects concerned are held.
    pub(crate) fn begin_found(&self, records: &[Found]) -> Result<Vec<Ticket>, KmlError> {
        // A ticket that is dropped is a failed record, which means nothing.
        records.iter().map(|found| self.journal.begin(Class::User, &found.intent)).collect()
    }

    /// Journals them.
    pub(crate) fn end_found(&self, tickets: Vec<Ticket>, records: &[Found]) -> Result<Recno, KmlError> {
        let mut last = Recno::NONE;
        for (ticket, Found { intent, outcome }) in tickets.into_iter().zip(records) {
            last = self.journal.done(ticket, outcome)?;
            self.touched.record(intent, outcome, last);
            self.counted(intent, outcome);
            if intent.opcode == Some(Opcode::Close) {
                self.limbo.note_close(outcome.object, last);
            }
            tracing::debug!(target: "filter", volume = self.name, recno = %last, opcode = ?intent.opcode,
                object = %outcome.object, "journaled as found");
        }
        Ok(last)
    }
}
