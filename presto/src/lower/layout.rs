//! Where a volume's directories lie: all in the cache, or those that must be on the tree's file system in the adopted
//! directory, hidden in its root.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use intermezzo_kml::record::FileId;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::LowerError;
use super::errno_of;

/// Name, in the root of an adopted directory, of what presto keeps there. Users neither see nor make it.
pub const ADOPTED: &str = ".intermezzo";

/// File in the cache with the identity of the tree's root, which a journal is about.
const ROOT: &str = "root";

/// Open directories of a volume.
pub(super) struct Layout {
    /// The files.
    pub tree: OwnedFd,
    /// What lies beside them on the same file system.
    pub home: OwnedFd,
    /// Path of `home`, for messages.
    pub home_path: PathBuf,
    /// The journal.
    pub kml: OwnedFd,
    /// Where the root's identity is remembered.
    root: PathBuf,
}

/// An adopted directory.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is, without symbolic links. While the volume is shown, what is there is the mount.
    pub path: PathBuf,
    /// The directory itself, where it is known already: an earlier presto's mount may cover it.
    pub tree: Option<Arc<OwnedFd>>,
}

impl Layout {
    /// Makes what is missing and opens it.
    pub fn open(cache: &Path, source: Option<&Source>) -> Result<Layout, LowerError> {
        make_directory(&cache.join("kml"), 0o700)?;
        let (tree, home_path) = match source {
            None => {
                if !cache.join(ROOT).exists() {
                    // Only the tree is for users' eyes, and they see it through the mount alone.
                    make_directory(&cache.join("tree"), 0o755)?;
                }
                (open_directory(&cache.join("tree"))?, cache.to_owned())
            }
            Some(source) => (source.open()?, source.path.join(ADOPTED)),
        };
        let home = match source {
            None => open_directory(&home_path)?,
            Some(_) => {
                adopted(&tree).map_err(|errno| LowerError::Directory { path: home_path.clone(), errno })?
            }
        };
        let layout = Layout {
            tree,
            home,
            home_path,
            kml: open_directory(&cache.join("kml"))?,
            root: cache.join(ROOT),
        };
        for name in ["stage", "staging", "limbo", "history", "lml"] {
            layout.check(name, rustix::fs::mkdirat(&layout.home, name, Mode::from_raw_mode(0o700)))?;
        }
        Ok(layout)
    }

    /// Opens a directory in `home`.
    pub fn directory(&self, name: &str) -> Result<OwnedFd, LowerError> {
        rustix::fs::openat(&self.home, name, FLAGS, Mode::empty())
            .map_err(|errno| LowerError::Directory { path: self.home_path.join(name), errno })
    }

    /// Whether this is the root of before. An empty directory in its place, because a disk is missing or somebody has
    /// copied the cache, would look like the removal of everything.
    pub fn is_same_root(&self, root: FileId) -> Result<(), LowerError> {
        let io = |error| LowerError::Directory { path: self.root.clone(), errno: errno_of(error) };
        match std::fs::read_to_string(&self.root) {
            Ok(known) if known.trim_end() == root.to_string() => Ok(()),
            Ok(_) => Err(LowerError::OtherRoot { path: self.home_path.clone(), root: self.root.clone() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let new = self.root.with_extension("new");
                let write = || {
                    let mut file = File::create(&new)?;
                    file.write_all(format!("{root}\n").as_bytes())?;
                    file.sync_all()?;
                    std::fs::rename(&new, &self.root)
                };
                write().map_err(io)
            }
            Err(error) => Err(io(error)),
        }
    }

    fn check(&self, name: &str, made: Result<(), Errno>) -> Result<(), LowerError> {
        match made {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(LowerError::Directory { path: self.home_path.join(name), errno }),
        }
    }
}

impl Source {
    fn open(&self) -> Result<OwnedFd, LowerError> {
        match &self.tree {
            None => open_directory(&self.path),
            Some(tree) => rustix::fs::openat(tree, ".", FLAGS, Mode::empty())
                .map_err(|errno| LowerError::Directory { path: self.path.clone(), errno }),
        }
    }
}

/// What presto keeps in an adopted directory; made where it is missing.
fn adopted(tree: &OwnedFd) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(tree, ADOPTED, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let home = rustix::fs::openat(tree, ADOPTED, FLAGS, Mode::empty())?;
    // Whoever made it: nobody but presto has business there.
    rustix::fs::fchmod(&home, Mode::from_raw_mode(0o700))?;
    Ok(home)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn make_directory(path: &Path, mode: u32) -> Result<(), LowerError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(LowerError::Directory { path: path.to_owned(), errno }),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, LowerError> {
    rustix::fs::open(path, FLAGS, Mode::empty())
        .map_err(|errno| LowerError::Directory { path: path.to_owned(), errno })
}
