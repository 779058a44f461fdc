//! Everything a program can see of a tree, and what differs between two.
//!
//! Type, mode, owner, size, modification time to the nanosecond, extended attributes (ACLs among them), device numbers,
//! link targets, which names are one file, link counts, and the sha256 of every content. Not compared: inode numbers,
//! access and change times, sizes and link counts of directories (file systems differ there), the root's own times.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What there is to see of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// File type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size; 0 for a directory.
    pub size: u64,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Link count; 0 for a directory.
    pub links: u64,
    /// Device number of a device node.
    pub rdev: u64,
    /// First name (in order) of the same file.
    pub same_as: PathBuf,
    /// Extended attributes.
    #[serde(with = "pairs")]
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// sha256 of a regular file's content.
    pub hash: Option<[u8; 32]>,
}

/// A tree: entries by path relative to its root, which is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Every name.
    pub entries: BTreeMap<PathBuf, Entry>,
    /// Bytes of content read.
    pub bytes: u64,
}

impl Tree {
    /// Number of regular files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.entries.values().filter(|entry| entry.hash.is_some()).count()
    }

    /// What is not the same in both.
    #[must_use]
    pub fn differences(&self, other: &Tree) -> Vec<Difference> {
        let mut found = Vec::new();
        for (path, ours) in &self.entries {
            match other.entries.get(path) {
                None => found.push(Difference { path: path.clone(), what: "only in the first".into() }),
                Some(theirs) => {
                    let what = ours.differs(theirs, path.as_os_str().is_empty());
                    found.extend(what.map(|what| Difference { path: path.clone(), what }));
                }
            }
        }
        let only_theirs = other.entries.keys().filter(|path| !self.entries.contains_key(*path));
        found.extend(
            only_theirs.map(|path| Difference { path: path.clone(), what: "only in the second".into() }),
        );
        found
    }
}

impl Entry {
    fn differs(&self, other: &Entry, is_root: bool) -> Option<String> {
        let mut facts = Vec::new();
        let mut fact =
            |name: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| facts.push(format!("{name} {a:?} / {b:?}"));
        if self.mode != other.mode {
            fact("mode", &format_args!("{:o}", self.mode), &format_args!("{:o}", other.mode));
        }
        if (self.uid, self.gid) != (other.uid, other.gid) {
            fact("owner", &(self.uid, self.gid), &(other.uid, other.gid));
        }
        if self.size != other.size {
            fact("size", &self.size, &other.size);
        }
        if self.mtime != other.mtime && !is_root {
            fact("mtime", &self.mtime, &other.mtime);
        }
        if self.links != other.links {
            fact("links", &self.links, &other.links);
        }
        if self.rdev != other.rdev {
            fact("device", &self.rdev, &other.rdev);
        }
        if self.same_as != other.same_as {
            fact("one file with", &self.same_as, &other.same_as);
        }
        if self.xattrs != other.xattrs {
            fact("xattrs", &names(&self.xattrs), &names(&other.xattrs));
        }
        if self.target != other.target {
            fact("target", &OsStr::from_bytes(&self.target), &OsStr::from_bytes(&other.target));
        }
        if self.hash != other.hash {
            fact("content", &short(self.hash), &short(other.hash));
        }
        (!facts.is_empty()).then(|| facts.join(", "))
    }
}

/// JSON has no keys but text.
mod pairs {
    use super::{BTreeMap, Deserialize, Serialize};

    pub fn serialize<S: serde::Serializer>(
        map: &BTreeMap<Vec<u8>, Vec<u8>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(to)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, D::Error> {
        Ok(Vec::<(Vec<u8>, Vec<u8>)>::deserialize(from)?.into_iter().collect())
    }
}

fn names(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<String> {
    let one =
        |(name, value): (&Vec<u8>, &Vec<u8>)| format!("{}={}", name.escape_ascii(), value.escape_ascii());
    xattrs.iter().map(one).collect()
}

fn short(hash: Option<[u8; 32]>) -> String {
    let hex = |hash: [u8; 32]| hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    hash.map_or("none".into(), hex)
}

/// One difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, relative to the roots.
    pub path: PathBuf,
    /// What, first / second.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// Walks a tree. Everything must hold still meanwhile.
///
/// # Errors
/// Anything that cannot be read.
pub fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut first_names = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let entry = look(&full, &path, &mut first_names, &mut tree.bytes)
            .with_context(|| format!("cannot read {}", full.display()))?;
        let is_dir = entry.mode & TYPE == DIRECTORY;
        tree.entries.insert(path.clone(), entry);
        if is_dir {
            let mut below: Vec<PathBuf> = fs::read_dir(&full)
                .and_then(|entries| entries.map(|entry| Ok(path.join(entry?.file_name()))).collect())
                .with_context(|| format!("cannot list {}", full.display()))?;
            // In order of name, so that the first name of a file is the same in both trees.
            below.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(below);
        }
    }
    Ok(tree)
}

/// Walks two trees at once.
///
/// # Errors
/// Anything that cannot be read.
pub fn walk_both(first: &Path, second: &Path) -> Result<(Tree, Tree)> {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| walk(second));
        let ours = walk(first)?;
        let theirs =
            other.join().map_err(|_| anyhow::anyhow!("the walk of {} panicked", second.display()))??;
        Ok((ours, theirs))
    })
}

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

fn look(
    full: &Path,
    path: &Path,
    first_names: &mut BTreeMap<(u64, u64), PathBuf>,
    bytes: &mut u64,
) -> io::Result<Entry> {
    let meta = fs::symlink_metadata(full)?;
    let kind = meta.mode() & TYPE;
    let is_dir = kind == DIRECTORY;
    let same_as = match meta.nlink() > 1 && !is_dir {
        true => first_names.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned()).clone(),
        false => PathBuf::new(),
    };
    let target = match kind == SYMLINK {
        true => fs::read_link(full)?.into_os_string().into_vec(),
        false => Vec::new(),
    };
    let hash = if kind == REGULAR { Some(hash(full, bytes)?) } else { None };
    Ok(Entry {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: if is_dir { 0 } else { meta.size() },
        mtime: (meta.mtime(), meta.mtime_nsec()),
        links: if is_dir { 0 } else { meta.nlink() },
        rdev: meta.rdev(),
        same_as,
        xattrs: xattrs(full)?,
        target,
        hash,
    })
}

fn hash(path: &Path, bytes: &mut u64) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
        hasher.update(read);
        *bytes += count as u64;
    }
    Ok(hasher.finalize().into())
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    list.truncate(length);
    let mut all = BTreeMap::new();
    let mut rest = list.as_slice();
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        all.insert(name.to_bytes().to_vec(), value);
        rest = rest.get(name.to_bytes_with_nul().len()..).unwrap_or_default();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn sample(dir: &Path) {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/file"), "content").unwrap();
        fs::hard_link(dir.join("d/file"), dir.join("other")).unwrap();
        symlink("d/file", dir.join("link")).unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(5, 7));
        File::open(dir.join("d/file")).unwrap().set_times(time).unwrap();
        File::open(dir.join("d")).unwrap().set_times(time).unwrap();
        rustix::fs::utimensat(
            rustix::fs::CWD,
            dir.join("link"),
            &rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 1 },
                last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 1 },
            },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }

    fn after(change: impl FnOnce(&Path)) -> Vec<String> {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        sample(a.path());
        sample(b.path());
        change(b.path());
        let (a, b) = walk_both(a.path(), b.path()).unwrap();
        a.differences(&b).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_trees_are_equal() {
        assert_eq!(after(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let keep_time = |path: &Path, change: &dyn Fn()| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            change();
            File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
        };
        let content = after(|dir| {
            keep_time(&dir.join("d/file"), &|| fs::write(dir.join("d/file"), "CONTENT").unwrap())
        });
        assert!(content.iter().all(|line| line.contains("content")), "{content:?}");
        assert_eq!(content.len(), 2, "both names: {content:?}");
        let mode =
            after(|dir| fs::set_permissions(dir.join("d"), fs::Permissions::from_mode(0o700)).unwrap());
        assert!(mode[0].starts_with("d: mode"), "{mode:?}");
        let time = after(|dir| {
            let time =
                fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(5, 8));
            File::open(dir.join("d")).unwrap().set_times(time).unwrap();
        });
        assert!(time[0].contains("mtime (5, 7) / (5, 8)"), "{time:?}");
        let xattr = after(|dir| {
            rustix::fs::setxattr(dir.join("d"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        });
        assert!(xattr[0].contains("xattrs [] / [\"user.x=1\"]"), "{xattr:?}");
        let extra = after(|dir| keep_time(&dir.join("d"), &|| fs::write(dir.join("d/x"), "").unwrap()));
        assert_eq!(extra, ["d/x: only in the second"]);
        let unlinked = after(|dir| {
            let path = dir.join("other");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, "content").unwrap();
            File::open(&path).unwrap().set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
        });
        assert!(unlinked.iter().all(|line| line.contains("links 2 / 1")), "{unlinked:?}");
    }
}
