//! The lower tree: the plain directory in which a volume's files lie.
//!
//! Owns the descriptors of the cache and of an adopted directory, identity by file handle, and the few system calls that need `unsafe`.
//! Knows nothing of journals, locks or FUSE; who calls decides what is allowed.

mod born;
mod creds;
mod freeze;
mod handle;
mod layout;
pub mod missing;
mod mountinfo;
mod progress;
mod shared;
mod signals;
mod stat;
mod sync;
mod words;
pub mod xattr;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use layout::Layout;

pub use born::inherited;
pub use creds::Owner;
pub use creds::administers;
pub use creds::as_owner;
pub use creds::dropping_privileges;
pub use creds::is_capable;
pub use creds::serve;
pub use creds::with_fsetid;
pub use freeze::freeze;
pub use freeze::thaw;
pub use handle::Shape;
pub use layout::ADOPTED;
pub use layout::Source;
pub use mountinfo::Top;
pub use mountinfo::is_writable;
pub use mountinfo::top;
pub use shared::Shared;
pub use shared::close_backing;
pub use shared::put_in_place;
pub use signals::SIGTERM;
pub use signals::Termination;
pub use signals::is_ended;
pub use signals::is_interrupted;
pub use stat::Stat;
pub use stat::kind;
pub use sync::change_mode;
pub use sync::is_written;
pub use sync::reopen;
pub use sync::start_writeback;
pub use words::Words;

/// Why a cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A directory cannot be made or opened.
    #[error("directory {path}: {errno}")]
    Directory {
        /// Directory concerned.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The file system gives no file handles of a known kind.
    #[error("directory {path}: its file system is none of ext4, xfs, btrfs, tmpfs; use one of these")]
    Unsupported {
        /// Cache directory, or the adopted one.
        path: PathBuf,
    },
    /// The tree is not the one that the journal is about.
    #[error(
        "the tree of {path} is not the one of before: is its disk missing, or was the cache copied? Bring the disk back; or, to \
         begin anew with what other nodes have, move the cache away. (To go on with this tree as it is: remove {root}; what is \
         not in it is removed on all nodes)"
    )]
    OtherRoot {
        /// Where the tree lies.
        path: PathBuf,
        /// What remembers its identity.
        root: PathBuf,
    },
    /// A directory beside the tree is a mount point or on another file system.
    #[error("directory {path}: not on the file system of the tree")]
    Elsewhere {
        /// Directory concerned.
        path: PathBuf,
    },
}

/// Descriptors of directories kept open: each costs one lower inode in memory.
const DIRECTORIES: usize = 512;
/// statfs(2): type of ext2, ext3 and ext4.
const EXT4: i64 = 0xef53;
/// statfs(2): type of XFS.
const XFS: i64 = 0x5846_5342;

/// A directory of the lower tree, opened for reading.
#[derive(Debug)]
pub struct Dir {
    /// Its identity.
    pub id: FileId,
    fd: OwnedFd,
    /// Known to have no default ACL.
    plain: AtomicBool,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    fn new(id: FileId, fd: OwnedFd) -> Dir {
        Dir { id, fd, plain: AtomicBool::new(false) }
    }
}

/// The opened directories of a volume.
#[derive(Debug)]
pub struct Lower {
    /// The cache directory itself.
    pub path: PathBuf,
    /// The adopted directory, where that is the tree.
    pub source: Option<PathBuf>,
    shape: Shape,
    mount: i32,
    tree: Arc<Dir>,
    staging: Arc<Dir>,
    limbo: OwnedFd,
    history: OwnedFd,
    stage: OwnedFd,
    home: OwnedFd,
    labels: bool,
    fine_stamps: bool,
    one_flush: bool,
    directories: Mutex<BTreeMap<FileId, Arc<Dir>>>,
}

impl Lower {
    /// Opens a cache directory and makes what is missing in it: kml, tree, stage, staging, limbo, history and lml.
    /// With a `source` that directory is the tree, and the last five lie in [`ADOPTED`] in it.
    pub fn open(path: &Path, source: Option<&Source>) -> Result<Lower, LowerError> {
        let layout = Layout::open(path, source)?;
        let tree_path = source.map_or(path, |source| &source.path);
        let failed = |errno| LowerError::Directory { path: tree_path.to_owned(), errno };
        let unsupported = || LowerError::Unsupported { path: tree_path.to_owned() };
        let (shape, mount) = match Shape::learn(layout.tree.as_fd()) {
            Ok(learned) => learned.ok_or_else(unsupported)?,
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => return Err(unsupported()),
            Err(errno) => return Err(failed(errno)),
        };
        let open = |name: &str| -> Result<(FileId, OwnedFd), LowerError> {
            let fd = layout.directory(name)?;
            let path = layout.home_path.join(name);
            match shape.identify(fd.as_fd(), b"", mount) {
                Ok(id) => Ok((id, fd)),
                Err(Errno::XDEV) => Err(LowerError::Elsewhere { path }),
                Err(errno) => Err(LowerError::Directory { path, errno }),
            }
        };
        let (staging, staging_fd) = open("staging")?;
        let (_, limbo) = open("limbo")?;
        let (_, history) = open("history")?;
        let (_, stage) = open("stage")?;
        let root = shape.identify(layout.tree.as_fd(), b"", mount).map_err(failed)?;
        layout.is_same_root(root)?;
        let Layout { tree, home, kml, .. } = layout;
        let labels = xattr::list(&tree).unwrap_or_default().iter().any(|name| is_label(name));
        let fine_stamps = has_fine_stamps(stage.as_fd());
        let one_flush = has_one_flush(&tree, &kml).map_err(failed)?;
        Ok(Lower {
            labels,
            fine_stamps,
            one_flush,
            path: path.to_owned(),
            source: source.map(|source| source.path.clone()),
            shape,
            mount,
            tree: Arc::new(Dir::new(root, tree)),
            staging: Arc::new(Dir::new(staging, staging_fd)),
            limbo,
            history,
            stage,
            home,
            directories: Mutex::new(BTreeMap::new()),
        })
    }

    /// Whether this entry is presto's own in an adopted directory: for users and for replays there is no such name.
    #[must_use]
    pub fn hides(&self, dir: FileId, name: &[u8]) -> bool {
        self.source.is_some() && dir == self.tree.id && name == ADOPTED.as_bytes()
    }

    /// Directory with what must be on the tree's file system and is nobody's but presto's.
    #[must_use]
    pub fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    /// Whether fsync of a file in the tree makes durable what of the journal has reached the device.
    #[must_use]
    pub fn flushes_journal(&self) -> bool {
        self.one_flush
    }

    /// Whether the same holds for syncfs: ext4 flushes the device in any case, XFS only where its own log has something new.
    #[must_use]
    pub fn syncs_journal(&self) -> bool {
        self.one_flush && self.shape == Shape::Ext
    }

    /// Identity of the tree's root.
    #[must_use]
    pub fn root(&self) -> FileId {
        self.tree.id
    }

    /// Identity of the hidden directory for objects in each other's way.
    #[must_use]
    pub fn staging(&self) -> FileId {
        self.staging.id
    }

    /// Directory with the contents of removed objects.
    #[must_use]
    pub fn limbo(&self) -> BorrowedFd<'_> {
        self.limbo.as_fd()
    }

    /// Directory with earlier contents.
    #[must_use]
    pub fn history(&self) -> BorrowedFd<'_> {
        self.history.as_fd()
    }

    /// Directory with staged contents.
    #[must_use]
    pub fn stage(&self) -> BorrowedFd<'_> {
        self.stage.as_fd()
    }

    /// Which file system this is.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// A directory of which a descriptor is kept.
    pub(crate) fn kept_dir(&self, id: FileId) -> Option<Arc<Dir>> {
        if id == self.tree.id {
            return Some(Arc::clone(&self.tree));
        }
        if id == self.staging.id {
            return Some(Arc::clone(&self.staging));
        }
        self.directories.lock().get(&id).map(Arc::clone)
    }

    /// A directory by identity. ESTALE: gone; ENOTDIR: something else.
    pub fn dir(&self, id: FileId) -> Result<Arc<Dir>, Errno> {
        if let Some(dir) = self.kept_dir(id) {
            return Ok(dir);
        }
        let fd = self.open_id(id, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let dir = Arc::new(Dir::new(id, fd));
        let mut directories = self.directories.lock();
        if directories.len() >= DIRECTORIES {
            // Which one goes does not matter much; the next in order is cheap to find and differs from time to time.
            let victim = directories.range(id..).next().or(directories.iter().next()).map(|(id, _)| *id);
            if let Some(victim) = victim {
                directories.remove(&victim);
            }
        }
        directories.insert(id, Arc::clone(&dir));
        Ok(dir)
    }

    /// Default ACL of a directory, if it has one. Remembered until `acl_changed`.
    pub fn default_acl(&self, dir: &Dir) -> Result<Option<Vec<u8>>, Errno> {
        if dir.plain.load(Ordering::Acquire) {
            return Ok(None);
        }
        match xattr::get(dir, xattr::ACL_DEFAULT) {
            Ok(acl) => Ok(Some(acl)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {
                dir.plain.store(true, Ordering::Release);
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The default ACL of a directory was set or removed. Call it after the change, under the directory's lock.
    pub fn acl_changed(&self, id: FileId) {
        if let Ok(dir) = self.dir(id) {
            dir.plain.store(false, Ordering::Release);
        }
    }

    /// Whether a security module labels files here.
    #[must_use]
    pub fn has_labels(&self) -> bool {
        self.labels
    }

    /// Whether two changes with a look at the attributes between them always get different stamps.
    #[must_use]
    pub fn has_fine_stamps(&self) -> bool {
        self.fine_stamps
    }

    /// Drops the kept descriptor of a directory that was removed.
    pub fn forget_dir(&self, id: FileId) {
        self.directories.lock().remove(&id);
    }

    /// Opens a file by identity with these flags. ESTALE: no such file any more.
    pub fn open_id(&self, id: FileId, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.shape.open(self.tree.as_fd(), id, flags)
    }

    /// An O_PATH descriptor of a file by identity.
    pub fn path_fd(&self, id: FileId) -> Result<OwnedFd, Errno> {
        self.open_id(id, OFlags::PATH)
    }

    /// Attributes of a file by identity.
    pub fn stat(&self, id: FileId) -> Result<Stat, Errno> {
        Stat::of(self.path_fd(id)?)
    }

    /// Identity of an open file.
    pub fn identify(&self, fd: impl AsFd) -> Result<FileId, Errno> {
        self.shape.identify(fd.as_fd(), b"", self.mount)
    }

    /// Identity of an entry; symbolic links are not followed.
    pub fn child(&self, dir: impl AsFd, name: &[u8]) -> Result<FileId, Errno> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        self.shape.identify(dir.as_fd(), name, self.mount)
    }

    /// Identity of the directory that holds this one. The root holds itself: what is above it is not the volume's.
    pub fn parent(&self, dir: &Dir) -> Result<FileId, Errno> {
        if dir.id == self.root() { Ok(dir.id) } else { self.shape.identify(dir.as_fd(), b"..", self.mount) }
    }

    /// Path of an entry from the tree's root, for people.
    #[must_use]
    pub fn shown(&self, dir: FileId, name: &[u8]) -> String {
        let path = self.dir(dir).and_then(|dir| self.path_of(&dir, name));
        String::from_utf8_lossy(&path.unwrap_or_else(|_| name.to_vec())).escape_debug().to_string()
    }

    /// Path of an entry from the tree's root. ENOENT: the directory is not in the tree.
    pub fn path_of(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>, Errno> {
        if dir.id == self.root() {
            return Ok(name.to_vec());
        }
        let place = |dir: &Dir| rustix::fs::readlink(xattr::magic(dir), Vec::new());
        let (root, dir) = (place(&self.tree)?.into_bytes(), place(dir)?.into_bytes());
        let below = dir.strip_prefix(root.as_slice()).ok_or(Errno::NOENT)?;
        Ok([below.strip_prefix(b"/").unwrap_or(below), b"/", name].concat())
    }

    /// One of the paths of a file, from the tree's root. ENOENT: it has no name in the tree.
    pub fn a_path_of(&self, file: impl AsFd) -> Result<Vec<u8>, Errno> {
        let root = rustix::fs::readlink(xattr::magic(&self.tree), Vec::new())?.into_bytes();
        let path = rustix::fs::readlink(xattr::magic(&file), Vec::new())?.into_bytes();
        let below = path.strip_prefix(root.as_slice()).and_then(|below| below.strip_prefix(b"/"));
        below.filter(|below| !below.ends_with(b" (deleted)")).map(<[u8]>::to_vec).ok_or(Errno::NOENT)
    }

    /// The mark of what a name stands for.
    pub fn local_mark(&self, dir: impl AsFd, name: &[u8]) -> Result<Option<Local>, Errno> {
        local_mark(xattr::get_at(dir, name, xattr::LOCAL))
    }

    /// The same of a file or directory.
    pub fn local_mark_of(&self, file: impl AsFd) -> Result<Option<Local>, Errno> {
        local_mark(xattr::get(file, xattr::LOCAL))
    }

    /// Marks what a name stands for, or takes the mark away.
    pub fn set_local(&self, dir: impl AsFd, name: &[u8], local: Option<Local>) -> Result<(), Errno> {
        match local {
            Some(mark) => xattr::set_at(&dir, name, xattr::LOCAL, &[mark as u8])?,
            None => match xattr::remove_at(&dir, name, xattr::LOCAL) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            },
        }
        Ok(())
    }

    /// The same of a directory itself.
    pub fn set_local_dir(&self, dir: impl AsFd, local: Local) -> Result<(), Errno> {
        xattr::set(dir, xattr::LOCAL, &[local as u8], rustix::fs::XattrFlags::empty())
    }

    /// Identity of an entry, `None` if there is none.
    pub fn find(&self, dir: impl AsFd, name: &[u8]) -> Result<Option<FileId>, Errno> {
        match self.child(dir, name) {
            Ok(id) => Ok(Some(id)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// What a mark says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Local {
    /// It stays on this node: its name was excluded when it was made.
    Excluded = b'e',
    /// So does this directory, for as long as nothing but what stays here is in it: others have removed it.
    Left = b'l',
    /// It no longer does, and no record tells of it yet: a replay needs its name.
    Wanted = b'w',
}

impl Local {
    /// Whether the object stays on this node.
    #[must_use]
    pub fn stays(self) -> bool {
        self != Local::Wanted
    }
}

fn local_mark(value: Result<Vec<u8>, Errno>) -> Result<Option<Local>, Errno> {
    let known = [Local::Excluded, Local::Left, Local::Wanted];
    match value {
        Ok(value) => Ok(known.into_iter().find(|mark| value.first() == Some(&(*mark as u8)))),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn is_label(name: &[u8]) -> bool {
    name.starts_with(b"security.") && name != xattr::CAPABILITY
}

/// Whether both lie on one device and an fsync there ends with a flush of that device, which ext4 and XFS always do.
/// A journal's blocks are written in place, so nothing else is needed for them. (A file system that writes elsewhere, as
/// btrfs does, would need its own commit.)
fn has_one_flush(tree: &OwnedFd, kml: &OwnedFd) -> Result<bool, Errno> {
    let in_place = matches!(rustix::fs::fstatfs(kml)?.f_type, EXT4 | XFS);
    Ok(in_place && rustix::fs::fstat(tree)?.st_dev == rustix::fs::fstat(kml)?.st_dev)
}

/// Tries it: a clock tick is some milliseconds, a write far less.
fn has_fine_stamps(stage: BorrowedFd<'_>) -> bool {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(stage, c".", flags, Mode::from_raw_mode(0o600)) else { return false };
    let mut last = None;
    for _ in 0..16 {
        if rustix::io::pwrite(&file, b"x", 0).is_err() {
            return false;
        }
        let Ok(stat) = Stat::of(&file) else { return false };
        let stamps = Some((stat.attributes.mtime, stat.attributes.ctime));
        if stamps == last {
            return false;
        }
        last = stamps;
    }
    true
}

/// The kernel's word in an error of the standard library.
pub(crate) fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
