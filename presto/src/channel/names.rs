//! Names that come over the channel: what is allowed in them.

/// Longest volume name: two DNS labels and a slash, generously.
const MAX_VOLUME: usize = 320;

/// Whether this is `namespace/name`, both DNS subdomains: it becomes part of log lines and of paths.
#[must_use]
pub fn volume_name(name: &str) -> bool {
    let label = |part: &str| {
        part.len() <= 253
            && part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.')
    };
    name.len() <= MAX_VOLUME && name.split_once('/').is_some_and(|(space, name)| label(space) && label(name))
}

/// Whether this names a staged file: `[0-9a-f-]{1,80}`.
#[must_use]
pub fn stage_name(name: &str) -> bool {
    (1..=80).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// Whether this can be one entry of a directory.
#[must_use]
pub fn entry_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_are_two_labels() {
        assert!(volume_name("shop/catalog"));
        assert!(volume_name("a.b/c-1"));
        for bad in ["", "shop", "shop/", "/x", "a/b/c", "A/b", "a/..", "../b", "a/b c", "-a/b"] {
            assert!(!volume_name(bad), "{bad}");
        }
    }

    #[test]
    fn stage_names_cannot_leave_the_directory() {
        assert!(stage_name("00ff-12"));
        for bad in ["", "..", "a/b", "xyz", &"a".repeat(81)] {
            assert!(!stage_name(bad), "{bad}");
        }
    }

    #[test]
    fn entry_names_are_one_component_of_any_bytes() {
        assert!(entry_name(b"a b\xff\n"));
        assert!(entry_name(&[b'x'; 255]));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(!entry_name(bad), "{bad:?}");
        }
    }
}
