//! New names: create, mkdir, mknod, symlink, link.

use std::os::fd::AsFd;
use std::sync::Arc;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::Time;
use intermezzo_kml::xattr::encode;
use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Access;
use super::Entry;
use super::Handle;
use super::OpenFile;
use super::Volume;
use super::now;
use super::update::Stop;
use super::update::Told;
use crate::lower::Dir;
use crate::lower::Owner;
use crate::lower::Stat;
use crate::lower::as_owner;
use crate::lower::inherited;
use crate::lower::xattr;
use crate::lower::xattr::Xattrs;

/// A new file's mode, as asked for, and the mask its user has set.
#[derive(Clone, Copy, Debug)]
pub struct NewMode {
    /// Permission bits and, for mknod, the type; the mask not yet applied.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

/// A new object other than a file to be opened at once.
#[derive(Clone, Copy, Debug)]
enum Kind<'a> {
    Dir,
    Node { kind: FileType, rdev: u64 },
    Symlink(&'a [u8]),
}

impl Volume {
    /// Makes a regular file and opens it. EEXIST if the name is taken.
    pub fn create(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        new: NewMode,
        access: Access,
    ) -> Result<(Entry, Arc<Handle>), Errno> {
        self.update(caller, |told| {
            self.may_make(parent, name)?;
            self.quota.may_make(&self.name)?;
            let dir = self.lower.dir(parent)?;
            let _held = self.locks.lock(&[parent]);
            let mut intent = Volume::intent(Opcode::Create, caller);
            intent.parent = parent;
            intent.name = name.to_vec();
            let local = self.will_be_local(&dir, name, false)?;
            intent.flags.set(Flags::LOCAL, local);
            let known = self.foresee(&mut intent, &dir, FileType::RegularFile, new.mode)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(new.mode & 0o7777);
            let ((entry, fd), _) = self.journaled(told, &intent, || {
                let fd = as_owner(owner(caller, new), || rustix::fs::openat(&dir, name, flags, mode))?;
                let made = self.mark_made(&dir, name, local).and_then(|()| {
                    let id = self.lower.identify(&fd)?;
                    Ok(Entry { id, stat: Stat::of(&fd)? })
                });
                let entry = made.inspect_err(|_| {
                    let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
                })?;
                Ok(((entry, fd), outcome(&dir, &entry, intent.flags)))
            })?;
            if !local {
                self.surprises(told, caller, &entry, &fd, &known);
            }
            if access.writes() {
                self.quota.opened(entry.id, 0);
                told.more_follows();
            }
            // Nobody else knows the new file yet, so its own lock is not needed.
            let read_at = now();
            let file = Arc::new(OpenFile::new(entry.id, fd));
            Ok((entry, self.files.open(&self.writers, &entry.stat, file, access, read_at, false)))
        })
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: Caller, parent: FileId, name: &[u8], new: NewMode) -> Result<Entry, Errno> {
        self.make(caller, parent, name, new, Kind::Dir)
    }

    /// Makes a device node, fifo, socket or (unopened) regular file; the type is in the mode.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        new: NewMode,
        rdev: u64,
    ) -> Result<Entry, Errno> {
        let kind = match FileType::from_raw_mode(new.mode) {
            FileType::Directory | FileType::Symlink => return Err(Errno::INVAL),
            FileType::Unknown => FileType::RegularFile,
            kind => kind,
        };
        self.make(caller, parent, name, new, Kind::Node { kind, rdev })
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry, Errno> {
        self.make(caller, parent, name, NewMode { mode: 0o777, umask: 0 }, Kind::Symlink(target))
    }

    /// EPERM for the one name that is presto's own.
    pub(crate) fn may_make(&self, dir: FileId, name: &[u8]) -> Result<(), Errno> {
        if self.lower.hides(dir, name) { Err(Errno::PERM) } else { Ok(()) }
    }

    fn make(
        &self,
        caller: Caller,
        parent: FileId,
        name: &[u8],
        new: NewMode,
        kind: Kind<'_>,
    ) -> Result<Entry, Errno> {
        let (opcode, file_type) = match kind {
            Kind::Dir => (Opcode::Mkdir, FileType::Directory),
            Kind::Node { kind: FileType::RegularFile, .. } => (Opcode::Create, FileType::RegularFile),
            Kind::Node { kind, .. } => (Opcode::Mknod, kind),
            Kind::Symlink(_) => (Opcode::Symlink, FileType::Symlink),
        };
        self.update(caller, |told| {
            self.may_make(parent, name)?;
            self.quota.may_make(&self.name)?;
            let dir = self.lower.dir(parent)?;
            let _held = self.locks.lock(&[parent]);
            let mut intent = Volume::intent(opcode, caller);
            intent.parent = parent;
            intent.name = name.to_vec();
            let local = self.will_be_local(&dir, name, matches!(kind, Kind::Dir))?;
            intent.flags.set(Flags::LOCAL, local);
            let known = match kind {
                Kind::Symlink(target) => {
                    intent.value = target.to_vec();
                    Vec::new()
                }
                _ => self.foresee(&mut intent, &dir, file_type, new.mode)?,
            };
            let mode = Mode::from_raw_mode(new.mode & 0o7777);
            let (entry, _) = self.journaled(told, &intent, || {
                as_owner(owner(caller, new), || match kind {
                    Kind::Dir => rustix::fs::mkdirat(&dir, name, mode),
                    Kind::Node { kind, rdev } => rustix::fs::mknodat(&dir, name, kind, mode, rdev),
                    Kind::Symlink(target) => rustix::fs::symlinkat(target, &dir, name),
                })?;
                // The directory's lock is held: the entry is what was just made.
                let made = self.mark_made(&dir, name, local).and_then(|()| self.entry_at(&dir, name));
                let entry = made.inspect_err(|_| {
                    let flags = if matches!(kind, Kind::Dir) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                    let _ = rustix::fs::unlinkat(&dir, name, flags);
                })?;
                Ok((entry, outcome(&dir, &entry, intent.flags)))
            })?;
            if self.lower.has_labels()
                && !local
                && let Ok(fd) = self.lower.path_fd(entry.id)
            {
                self.surprises(told, caller, &entry, fd, &known);
            }
            Ok(entry)
        })
    }

    /// Gives an object another name.
    pub fn link(&self, caller: Caller, object: FileId, parent: FileId, name: &[u8]) -> Result<Entry, Errno> {
        self.update(caller, |told| {
            self.may_make(parent, name)?;
            let dir = self.lower.dir(parent)?;
            let file = self.object(object)?;
            let _held = self.locks.lock(&[object, parent]);
            if self.is_aside(object) {
                return Err(Stop::Errno(Errno::NOENT)); // Its last name is gone; where it is kept is not the user's.
            }
            let local = self.is_local(&file)?;
            if local != self.excludes(&dir, name, false)? {
                return Err(Stop::Errno(Errno::XDEV)); // One object cannot stay here by one name and not by the other.
            }
            if !local {
                self.rejoin(&dir)?;
            }
            let mut intent = Volume::intent(Opcode::Link, caller);
            intent.flags.set(Flags::LOCAL, local);
            intent.object = object;
            intent.parent = parent;
            intent.name = name.to_vec();
            intent.before = Stat::of(&file)?.attributes;
            let (entry, _) = self.journaled(told, &intent, || {
                rustix::fs::linkat(&file, c"", &dir, name, AtFlags::EMPTY_PATH)?;
                let stat = Stat::of(&file).unwrap_or_default();
                let entry = Entry { id: object, stat };
                Ok((entry, outcome(&dir, &entry, intent.flags)))
            })?;
            Ok(entry)
        })
    }

    /// Puts into the intent the extended attributes that the file will be born with. They are computed, not read: the
    /// intent is written before the file exists.
    fn foresee(&self, intent: &mut Intent, dir: &Dir, kind: FileType, mode: u32) -> Result<Xattrs, Errno> {
        let Some(default) = self.lower.default_acl(dir)? else { return Ok(Vec::new()) };
        let born = inherited(&default, kind, mode);
        if !born.is_empty() {
            intent.value = encode(&born);
            intent.flags |= Flags::XATTRS;
        }
        Ok(born)
    }

    /// Journals extended attributes that the file has and that were not foreseen (a security module's labels).
    fn surprises(
        &self,
        told: &mut Told,
        caller: Caller,
        entry: &Entry,
        fd: impl AsFd,
        known: &[(Vec<u8>, Vec<u8>)],
    ) {
        if !self.lower.has_labels() {
            return;
        }
        for (name, value) in xattr::all(&fd).unwrap_or_default() {
            if known.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let mut intent = Volume::intent(Opcode::Setxattr, caller);
            intent.object = entry.id;
            intent.before = entry.stat.attributes;
            intent.name = name;
            intent.value = value;
            let after = Outcome { object: entry.id, after: entry.stat.attributes, ..Outcome::default() };
            if self.journaled(told, &intent, || Ok(((), after))).is_err() {
                tracing::warn!(target: "filter", volume = self.name, object = %entry.id,
                    "a security label of a new file was not journaled");
            }
        }
    }
}

fn owner(caller: Caller, new: NewMode) -> Owner {
    Owner { uid: caller.uid, gid: caller.gid, umask: new.umask, mode: new.mode }
}

fn outcome(dir: &Dir, entry: &Entry, flags: Flags) -> Outcome {
    Outcome {
        object: entry.id,
        after: entry.stat.attributes,
        parent_mtime: mtime(dir),
        flags,
        ..Outcome::default()
    }
}

/// Modification time of a directory after an operation in it.
pub(crate) fn mtime(dir: impl AsFd) -> Time {
    Stat::of(dir).map(|stat| stat.attributes.mtime).unwrap_or_default()
}
