//! What has come since then: found by comparing directories with what was in them, removed name by name.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use intermezzo_proto::v1::PastNode;
use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::Errno;

use super::LIST;
use crate::commands::place::join;
use crate::commands::resolve::{DIR, WITHIN};

type Names = Vec<Vec<u8>>;

/// Names that stand now, at or below `top`, in directories of then, and did not stand then.
pub(super) fn find(root: &OwnedFd, top: &[Vec<u8>], nodes: &[PastNode]) -> Result<Vec<(Names, FileType)>> {
    let mut then: BTreeMap<Names, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for node in nodes {
        let path: Names = node.path.iter().map(|name| name.to_vec()).collect();
        let mode =
            node.condition.as_ref().and_then(|condition| condition.attributes).unwrap_or_default().mode;
        if let Some((name, above)) = path.split_last() {
            then.entry(above.to_vec()).or_default().insert(name.clone());
        }
        if FileType::from_raw_mode(mode) == FileType::Directory {
            then.entry(path).or_default();
        }
    }
    let mut extras = Vec::new();
    for (below, names) in then {
        let path: Names = top.iter().cloned().chain(below).collect();
        let Some(dir) = open(root, &path)? else { continue };
        for (name, kind) in list(&dir)? {
            if !names.contains(&name) && !stays_here(&dir, &name) {
                let mut path = path.clone();
                path.push(name);
                extras.push((path, kind));
            }
        }
    }
    Ok(extras)
}

/// Removes a name with all that is in it, from the leaves up; how many names. What stays on this node stays.
pub(super) fn remove_extras(root: &OwnedFd, path: &[Vec<u8>], kind: FileType) -> Result<u64> {
    let mut removed = 0;
    let mut todo = vec![(path.to_vec(), kind, false)];
    while let Some((path, kind, is_emptied)) = todo.pop() {
        let shown = || join(Path::new("/"), &path).display().to_string();
        let Some((name, above)) = path.split_last() else { continue };
        if kind == FileType::Directory && !is_emptied {
            todo.push((path.clone(), kind, true));
            if let Some(dir) = open(root, &path)? {
                for (name, kind) in list(&dir)? {
                    if !stays_here(&dir, &name) {
                        let mut inner = path.clone();
                        inner.push(name);
                        todo.push((inner, kind, false));
                    }
                }
            }
            continue;
        }
        let Some(dir) = open(root, above)? else { continue };
        let flags = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(&dir, name.as_slice(), flags) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno).with_context(|| format!("cannot remove {}", shown())),
        }
    }
    Ok(removed)
}

/// `None`: there is no such directory.
fn open(root: &OwnedFd, path: &[Vec<u8>]) -> Result<Option<OwnedFd>> {
    let at = if path.is_empty() { PathBuf::from(".") } else { join(Path::new(""), path) };
    match rustix::fs::openat2(root, &at, DIR, Mode::empty(), WITHIN) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("cannot open {}", at.display())),
    }
}

fn list(dir: &OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let readable = rustix::fs::openat(dir, c".", LIST, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&readable)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            names.push((name.to_vec(), FileType::from_raw_mode(stat.st_mode)));
        }
    }
    Ok(names)
}

/// It is excluded: no history tells of it.
fn stays_here(dir: impl AsFd, name: &[u8]) -> bool {
    let path = [format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).as_bytes(), name].concat();
    let mut value = [0; 16];
    match rustix::fs::lgetxattr(path.as_slice(), c"user.intermezzo.safe", &mut value) {
        Ok(length) => value.get(..length) == Some(b"excluded"),
        // Gone, or nothing that can have such an attribute.
        Err(Errno::NOENT | Errno::NODATA) => false,
        // Nobody can say, and what is excluded is nowhere else.
        Err(_) => true,
    }
}
