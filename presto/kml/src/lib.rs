//! The KML: Presto's journal of updates, one per volume, written by presto and read by lento through shared memory maps.
//!
//! `docs/technical/journal-format.md` describes every byte and argues why recovery is exact.

pub mod error;
pub mod fs;
mod format;
mod header;
mod journal;
mod reader;
pub mod record;

pub use error::KmlError;
pub use journal::{Class, Config, Journal, Ticket};
pub use reader::Reader;
pub use record::{
    Attributes, Caller, FileId, Flags, Intent, Mask, Opcode, Origin, OriginKind, Outcome, Recno, Record, State, Tag, Time,
    Version, xattr,
};
