//! The operations on a real directory.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};

use crate::calls::{errno, truncate};
use crate::operation::{Answer, LONG_AGO, Op, SLOTS, Shown, Space, Told, Way};

pub struct Disk {
    root: PathBuf,
    open: [Option<(File, bool, bool)>; SLOTS],
}

fn done<T, E: Into<io::Error>>(result: Result<T, E>) -> Told {
    result.map(|_| Answer::Done).map_err(errno)
}

impl Disk {
    pub fn new(root: PathBuf) -> Disk {
        fs::create_dir(&root).unwrap();
        Disk { root, open: [const { None }; SLOTS] }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn run(&mut self, op: &Op) -> Told {
        match op {
            Op::Open(slot, path, how) => {
                let mut options = OpenOptions::new();
                options.read(how.read).write(how.write);
                let mut flags = 0;
                for (wanted, flag) in [
                    (how.append, libc::O_APPEND),
                    (how.create, libc::O_CREAT),
                    (how.exclusive, libc::O_EXCL),
                    (how.truncate, libc::O_TRUNC),
                ] {
                    flags |= if wanted { flag } else { 0 };
                }
                self.open[*slot] = None;
                let file = options.mode(0o644).custom_flags(flags).open(self.at(path)).map_err(errno)?;
                if file.metadata().unwrap().is_dir() {
                    return Ok(Answer::Directory);
                }
                self.open[*slot] = Some((file, how.read, how.write));
                Ok(Answer::Done)
            }
            Op::Close(slot) => Ok(self.open[*slot].take().map_or(Answer::Nothing, |_| Answer::Done)),
            Op::Read(slot, at, length) => self.by(*slot, |file| {
                let mut bytes = vec![0; *length];
                let read = file.read_at(&mut bytes, *at).map_err(errno)?;
                bytes.truncate(read);
                Ok(Answer::Bytes(bytes))
            }),
            Op::Write(slot, at, bytes) => {
                self.by(*slot, |file| file.write_at(bytes, *at).map(Answer::Count).map_err(errno))
            }
            Op::Truncate(slot, size) => self.by(*slot, |file| done(file.set_len(*size))),
            Op::TruncateName(path, size) => {
                // A deviation with a test of its own.
                if fs::metadata(self.at(path)).is_ok_and(|stat| stat.is_file() && stat.len() == *size) {
                    return Ok(Answer::Nothing);
                }
                done(truncate(&self.at(path), *size))
            }
            Op::Allocate(slot, space, at, length) => {
                let mode = match space {
                    Space::Allocate => FallocateFlags::empty(),
                    Space::Keep => FallocateFlags::KEEP_SIZE,
                    Space::Punch => FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    Space::Zero => FallocateFlags::ZERO_RANGE,
                };
                self.by(*slot, |file| done(rustix::fs::fallocate(file, mode, *at, *length)))
            }
            Op::Copy(from, to, at, goal, length) => {
                let (Some((from, ..)), Some((to, ..))) = (&self.open[*from], &self.open[*to]) else {
                    return Ok(Answer::Nothing);
                };
                let (mut at, mut goal) = (*at, *goal);
                let told = rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut goal), *length);
                told.map(Answer::Count)
            }
            Op::Store(slot, at, byte) => {
                let Some((file, true, true)) = &self.open[*slot] else { return Ok(Answer::Nothing) };
                if file.metadata().unwrap().len() <= *at as u64 {
                    return Ok(Answer::Nothing);
                }
                // SAFETY: nobody cuts the file while it is mapped.
                let mut map = unsafe { MmapOptions::new().map_mut(file).unwrap() };
                map[*at] = *byte;
                Ok(Answer::Done)
            }
            Op::Sync(slot) => self.by(*slot, |file| done(file.sync_data())),
            Op::StatOpen(slot) => {
                self.by(*slot, |file| file.metadata().map(|stat| Answer::Stat(shown(&stat))).map_err(errno))
            }
            Op::Mkdir(path) => done(fs::create_dir(self.at(path))),
            Op::Rmdir(path) => done(fs::remove_dir(self.at(path))),
            Op::Unlink(path) => done(fs::remove_file(self.at(path))),
            Op::Symlink(target, path) => done(std::os::unix::fs::symlink(target, self.at(path))),
            Op::Link(from, to) => done(fs::hard_link(self.at(from), self.at(to))),
            Op::Rename(from, to, way) => {
                let flags = match way {
                    Way::Plain => RenameFlags::empty(),
                    Way::NoReplace => RenameFlags::NOREPLACE,
                    Way::Exchange => RenameFlags::EXCHANGE,
                };
                done(rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags))
            }
            Op::Chmod(path, mode) => {
                done(fs::set_permissions(self.at(path), fs::Permissions::from_mode(*mode)))
            }
            Op::Chown(path, owner) => done(std::os::unix::fs::chown(self.at(path), Some(*owner), None)),
            Op::Touch(path, time) => {
                let times = Timestamps {
                    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                    last_modification: Timespec { tv_sec: *time, tv_nsec: 7 },
                };
                done(rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::empty()))
            }
            Op::SetXattr(path, name, value) => {
                done(rustix::fs::setxattr(self.at(path), xattr(*name), value, XattrFlags::empty()))
            }
            Op::GetXattr(path, name) => {
                let mut value = vec![0; 64];
                let size = rustix::fs::getxattr(self.at(path), xattr(*name), &mut value)?;
                value.truncate(size);
                Ok(Answer::Bytes(value))
            }
            Op::RemoveXattr(path, name) => done(rustix::fs::removexattr(self.at(path), xattr(*name))),
            Op::Stat(path) => {
                fs::symlink_metadata(self.at(path)).map(|stat| Answer::Stat(shown(&stat))).map_err(errno)
            }
            Op::ReadLink(path) => {
                let target = fs::read_link(self.at(path)).map_err(errno)?;
                Ok(Answer::Bytes(target.into_os_string().into_encoded_bytes()))
            }
            Op::List(path) => names(&self.at(path)).map(Answer::Names).map_err(errno),
        }
    }

    fn by(&self, slot: usize, work: impl FnOnce(&File) -> Told) -> Told {
        self.open[slot].as_ref().map_or(Ok(Answer::Nothing), |(file, ..)| work(file))
    }

    /// Everything that has a name, with what it holds.
    pub fn tree(&self) -> BTreeMap<String, (Shown, Vec<u8>)> {
        let mut tree = BTreeMap::new();
        let mut waiting = vec![String::new()];
        while let Some(dir) = waiting.pop() {
            for name in names(&self.root.join(&dir)).unwrap() {
                let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                let at = self.root.join(&path);
                let shown = shown(&fs::symlink_metadata(&at).unwrap());
                let content = match shown.kind {
                    'd' => {
                        waiting.push(path.clone());
                        Vec::new()
                    }
                    'l' => fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(),
                    _ => fs::read(&at).unwrap(),
                };
                tree.insert(path, (shown, content));
            }
        }
        tree
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().into_string().unwrap());
    }
    names.sort();
    Ok(names)
}

fn xattr(name: u8) -> CString {
    CString::new(format!("user.{name}")).unwrap()
}

fn shown(stat: &fs::Metadata) -> Shown {
    let kind = if stat.is_dir() {
        'd'
    } else if stat.is_symlink() {
        'l'
    } else {
        'f'
    };
    let (links, size) = if stat.is_dir() { (0, 0) } else { (stat.nlink(), stat.len()) };
    let mtime = Some(stat.mtime()).filter(|time| *time < LONG_AGO);
    Shown { kind, mode: stat.mode() & 0o7777, owner: stat.uid(), links, size, mtime }
}
