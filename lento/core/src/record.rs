//! A KML record as the core reads it: `Journal::unpack` in the shell makes these from the journal's bytes.

use crate::types::Attributes;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Recno;
use crate::types::Time;
use crate::types::Version;
use serde::Deserialize;
use serde::Serialize;

/// One published record that changed something (`Failed` ones arrive as [`Update::Nothing`], so that numbers stay gap-free).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmlRecord {
    /// Its number.
    pub recno: Recno,
    /// When it began.
    pub time: Time,
    /// Who did it.
    pub origin: KmlOrigin,
    /// What it did, in lower identities.
    pub update: Update,
}

/// A user of this node, or a replay that the core asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KmlOrigin {
    /// Through the mount.
    User,
    /// By [`crate::io::ReplayItem`].
    Replay {
        /// `record` of the item.
        record: OpId,
        /// `object` of the item.
        object: ObjectId,
        /// `hash` of the item.
        hash: Option<Hash>,
        /// `verdict` of the item.
        verdict: u8,
    },
}

/// What a close says of the content that it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Left {
    /// It is what somebody wrote, all of it.
    Whole,
    /// The name was lost to a replay before the writer closed it; the content is in limbo only.
    Orphan,
    /// The machine went down while it was written: it may be torn, and is no update of anything (rule 10).
    Unvouched,
    /// All of it, and a program was told that it is durable.
    Synced,
}

/// State of a lower object after a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Attributes that travel.
    pub attributes: Attributes,
    /// Version on disk.
    pub version: Version,
    /// Links.
    pub nlink: u32,
    /// Of what was made or closed without its content: which one it stands for.
    pub missing: Option<Hash>,
}

/// What a record did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Update {
    /// create, mkdir, mknod, symlink.
    Make {
        /// Directory.
        dir: FileId,
        /// Name.
        name: Name,
        /// The new object.
        file: FileId,
        /// Its state.
        after: After,
        /// Symbolic link's target.
        symlink: Vec<u8>,
        /// Extended attributes it was born with.
        xattrs: Vec<(Name, Vec<u8>)>,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
    },
    /// Another name.
    Link {
        /// Directory.
        dir: FileId,
        /// Name.
        name: Name,
        /// Object.
        file: FileId,
        /// Its state.
        after: After,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
    },
    /// unlink or rmdir.
    Remove {
        /// Directory.
        dir: FileId,
        /// Name.
        name: Name,
        /// Object.
        file: FileId,
        /// It was the last name.
        last: bool,
        /// Presto keeps the content in limbo until released.
        limbo: bool,
        /// Modification time of `dir` afterwards.
        dir_mtime: Time,
    },
    /// Rename in all forms.
    Rename {
        /// Source directory.
        from: FileId,
        /// Source name.
        from_name: Name,
        /// Target directory.
        to: FileId,
        /// Target name.
        to_name: Name,
        /// Object moved.
        file: FileId,
        /// Its state.
        after: After,
        /// What stood at the target, if anything.
        replaced: Option<FileId>,
        /// `replaced` lost its last name.
        replaced_last: bool,
        /// `replaced` waits in limbo.
        replaced_limbo: bool,
        /// `replaced` is now at the source.
        exchange: bool,
        /// A whiteout (character device 0:0) is now at the source.
        whiteout: bool,
        /// Modification time of `from` afterwards.
        from_mtime: Time,
        /// Modification time of `to` afterwards.
        to_mtime: Time,
    },
    /// Attributes; with `truncated` the content changed as well.
    SetAttr {
        /// Object.
        file: FileId,
        /// Which attributes.
        mask: Mask,
        /// The size was set.
        truncated: bool,
        /// Its state.
        after: After,
    },
    /// Content complete.
    Close {
        /// Object. A replay may have given it a new identity: then `replaces` is the old one.
        file: FileId,
        /// Identity before, where it changed.
        replaces: Option<FileId>,
        /// Its state.
        after: After,
        /// What it says of that content.
        left: Left,
    },
    /// Extended attribute set.
    SetXattr {
        /// Object.
        file: FileId,
        /// Name.
        name: Name,
        /// Value.
        value: Vec<u8>,
        /// Its state.
        after: After,
    },
    /// Extended attribute removed.
    DelXattr {
        /// Object.
        file: FileId,
        /// Name.
        name: Name,
        /// Its state.
        after: After,
    },
    /// The modification time of a directory, moved by what stays on this node.
    Touch {
        /// Directory.
        dir: FileId,
        /// Its time afterwards.
        mtime: Time,
    },
    /// Nothing on disk: a verdict (see `origin`), or a failed intent.
    Nothing,
}
