//! What a KML record says, as plain data.
//!
//! Owns the vocabulary shared by presto (the writer) and lento (the reader). The bytes are `format.rs`'s business.

use std::fmt;

/// Number of a record in one volume's KML: 1 for the first, then gap-free. 0 means "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recno(pub u64);

impl Recno {
    /// Before the first record.
    pub const NONE: Recno = Recno(0);

    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Recno {
        Recno(self.0.saturating_add(1))
    }
}

impl fmt::Display for Recno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a lower file: inode number and generation, which together survive rename and are never used twice.
/// All zero means "no file".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Inode number on the lower file system.
    pub ino: u64,
    /// Inode generation, from the kernel's file handle.
    pub generation: u64,
}

impl FileId {
    /// No file.
    pub const NONE: FileId = FileId { ino: 0, generation: 0 };

    /// Whether this names no file.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == FileId::NONE
    }

    /// The name by which others hear of a file first that stayed on this node until it was renamed: they see it for as
    /// long as the rename takes to follow.
    #[must_use]
    pub fn joining_name(self) -> Vec<u8> {
        format!(".intermezzo-{}-{}", self.ino, self.generation).into_bytes()
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ino, self.generation)
    }
}

/// A point in time as the lower file system keeps it; seconds may be negative (before 1970).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// The attributes of a lower file at one moment. `mode` 0 means "not known" (no file there).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Device number of a device node, as in `st_rdev`.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

impl Attributes {
    /// What tells two contents of one file apart.
    #[must_use]
    pub fn version(&self) -> Version {
        Version { mtime: self.mtime, ctime: self.ctime, size: self.size }
    }
}

/// Version of a file: any change of content or attributes changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Version {
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Size in bytes.
    pub size: u64,
}

impl Version {
    /// What a store changes of it; the change time moves with names and permissions as well.
    #[must_use]
    pub fn content(&self) -> (Time, u64) {
        (self.mtime, self.size)
    }
}

/// What was done. The numbers are on disk; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Opcode {
    /// Regular file made.
    Create = 1,
    /// Directory made.
    Mkdir = 2,
    /// Device node, fifo or socket made.
    Mknod = 3,
    /// Symbolic link made; `value` is its target.
    Symlink = 4,
    /// Another name for `object`.
    Link = 5,
    /// A name of a non-directory removed.
    Unlink = 6,
    /// Directory removed.
    Rmdir = 7,
    /// Name moved; `replaced` is what lost its name by it, or the partner of an exchange.
    Rename = 8,
    /// Attributes changed; `mask` says which.
    Setattr = 9,
    /// Content changed and complete: the unit in which contents travel.
    Close = 10,
    /// Extended attribute `name` set to `value`.
    Setxattr = 11,
    /// Extended attribute `name` removed.
    Delxattr = 12,
    /// Nothing on disk: a verdict, or a mark.
    Noop = 13,
}

impl Opcode {
    /// The opcode with this number on disk.
    #[must_use]
    pub fn from_u16(number: u16) -> Option<Opcode> {
        Some(match number {
            1 => Opcode::Create,
            2 => Opcode::Mkdir,
            3 => Opcode::Mknod,
            4 => Opcode::Symlink,
            5 => Opcode::Link,
            6 => Opcode::Unlink,
            7 => Opcode::Rmdir,
            8 => Opcode::Rename,
            9 => Opcode::Setattr,
            10 => Opcode::Close,
            11 => Opcode::Setxattr,
            12 => Opcode::Delxattr,
            13 => Opcode::Noop,
            _ => return None,
        })
    }
}

/// How far a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum State {
    /// Intent written, lower operation not known to have happened.
    Prepared = 1,
    /// Lower operation happened.
    Done = 2,
    /// Lower operation refused; the record keeps its number and means nothing.
    Failed = 3,
}

bitflags::bitflags! {
    /// Facts about a record that its opcode does not say.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// The removal took the last name of `object`.
        const LAST_LINK = 1;
        /// `object` lost its last name and waits in limbo, because its content may have no verdict yet.
        const LIMBO = 1 << 1;
        /// The rename took the last name of `replaced`.
        const REPLACED_LAST_LINK = 1 << 2;
        /// `replaced` waits in limbo.
        const REPLACED_LIMBO = 1 << 3;
        /// RENAME_EXCHANGE: `replaced` is now at the source.
        const EXCHANGE = 1 << 4;
        /// RENAME_WHITEOUT: a character device 0:0 is now at the source.
        const WHITEOUT = 1 << 5;
        /// RENAME_NOREPLACE was asked.
        const NOREPLACE = 1 << 6;
        /// Content written to a file that a replay had replaced meanwhile; it lies in limbo and nowhere else.
        const ORPHAN = 1 << 7;
        /// `value` holds the extended attributes that the new file was born with (`xattr::encode`).
        const XATTRS = 1 << 8;
        /// `origin.hash` is the blake3 of the content this record installed.
        const HASHED = 1 << 9;
        /// Presto found it in the lower tree: no program's call made this change.
        const FOUND = 1 << 10;
        /// The machine went down while it was written, and no close says that it is whole: it may be torn.
        const UNVOUCHED = 1 << 11;
        /// It is about what stays on this node: of others' business is the directory's time at most.
        const LOCAL = 1 << 12;
        /// The renamed object stays on this node from now on: to others its name has gone.
        const LEFT = 1 << 13;
        /// The renamed object stayed on this node until now. The records before tell of its making, by `joining_name` in
        /// the target's directory.
        const JOINED = 1 << 14;
        /// A close for an fsync, which makes the content durable together with the record.
        const SYNCED = 1 << 15;
        /// The content is not here: the file stands for the one that `origin.hash` names.
        const MISSING = 1 << 16;
    }
}

bitflags::bitflags! {
    /// Which attributes a `Setattr` changed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Mask: u32 {
        /// Permission bits.
        const MODE = 1;
        /// Owner.
        const UID = 1 << 1;
        /// Group.
        const GID = 1 << 2;
        /// Size: content changed as well.
        const SIZE = 1 << 3;
        /// Modification time.
        const MTIME = 1 << 4;
        /// Access time (local; never travels).
        const ATIME = 1 << 5;
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, as presto's pid namespace shows it.
    pub pid: u32,
}

/// A name that is unique among all replicas for ever: (replica, incarnation, number).
/// Used for records and for objects; presto only stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// Random id of the replica.
    pub replica: u64,
    /// Its incarnation.
    pub incarnation: u32,
    /// Number within it.
    pub number: u64,
}

/// Where an update came from. Everything zero: a user of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// On the server: the client's record that this replays. On a client: replica 0 and the server's position.
    pub record: Tag,
    /// The replicated object, as lento names it.
    pub object: Tag,
    /// blake3 of the content installed or kept; valid with `Flags::HASHED`.
    pub hash: [u8; 32],
    /// Lento's verdict code on a `Noop` (0 otherwise); presto only stores it.
    pub verdict: u8,
    /// 0 for a user's update, 1 for a replay.
    pub kind: OriginKind,
}

/// A user's update or somebody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum OriginKind {
    /// A program on this node did it, through the mount.
    #[default]
    User = 0,
    /// Lento replayed it.
    Replay = 1,
}

/// What is known before the lower operation. Written as `Prepared`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// What is about to be done.
    pub opcode: Option<Opcode>,
    /// When presto began it.
    pub time: Time,
    /// Who asked.
    pub caller: Caller,
    /// Object concerned; `NONE` where it does not exist yet.
    pub object: FileId,
    /// Directory of `name`.
    pub parent: FileId,
    /// Directory of `target_name` (rename).
    pub target_parent: FileId,
    /// Object at the target of a rename, or partner of an exchange.
    pub replaced: FileId,
    /// Facts known beforehand.
    pub flags: Flags,
    /// Attributes a setattr changes.
    pub mask: Mask,
    /// Attributes of `object` before.
    pub before: Attributes,
    /// Where it came from.
    pub origin: Origin,
    /// Entry name, or extended attribute's name.
    pub name: Vec<u8>,
    /// New entry name (rename).
    pub target_name: Vec<u8>,
    /// Symlink target, extended attribute's value, or encoded extended attributes (`Flags::XATTRS`).
    pub value: Vec<u8>,
    /// A replay's: modification times that `parent` and `target_parent` are to have after, so that recovery can give
    /// them these.
    pub parent_times: Option<[Time; 2]>,
}

/// What is known after the lower operation. Written with `Done`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The object, for operations that make one (else repeat the intent's).
    pub object: FileId,
    /// Attributes of `object` after; `mode` 0 when it is gone.
    pub after: Attributes,
    /// Modification time of `parent` after.
    pub parent_mtime: Time,
    /// Modification time of `target_parent` after.
    pub target_parent_mtime: Time,
    /// All flags, those of the intent included.
    pub flags: Flags,
}

/// A whole record as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub recno: Recno,
    /// How far it is. A reader of the published prefix sees only `Done` and `Failed`.
    pub state: State,
    /// The opcode (`intent.opcode` is always `Some` in a record that was read; this is it).
    pub opcode: Opcode,
    /// First half.
    pub intent: Intent,
    /// Second half; default while `Prepared` or after `Failed`.
    pub outcome: Outcome,
}

/// Extended attributes in one byte string: for each, name length (u16), value length (u32), name, value; little-endian.
pub mod xattr {
    /// Packs names and values.
    #[must_use]
    pub fn encode(list: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in list {
            let (Ok(n), Ok(v)) = (u16::try_from(name.len()), u32::try_from(value.len())) else {
                continue; // The kernel allows 255 and 65,536.
            };
            out.extend_from_slice(&n.to_le_bytes());
            out.extend_from_slice(&v.to_le_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(value);
        }
        out
    }

    /// Unpacks; `None` if the bytes are not such a list.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut list = Vec::new();
        while !bytes.is_empty() {
            let (n, rest) = bytes.split_first_chunk::<2>()?;
            let (v, rest) = rest.split_first_chunk::<4>()?;
            let n = usize::from(u16::from_le_bytes(*n));
            let v = usize::try_from(u32::from_le_bytes(*v)).ok()?;
            let (name, rest) = rest.split_at_checked(n)?;
            let (value, rest) = rest.split_at_checked(v)?;
            list.push((name.to_vec(), value.to_vec()));
            bytes = rest;
        }
        Some(list)
    }
}
