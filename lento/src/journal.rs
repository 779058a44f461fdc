//! The Journal: unpacks the KML into operation records, one by one, and passes them to the CML of their volume.
//!
//! The KML is a mapped file that Presto writes and this room only reads. What an upcall says is a hint; what stands in
//! the KML is the truth.

use intermezzo_kml::Reader;
use intermezzo_kml::error::KmlError;
use intermezzo_kml::record as kml;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use lento_core::record::After;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::Attributes;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::Recno;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::Version;
use std::path::Path;

/// Most records handed on at once.
pub const BATCH: usize = 512;

/// Why the journal cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The KML's own.
    #[error(transparent)]
    Kml(#[from] KmlError),
    /// The numbers have a gap.
    #[error("the journal gave record {found} where {expected} was next")]
    Gap {
        /// What came.
        found: u64,
        /// What was due.
        expected: u64,
    },
    /// A record whose parts do not fit together.
    #[error("journal record {recno}: {reason}")]
    Malformed {
        /// Which.
        recno: u64,
        /// Why.
        reason: &'static str,
    },
}

/// The journal of one volume.
#[derive(Debug)]
pub struct Journal {
    reader: Reader,
    next: Option<Recno>,
}

impl Journal {
    /// Opens the KML in this directory.
    ///
    /// # Errors
    /// The KML's own.
    pub fn open(dir: &Path) -> Result<Journal, JournalError> {
        Ok(Journal { reader: Reader::open(dir)?, next: None })
    }

    /// The next records for the volume's CML, which wants `next` first; at most [`BATCH`], gap-free, empty if there
    /// are none yet.
    ///
    /// # Errors
    /// The KML's own, or a gap in it.
    pub fn pass_to_cml(&mut self, next: Recno) -> Result<Vec<KmlRecord>, JournalError> {
        if self.next != Some(next) {
            self.reader.seek(kml::Recno(next.0))?;
        }
        self.next = None;
        let mut records = Vec::new();
        let mut expected = next.0;
        while records.len() < BATCH {
            let Some(record) = self.reader.next()? else { break };
            if record.recno.0 != expected {
                return Err(JournalError::Gap { found: record.recno.0, expected });
            }
            records.push(unpack(&record)?);
            expected = expected.saturating_add(1);
        }
        self.next = Some(Recno(expected));
        Ok(records)
    }
}

/// Builds one operation record.
///
/// # Errors
/// A record that says something impossible.
pub fn unpack(record: &kml::Record) -> Result<KmlRecord, JournalError> {
    let recno = Recno(record.recno.0);
    if let Some(reason) = impossible(record) {
        return Err(JournalError::Malformed { recno: recno.0, reason });
    }
    let time = time(record.intent.time);
    if record.state != kml::State::Done {
        // It keeps its number and means nothing, whoever asked for it.
        return Ok(KmlRecord { recno, time, origin: KmlOrigin::User, update: Update::Nothing });
    }
    Ok(KmlRecord { recno, time, origin: origin(record), update: update(record)? })
}

/// What no kernel has let anybody do: the checksums are right, and the record is not.
fn impossible(record: &kml::Record) -> Option<&'static str> {
    let kml::Record { intent, outcome, .. } = record;
    let is_name = |name: &[u8]| {
        (1..=255).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.contains(&0)
            && !name.contains(&b'/')
    };
    let named = match record.opcode {
        Opcode::Create
        | Opcode::Mkdir
        | Opcode::Mknod
        | Opcode::Symlink
        | Opcode::Link
        | Opcode::Unlink
        | Opcode::Rmdir => is_name(&intent.name),
        Opcode::Rename => is_name(&intent.name) && is_name(&intent.target_name),
        Opcode::Setxattr | Opcode::Delxattr => !intent.name.is_empty() && !intent.name.contains(&0),
        Opcode::Setattr | Opcode::Close | Opcode::Noop => true,
    };
    let times = [
        intent.time,
        outcome.after.mtime,
        outcome.after.ctime,
        outcome.parent_mtime,
        outcome.target_parent_mtime,
    ];
    if !named {
        Some("a name that cannot be")
    } else if times.iter().any(|time| time.nsec >= 1_000_000_000) {
        Some("nanoseconds of a second or more")
    } else {
        None
    }
}

fn origin(record: &kml::Record) -> KmlOrigin {
    let origin = &record.intent.origin;
    match origin.kind {
        kml::OriginKind::User => KmlOrigin::User,
        kml::OriginKind::Replay => KmlOrigin::Replay {
            record: OpId(tag(origin.record)),
            object: ObjectId(tag(origin.object)),
            hash: flags(record).contains(Flags::HASHED).then_some(Hash(origin.hash)),
            verdict: origin.verdict,
        },
    }
}

fn update(record: &kml::Record) -> Result<Update, JournalError> {
    let kml::Record { intent, outcome, .. } = record;
    let flags = flags(record);
    let malformed = |reason| JournalError::Malformed { recno: record.recno.0, reason };
    let object = file(if outcome.object.is_none() { intent.object } else { outcome.object });
    let missing = flags.contains(Flags::MISSING).then_some(Hash(intent.origin.hash));
    let after = After { missing, ..after(&outcome.after) };
    let name = intent.name.clone();
    let dir = file(intent.parent);
    let dir_mtime = time(outcome.parent_mtime);
    if flags.contains(Flags::LOCAL) {
        // The last of the two directories of a rename; a scrub finds the time of the other.
        let moved = record.opcode == Opcode::Rename;
        let (dir, mtime) = if moved {
            (intent.target_parent, outcome.target_parent_mtime)
        } else {
            (intent.parent, outcome.parent_mtime)
        };
        return Ok(if dir.is_none() {
            Update::Nothing
        } else {
            Update::Touch { dir: file(dir), mtime: time(mtime) }
        });
    }
    if flags.contains(Flags::LEFT) {
        return Ok(Update::Remove { dir, name, file: object, last: true, limbo: false, dir_mtime });
    }
    // What stayed here was made, to the others, in the directory to which it goes.
    let joined = flags.contains(Flags::JOINED);
    Ok(match record.opcode {
        Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink => {
            let is_symlink = record.opcode == Opcode::Symlink;
            let xattrs = if flags.contains(Flags::XATTRS) && !is_symlink {
                kml::xattr::decode(&intent.value).ok_or_else(|| malformed("xattrs that are no list"))?
            } else {
                Vec::new()
            };
            let symlink = if is_symlink { intent.value.clone() } else { Vec::new() };
            Update::Make { dir, name, file: object, after, symlink, xattrs, dir_mtime }
        }
        Opcode::Link => Update::Link { dir, name, file: object, after, dir_mtime },
        Opcode::Unlink | Opcode::Rmdir => Update::Remove {
            dir,
            name,
            file: file(intent.object),
            last: flags.contains(Flags::LAST_LINK) || record.opcode == Opcode::Rmdir,
            limbo: flags.contains(Flags::LIMBO),
            dir_mtime,
        },
        Opcode::Rename => Update::Rename {
            from: if joined { file(intent.target_parent) } else { dir },
            from_name: if joined { intent.object.joining_name() } else { name },
            to: file(intent.target_parent),
            to_name: intent.target_name.clone(),
            file: file(intent.object),
            after,
            replaced: (!intent.replaced.is_none()).then(|| file(intent.replaced)),
            replaced_last: flags.contains(Flags::REPLACED_LAST_LINK),
            replaced_limbo: flags.contains(Flags::REPLACED_LIMBO),
            exchange: flags.contains(Flags::EXCHANGE),
            whiteout: flags.contains(Flags::WHITEOUT),
            from_mtime: if joined { time(outcome.target_parent_mtime) } else { dir_mtime },
            to_mtime: time(outcome.target_parent_mtime),
        },
        Opcode::Setattr => Update::SetAttr {
            file: object,
            mask: Mask(intent.mask.bits() & Mask::ALL.0),
            truncated: intent.mask.contains(kml::Mask::SIZE),
            after,
        },
        Opcode::Close => {
            let before = file(intent.object);
            let changed = !intent.object.is_none() && before != object;
            Update::Close {
                file: object,
                replaces: changed.then_some(before),
                after,
                left: match flags {
                    flags if flags.contains(Flags::ORPHAN) => Left::Orphan,
                    flags if flags.contains(Flags::UNVOUCHED) => Left::Unvouched,
                    flags if flags.contains(Flags::SYNCED) => Left::Synced,
                    _ => Left::Whole,
                },
            }
        }
        Opcode::Setxattr => Update::SetXattr { file: object, name, value: intent.value.clone(), after },
        Opcode::Delxattr => Update::DelXattr { file: object, name, after },
        Opcode::Noop => Update::Nothing,
    })
}

/// Outcome flags repeat the intent's; a record of an older presto may hold them in either.
fn flags(record: &kml::Record) -> Flags {
    record.intent.flags | record.outcome.flags
}

fn tag(tag: kml::Tag) -> Tag {
    Tag { replica: tag.replica, incarnation: tag.incarnation, number: tag.number }
}

fn file(file: kml::FileId) -> FileId {
    FileId { ino: file.ino, generation: file.generation }
}

fn time(time: kml::Time) -> Time {
    Time { sec: time.sec, nsec: time.nsec }
}

fn after(attributes: &kml::Attributes) -> After {
    After {
        attributes: Attributes {
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: time(attributes.mtime),
            rdev: attributes.rdev,
        },
        version: Version {
            mtime: time(attributes.mtime),
            ctime: time(attributes.ctime),
            size: attributes.size,
        },
        nlink: attributes.nlink,
        missing: None,
    }
}

#[cfg(test)]
mod tests;
