//! The one removal of a tree: the cache of a volume that somebody wanted deleted, after it is no longer served.
//!
//! Decides what may be removed, by the uid in the journal, and sets it aside before anything is taken from it, so that its
//! name is free for another volume. `removal` does the work. Recovery never comes here, and an adopted directory is not
//! part of a cache.

mod removal;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{DiscardVolume, Discarded};
use intermezzo_kml::{KmlError, Reader};
use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::Volumes;
use crate::channel::Reply;
use removal::{Budget, Removal};

/// The directory of the journal in a cache.
const JOURNAL: &str = "kml";
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Never through a symbolic link, into another mount, or up.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Why a cache is not removed, or not further.
#[derive(Debug, thiserror::Error)]
enum DiscardError {
    #[error("cache {}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("cache {}: {what}: {errno}", path.display())]
    Failed { path: PathBuf, what: &'static str, errno: Errno },
    #[error("{} cannot be removed: {errno}; remove what keeps it (a mount, or an attribute of chattr), then it goes on", path.display())]
    Kept { path: PathBuf, errno: Errno },
}

impl DiscardError {
    fn errno(&self) -> Errno {
        match self {
            DiscardError::Refused { .. } => Errno::PERM,
            DiscardError::Failed { errno, .. } | DiscardError::Kept { errno, .. } => *errno,
        }
    }
}

impl Volumes {
    /// Does a part of the removal.
    pub(super) fn discard(&self, name: &str, discard: &DiscardVolume) -> Reply {
        match self.try_discard(discard, Budget::of_one_call()) {
            Ok(done) => {
                if done.finished {
                    tracing::info!(target: "volumes", volume = name, cache = discard.cache, "its cache is removed");
                }
                Reply::of(Body::Discarded(done))
            }
            Err(error) => Reply::failure(error.errno(), format!("volume {name}: {error}")),
        }
    }

    fn try_discard(&self, discard: &DiscardVolume, budget: Budget) -> Result<Discarded, DiscardError> {
        let place = Place::of(discard)?;
        self.is_unused(&place, discard)?;
        let Some(parent) = place.parent()? else { return Ok(GONE) };
        let root = match place.set_aside(&parent, discard)? {
            Some(root) => root,
            None => return Ok(GONE),
        };
        let mut removal = Removal::new(&root, place.aside_path(), budget)
            .map_err(|errno| place.failed("cannot be looked at", errno))?;
        let finished = removal.run()?;
        if finished {
            rustix::fs::unlinkat(&parent, &place.aside, rustix::fs::AtFlags::REMOVEDIR)
                .and_then(|()| rustix::fs::fsync(&parent))
                .map_err(|errno| place.failed("its directory cannot be removed", errno))?;
        }
        Ok(Discarded { finished, removed: removal.removed() })
    }

    /// No volume of the mount table has anything to do with it.
    fn is_unused(&self, place: &Place, discard: &DiscardVolume) -> Result<(), DiscardError> {
        let target = if discard.begun { place.aside_path() } else { place.path.clone() };
        for spec in self.table.all() {
            let paths = [Some(&spec.cache), Some(&spec.mountpoint), spec.source.as_ref()];
            let touches = |path: &&PathBuf| path.starts_with(&target) || target.starts_with(path);
            if spec.uid == discard.uid || paths.into_iter().flatten().any(|path| touches(&path)) {
                return Err(place.refused(format!("volume {} is served and uses it", spec.name)));
            }
        }
        Ok(())
    }
}

const GONE: Discarded = Discarded { finished: true, removed: 0 };

/// Where a cache is, and where it lies while it is removed.
struct Place {
    path: PathBuf,
    directory: PathBuf,
    name: String,
    aside: String,
}

impl Place {
    fn of(discard: &DiscardVolume) -> Result<Place, DiscardError> {
        let path = PathBuf::from(&discard.cache);
        let refused = |reason: &str| DiscardError::Refused { path: path.clone(), reason: reason.to_owned() };
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return Err(refused("not a plain absolute path"));
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(refused("not a cache directory"));
        };
        // No volume's name begins with a dot.
        let aside = format!(".discard-{:016x}", discard.uid);
        Ok(Place { directory: directory.to_owned(), name: name.to_owned(), aside, path })
    }

    fn aside_path(&self) -> PathBuf {
        self.directory.join(&self.aside)
    }

    fn refused(&self, reason: impl Into<String>) -> DiscardError {
        DiscardError::Refused { path: self.path.clone(), reason: reason.into() }
    }

    fn failed(&self, what: &'static str, errno: Errno) -> DiscardError {
        DiscardError::Failed { path: self.path.clone(), what, errno }
    }

    /// `None`: not even the directory above it is there.
    fn parent(&self) -> Result<Option<OwnedFd>, DiscardError> {
        match rustix::fs::open(&self.directory, DIRECTORY, Mode::empty()) {
            Ok(parent) => Ok(Some(parent)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("the directory above it cannot be opened", errno)),
        }
    }

    fn open(&self, parent: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, DiscardError> {
        match rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), BENEATH) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::XDEV) => Err(self.refused("it is a mount point; unmount it and remove it by hand")),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(self.refused("it is no directory; remove it by hand")),
            Err(errno) => Err(self.failed("cannot be opened", errno)),
        }
    }

    /// The directory that is to be emptied, under its other name; `None`: there is none.
    fn set_aside(&self, parent: &OwnedFd, discard: &DiscardVolume) -> Result<Option<OwnedFd>, DiscardError> {
        if let Some(root) = self.open(parent, &self.aside)? {
            self.is_of(&root, discard.uid)?;
            return Ok(Some(root));
        }
        if discard.begun {
            return Ok(None);
        }
        let Some(root) = self.open(parent, &self.name)? else { return Ok(None) };
        self.is_of(&root, discard.uid)?;
        rustix::fs::renameat_with(parent, &self.name, parent, &self.aside, RenameFlags::NOREPLACE)
            .and_then(|()| rustix::fs::fsync(parent))
            .map_err(|errno| self.failed("cannot be set aside", errno))?;
        tracing::info!(target: "volumes", cache = %self.path.display(), aside = self.aside, "a deleted volume's cache is removed");
        Ok(Some(root))
    }

    /// The journal says whose cache it is. It goes last; where it is gone nothing but empty directories may be left.
    fn is_of(&self, root: &OwnedFd, uid: u64) -> Result<(), DiscardError> {
        let journal = match rustix::fs::openat2(root, JOURNAL, DIRECTORY, Mode::empty(), BENEATH) {
            Ok(journal) => journal,
            Err(Errno::NOENT) => return self.is_empty(root, None),
            Err(errno) => return Err(self.failed("its journal cannot be opened", errno)),
        };
        // By descriptor, so that it is this directory's whatever happens to the path.
        let path = PathBuf::from(format!("/proc/self/fd/{}", journal.as_raw_fd()));
        match Reader::open(&path) {
            Ok(reader) if reader.volume() == uid => Ok(()),
            Ok(reader) => Err(self.refused(format!(
                "its journal is of another volume (uid {:#x}, not {uid:#x}); if nobody needs it, remove it by hand",
                reader.volume()
            ))),
            Err(KmlError::Absent { .. }) => self.is_empty(root, Some(&journal)),
            Err(error) => Err(self.refused(format!("its journal cannot be read ({error}); remove it by hand"))),
        }
    }

    fn is_empty(&self, root: &OwnedFd, journal: Option<&OwnedFd>) -> Result<(), DiscardError> {
        let bare = || -> Result<bool, Errno> {
            let journals = journal.map_or(Ok(Vec::new()), |journal| removal::names(journal.as_fd(), 1))?;
            let names = removal::names(root.as_fd(), 2)?;
            Ok(journals.is_empty() && names.iter().all(|name| name.to_bytes() == JOURNAL.as_bytes()))
        };
        if bare().map_err(|errno| self.failed("cannot be listed", errno))? {
            return Ok(());
        }
        Err(self.refused(
            "there is no journal in it that says whose it is; if nobody needs it, remove it by hand",
        ))
    }
}

impl From<(&Path, Errno)> for DiscardError {
    fn from((path, errno): (&Path, Errno)) -> DiscardError {
        DiscardError::Kept { path: path.to_owned(), errno }
    }
}
