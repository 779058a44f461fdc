//! The small words: tags, times, names, hashes, attributes, contents.

use super::NAME_MAX;
use super::SYMLINK_MAX;
use super::WireError;
use super::XATTR_MAX;
use super::XATTRS_MAX;
use super::limit;
use super::need;
use crate::content::block::SIZE_MAX;
use bytes::Bytes;
use intermezzo_proto::v1;
use lento_core::types::Attributes;
use lento_core::types::Content;
use lento_core::types::Hash;
use lento_core::types::INLINE_MAX;
use lento_core::types::Name;
use lento_core::types::ObjectId;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::mode;

/// Extended attributes with this prefix are a replica's own, and never travel.
const HIDDEN: &[u8] = b"trusted.intermezzo.";
/// Largest device number: 12 bits of major and 20 of minor, as the kernel keeps them.
const RDEV_MAX: u64 = u32::MAX as u64;
/// The times that every lower file system keeps (ext4's): one that was stored as another would never be equal.
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// A tag for the wire.
#[must_use]
pub fn tag(tag: Tag) -> v1::Tag {
    v1::Tag { replica: tag.replica, incarnation: tag.incarnation, number: tag.number }
}

pub(super) fn tag_back(field: &'static str, tag: Option<v1::Tag>) -> Result<Tag, WireError> {
    let tag = need(field, tag)?;
    Ok(Tag { replica: tag.replica, incarnation: tag.incarnation, number: tag.number })
}

/// An object from the wire.
///
/// # Errors
/// It is missing, or the hidden one that every node has for itself.
pub fn object_id(field: &'static str, tag: Option<v1::Tag>) -> Result<ObjectId, WireError> {
    match tag_back(field, tag).map(ObjectId)? {
        ObjectId::STAGING => {
            Err(WireError::Wrong { field, reason: "the staging directory, which is nobody else's" })
        }
        object => Ok(object),
    }
}

pub(super) fn time(time: Time) -> Option<v1::Time> {
    Some(v1::Time { sec: time.sec, nsec: time.nsec })
}

pub(super) fn time_back(field: &'static str, time: Option<v1::Time>) -> Result<Time, WireError> {
    let time = need(field, time)?;
    if time.nsec >= 1_000_000_000 {
        return Err(WireError::Wrong { field, reason: "nanoseconds of a second or more" });
    }
    Ok(Time { sec: time.sec.clamp(*TIMES.start(), *TIMES.end()), nsec: time.nsec })
}

/// Name of an entry.
pub(super) fn entry_name(field: &'static str, name: &Bytes) -> Result<Name, WireError> {
    let reason = match name.as_ref() {
        b"" => "empty name",
        b"." | b".." => "not a name of an entry",
        name if name.contains(&b'/') => "a slash in a name",
        _ => return attribute_name(field, name),
    };
    Err(WireError::Wrong { field, reason })
}

/// Name of an extended attribute.
pub(super) fn attribute_name(field: &'static str, name: &Bytes) -> Result<Name, WireError> {
    limit(field, name.len(), NAME_MAX)?;
    if name.is_empty() {
        return Err(WireError::Wrong { field, reason: "empty name" });
    }
    if name.contains(&0) {
        return Err(WireError::Wrong { field, reason: "a NUL in a name" });
    }
    if name.starts_with(HIDDEN) {
        return Err(WireError::Wrong { field, reason: "an extended attribute of the replica itself" });
    }
    Ok(name.to_vec())
}

pub(super) fn attribute_value(field: &'static str, value: &Bytes) -> Result<Vec<u8>, WireError> {
    limit(field, value.len(), XATTR_MAX)?;
    Ok(value.to_vec())
}

pub(super) fn symlink(field: &'static str, target: &Bytes) -> Result<Vec<u8>, WireError> {
    limit(field, target.len(), SYMLINK_MAX)?;
    if target.contains(&0) {
        return Err(WireError::Wrong { field, reason: "a NUL in a target" });
    }
    Ok(target.to_vec())
}

/// A hash from the wire.
///
/// # Errors
/// It has not 32 bytes.
pub fn hash(field: &'static str, bytes: &[u8]) -> Result<Hash, WireError> {
    let bytes = bytes.try_into().map_err(|_| WireError::Wrong { field, reason: "not a hash of 32 bytes" })?;
    Ok(Hash(bytes))
}

pub(super) fn hash_bytes(hash: Hash) -> Bytes {
    Bytes::copy_from_slice(&hash.0)
}

pub(super) fn maybe_hash_bytes(hash: Option<Hash>) -> Bytes {
    hash.map(hash_bytes).unwrap_or_default()
}

pub(super) fn maybe_hash(field: &'static str, bytes: &Bytes) -> Result<Option<Hash>, WireError> {
    if bytes.is_empty() { Ok(None) } else { hash(field, bytes).map(Some) }
}

pub(super) fn attributes(attributes: &Attributes) -> Option<v1::Attributes> {
    Some(v1::Attributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: time(attributes.mtime),
        rdev: attributes.rdev,
    })
}

pub(super) fn attributes_back(
    field: &'static str,
    attributes: Option<v1::Attributes>,
) -> Result<Attributes, WireError> {
    let attributes = need(field, attributes)?;
    if attributes.mode > 0o177_777 {
        return Err(WireError::Wrong { field, reason: "a mode that no file has" });
    }
    if attributes.rdev > RDEV_MAX {
        return Err(WireError::Wrong { field, reason: "a device that cannot be" });
    }
    Ok(Attributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: time_back("attributes.mtime", attributes.mtime)?,
        rdev: attributes.rdev,
    })
}

/// What an object is born as: its type exists, and what belongs to other types is not there.
pub(super) fn is_possible(
    field: &'static str,
    attributes: &Attributes,
    symlink: &[u8],
    has_content: bool,
) -> Result<(), WireError> {
    const OTHERS: [u32; 4] = [0o010_000, 0o020_000, 0o060_000, 0o140_000];
    let kind = attributes.mode & mode::TYPE;
    let reason = if !OTHERS.contains(&kind) && ![mode::FILE, mode::DIR, mode::SYMLINK].contains(&kind) {
        "a type that no file has"
    } else if symlink.is_empty() == (kind == mode::SYMLINK) {
        "a target that does not go with the type"
    } else if has_content && kind != mode::FILE {
        "a content that does not go with the type"
    } else {
        return Ok(());
    };
    Err(WireError::Wrong { field, reason })
}

pub(super) fn size(field: &'static str, size: u64) -> Result<u64, WireError> {
    if size > SIZE_MAX {
        return Err(WireError::Wrong { field, reason: "a size that no file has" });
    }
    Ok(size)
}

pub(super) fn content(content: &Content) -> v1::Content {
    v1::Content {
        hash: hash_bytes(content.hash),
        size: content.size,
        inline: content.inline.as_deref().map(Bytes::copy_from_slice).unwrap_or_default(),
    }
}

pub(super) fn content_back(content: &v1::Content) -> Result<Content, WireError> {
    limit("content.inline", content.inline.len(), usize::try_from(INLINE_MAX).unwrap_or(usize::MAX))?;
    let hash = hash("content.hash", &content.hash)?;
    let inline = if content.inline.is_empty() && content.size > 0 {
        None
    } else {
        if content.inline.len() as u64 != content.size {
            return Err(WireError::Wrong { field: "content.inline", reason: "not of the size it claims" });
        }
        if Hash::of(&content.inline) != hash {
            return Err(WireError::Wrong { field: "content.inline", reason: "not what its hash says" });
        }
        Some(content.inline.to_vec())
    };
    Ok(Content { hash, size: size("content.size", content.size)?, inline })
}

pub(super) fn xattrs(list: &[(Name, Vec<u8>)]) -> Vec<v1::Xattr> {
    let of = |(name, value): &(Name, Vec<u8>)| v1::Xattr {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    };
    list.iter().map(of).collect()
}

pub(super) fn xattrs_back(list: &[v1::Xattr]) -> Result<Vec<(Name, Vec<u8>)>, WireError> {
    limit("xattrs", list.len(), XATTRS_MAX)?;
    list.iter()
        .map(|xattr| {
            Ok((attribute_name("xattr.name", &xattr.name)?, attribute_value("xattr.value", &xattr.value)?))
        })
        .collect()
}
