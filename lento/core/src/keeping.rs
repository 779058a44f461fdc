//! Which contents a client keeps without being asked for them.

/// How much of a volume a client keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keeping {
    /// All of it.
    #[default]
    All,
    /// The tree, and the contents that somebody has opened or that are pinned.
    OnDemand {
        /// What is pinned.
        pins: Vec<Pin>,
    },
}

impl Keeping {
    /// Whether the content of what has this path from the root, beginning with `/`, is kept in any case.
    #[must_use]
    pub fn keeps(&self, path: impl FnOnce() -> String) -> bool {
        match self {
            Keeping::All => true,
            Keeping::OnDemand { pins } if pins.is_empty() => false,
            Keeping::OnDemand { pins } => {
                let path = path();
                pins.iter().any(|pin| pin.holds(&path))
            }
        }
    }
}

/// A path, or a pattern of paths, with everything below: `*` and `?` stand for what is in one name, `**` for any names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin(Vec<String>);

impl Pin {
    /// As people write it, with `/` at the beginning or without.
    #[must_use]
    pub fn new(pattern: &str) -> Pin {
        Pin(pattern.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Whether this path is pinned, or a directory above it.
    #[must_use]
    pub fn holds(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        matches_path(&self.0, &names)
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.0.join("/"))
    }
}

fn matches_path(pattern: &[String], names: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return true };
    if first == "**" {
        return (0..=names.len())
            .any(|skip| names.get(skip..).is_some_and(|names| matches_path(rest, names)));
    }
    let Some((name, below)) = names.split_first() else { return false };
    matches_name(first.as_bytes(), name.as_bytes()) && matches_path(rest, below)
}

/// Goes back to the last `*` where it has to, so that the time is bounded by the product of the lengths.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut star = None;
    while let Some(byte) = name.get(read) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => (at, read) = (at + 1, read + 1),
            _ => {
                let Some((last, from)) = star else { return false };
                star = Some((last, from + 1));
                (at, read) = (last + 1, from + 1);
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_what_it_names_and_everything_below() {
        for (pattern, path, holds) in [
            ("/a/b", "/a/b", true),
            ("a/b/", "/a/b/c/d", true),
            ("/a/b", "/a/bc", false),
            ("/a/b", "/a", false),
            ("/a/*/c", "/a/x/c/d", true),
            ("/a/*/c", "/a/x/y/c", false),
            ("/**/c", "/a/x/y/c", true),
            ("**/*.so.?", "/lib/x/libz.so.1", true),
            ("*.so", "/lib/x.so", false),
            ("/", "/anything", true),
            ("a*b*c", "/axxbyybzc", true),
            ("a*b*c", "/axxbyybz", false),
        ] {
            assert_eq!(Pin::new(pattern).holds(path), holds, "{pattern} {path}");
        }
    }
}
