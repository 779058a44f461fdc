//! What a volume is to be, as Lento said it and the mount table keeps it.

use std::path::{Component, PathBuf};
use std::time::Duration;

use intermezzo_channel::v1;
use intermezzo_kml as kml;
use serde::{Deserialize, Serialize};

use crate::channel::{NoLento, volume_name};
use crate::filter;
use crate::filter::Durability;
use crate::lower::Source;

/// Who may change the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// May change it.
    #[default]
    ReadWrite,
    /// Not: EROFS.
    ReadOnly,
}

/// What users' updates do when the journal is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenFull {
    /// Wait, then ENOSPC.
    #[default]
    Block,
    /// EROFS until there is space.
    ReadOnly,
}

/// How users' updates are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    /// All of them.
    #[default]
    Optimistic,
    /// While the permit is here.
    Permits,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// `namespace/name`.
    pub name: String,
    /// Random id of the cache.
    pub uid: u64,
    /// Cache directory.
    pub cache: PathBuf,
    /// Where users see it.
    pub mountpoint: PathBuf,
    /// The adopted directory that is its tree; none: the one in the cache.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// Lento knows everything in the adopted directory: users may write.
    #[serde(default)]
    pub adopted: bool,
    /// Users of this node.
    #[serde(default)]
    pub access: Access,
    /// Lento, by replays.
    #[serde(default)]
    pub lento_access: Access,
    /// Journal limit in bytes; 0 = default.
    #[serde(default)]
    pub log_max_bytes: u64,
    /// Journal full.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Lento away.
    #[serde(default)]
    pub no_lento: NoLento,
    /// What users' updates need.
    #[serde(default)]
    pub writes: Writes,
    /// Patterns of names that stay on this node, as in `.gitignore`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Most bytes of the tree; 0: no limit.
    #[serde(default)]
    pub max_bytes: u64,
    /// Most inodes of the tree; 0: no limit.
    #[serde(default)]
    pub max_inodes: u64,
    /// Earlier contents are kept.
    #[serde(default)]
    pub history: Option<History>,
    /// What fsync waits for.
    #[serde(default)]
    pub durability: Durability,
}

/// How much is kept of earlier contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Bytes on the disk.
    pub max_bytes: u64,
    /// Longest content that is copied.
    pub copy_bytes: u64,
}

impl Spec {
    /// From the downcall; says what is wrong with it.
    pub(super) fn from_wire(name: &str, set: &v1::SetVolume) -> Result<Spec, String> {
        let spec = Spec {
            name: name.to_owned(),
            uid: set.uid,
            cache: PathBuf::from(&set.cache),
            mountpoint: PathBuf::from(&set.mountpoint),
            source: (!set.source.is_empty()).then(|| PathBuf::from(&set.source)),
            adopted: false,
            access: access(set.access()),
            lento_access: access(set.lento_access()),
            log_max_bytes: set.log_max_bytes,
            when_full: match set.when_full() {
                v1::WhenFull::ReadOnly => WhenFull::ReadOnly,
                v1::WhenFull::Block | v1::WhenFull::Unspecified => WhenFull::Block,
            },
            no_lento: match set.no_lento() {
                v1::NoLento::Fail => NoLento::Fail,
                v1::NoLento::Steal | v1::NoLento::Unspecified => NoLento::Steal,
            },
            writes: match set.writes() {
                v1::Writes::Permits => Writes::Permits,
                v1::Writes::Optimistic | v1::Writes::Unspecified => Writes::Optimistic,
            },
            exclude: set.exclude.clone(),
            max_bytes: set.max_bytes,
            max_inodes: set.max_inodes,
            history: set
                .history
                .map(|history| History { max_bytes: history.max_bytes, copy_bytes: history.copy_bytes }),
            durability: match set.durability() {
                v1::Durability::ServerDisk => Durability::Server,
                v1::Durability::ServerDiskIfThere => Durability::ServerIfThere,
                v1::Durability::LocalDisk | v1::Durability::Unspecified => Durability::Local,
            },
        };
        spec.check()?;
        Ok(spec)
    }

    /// Says what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        if !volume_name(&self.name) {
            return Err(format!("{:?} is not a namespace/name", self.name));
        }
        let mut paths = vec![("cache", &self.cache), ("mountpoint", &self.mountpoint)];
        paths.extend(self.source.as_ref().map(|source| ("source", source)));
        for (what, path) in &paths {
            let plain =
                path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !plain || path.parent().is_none() {
                return Err(format!("{what} {} is not a plain absolute path", path.display()));
            }
        }
        for (at, (what, path)) in paths.iter().enumerate() {
            for (other_what, other) in paths.iter().skip(at + 1) {
                if path.starts_with(other) || other.starts_with(path) {
                    let (path, other) = (path.display(), other.display());
                    return Err(format!("{what} {path} and {other_what} {other} lie within each other"));
                }
            }
        }
        self.exclude().map(drop)
    }

    /// Whether the other says the same place and cache, so that only options differ.
    pub(super) fn same_place(&self, other: &Spec) -> bool {
        self.uid == other.uid
            && self.cache == other.cache
            && self.mountpoint == other.mountpoint
            && self.source == other.source
    }

    /// Whether users of this node may not write, as far as the table tells.
    pub(super) fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly || self.source.is_some() && !self.adopted
    }

    /// The patterns, read.
    pub(super) fn exclude(&self) -> Result<filter::Exclude, String> {
        filter::Exclude::parse(&self.exclude)
    }

    /// As the filter wants it, with the source as it was found.
    pub(super) fn options(&self, source: Option<Source>) -> filter::Options {
        // What does not parse does not come past `check`.
        let exclude = self.exclude().unwrap_or_default();
        filter::Options { journal: self.journal(), when_full: self.when_full(), source, exclude }
    }

    /// Sizes of the journal.
    pub(super) fn journal(&self) -> kml::Config {
        let mut journal = kml::Config { volume: self.uid, ..kml::Config::default() };
        if self.log_max_bytes > 0 {
            journal.max_bytes = self.log_max_bytes;
            // A small log gets small segments: it must hold several, and the reserve besides.
            journal.segment_bytes =
                journal.segment_bytes.min((self.log_max_bytes / 8) & !0xfff).max(64 << 10);
            journal.reserve_bytes = journal.reserve_bytes.min(2 * journal.segment_bytes);
        }
        journal
    }

    pub(super) fn keep(&self) -> Option<filter::history::Keep> {
        let keep =
            |history: History| filter::history::Keep { bytes: history.max_bytes, copy: history.copy_bytes };
        self.history.map(keep)
    }

    pub(super) fn limits(&self) -> filter::Limits {
        let limit = |most: u64| (most > 0).then_some(most);
        filter::Limits { bytes: limit(self.max_bytes), inodes: limit(self.max_inodes) }
    }

    pub(super) fn when_full(&self) -> filter::WhenFull {
        match self.when_full {
            WhenFull::Block => filter::WhenFull::Block(Duration::from_secs(30)),
            WhenFull::ReadOnly => filter::WhenFull::ReadOnly,
        }
    }
}

fn access(access: v1::Access) -> Access {
    match access {
        v1::Access::ReadOnly => Access::ReadOnly,
        v1::Access::ReadWrite | v1::Access::Unspecified => Access::ReadWrite,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cache: &str, mountpoint: &str) -> Spec {
        Spec {
            name: "a/b".to_owned(),
            uid: 1,
            cache: cache.into(),
            mountpoint: mountpoint.into(),
            source: None,
            adopted: false,
            access: Access::default(),
            lento_access: Access::default(),
            log_max_bytes: 0,
            when_full: WhenFull::default(),
            no_lento: NoLento::default(),
            writes: Writes::default(),
            exclude: Vec::new(),
            max_bytes: 0,
            max_inodes: 0,
            history: None,
            durability: Durability::default(),
        }
    }

    #[test]
    fn paths_are_plain_and_apart() {
        assert_eq!(spec("/c", "/m").check(), Ok(()));
        for (cache, mountpoint) in
            [("c", "/m"), ("/c/../d", "/m"), ("/", "/m"), ("/c", "/c/m"), ("/m/c", "/m"), ("/c", "")]
        {
            assert!(spec(cache, mountpoint).check().is_err(), "{cache} {mountpoint}");
        }
        let with = |source: &str| Spec { source: Some(source.into()), ..spec("/c", "/m") };
        assert_eq!(with("/s").check(), Ok(()));
        for source in ["", "s", "/", "/c", "/c/s", "/m/s", "/s/../c"] {
            assert!(with(source).check().is_err(), "{source}");
        }
        assert!(!with("/s").same_place(&with("/t")));
    }

    #[test]
    fn an_adopted_directory_is_for_reading_until_lento_knows_it() {
        let adopting = Spec { source: Some("/s".into()), ..spec("/c", "/m") };
        assert!(adopting.is_read_only());
        assert!(!Spec { adopted: true, ..adopting }.is_read_only());
    }
}
