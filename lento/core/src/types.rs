//! The words of the core: ids, positions, attributes, operations. Plain data without behaviour worth a test.

use serde::Deserialize;
use serde::Serialize;
use std::fmt;

/// (replica, incarnation, number): unique for ever. A record is named by its own recno, an object by the recno of the
/// record that made it, so nothing has to be counted or agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag {
    /// Random id of the replica that made it.
    pub replica: u64,
    /// Its incarnation then.
    pub incarnation: u32,
    /// Recno in that replica's KML.
    pub number: u64,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}.{}", self.replica, self.incarnation, self.number)
    }
}

macro_rules! tag_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub Tag);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
tag_type!(
    /// A replicated object: a file, directory, symlink or node, under however many names.
    ObjectId
);
tag_type!(
    /// A record of one replica.
    OpId
);

impl ObjectId {
    /// The root directory of every volume.
    pub const ROOT: ObjectId = ObjectId(Tag { replica: 0, incarnation: 0, number: 1 });
    /// The hidden directory for objects in each other's way; it exists in the lower tree only.
    pub const STAGING: ObjectId = ObjectId(Tag { replica: 0, incarnation: 0, number: 2 });
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
/// Where numbers of records begin that no journal has: what a node tells for others, under its own name.
const MADE_UP: u64 = 1 << 62;

impl OpId {
    /// The record with this number that a replica makes up.
    #[must_use]
    pub fn made_up(replica: u64, incarnation: u32, number: u64) -> OpId {
        OpId(Tag { replica, incarnation, number: MADE_UP | number })
    }

    /// Whether somebody made it up.
    #[must_use]
    pub fn is_made_up(self) -> bool {
        self.0.number >= MADE_UP
    }

    /// Whether this replica made it up in this incarnation.
    #[must_use]
    pub fn is_made_up_by(self, replica: u64, incarnation: u32) -> bool {
        (self.0.replica, self.0.incarnation) == (replica, incarnation) && self.is_made_up()
    }
}
number_type!(
    /// Number of a record in this node's KML of the volume.
    Recno
);
number_type!(
    /// Number of a record in the server's KML: the volume's total order. 0: before everything.
    Position
);
number_type!(
    /// Incarnation of the volume's server log, a random number. 0 is none.
    Epoch
);

impl Epoch {
    /// One that nobody had before.
    #[must_use]
    pub fn new(random: u64) -> Epoch {
        Epoch(random.max(1))
    }
}
number_type!(
    /// Something the shell was asked to do and will answer.
    Ticket
);

/// Identity of a lower file, as the KML writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Inode number.
    pub ino: u64,
    /// Generation.
    pub generation: u64,
}

/// A time of the lower file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970, may be negative.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// What changes whenever a lower file changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Size in bytes.
    pub size: u64,
}

/// blake3 of a whole content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Hash of the empty content.
    #[must_use]
    pub fn empty() -> Hash {
        Hash::of(&[])
    }

    /// Hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(6) {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One name in one directory, up to 255 bytes of anything but `/` and NUL.
pub type Name = Vec<u8>;

/// Attributes that travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of content.
    pub mtime: Time,
    /// Device number of a device node.
    pub rdev: u64,
}

/// File type bits of `st_mode`.
pub mod mode {
    /// Mask of the type.
    pub const TYPE: u32 = 0o170_000;
    /// Directory.
    pub const DIR: u32 = 0o040_000;
    /// Regular file.
    pub const FILE: u32 = 0o100_000;
    /// Symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
}

impl Attributes {
    /// Whether these are a directory's.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.mode & mode::TYPE == mode::DIR
    }

    /// Whether these are a regular file's.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.mode & mode::TYPE == mode::FILE
    }
}

/// Which attributes a `SetAttr` carries. Bits as in the KML and on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask(pub u32);

impl Mask {
    /// Permission bits.
    pub const MODE: Mask = Mask(1);
    /// Owner.
    pub const UID: Mask = Mask(2);
    /// Group.
    pub const GID: Mask = Mask(4);
    /// Modification time.
    pub const MTIME: Mask = Mask(16);
    /// All of them.
    pub const ALL: Mask = Mask(23);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub fn has(self, other: Mask) -> bool {
        self.0 & other.0 == other.0
    }

    /// The others.
    #[must_use]
    pub fn without(self, other: Mask) -> Mask {
        Mask(self.0 & !other.0)
    }

    /// Both together.
    #[must_use]
    pub fn with(self, other: Mask) -> Mask {
        Mask(self.0 | other.0)
    }
}

/// A content by name, with its bytes where they are small and at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// blake3 of all bytes.
    pub hash: Hash,
    /// Length in bytes.
    pub size: u64,
    /// The bytes, at most [`INLINE_MAX`]; `None`: to be fetched or staged.
    pub inline: Option<Vec<u8>>,
}

/// Largest content that rides in a record, in bytes.
pub const INLINE_MAX: u64 = 64 << 10;

/// An update in terms of replicated objects: what a CML holds and what travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The record it is.
    pub id: OpId,
    /// When a user did it.
    pub time: Time,
    /// The object it is about.
    pub object: ObjectId,
    /// What it does.
    pub kind: OpKind,
}

impl Operation {
    /// This record's effect is there in the shape of another one's: a change of nothing.
    #[must_use]
    pub fn done(id: OpId, by: &Operation) -> Operation {
        let kind = OpKind::SetAttr { mask: Mask::default(), attributes: Attributes::default() };
        Operation { id, time: by.time, object: by.object, kind }
    }

    /// Whether it says only that.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.kind, OpKind::SetAttr { mask, .. } if mask == Mask::default())
    }
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpKind {
    /// A new object under its first name.
    Create {
        /// Directory.
        dir: ObjectId,
        /// Name in it.
        name: Name,
        /// Attributes; `mode` has the type.
        attributes: Attributes,
        /// Target of a symbolic link.
        symlink: Vec<u8>,
        /// Content of a regular file; `None`: empty.
        content: Option<Content>,
        /// Extended attributes it was born with.
        xattrs: Vec<(Name, Vec<u8>)>,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
        /// Everything up to here was visible in the maker's tree (clients; rule 9).
        seen: Position,
    },
    /// Another name.
    Link {
        /// Directory.
        dir: ObjectId,
        /// Name in it.
        name: Name,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
    },
    /// A name removed: unlink, or rmdir where the object is a directory.
    Remove {
        /// Directory.
        dir: ObjectId,
        /// Name in it.
        name: Name,
        /// It was the last name.
        last: bool,
        /// Content the remover's disk held (regular files).
        before: Option<Hash>,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
    },
    /// A name moved, or two exchanged.
    Rename {
        /// Source directory.
        from: ObjectId,
        /// Source name.
        from_name: Name,
        /// Target directory.
        to: ObjectId,
        /// Target name.
        to_name: Name,
        /// What stood at the target.
        replaced: Option<Replaced>,
        /// `replaced` is now at the source.
        exchange: bool,
        /// Modification time of `from` afterwards.
        from_mtime: Time,
        /// Modification time of `to` afterwards.
        to_mtime: Time,
    },
    /// Attributes changed.
    SetAttr {
        /// Which.
        mask: Mask,
        /// The new values; others are ignored.
        attributes: Attributes,
    },
    /// Content changed and complete.
    Close {
        /// Content on the writer's disk before.
        before: Hash,
        /// The new content.
        content: Content,
        /// Modification time that goes with it.
        mtime: Time,
    },
    /// Extended attribute set.
    SetXattr {
        /// Full name, e.g. `user.origin`.
        name: Name,
        /// Value.
        value: Vec<u8>,
    },
    /// Extended attribute removed.
    DelXattr {
        /// Full name.
        name: Name,
    },
}

impl OpKind {
    /// One word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            OpKind::Create { .. } => "create",
            OpKind::Link { .. } => "link",
            OpKind::Remove { .. } => "remove",
            OpKind::Rename { .. } => "rename",
            OpKind::SetAttr { .. } => "setattr",
            OpKind::Close { .. } => "close",
            OpKind::SetXattr { .. } => "setxattr",
            OpKind::DelXattr { .. } => "delxattr",
        }
    }
}

/// What stood at the target of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The object.
    pub object: ObjectId,
    /// The rename took its last name.
    pub last: bool,
    /// Content the renamer's disk held (regular files).
    pub before: Option<Hash>,
}

/// The server's answer to one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is in the tree, at the position of the verdict. The content that is safe, if the record had one.
    Accepted(Option<Hash>),
    /// It was so already; the record's object and this one are the same.
    Unified(ObjectId),
    /// The server's state stays; the loser is kept. The content that is safe, if the record had one.
    Conflict(ConflictKind, Option<Hash>),
    /// Of a record whose conflict, with its verdict at this position, is resolved: nobody keeps what lost any more.
    Resolved(Position),
}

/// What clashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConflictKind {
    /// Two contents on top of one.
    StoreStore,
    /// Content for an object that was removed.
    StoreRemove,
    /// Removal of an object that was updated or has other names.
    RemoveUpdate,
    /// Two objects for one name.
    NameName,
    /// The directory is gone.
    ParentGone,
    /// The rename's target is something else by now.
    TargetTaken,
    /// The rename would put a directory into itself.
    RenameCycle,
    /// Attributes or names for an object that was removed or moved.
    UpdateRemove,
    /// Content left by a writer whose file had been replaced under it.
    Orphan,
    /// A removal that a person has refused, since it was one of very many.
    MassRemoval,
}

/// One position of the server's log, as it is forwarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Where it stands.
    pub position: Position,
    /// The record it came from; on the server's own updates (server's replica, incarnation, position).
    pub origin: OpId,
    /// What happened.
    pub what: LogWhat,
}

/// Content of a [`LogRecord`].
#[allow(clippy::large_enum_variant, reason = "most are operations")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogWhat {
    /// An update.
    Operation(Operation),
    /// Only a verdict: for the originator, or a conflict, which changes nobody's tree.
    Verdict(Verdict),
}
