//! What a batch asks, checked and typed: nothing past this file reads the wire.

use bytes::Bytes;
use intermezzo_channel::v1;
use intermezzo_channel::v1::replay_item::Op as Wire;
use intermezzo_kml::record::{FileId, Flags, Mask, Origin, OriginKind, Tag, Time, Version};

use crate::channel::{convert, entry_name, stage_name};

/// Most items of one batch.
pub const MAX_ITEMS: usize = 65_536;

/// Longest inline content (the packet's limit bounds it anyway).
const MAX_SYMLINK: usize = 4095;

/// A lower object: by identity, or by the tag of something this volume's replays made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Itself.
    File(FileId),
    /// Its replicated name.
    Tag(Tag),
}

/// Attributes to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Give {
    /// Type and permission bits (permission bits only where the object exists).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; `None` leaves what the operation makes of it.
    pub mtime: Option<Time>,
    /// Device number.
    pub rdev: u64,
}

/// Bytes of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Within the packet.
    Inline(Bytes),
    /// In `stage/` under this name.
    Staged(String, u64),
    /// Not here; the item's hash says which it is.
    Missing(u64),
}

impl Content {
    /// In bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Staged(_, size) | Content::Missing(size) => *size,
        }
    }
}

/// What to do with a file that is open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Answer BUSY.
    Wait,
    /// Go on; the writer's leavings become an orphan.
    Decide,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One checked item.
#[derive(Clone, Debug)]
pub struct Item {
    /// Who asked, as the record stores it.
    pub origin: Origin,
    /// `HASHED` where the item carries a hash.
    pub flags: Flags,
    /// Modification time to leave on the (source) directory.
    pub parent_mtime: Option<Time>,
    /// Modification time to leave on the target directory.
    pub target_parent_mtime: Option<Time>,
    /// The operation.
    pub op: Op,
}

/// An entry: a directory and a name in it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The directory.
    pub dir: By,
    /// The name.
    pub name: Vec<u8>,
}

/// The operations of `channel.proto`, section Replay.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The fields' meaning is the wire's.
pub enum Op {
    Make {
        at: Entry,
        give: Give,
        symlink: Vec<u8>,
        content: Option<Content>,
        xattrs: Vec<Xattr>,
    },
    Link {
        file: By,
        at: Entry,
    },
    Unlink {
        at: Entry,
        expect: By,
        version: Option<Version>,
        busy: Busy,
    },
    Rename {
        from: Entry,
        expect: By,
        to: Entry,
        replaced: Option<By>,
        exchange: bool,
        version: Option<Version>,
        busy: Busy,
    },
    SetAttr {
        file: By,
        mask: Mask,
        give: Give,
    },
    Install {
        file: By,
        version: Option<Version>,
        content: Content,
        give: Give,
        xattrs: Vec<Xattr>,
        at: Entry,
        busy: Busy,
    },
    Fill {
        file: By,
        content: Content,
    },
    SetXattr {
        file: By,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    DelXattr {
        file: By,
        name: Vec<u8>,
    },
    Noop,
}

/// An item that cannot mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("replay item refused: {0}")]
pub struct Malformed(pub &'static str);

impl TryFrom<v1::ReplayItem> for Item {
    type Error = Malformed;

    fn try_from(item: v1::ReplayItem) -> Result<Item, Malformed> {
        let (hash, flags) = match <[u8; 32]>::try_from(item.hash.as_ref()) {
            Ok(hash) => (hash, Flags::HASHED),
            Err(_) if item.hash.is_empty() => ([0; 32], Flags::empty()),
            Err(_) => return Err(Malformed("hash is not 32 bytes")),
        };
        let op = op(item.op.ok_or(Malformed("no operation"))?)?;
        let flags = match &op {
            Op::Make { content: Some(Content::Missing(_)), .. }
            | Op::Install { content: Content::Missing(_), .. }
            | Op::Fill { .. }
                if flags.is_empty() =>
            {
                return Err(Malformed("a content that is not here has no hash"));
            }
            Op::Fill { content: Content::Missing(_), .. } => {
                return Err(Malformed("a fill without content"));
            }
            Op::Make { content: Some(Content::Missing(_)), .. }
            | Op::Install { content: Content::Missing(_), .. } => flags | Flags::MISSING,
            _ => flags,
        };
        let origin = Origin {
            record: item.record.as_ref().map(convert::tag).unwrap_or_default(),
            object: item.object.as_ref().map(convert::tag).unwrap_or_default(),
            hash,
            verdict: u8::try_from(item.verdict).map_err(|_| Malformed("verdict over 255"))?,
            kind: OriginKind::Replay,
        };
        Ok(Item {
            origin,
            flags,
            parent_mtime: time(item.parent_mtime)?,
            target_parent_mtime: time(item.target_parent_mtime)?,
            op,
        })
    }
}

fn op(op: Wire) -> Result<Op, Malformed> {
    Ok(match op {
        Wire::Make(make) => Op::Make {
            at: entry(make.dir, &make.name)?,
            give: give(make.attributes)?,
            symlink: symlink(&make.symlink)?,
            content: make.content.map(content).transpose()?,
            xattrs: xattrs(make.xattrs)?,
        },
        Wire::Link(link) => Op::Link { file: by(link.file)?, at: entry(link.dir, &link.name)? },
        Wire::Unlink(unlink) => Op::Unlink {
            busy: busy(unlink.busy()),
            at: entry(unlink.dir, &unlink.name)?,
            expect: by(unlink.expect)?,
            version: version(unlink.expect_version)?,
        },
        Wire::Rename(rename) => Op::Rename {
            busy: busy(rename.busy()),
            from: entry(rename.from, &rename.from_name)?,
            expect: by(rename.expect)?,
            to: entry(rename.to, &rename.to_name)?,
            replaced: rename.replaced.map(|replaced| by(Some(replaced))).transpose()?,
            exchange: rename.exchange,
            version: version(rename.replaced_version)?,
        },
        Wire::SetAttr(set) => {
            Op::SetAttr { file: by(set.file)?, mask: mask(set.mask)?, give: give(set.attributes)? }
        }
        Wire::Install(install) => Op::Install {
            busy: busy(install.busy()),
            file: by(install.file)?,
            version: version(install.expect_version)?,
            content: content(install.content.ok_or(Malformed("an install without content"))?)?,
            give: give(install.attributes)?,
            xattrs: xattrs(install.xattrs)?,
            at: entry(install.dir, &install.name)?,
        },
        Wire::Fill(fill) => Op::Fill {
            file: by(fill.file)?,
            content: content(fill.content.ok_or(Malformed("a fill without content"))?)?,
        },
        Wire::SetXattr(set) => Op::SetXattr {
            file: by(set.file)?,
            name: xattr_name(&set.name)?,
            value: xattr_value(&set.value)?,
        },
        Wire::DelXattr(del) => Op::DelXattr { file: by(del.file)?, name: xattr_name(&del.name)? },
        Wire::Noop(v1::Noop {}) => Op::Noop,
    })
}

fn by(reference: Option<v1::Ref>) -> Result<By, Malformed> {
    match reference.and_then(|reference| reference.by) {
        Some(v1::r#ref::By::File(file)) => Ok(By::File(convert::file_id(&file))),
        Some(v1::r#ref::By::Object(tag)) => Ok(By::Tag(convert::tag(&tag))),
        None => Err(Malformed("an object is not named")),
    }
}

fn entry(dir: Option<v1::Ref>, name: &Bytes) -> Result<Entry, Malformed> {
    if entry_name(name) {
        Ok(Entry { dir: by(dir)?, name: name.to_vec() })
    } else {
        Err(Malformed("not an entry name"))
    }
}

fn time(time: Option<v1::Time>) -> Result<Option<Time>, Malformed> {
    match time {
        Some(time) => convert::time(&time).map(Some).ok_or(Malformed("nanoseconds out of range")),
        None => Ok(None),
    }
}

fn version(version: Option<v1::Version>) -> Result<Option<Version>, Malformed> {
    match version {
        Some(version) => convert::version(&version).map(Some).ok_or(Malformed("incomplete version")),
        None => Ok(None),
    }
}

fn give(attributes: Option<v1::Attributes>) -> Result<Give, Malformed> {
    let attributes = attributes.ok_or(Malformed("no attributes"))?;
    Ok(Give {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: time(attributes.mtime)?,
        rdev: attributes.rdev,
    })
}

fn symlink(target: &Bytes) -> Result<Vec<u8>, Malformed> {
    if target.len() > MAX_SYMLINK || target.contains(&0) {
        return Err(Malformed("not a symlink target"));
    }
    Ok(target.to_vec())
}

fn content(content: v1::Content) -> Result<Content, Malformed> {
    match content.from.ok_or(Malformed("content from nowhere"))? {
        v1::content::From::Inline(bytes) if u64::try_from(bytes.len()) != Ok(content.size) => {
            Err(Malformed("inline content is not as long as it says"))
        }
        v1::content::From::Inline(bytes) => Ok(Content::Inline(bytes)),
        v1::content::From::Staged(name) if !stage_name(&name) => Err(Malformed("not a staged file's name")),
        v1::content::From::Staged(name) => Ok(Content::Staged(name, content.size)),
        v1::content::From::Missing(_) if content.size == 0 => Err(Malformed("nothing cannot be missing")),
        v1::content::From::Missing(_) => Ok(Content::Missing(content.size)),
    }
}

fn xattrs(list: Vec<v1::Xattr>) -> Result<Vec<Xattr>, Malformed> {
    list.into_iter().map(|xattr| Ok((xattr_name(&xattr.name)?, xattr_value(&xattr.value)?))).collect()
}

fn xattr_name(name: &Bytes) -> Result<Vec<u8>, Malformed> {
    if (1..=255).contains(&name.len()) && !name.contains(&0) {
        Ok(name.to_vec())
    } else {
        Err(Malformed("not an extended attribute's name"))
    }
}

fn xattr_value(value: &Bytes) -> Result<Vec<u8>, Malformed> {
    if value.len() <= 65_536 { Ok(value.to_vec()) } else { Err(Malformed("extended attribute too long")) }
}

fn mask(bits: u32) -> Result<Mask, Malformed> {
    let allowed = Mask::MODE | Mask::UID | Mask::GID | Mask::MTIME;
    Mask::from_bits(bits)
        .filter(|mask| allowed.contains(*mask))
        .ok_or(Malformed("unknown attribute in the mask"))
}

fn busy(busy: v1::Busy) -> Busy {
    match busy {
        v1::Busy::Decide => Busy::Decide,
        v1::Busy::Wait | v1::Busy::Unspecified => Busy::Wait,
    }
}
