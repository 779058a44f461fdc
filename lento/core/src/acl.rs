//! POSIX ACLs and mode bits are one thing seen twice: each must follow when the other is set.
//!
//! Format of the extended attribute: Linux `struct posix_acl_xattr_header/entry`: version (u32 = 2), then entries of
//! tag (u16), permissions (u16), id (u32), little-endian.

/// The extended attribute that holds the access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn entries(value: &[u8]) -> Option<Vec<(u16, u16, [u8; 4])>> {
    let (version, rest) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || rest.len() % 8 != 0 {
        return None;
    }
    rest.chunks_exact(8)
        .map(|entry| {
            let (tag, entry) = entry.split_first_chunk::<2>()?;
            let (perm, entry) = entry.split_first_chunk::<2>()?;
            Some((u16::from_le_bytes(*tag), u16::from_le_bytes(*perm), *entry.first_chunk::<4>()?))
        })
        .collect()
}

/// The mode after the access ACL was set to `value`.
pub fn mode_with(mode: u32, value: &[u8]) -> u32 {
    let Some(entries) = entries(value) else { return mode };
    let perm = |tag| entries.iter().find(|(t, _, _)| *t == tag).map(|(_, perm, _)| u32::from(*perm & 7));
    let user = perm(USER_OBJ).unwrap_or(mode >> 6 & 7);
    let group = perm(MASK).or(perm(GROUP_OBJ)).unwrap_or(mode >> 3 & 7);
    let other = perm(OTHER).unwrap_or(mode & 7);
    mode & !0o777 | user << 6 | group << 3 | other
}

/// The access ACL after chmod to `mode`.
pub fn value_with(value: &[u8], mode: u32) -> Vec<u8> {
    let Some(entries) = entries(value) else { return value.to_vec() };
    let masked = entries.iter().any(|(tag, _, _)| *tag == MASK);
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        let bits = match tag {
            USER_OBJ => mode >> 6 & 7,
            MASK => mode >> 3 & 7,
            GROUP_OBJ if !masked => mode >> 3 & 7,
            OTHER => mode & 7,
            _ => u32::from(perm),
        };
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&u16::try_from(bits).unwrap_or(perm).to_le_bytes());
        out.extend_from_slice(&id);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut out = 2_u32.to_le_bytes().to_vec();
        for (tag, perm) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        out
    }

    #[test]
    fn the_mask_is_the_group_class() {
        let value = acl(&[(USER_OBJ, 6), (GROUP_OBJ, 7), (MASK, 4), (OTHER, 0)]);
        assert_eq!(mode_with(0o100_777, &value), 0o100_640);
        let after = value_with(&value, 0o100_751);
        assert_eq!(after, acl(&[(USER_OBJ, 7), (GROUP_OBJ, 7), (MASK, 5), (OTHER, 1)]));
        assert_eq!(mode_with(0o100_000, &after), 0o100_751);
    }

    #[test]
    fn rubbish_changes_nothing() {
        assert_eq!(mode_with(0o644, b"xx"), 0o644);
        assert_eq!(value_with(b"xx", 0o600), b"xx");
    }
}
