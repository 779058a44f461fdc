//! First page of a segment: the header that never changes, and two slots of status that take turns.

use crate::format::Bytes;
use crate::record::Recno;

/// Bytes before the first record.
pub(crate) const HEADER: u64 = 4096;
/// Length of the unchanging part.
pub(crate) const HEADER_LENGTH: usize = 64;
/// Length of a status slot.
pub(crate) const STATUS_LENGTH: usize = 64;
/// Where the two status slots lie: in a sector each, so that tearing one leaves the other.
pub(crate) const STATUS_AT: [u64; 2] = [512, 1024];

const MAGIC: &[u8; 8] = b"IMZO-KML";
/// The version of the layout that this code writes and reads.
pub(crate) const VERSION: u32 = 1;

/// What a segment says about itself; written before it gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Uid of the volume.
    pub volume: u64,
    /// Number of the segment: 1, 2, 3...
    pub number: u64,
    /// Number of the first record in it.
    pub first: Recno,
    /// Size of the file.
    pub bytes: u64,
    /// Where the segment before this one is sealed (0: there was none).
    pub previous_end: u64,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Torn, lost, or never one.
    Damaged(u64, &'static str),
    /// Whole, but of a version that this code does not read.
    Version(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LENGTH);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(HEADER as u32).to_le_bytes());
        for number in [self.volume, self.number, self.first.0, self.bytes, self.previous_end] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        checksummed(out)
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Header, BadHeader> {
        let damaged = |at, reason| BadHeader::Damaged(at, reason);
        let body = checked(bytes).ok_or(damaged(60, "header does not match its checksum"))?;
        let mut b = Bytes(body);
        if b.take(8) != Some(MAGIC.as_slice()) {
            return Err(damaged(0, "not a journal segment"));
        }
        let version = b.u32().unwrap_or(0);
        if version != VERSION || b.u32() != Some(HEADER as u32) {
            return Err(BadHeader::Version(version));
        }
        let mut next = || b.u64().ok_or(damaged(16, "header is cut off"));
        Ok(Header {
            volume: next()?,
            number: next()?,
            first: Recno(next()?),
            bytes: next()?,
            previous_end: next()?,
        })
    }
}

/// How durable the log is, and under which boot and mount it was written. Each writing goes to the other slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Grows with each writing.
    pub sequence: u64,
    /// All records up to here were done or failed, and durable, when this was written.
    pub settled: Recno,
    /// The intents of all records up to here were durable when this was written.
    pub written: Recno,
    /// The `FileSystem::instance` under which this was written, once log and tree agree.
    pub instance: [u8; 16],
    /// Whether the journal was closed in order.
    pub closed: Closed,
}

/// How the journal was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Closed {
    /// In use, or killed.
    #[default]
    Open,
    /// Synced and left on purpose.
    Clean,
}

impl Status {
    /// Before log and tree agree.
    pub(crate) const NO_INSTANCE: [u8; 16] = [0; 16];

    pub(crate) fn encode(&self, segment: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(STATUS_LENGTH);
        for number in [self.sequence, self.settled.0, self.written.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&u64::from(self.closed == Closed::Clean).to_le_bytes());
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        checksummed(out)
    }

    pub(crate) fn decode(bytes: &[u8; STATUS_LENGTH], segment: u64) -> Option<Status> {
        let mut b = Bytes(checked(bytes)?);
        let sequence = b.u64()?;
        let (settled, written) = (Recno(b.u64()?), Recno(b.u64()?));
        let instance = *b.take(16)?.first_chunk::<16>()?;
        let closed = if b.u64()? == 1 { Closed::Clean } else { Closed::Open };
        (b.u64()? == segment && sequence != 0).then_some(Status {
            sequence,
            settled,
            written,
            instance,
            closed,
        })
    }

    /// Where this one belongs.
    pub(crate) fn place(&self) -> u64 {
        let [even, odd] = STATUS_AT;
        if self.sequence.is_multiple_of(2) { even } else { odd }
    }
}

fn checksummed(mut out: Vec<u8>) -> Vec<u8> {
    let sum = crc32c::crc32c(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

fn checked(bytes: &[u8; 64]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(body) == u32::from_le_bytes(*sum)).then_some(body)
}
