//! Empties one directory, a bounded part at a time, whatever is in it.
//!
//! There is no descent: a directory that is not empty is moved up into the root first, so a tree may be as deep as it likes
//! and a kill leaves nothing but a smaller tree. What is another mount or subvolume is neither entered nor moved.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, RenameFlags};
use rustix::io::Errno;

use super::{BENEATH, DIRECTORY, DiscardError, JOURNAL};

/// Names that are looked at before the root is listed again.
const BATCH: usize = 1024;

/// How much one call may do.
pub(super) struct Budget {
    names: u64,
    until: Instant,
}

impl Budget {
    /// Well below any deadline of the caller; one unlink of a large file may still take its time.
    pub fn of_one_call() -> Budget {
        Budget { names: 4096, until: Instant::now() + Duration::from_millis(250) }
    }
}

/// The removal of what is in one directory.
pub(super) struct Removal<'a> {
    root: &'a OwnedFd,
    path: PathBuf,
    device: u64,
    budget: Budget,
    removed: u64,
    /// Directories in the root that hold something that stays.
    skipped: BTreeSet<CString>,
    kept: Option<(PathBuf, Errno)>,
}

/// Whether there is room to go on.
enum Step {
    On,
    Spent,
}

impl<'a> Removal<'a> {
    pub fn new(root: &'a OwnedFd, path: PathBuf, budget: Budget) -> Result<Removal<'a>, Errno> {
        let device = rustix::fs::fstat(root)?.st_dev;
        Ok(Removal { root, path, device, budget, removed: 0, skipped: BTreeSet::new(), kept: None })
    }

    /// Names removed so far.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    /// Goes on until the root is empty (`true`) or the budget is spent. The journal goes last: it says whose this is.
    pub fn run(&mut self) -> Result<bool, DiscardError> {
        let io = |path: &std::path::Path, errno| DiscardError::from((path, errno));
        loop {
            let names = names(self.root.as_fd(), BATCH).map_err(|errno| io(&self.path, errno))?;
            let journal = |name: &CString| name.to_bytes() == JOURNAL.as_bytes();
            let waiting: Vec<CString> =
                names.into_iter().filter(|name| !journal(name) && !self.skipped.contains(name)).collect();
            if waiting.is_empty() {
                break;
            }
            for name in waiting {
                if let Step::Spent = self.take(&name) {
                    return self.not_yet();
                }
            }
        }
        if self.kept.is_some() {
            return self.not_yet();
        }
        match self.take_journal().map_err(|errno| io(&self.path.join(JOURNAL), errno))? {
            Step::On => Ok(true),
            Step::Spent => self.not_yet(),
        }
    }

    /// More to do; an error once only what cannot be removed is left, or nothing at all could be.
    fn not_yet(&mut self) -> Result<bool, DiscardError> {
        match self.kept.take() {
            Some((path, errno)) if self.removed == 0 => Err(DiscardError::Kept { path, errno }),
            _ => Ok(false),
        }
    }

    fn spend(&mut self) -> Step {
        self.budget.names = self.budget.names.saturating_sub(1);
        if self.budget.names == 0 || Instant::now() >= self.budget.until { Step::Spent } else { Step::On }
    }

    /// One name in the root, with all that is in it at first; directories in it come up into the root.
    fn take(&mut self, name: &CStr) -> Step {
        match self.remove(self.root.as_fd(), name) {
            Ok(()) => return self.spend(),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return self.keep(name, c"", errno),
        }
        let dir = match self.open(self.root.as_fd(), name) {
            Ok(dir) => dir,
            Err(errno) => return self.keep(name, c"", errno),
        };
        let mut entries = match Dir::read_from(&dir) {
            Ok(entries) => entries,
            Err(errno) => return self.keep(name, c"", errno),
        };
        while let Some(entry) = entries.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return self.keep(name, c"", errno),
            };
            let inner = entry.file_name();
            if inner == c"." || inner == c".." {
                continue;
            }
            let gone = match self.remove(dir.as_fd(), inner) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.bring_up(&dir, inner),
                other => other,
            };
            let step = match gone {
                Ok(()) => self.spend(),
                Err(errno) => self.keep(name, inner, errno),
            };
            if let Step::Spent = step {
                return Step::Spent;
            }
        }
        // Not empty only where something stays in it.
        match self.remove(self.root.as_fd(), name) {
            Ok(()) => self.spend(),
            Err(errno) => self.keep(name, c"", errno),
        }
    }

    /// A file, or a directory that is empty.
    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let done = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match done {
            Ok(()) => {
                self.removed += 1;
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// A directory of this file system and no other.
    fn open(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        let found = rustix::fs::openat2(dir, name, DIRECTORY, Mode::empty(), BENEATH)?;
        // A subvolume of btrfs is no mount, and yet another file system.
        if rustix::fs::fstat(&found)?.st_dev == self.device { Ok(found) } else { Err(Errno::XDEV) }
    }

    fn bring_up(&self, dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        let found = self.open(dir.as_fd(), name)?;
        let up = format!("{:x}", rustix::fs::fstat(&found)?.st_ino);
        rustix::fs::renameat_with(dir, name, self.root, up, RenameFlags::NOREPLACE)
    }

    fn keep(&mut self, name: &CStr, inner: &CStr, errno: Errno) -> Step {
        let part = |name: &CStr| std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned();
        let mut path = self.path.join(part(name));
        if !inner.is_empty() {
            path.push(part(inner));
        }
        self.skipped.insert(name.to_owned());
        self.kept.get_or_insert((path, errno));
        self.spend()
    }

    fn take_journal(&mut self) -> Result<Step, Errno> {
        let journal = match self.open(self.root.as_fd(), c"kml") {
            Ok(journal) => journal,
            Err(Errno::NOENT) => return Ok(Step::On),
            Err(errno) => return Err(errno),
        };
        let segment = |name: &CString| name.to_bytes().ends_with(b".kml");
        loop {
            let mut all = names(journal.as_fd(), BATCH)?;
            // One segment outlives all the rest.
            all.sort_by_key(|name| (segment(name), name.clone()));
            if all.is_empty() {
                break;
            }
            for name in all {
                self.remove(journal.as_fd(), &name)?;
                if let Step::Spent = self.spend() {
                    return Ok(Step::Spent);
                }
            }
        }
        rustix::fs::unlinkat(self.root, JOURNAL, AtFlags::REMOVEDIR)?;
        self.removed += 1;
        Ok(Step::On)
    }
}

/// Up to `most` names in a directory.
pub(super) fn names(dir: BorrowedFd<'_>, most: usize) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() == most {
            break;
        }
    }
    Ok(names)
}
