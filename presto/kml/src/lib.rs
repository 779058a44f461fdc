//! The KML: Presto's journal of updates, one per volume, written by presto and read by lento through shared memory maps.
//!
//! `docs/technical/journal-format.md` describes every byte and argues why recovery is exact.

mod display;
pub mod error;
mod format;
pub mod fs;
pub mod guard;
mod header;
mod journal;
mod log;
mod reader;
pub mod record;
mod recovery;
mod segment;
mod sync;
mod verify;

pub use error::KmlError;
pub use journal::{Class, Config, Journal, Ticket, WriteOut};
pub use reader::Reader;
pub use record::{
    Attributes, Caller, FileId, Flags, Intent, Mask, Opcode, Origin, OriginKind, Outcome, Recno, Record,
    State, Tag, Time, Version, xattr,
};
pub use recovery::Cut;
pub use verify::{VerifyReport, verify, verify_on};
