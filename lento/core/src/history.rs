//! What was: for each record that changed the tree, who did what, and what stood there before.
//!
//! A server that keeps it writes one row per position ([`Row`], `server/history.rs`). From the newest row backwards the tree
//! of any earlier position comes out ([`Past`]), and the story of a path ([`story`]). Owns the rows' shape; contents are
//! presto's, which finds them by [`Former`].

mod past;
mod recording;
mod story;
mod subtree;

pub use past::Past;
pub use past::position_at;
pub(crate) use recording::Recording;
pub use story::Line;
pub use story::Mentioned;
pub use story::Wanted;
pub use story::story;
pub use subtree::Node;
pub use subtree::subtree;

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::types::Attributes;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Time;
use serde::Deserialize;
use serde::Serialize;

/// Why nothing is told.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HistoryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// None is kept.
    #[error("no history is kept of this volume: set `history` in its spec")]
    Off,
    /// It does not reach back so far.
    #[error("the history reaches back to position {from}, not to {asked}")]
    TooOld {
        /// The first position that can be shown.
        from: Position,
        /// What was asked for.
        asked: Position,
    },
    /// The history does not reach back to that time.
    #[error("the history reaches back to position {0} only, which is later than that")]
    BeforeAll(Position),
    /// It has not happened.
    #[error("position {asked} is still to come: the newest is {newest}")]
    NotYet {
        /// The newest.
        newest: Position,
        /// What was asked for.
        asked: Position,
    },
    /// Going back would take more memory than a question may have.
    #[error("more than {most} objects and names have changed since then: only a later position can be shown")]
    TooFar {
        /// So many may differ from the present.
        most: usize,
    },
}

/// How much is kept; see `spec.history` of a Volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryOptions {
    /// Rows are kept for so long, in milliseconds in which this server runs.
    pub keep_for: u64,
    /// Bytes of rows; beyond that the oldest go.
    pub row_bytes: u64,
}

/// What the store remembers of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The tree of this position, and of each later one, can be told.
    pub from: Position,
    /// Bytes of rows that are there.
    pub bytes: u64,
    /// Nothing is kept any more: what is there goes.
    pub ended: bool,
}

/// A client keeps none: what it was told when it was a server would not go on from there.
pub(crate) fn forget(store: &mut dyn Store) -> Result<(), StoreError> {
    if Extent::load(store)?.is_some() {
        store.clear(Table::History)?;
        Extent::save(None, store)?;
    }
    Ok(())
}

const EXTENT: &[u8] = b"history";

impl Extent {
    pub(crate) fn load(store: &dyn Store) -> Result<Option<Extent>, StoreError> {
        table::get(store, Table::Meta, EXTENT)
    }

    pub(crate) fn save(extent: Option<&Extent>, store: &mut dyn Store) -> Result<(), StoreError> {
        match extent {
            Some(extent) => table::put(store, Table::Meta, EXTENT, extent),
            None => store.delete(Table::Meta, EXTENT),
        }
    }
}

/// One record of the past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When it came into the server's tree, by the server's clock.
    pub time: Time,
    /// The same on the clock by which it grows old.
    pub clock: u64,
    /// The record it came from: of which replica.
    pub origin: OpId,
    /// When it was done there.
    pub made: Time,
    /// The object it was about.
    pub object: ObjectId,
    /// What was done.
    pub deed: Deed,
    /// What stood there before, in the order in which it was changed.
    pub before: Vec<Before>,
}

/// What was done to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// It was made.
    Make {
        /// Directory.
        dir: ObjectId,
        /// Name.
        name: Name,
    },
    /// It got another name.
    Link {
        /// Directory.
        dir: ObjectId,
        /// Name.
        name: Name,
    },
    /// It lost a name.
    Remove {
        /// Directory.
        dir: ObjectId,
        /// Name.
        name: Name,
    },
    /// It was moved.
    Rename {
        /// From this directory.
        from: ObjectId,
        /// And name.
        from_name: Name,
        /// To this directory.
        to: ObjectId,
        /// And name.
        to_name: Name,
    },
    /// Its content.
    Write,
    /// Its attributes.
    Attributes(Mask),
    /// An extended attribute.
    Xattr(Name),
    /// Nothing that anybody did: presto put something aside.
    Aside,
}

impl Deed {
    /// What an operation does.
    pub(crate) fn of(op: &Operation) -> Deed {
        match &op.kind {
            OpKind::Create { dir, name, .. } => Deed::Make { dir: *dir, name: name.clone() },
            OpKind::Link { dir, name, .. } => Deed::Link { dir: *dir, name: name.clone() },
            OpKind::Remove { dir, name, .. } => Deed::Remove { dir: *dir, name: name.clone() },
            OpKind::Rename { from, from_name, to, to_name, .. } => {
                Deed::Rename { from: *from, from_name: from_name.clone(), to: *to, to_name: to_name.clone() }
            }
            OpKind::Close { .. } => Deed::Write,
            OpKind::SetAttr { mask, .. } => Deed::Attributes(*mask),
            OpKind::SetXattr { name, .. } | OpKind::DelXattr { name } => Deed::Xattr(name.clone()),
        }
    }
}

/// One thing as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Before {
    /// An object; `None`: it was not there.
    Object(ObjectId, Option<Object>),
    /// The modification time of a directory, of which nothing else was changed.
    Time(ObjectId, Time),
    /// What stood at a name.
    Entry(ObjectId, Name, Option<ObjectId>),
}

/// A content that a file had, as presto finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// The lower file.
    pub file: FileId,
    /// Its modification time with that content.
    pub mtime: Time,
    /// Its size.
    pub size: u64,
    /// blake3, where it was read while it was there.
    pub hash: Option<Hash>,
}

/// What an object was like.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Attributes.
    pub attributes: Attributes,
    /// Target of a symbolic link.
    pub symlink: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(Name, Vec<u8>)>,
    /// Content of a regular file.
    pub content: Option<Former>,
}

impl Condition {
    pub(crate) fn of(object: &Object) -> Condition {
        let former = || Former {
            file: object.file,
            mtime: object.version.mtime,
            size: object.content.map_or(object.version.size, |content| content.size),
            hash: object.content.map(|content| content.hash),
        };
        Condition {
            attributes: object.attributes,
            symlink: object.symlink.clone(),
            xattrs: object.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            content: object.attributes.is_file().then(former),
        }
    }
}
