//! Adoption: a directory that is there already becomes a volume's tree.
//!
//! Decides whether it may, before anything is opened or made in it. The marker in the directory names the volume, so that
//! neither another volume nor an empty mount point, whose disk is missing, is ever taken for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use intermezzo_kml::{KmlError, Reader};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Spec;
use super::mount::clear;
use crate::lower::{ADOPTED, Source, errno_of};

/// Name of the marker: the volume's uid in hexadecimal digits.
const MARKER: &str = "volume";
/// Symbolic links to follow, as many as the kernel does.
const LINKS: usize = 40;
/// statfs(2) types of ext4, XFS, btrfs, tmpfs.
const FILE_SYSTEMS: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// What other volumes of this node have, and what may be adopted.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Directories that may be adopted, with all below them.
    pub allowed: Vec<PathBuf>,
    /// The other volumes in the mount table.
    pub others: Vec<Spec>,
}

/// Takes dead covers of an earlier presto away from the directory. As for [`clear`], nobody may be serving it.
pub(super) fn uncover(source: &Path) -> Result<(), String> {
    clear(&place(source))
}

/// The path without symbolic links, as far as it can be told: there may be a dead mount at its end, of which the kernel
/// tells nothing more.
fn place(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let parent = at.parent().and_then(|parent| parent.canonicalize().ok());
        let Some((parent, name)) = parent.zip(at.file_name()) else { break };
        let here = parent.join(name);
        match std::fs::read_link(&here) {
            Ok(target) => at = parent.join(target),
            Err(_) => return here,
        }
    }
    at
}

impl Surroundings {
    /// Makes the volume's source ready to be opened: its path without symbolic links, or why it cannot be. `None` for a
    /// volume whose tree lies in its cache. `kept`: the directory itself, where a mount that is to go on covers it.
    pub fn adopt(&self, spec: &Spec, kept: Option<OwnedFd>) -> Result<Option<Source>, String> {
        self.apart(&[("cache", &spec.cache), ("mount point", &spec.mountpoint)])?;
        let Some(source) = &spec.source else { return Ok(None) };
        let text = |what: &str| format!("source {}: {what}", source.display());
        // Before a cover is taken away: it may be another's mount.
        let at = place(source);
        self.may_adopt(&at)?;
        let (real, tree) = match kept {
            // A look at the path would wait for whoever is to serve the cover.
            Some(tree) => (at, tree),
            None => {
                uncover(source)?;
                let real = source.canonicalize().map_err(|error| text(&error.to_string()))?;
                self.may_adopt(&real)?;
                let tree = open(&real).map_err(|errno| text(&errno.to_string()))?;
                (real, tree)
            }
        };
        for (what, path) in [("cache", &spec.cache), ("mount point", &spec.mountpoint)] {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            if real.starts_with(&path) || path.starts_with(&real) {
                return Err(text(&format!("it and the {what} {} lie within each other", path.display())));
            }
        }
        let kind = rustix::fs::fstatfs(&tree).map_err(|errno| text(&errno.to_string()))?.f_type;
        if !FILE_SYSTEMS.contains(&kind) {
            return Err(text("its file system is none of ext4, xfs, btrfs, tmpfs"));
        }
        mark(&tree, spec).map_err(|reason| text(&reason))?;
        Ok(Some(Source { path: real, tree: Some(Arc::new(tree)) }))
    }

    fn may_adopt(&self, source: &Path) -> Result<(), String> {
        if source.parent().is_none() || !self.allowed.iter().any(|allowed| is_below(source, allowed)) {
            return Err(format!(
                "source {0}: presto was not told that it may adopt this directory; start it with \
                 --allow-source {0} or with a directory above it",
                source.display()
            ));
        }
        for other in &self.others {
            for path in
                [Some(&other.cache), Some(&other.mountpoint), other.source.as_ref()].into_iter().flatten()
            {
                if path.starts_with(source) || source.starts_with(path) {
                    return Err(format!(
                        "source {}: it and {} of volume {} lie within each other",
                        source.display(),
                        path.display(),
                        other.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// No path of this volume lies in a directory that another one has adopted.
    fn apart(&self, paths: &[(&str, &PathBuf)]) -> Result<(), String> {
        for (other, source) in self.others.iter().filter_map(|other| Some((other, other.source.as_ref()?))) {
            if let Some((what, path)) =
                paths.iter().find(|(_, path)| path.starts_with(source) || source.starts_with(path))
            {
                return Err(format!(
                    "{what} {}: it and the source {} of volume {} lie within each other",
                    path.display(),
                    source.display(),
                    other.name
                ));
            }
        }
        Ok(())
    }
}

fn is_below(path: &Path, allowed: &Path) -> bool {
    path.starts_with(allowed.canonicalize().unwrap_or_else(|_| place(allowed)))
}

/// The marker must be this volume's, or the volume must be new.
fn mark(tree: &OwnedFd, spec: &Spec) -> Result<(), String> {
    match marker(tree)? {
        Some(uid) if uid == spec.uid => return Ok(()),
        Some(uid) => return Err(format!("it is adopted by another volume (uid {uid:#x})")),
        None => {}
    }
    match Reader::open(&spec.cache.join("kml")) {
        Err(KmlError::Absent { .. }) => {}
        _ => {
            let cache = spec.cache.display();
            return Err(format!(
                "it is not the directory that was adopted (cache {cache} has a journal, the directory no marker): \
                 is its disk mounted?"
            ));
        }
    }
    write(tree, spec.uid).map_err(|errno| format!("cannot be marked as adopted: {errno}"))
}

fn marker(tree: &OwnedFd) -> Result<Option<u64>, String> {
    let failed = |errno: Errno| format!("its marker cannot be read: {errno}");
    let home = match rustix::fs::openat(tree, ADOPTED, DIRECTORY, Mode::empty()) {
        Ok(home) => home,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(&home, MARKER, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let mut text = String::new();
    file.take(64).read_to_string(&mut text).map_err(|error| failed(errno_of(error)))?;
    let uid = u64::from_str_radix(text.trim(), 16);
    uid.map(Some).map_err(|_| format!("its marker {ADOPTED}/{MARKER} holds no uid"))
}

/// Durable when it returns.
fn write(tree: &OwnedFd, uid: u64) -> Result<(), Errno> {
    match rustix::fs::mkdirat(tree, ADOPTED, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let home = rustix::fs::openat(tree, ADOPTED, DIRECTORY, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let temporary = format!("{MARKER}.new");
    let mut file = File::from(rustix::fs::openat(&home, &temporary, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(format!("{uid:016x}\n").as_bytes()).map_err(errno_of)?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(&home, &temporary, &home, MARKER)?;
    rustix::fs::fsync(&home)?;
    rustix::fs::fsync(tree)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}
