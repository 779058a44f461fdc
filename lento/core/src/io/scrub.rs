//! The scrub's words: what Presto is asked about the lower tree, and what it answers.

use crate::types::Attributes;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Name;
use crate::types::Recno;
use crate::types::Version;

/// A page of a directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Listing {
    /// Some names; `next` is where the page after begins, 0: there is none.
    Page {
        /// In no order.
        entries: Vec<Listed>,
        /// For [`Output::List`](super::Output::List).
        next: u64,
    },
    /// There is no such directory any more.
    Gone,
    /// Try again later.
    Failed(String),
}

/// A name of a directory and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Name,
    /// Identity.
    pub file: FileId,
    /// Attributes.
    pub attributes: Attributes,
    /// Version.
    pub version: Version,
}

/// What is believed of a part of the lower tree.
#[derive(Clone, Debug, PartialEq)]
pub enum ScrubItem {
    /// What stands at a name.
    Entry {
        /// Directory.
        dir: FileId,
        /// Name.
        name: Name,
        /// What stands there.
        expect: Option<FileId>,
        /// It is a directory.
        expect_dir: bool,
        /// It is a regular file.
        expect_file: bool,
        /// It has no other name.
        expect_last: bool,
        /// What was listed there: anything else has to be listed first.
        listed: Option<FileId>,
        /// A name by which `listed` is known: directory and name.
        known: Option<(FileId, Name)>,
        /// Its directory has left the tree: nothing is there, whatever that directory may hold.
        left: bool,
        /// What stands there and what is known there may be told to have changed places.
        may_exchange: bool,
        /// It was looked for everywhere: if it is not there it is gone, even if it has not ended to be.
        given_up: bool,
    },
    /// What an object is like.
    Object {
        /// The file.
        file: FileId,
        /// Attributes.
        expect: Attributes,
        /// Bytes of a regular file.
        size: u64,
        /// All extended attributes.
        xattrs: Vec<(Name, Vec<u8>)>,
        /// The content that is believed not to be here.
        missing: Option<Hash>,
    },
}

impl ScrubItem {
    /// Roughly its bytes on the channel.
    pub(crate) fn weight(&self) -> usize {
        match self {
            ScrubItem::Entry { name, known, .. } => {
                64 + name.len() + known.as_ref().map_or(0, |(_, name)| 40 + name.len())
            }
            ScrubItem::Object { xattrs, .. } => {
                64 + xattrs.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>()
            }
        }
    }
}

/// Answer to one [`ScrubItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubOutcome {
    /// As believed.
    Same,
    /// Not so, and no record says why.
    Found {
        /// The newest record made of it; `None`: it was only looked at.
        recno: Option<Recno>,
        /// What differs, for people.
        what: String,
    },
    /// A record that was not read yet touches it.
    Stale {
        /// That record.
        recno: Recno,
    },
    /// Open for writing.
    Busy,
    /// It cannot be looked at or journaled.
    Refused {
        /// Errno.
        errno: i32,
        /// Presto's words.
        message: String,
    },
}
