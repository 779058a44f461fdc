//! A name in a directory that is open: what stands there, and how it is made what it was.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use intermezzo_proto::v1::{Condition, FormerRequest, Time};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::admin::{AdminError, Contents};

/// See the module.
pub(super) struct Spot {
    dir: Rc<OwnedFd>,
    name: Vec<u8>,
}

/// What it is to be.
pub(super) struct Target<'a> {
    pub condition: &'a Condition,
    /// As far as the server knows, what stands there has that content.
    pub content_is_there: bool,
}

/// How what stands there differs from what it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    None,
    Attributes,
    Content,
}

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error(transparent)]
    Agent(#[from] AdminError),
    #[error(transparent)]
    Here(#[from] io::Error),
}

impl From<Errno> for PutError {
    fn from(errno: Errno) -> PutError {
        PutError::Here(errno.into())
    }
}

/// Name and value of an extended attribute.
type Xattr = (Vec<u8>, Vec<u8>);

/// Extended attributes that are not the tree's.
const OWN: &[u8] = b"user.intermezzo.";

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Spot {
    pub fn new(dir: OwnedFd, name: &[u8]) -> Spot {
        Spot { dir: Rc::new(dir), name: name.to_vec() }
    }

    fn stat(&self) -> Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&*self.dir, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub fn kind(&self) -> Result<Option<FileType>, Errno> {
        Ok(self.stat()?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    /// Whether what stands here is a file with more names than this one.
    pub fn has_other_names(&self) -> Result<bool, Errno> {
        let stat = self.stat()?;
        Ok(stat.is_some_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1
        }))
    }

    /// Two names of one file.
    pub fn is_same(&self, other: &Spot) -> bool {
        let of = |spot: &Spot| spot.stat().ok().flatten().map(|stat| (stat.st_dev, stat.st_ino));
        of(self).is_some() && of(self) == of(other)
    }

    /// How it differs from what it is to be.
    pub fn compare(&self, target: &Target<'_>) -> Result<Difference, PutError> {
        let Some(stat) = self.stat()? else { return Ok(Difference::Content) };
        let condition = target.condition;
        let wanted = condition.attributes.unwrap_or_default();
        let kind = FileType::from_raw_mode(wanted.mode);
        let mtime = wanted.mtime.unwrap_or_default();
        let same_time = (stat.st_mtime, stat.st_mtime_nsec as u32) == (mtime.sec, mtime.nsec);
        let same_content = match kind {
            // The server may not have heard of what was written here last: that shows in its time.
            FileType::RegularFile => {
                let size = condition.content.as_ref().map_or(0, |content| content.size);
                target.content_is_there && same_time && u64::try_from(stat.st_size) == Ok(size)
            }
            FileType::Symlink => {
                rustix::fs::readlinkat(&*self.dir, self.name.as_slice(), Vec::new())?.as_bytes()
                    == condition.symlink.as_ref()
            }
            FileType::CharacterDevice | FileType::BlockDevice => stat.st_rdev == wanted.rdev,
            _ => true,
        };
        if !same_content {
            return Ok(Difference::Content);
        }
        let same_mode = kind == FileType::Symlink || stat.st_mode & 0o7777 == wanted.mode & 0o7777;
        let same_owner = (stat.st_uid, stat.st_gid) == (wanted.uid, wanted.gid);
        let same = same_mode && same_owner && self.has_xattrs(condition)?;
        Ok(if same { Difference::None } else { Difference::Attributes })
    }

    fn has_xattrs(&self, condition: &Condition) -> Result<bool, Errno> {
        let mut wanted: Vec<Xattr> =
            condition.xattrs.iter().map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec())).collect();
        wanted.sort();
        let mut present = xattrs(&magic(&self.object()?))?;
        present.sort();
        Ok(wanted == present)
    }

    /// What stands here, whatever the name leads to later.
    fn object(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.dir, self.name.as_slice(), flags, Mode::empty())
    }

    pub fn make_dir(&self, mode: u32) -> Result<(), Errno> {
        rustix::fs::mkdirat(&*self.dir, self.name.as_slice(), Mode::from_raw_mode(mode))
    }

    /// Makes it anew beside its place and renames it over what stands there.
    pub fn put(&self, condition: &Condition, volume: &str, contents: &mut Contents) -> Result<(), PutError> {
        let wanted = condition.attributes.unwrap_or_default();
        let new = self.beside();
        let name = new.name.as_slice();
        let kind = FileType::from_raw_mode(wanted.mode);
        match kind {
            FileType::Symlink => rustix::fs::symlinkat(condition.symlink.as_ref(), &*self.dir, name)?,
            FileType::RegularFile => {
                let made = new.fill(condition, volume, contents);
                if made.is_err() {
                    let _ = rustix::fs::unlinkat(&*self.dir, name, AtFlags::empty());
                }
                made?;
            }
            kind => rustix::fs::mknodat(&*self.dir, name, kind, Mode::from_raw_mode(0o600), wanted.rdev)?,
        }
        let done = new
            .set_attributes(condition)
            .and_then(|()| Ok(rustix::fs::renameat(&*self.dir, name, &*self.dir, self.name.as_slice())?));
        if done.is_err() {
            let _ = rustix::fs::unlinkat(&*self.dir, name, AtFlags::empty());
        }
        done
    }

    fn fill(&self, condition: &Condition, volume: &str, contents: &mut Contents) -> Result<(), PutError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.dir, self.name.as_slice(), flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let content = condition.content.clone();
        if content.as_ref().is_some_and(|content| content.size > 0) {
            let request = FormerRequest { volume: volume.to_owned(), content };
            contents.fetch(request, &mut |data| file.write_all(data))??;
        }
        Ok(())
    }

    /// Another name of a file, in the place of what stands here.
    pub fn link(&self, first: &Spot) -> Result<(), PutError> {
        let new = self.beside();
        rustix::fs::linkat(
            &*first.dir,
            first.name.as_slice(),
            &*self.dir,
            new.name.as_slice(),
            AtFlags::empty(),
        )?;
        let moved = rustix::fs::renameat(&*self.dir, new.name.as_slice(), &*self.dir, self.name.as_slice());
        if moved.is_err() {
            let _ = rustix::fs::unlinkat(&*self.dir, new.name.as_slice(), AtFlags::empty());
        }
        Ok(moved?)
    }

    /// Owner, mode, extended attributes, then the time: each may undo a later one's work, not an earlier one's. It is the
    /// object that is changed, whatever its name leads to by then.
    pub fn set_attributes(&self, condition: &Condition) -> Result<(), PutError> {
        let wanted = condition.attributes.unwrap_or_default();
        let object = self.object()?;
        let present = rustix::fs::fstat(&object)?;
        if FileType::from_raw_mode(present.st_mode) != FileType::from_raw_mode(wanted.mode) {
            return Err(Errno::STALE.into()); // Somebody has put something else there.
        }
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        if (present.st_uid, present.st_gid) != (wanted.uid, wanted.gid) {
            rustix::fs::chownat(&object, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        if FileType::from_raw_mode(wanted.mode) == FileType::Symlink {
            return Ok(());
        }
        let path = magic(&object);
        rustix::fs::chmod(path.as_slice(), Mode::from_raw_mode(wanted.mode & 0o7777))?;
        set_xattrs(&path, condition)?;
        let Time { sec, nsec } = wanted.mtime.unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: sec, tv_nsec: nsec.into() },
        };
        Ok(rustix::fs::utimensat(&object, c"", &times, AtFlags::EMPTY_PATH)?)
    }

    /// A name beside it that nobody has.
    fn beside(&self) -> Spot {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".intermezzo-restore-{}-{number}", std::process::id());
        Spot { dir: Rc::clone(&self.dir), name: name.into_bytes() }
    }
}

fn set_xattrs(path: &[u8], condition: &Condition) -> Result<(), Errno> {
    for xattr in &condition.xattrs {
        rustix::fs::setxattr(path, xattr.name.as_ref(), &xattr.value, XattrFlags::empty())?;
    }
    for (name, _) in xattrs(path)? {
        if !condition.xattrs.iter().any(|xattr| *xattr.name == *name) {
            rustix::fs::removexattr(path, name.as_slice())?;
        }
    }
    Ok(())
}

/// Where the kernel follows a descriptor to its object, and no further.
fn magic(object: &OwnedFd) -> Vec<u8> {
    format!("/proc/self/fd/{}", object.as_raw_fd()).into_bytes()
}

/// Those of the tree.
fn xattrs(path: &[u8]) -> Result<Vec<Xattr>, Errno> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::listxattr(path, &mut names) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    names.truncate(length);
    let mut all = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(OWN)) {
        let mut value = vec![0; 64 << 10];
        match rustix::fs::getxattr(path, name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                all.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(all)
}
