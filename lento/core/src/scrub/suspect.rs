//! What looks different, and how Presto is asked about it.

use crate::types::FileId;
use crate::types::Name;
use crate::types::ObjectId;

/// How often a suspect that changes meanwhile is asked about.
pub(super) const TRIES: u32 = 5;

#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub what: What,
    pub tries: u32,
    /// A directory's part of the walk.
    pub share: u64,
    pub way: Way,
}

/// How a suspect is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Plain,
    /// A directory that is gone with all that was in it: it is only looked at before its names are taken back.
    Verify,
    /// Such a directory that is not gone: it is somewhere else.
    Moved,
    /// What was in such a directory, wherever that may be now.
    Below,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A name; the file that was listed there.
    Entry(ObjectId, Name, Option<FileId>),
    Object(ObjectId),
}

impl Suspect {
    /// Not asked about yet.
    pub fn new(what: What) -> Suspect {
        Suspect { what, tries: 0, share: 0, way: Way::Plain }
    }

    /// It was looked for everywhere, and as often as it may be.
    pub fn is_given_up(&self) -> bool {
        self.tries.saturating_add(1) >= TRIES
    }
}
