//! Bytes of a record. Pure functions between plain data and bytes; no file is touched here.
//!
//! `docs/technical/journal-format.md` has the pictures. Everything is little-endian.

use crate::error::KmlError;
use crate::record::{
    Attributes, Caller, FileId, Flags, Intent, Mask, Opcode, Origin, OriginKind, Outcome, Recno, Record,
    State, Tag, Time,
};

/// Head word, recno, the two checksums.
pub(crate) const PREFIX: u64 = 24;
/// The part of an intent that each record has.
pub(crate) const INTENT: usize = 240;
/// Size of the parents' times, where an intent has them.
const PARENT_TIMES: u32 = 24;
/// An outcome.
pub(crate) const OUTCOME: u64 = 104;
/// Length once more, for reading backwards.
pub(crate) const TRAILER: u64 = 8;
/// Smallest record.
pub(crate) const SMALLEST: u64 = PREFIX + INTENT as u64 + OUTCOME + TRAILER;
/// Where the word with the two checksums starts; the outcome's is its upper half.
pub(crate) const CHECKSUMS: u64 = 16;

const SEAL_LENGTH: u32 = u32::MAX;
const SEAL_STATE: u8 = 0xfe;

/// What stands in the slot where a record may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Zero: nothing yet.
    Empty,
    /// A record of this length.
    Record(u64, State),
    /// The log goes on in the next segment.
    Seal,
    /// Nothing that a writer wrote.
    Bad(&'static str),
}

/// Where and why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defect {
    /// Byte within the record.
    pub at: u64,
    /// What is wrong.
    pub reason: &'static str,
    /// Whether the intent is whole and only the outcome is not.
    pub outcome_only: OutcomeOnly,
}

/// Answer to "is the intent whole?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutcomeOnly {
    Yes,
    No,
}

fn bad(at: u64, reason: &'static str) -> Defect {
    Defect { at, reason, outcome_only: OutcomeOnly::No }
}

/// The word that publishes a record: length, state, and a checksum that ties both to the number.
pub(crate) fn head(recno: Recno, length: u64, state: State) -> u64 {
    let length = u32::try_from(length).unwrap_or(SEAL_LENGTH);
    word(recno, length, state_code(state))
}

/// The word after the last record of a segment. `recno` is the next segment's first.
pub(crate) fn seal(recno: Recno) -> u64 {
    word(recno, SEAL_LENGTH, SEAL_STATE)
}

/// Understands the word where record `recno` would begin.
pub(crate) fn slot(found: u64, recno: Recno) -> Slot {
    if found == 0 {
        return Slot::Empty;
    }
    let [a, b, c, d, state, ..] = found.to_le_bytes();
    let length = u32::from_le_bytes([a, b, c, d]);
    if word(recno, length, state) != found {
        return Slot::Bad("head word does not match its checksum");
    }
    let state = match state {
        SEAL_STATE if length == SEAL_LENGTH => return Slot::Seal,
        1 => State::Prepared,
        2 => State::Done,
        3 => State::Failed,
        _ => return Slot::Bad("unknown state"),
    };
    let length = u64::from(length);
    if length < SMALLEST || !length.is_multiple_of(8) {
        return Slot::Bad("impossible length");
    }
    Slot::Record(length, state)
}

fn state_code(state: State) -> u8 {
    match state {
        State::Prepared => 1,
        State::Done => 2,
        State::Failed => 3,
    }
}

fn word(recno: Recno, length: u32, state: u8) -> u64 {
    let mut seen = [0_u8; 16];
    let (number, rest) = seen.split_at_mut(8);
    number.copy_from_slice(&recno.0.to_le_bytes());
    let (size, rest) = rest.split_at_mut(4);
    size.copy_from_slice(&length.to_le_bytes());
    rest.fill(state);
    let check = crc32c::crc32c(&seen) >> 8;
    u64::from(length) | u64::from(state) << 32 | u64::from(check) << 40
}

/// The word at a record's end.
pub(crate) fn trailer(length: u64) -> u64 {
    let length = u32::try_from(length).unwrap_or(SEAL_LENGTH);
    u64::from(length) | u64::from(!length) << 32
}

/// The length that a trailer tells, if it is one.
pub(crate) fn trailer_length(found: u64) -> Option<u64> {
    let length = u64::from(u32::try_from(found & 0xffff_ffff).ok()?);
    (trailer(length) == found && length >= SMALLEST && length.is_multiple_of(8)).then_some(length)
}

/// Length of the whole record around an encoded intent.
pub(crate) fn record_length(intent: &[u8]) -> u64 {
    PREFIX + intent.len() as u64 + OUTCOME + TRAILER
}

/// Checksum of an intent that has this number: `partial` is the checksum of its bytes.
pub(crate) fn intent_checksum(partial: u32, recno: Recno, length: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(partial, &recno.0.to_le_bytes()), &length.to_le_bytes())
}

/// Checksum of an outcome.
pub(crate) fn outcome_checksum(bytes: &[u8], recno: Recno) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), &recno.0.to_le_bytes())
}

/// Appends the intent part, padded to a multiple of 8.
pub(crate) fn encode_intent(intent: &Intent, out: &mut Vec<u8>) -> Result<(), KmlError> {
    let Some(opcode) = intent.opcode else { return Err(KmlError::BadIntent { reason: "no opcode" }) };
    let too_long = |_| KmlError::BadIntent { reason: "a name of more than 65,535 bytes" };
    let name = u16::try_from(intent.name.len()).map_err(too_long)?;
    let target_name = u16::try_from(intent.target_name.len()).map_err(too_long)?;
    let value = u32::try_from(intent.value.len())
        .map_err(|_| KmlError::BadIntent { reason: "a value of more than 4 GiB" })?;
    let origin = &intent.origin;
    out.extend_from_slice(&(opcode as u16).to_le_bytes());
    out.extend_from_slice(&[origin.kind as u8, origin.verdict]);
    u32s(out, [intent.flags.bits(), intent.mask.bits(), intent.time.nsec]);
    out.extend_from_slice(&intent.time.sec.to_le_bytes());
    u32s(out, [intent.caller.uid, intent.caller.gid, intent.caller.pid]);
    out.extend_from_slice(&name.to_le_bytes());
    out.extend_from_slice(&target_name.to_le_bytes());
    for file in [intent.object, intent.parent, intent.target_parent, intent.replaced] {
        u64s(out, [file.ino, file.generation]);
    }
    attributes(out, &intent.before);
    u64s(out, [origin.record.replica, origin.record.number, origin.object.replica, origin.object.number]);
    u32s(out, [origin.record.incarnation, origin.object.incarnation]);
    out.extend_from_slice(&origin.hash);
    u32s(out, [value, if intent.parent_times.is_some() { PARENT_TIMES } else { 0 }]);
    out.extend_from_slice(&intent.name);
    out.extend_from_slice(&intent.target_name);
    out.extend_from_slice(&intent.value);
    if let Some([parent, target]) = intent.parent_times {
        out.extend_from_slice(&parent.sec.to_le_bytes());
        out.extend_from_slice(&target.sec.to_le_bytes());
        u32s(out, [parent.nsec, target.nsec]);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    Ok(())
}

/// Appends the outcome part: `OUTCOME` bytes.
pub(crate) fn encode_outcome(outcome: &Outcome, out: &mut Vec<u8>) {
    u64s(out, [outcome.object.ino, outcome.object.generation]);
    attributes(out, &outcome.after);
    out.extend_from_slice(&outcome.parent_mtime.sec.to_le_bytes());
    out.extend_from_slice(&outcome.target_parent_mtime.sec.to_le_bytes());
    u32s(out, [outcome.parent_mtime.nsec, outcome.target_parent_mtime.nsec, outcome.flags.bits(), 0]);
}

fn attributes(out: &mut Vec<u8>, a: &Attributes) {
    u32s(out, [a.mode, a.uid, a.gid, a.nlink]);
    u64s(out, [a.rdev, a.size]);
    out.extend_from_slice(&a.mtime.sec.to_le_bytes());
    out.extend_from_slice(&a.ctime.sec.to_le_bytes());
    u32s(out, [a.mtime.nsec, a.ctime.nsec]);
}

fn u32s<const N: usize>(out: &mut Vec<u8>, numbers: [u32; N]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn u64s<const N: usize>(out: &mut Vec<u8>, numbers: [u64; N]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads a whole record. `bytes` is as long as its head word says.
pub(crate) fn decode(bytes: &[u8], recno: Recno, state: State) -> Result<Record, Defect> {
    let length = bytes.len() as u64;
    let mut whole = Bytes(bytes);
    let short = || bad(0, "record is cut off");
    let prefix = whole.take(PREFIX as usize).ok_or_else(short)?;
    let intent_length = length.checked_sub(PREFIX + OUTCOME + TRAILER).ok_or_else(short)?;
    let intent_bytes = whole.take(usize::try_from(intent_length).map_err(|_| short())?).ok_or_else(short)?;
    let outcome_bytes = whole.take(OUTCOME as usize).ok_or_else(short)?;
    if whole.u64().and_then(trailer_length) != Some(length) {
        return Err(bad(length - TRAILER, "length at the end differs from the length at the front"));
    }
    let mut prefix = Bytes(prefix);
    let (Some(_), Some(number), Some(intent_sum), Some(outcome_sum)) =
        (prefix.u64(), prefix.u64(), prefix.u32(), prefix.u32())
    else {
        return Err(short());
    };
    if number != recno.0 {
        return Err(bad(8, "another record's number"));
    }
    if intent_checksum(crc32c::crc32c(intent_bytes), recno, length) != intent_sum {
        return Err(bad(PREFIX, "intent does not match its checksum"));
    }
    let (opcode, intent) = decode_intent(intent_bytes)
        .ok_or(bad(PREFIX, "intent holds values that this version does not know"))?;
    let outcome = if state == State::Done {
        let broken = |reason| Defect { at: PREFIX + intent_length, reason, outcome_only: OutcomeOnly::Yes };
        if outcome_checksum(outcome_bytes, recno) != outcome_sum {
            return Err(broken("outcome does not match its checksum"));
        }
        decode_outcome(outcome_bytes)
            .ok_or(bad(PREFIX + intent_length, "outcome holds values that this version does not know"))?
    } else {
        Outcome::default()
    };
    Ok(Record { recno, state, opcode, intent, outcome })
}

fn decode_intent(bytes: &[u8]) -> Option<(Opcode, Intent)> {
    let mut b = Bytes(bytes);
    let opcode = Opcode::from_u16(b.u16()?)?;
    let kind = match b.u8()? {
        0 => OriginKind::User,
        1 => OriginKind::Replay,
        _ => return None,
    };
    let verdict = b.u8()?;
    let flags = Flags::from_bits(b.u32()?)?;
    let mask = Mask::from_bits(b.u32()?)?;
    let nsec = b.u32()?;
    let time = Time { sec: b.i64()?, nsec };
    let caller = Caller { uid: b.u32()?, gid: b.u32()?, pid: b.u32()? };
    let (name_length, target_length) = (usize::from(b.u16()?), usize::from(b.u16()?));
    let (object, parent, target_parent, replaced) = (b.file()?, b.file()?, b.file()?, b.file()?);
    let before = b.attributes()?;
    let [record_replica, record_number, object_replica, object_number] =
        [b.u64()?, b.u64()?, b.u64()?, b.u64()?];
    let (record_incarnation, object_incarnation) = (b.u32()?, b.u32()?);
    let hash = *b.take(32)?.first_chunk::<32>()?;
    let value_length = usize::try_from(b.u32()?).ok()?;
    let times_length = b.u32()?;
    let origin = Origin {
        record: Tag { replica: record_replica, incarnation: record_incarnation, number: record_number },
        object: Tag { replica: object_replica, incarnation: object_incarnation, number: object_number },
        hash,
        verdict,
        kind,
    };
    let name = b.take(name_length)?.to_vec();
    let target_name = b.take(target_length)?.to_vec();
    let value = b.take(value_length)?.to_vec();
    let parent_times = match times_length {
        0 => None,
        PARENT_TIMES => {
            let (parent, target) = (b.i64()?, b.i64()?);
            Some([Time { sec: parent, nsec: b.u32()? }, Time { sec: target, nsec: b.u32()? }])
        }
        _ => return None,
    };
    if b.0.len() > 7 {
        return None;
    }
    let intent = Intent {
        opcode: Some(opcode),
        time,
        caller,
        object,
        parent,
        target_parent,
        replaced,
        flags,
        mask,
        before,
        origin,
        name,
        target_name,
        value,
        parent_times,
    };
    Some((opcode, intent))
}

fn decode_outcome(bytes: &[u8]) -> Option<Outcome> {
    let mut b = Bytes(bytes);
    let object = b.file()?;
    let after = b.attributes()?;
    let (parent_sec, target_sec) = (b.i64()?, b.i64()?);
    let parent_mtime = Time { sec: parent_sec, nsec: b.u32()? };
    let target_parent_mtime = Time { sec: target_sec, nsec: b.u32()? };
    Some(Outcome { object, after, parent_mtime, target_parent_mtime, flags: Flags::from_bits(b.u32()?)? })
}

/// Takes numbers off the front of a byte string.
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk::<N>().copied()
    }

    fn u8(&mut self) -> Option<u8> {
        self.chunk::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.chunk().map(i64::from_le_bytes)
    }

    fn file(&mut self) -> Option<FileId> {
        Some(FileId { ino: self.u64()?, generation: self.u64()? })
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let [mode, uid, gid, nlink] = [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
        let (rdev, size) = (self.u64()?, self.u64()?);
        let (mtime_sec, ctime_sec) = (self.i64()?, self.i64()?);
        let mtime = Time { sec: mtime_sec, nsec: self.u32()? };
        let ctime = Time { sec: ctime_sec, nsec: self.u32()? };
        Some(Attributes { mode, uid, gid, nlink, rdev, size, mtime, ctime })
    }
}
