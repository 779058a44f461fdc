//! The words of the wire.

use super::Historian;
use crate::volume::VolumeHandle;
use crate::wire;
use bytes::Bytes;
use intermezzo_proto::v1;
use lento_core::history::Condition;
use lento_core::history::Former;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Time;

pub(super) fn time(time: Time) -> v1::Time {
    v1::Time { sec: time.sec, nsec: time.nsec }
}

pub(super) fn names(path: Vec<Vec<u8>>) -> Vec<Bytes> {
    path.into_iter().map(Bytes::from).collect()
}

impl Historian {
    pub(super) fn condition(&self, volume: &VolumeHandle, condition: Condition) -> v1::Condition {
        let Condition { attributes, symlink, xattrs, content } = condition;
        v1::Condition {
            attributes: Some(v1::Attributes {
                mode: attributes.mode,
                uid: attributes.uid,
                gid: attributes.gid,
                mtime: Some(time(attributes.mtime)),
                rdev: attributes.rdev,
            }),
            symlink: symlink.into(),
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| v1::Xattr { name: name.into(), value: value.into() })
                .collect(),
            content: content.map(|former| v1::FormerContent {
                ino: former.file.ino,
                generation: former.file.generation,
                mtime: Some(time(former.mtime)),
                size: former.size,
                hash: former.hash.map(|hash| Bytes::copy_from_slice(&hash.0)).unwrap_or_default(),
                seal: Bytes::copy_from_slice(&self.seal(volume, &former)),
                // Until it was looked for.
                kept: former.size == 0,
            }),
        }
    }
}

/// What was told of before; whether this node has told it says the seal.
pub(super) fn former(content: &v1::FormerContent) -> Result<Former, wire::WireError> {
    let mtime = wire::need("former.mtime", content.mtime)?;
    let hash = match content.hash.len() {
        0 => None,
        _ => Some(wire::hash("former.hash", &content.hash)?),
    };
    Ok(Former {
        file: FileId { ino: content.ino, generation: content.generation },
        mtime: Time { sec: mtime.sec, nsec: mtime.nsec },
        size: content.size,
        hash: hash.filter(|hash| *hash != Hash([0; 32])),
    })
}
