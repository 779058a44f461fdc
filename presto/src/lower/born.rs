//! What a new file is born with: the ACLs it inherits, known before it exists.
//!
//! The kernel's rule is posix_acl_create(): the default ACL of the directory becomes the file's own ACL, cut down by
//! the mode asked for; directories inherit it as their default ACL as well. An ACL that says no more than the mode bits
//! do is not stored.

use rustix::fs::FileType;

use super::xattr;
use super::xattr::Xattrs;

const VERSION: [u8; 4] = [2, 0, 0, 0];
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Extended attributes of a file of this type and mode, made in a directory with this default ACL.
#[must_use]
pub fn inherited(default: &[u8], kind: FileType, mode: u32) -> Xattrs {
    let mut born = Vec::new();
    if kind == FileType::Symlink {
        return born;
    }
    if let Some(access) = cut(default, mode) {
        born.push((xattr::ACL_ACCESS.to_vec(), access));
    }
    if kind == FileType::Directory {
        born.push((xattr::ACL_DEFAULT.to_vec(), default.to_vec()));
    }
    born
}

/// posix_acl_create_masq(): `None` if what results is equal to mode bits.
fn cut(default: &[u8], mode: u32) -> Option<Vec<u8>> {
    let entries = default.strip_prefix(&VERSION)?;
    let has_mask = entries.chunks_exact(8).any(|entry| tag(entry) == Some(MASK));
    let mut more = false;
    let mut out = VERSION.to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = tag(entry)?;
        let permissions = u16::from_le_bytes(*entry.get(2..)?.first_chunk::<2>()?);
        let allowed = match tag {
            USER_OBJ => mode >> 6,
            OTHER => mode,
            MASK => mode >> 3,
            // Where there is a mask, it takes the group's bits of the mode instead.
            GROUP_OBJ if !has_mask => mode >> 3,
            _ => 7,
        };
        more |= matches!(tag, USER | GROUP | MASK);
        let kept = permissions & u16::try_from(allowed & 7).ok()?;
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&kept.to_le_bytes());
        out.extend_from_slice(entry.get(4..)?);
    }
    more.then_some(out)
}

fn tag(entry: &[u8]) -> Option<u16> {
    entry.first_chunk::<2>().map(|bytes| u16::from_le_bytes(*bytes))
}
