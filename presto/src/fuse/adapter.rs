//! `fuser::Filesystem` for a volume: converts, calls the filter, replies. Decides nothing.

use std::ffi::OsStr;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::*;
use rustix::fs::XattrFlags;

use super::backing::Way;
use super::convert::asked;
use super::convert::attr;
use super::convert::caller;
use super::convert::decode_device;
use super::convert::errno;
use super::convert::nothing;
use super::convert::set_time;
use super::serving::Serving;
use super::serving::guarded;
use crate::filter::Access;
use crate::filter::Changes;
use crate::filter::NewMode;
use crate::filter::Place;
use crate::filter::Seek;

pub(crate) struct Adapter(pub(super) Arc<Serving>);

impl Deref for Adapter {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.0
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn new_mode(mode: u32, umask: u32) -> NewMode {
    NewMode { mode, umask }
}

/// Who only reads has nothing to tell at close: that spares a request for which close(2) would wait.
pub(super) fn open_flags(access: Access) -> FopenFlags {
    if access.writes() { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = self.ttl.set(self.kernel.agree(config, self.passthrough, self.believed)?);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(&self.volume, || {
            let found =
                self.file(parent).and_then(|dir| self.volume.lookup(dir, name.as_bytes()).map_err(errno));
            match found {
                // A name that is free is remembered as well.
                Ok(None) => reply.entry(self.ttl(), &nothing(), Generation(0)),
                Ok(Some(entry)) => self.reply_entry(Ok(entry), reply),
                Err(error) => reply.error(error),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.nodes.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(&self.volume, || {
            match self.file(ino).and_then(|id| self.volume.getattr(id).map_err(errno)) {
                Ok(stat) => reply.attr(self.ttl(), &attr(ino.0, &stat)),
                Err(error) => reply.error(error),
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes =
            Changes { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let asked = asked(req);
        let attempt = move |serving: &Serving| serving.setattr(asked, ino, &changes);
        let answer = move |serving: &Serving, result| match result {
            Ok(attr) => reply.attr(serving.ttl(), &attr),
            Err(error) => reply.error(error),
        };
        // Done again after a kill, so nothing is noted of it.
        if size.is_some_and(|size| size > 0) && self.lacks(ino) {
            self.0.update_aside(None, attempt, answer);
        } else {
            self.0.update(None, attempt, answer);
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded(&self.volume, || {
            match self.file(ino).and_then(|id| self.volume.readlink(id).map_err(errno)) {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(error),
            }
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let (dir, new, device) = (serving.file(parent)?, new_mode(mode, umask), decode_device(rdev));
            serving.made(asked, || {
                serving.volume.mknod(asked.caller, dir, name.as_bytes(), new, device).map_err(errno)
            })
        };
        self.0.update(Some(asked), attempt, move |serving, made| serving.reply_entry(made, reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let (dir, new) = (serving.file(parent)?, new_mode(mode, umask));
            serving
                .made(asked, || serving.volume.mkdir(asked.caller, dir, name.as_bytes(), new).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |serving, made| serving.reply_entry(made, reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let dir = serving.file(parent)?;
            serving
                .changed(asked, || serving.volume.unlink(asked.caller, dir, name.as_bytes()).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |_, done| answer(done, reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let dir = serving.file(parent)?;
            serving.changed(asked, || serving.volume.rmdir(asked.caller, dir, name.as_bytes()).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |_, done| answer(done, reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (asked, name, target) = (asked(req), link_name.to_owned(), target.to_owned());
        let attempt = move |serving: &Serving| {
            let dir = serving.file(parent)?;
            let (name, target) = (name.as_bytes(), target.as_os_str().as_bytes());
            serving.made(asked, || serving.volume.symlink(asked.caller, dir, name, target).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |serving, made| serving.reply_entry(made, reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (asked, name, newname) = (asked(req), name.to_owned(), newname.to_owned());
        let attempt = move |serving: &Serving| {
            let from = Place { dir: serving.file(parent)?, name: name.as_bytes() };
            let to = Place { dir: serving.file(newparent)?, name: newname.as_bytes() };
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            serving.changed(asked, || serving.volume.rename(asked.caller, from, to, flags).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |_, done| answer(done, reply));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (asked, name) = (asked(req), newname.to_owned());
        let attempt = move |serving: &Serving| {
            let (object, dir) = (serving.file(ino)?, serving.file(newparent)?);
            let name = name.as_bytes();
            serving.made(asked, || serving.volume.link(asked.caller, object, dir, name).map_err(errno))
        };
        self.0.update(Some(asked), attempt, move |serving, made| serving.reply_entry(made, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let asked = asked(req);
        let truncates = flags.0 & libc::O_TRUNC != 0;
        let lacks = !truncates && self.lacks(ino);
        let attempt = move |serving: &Serving| serving.open(asked, ino, flags);
        let answer = move |serving: &Serving, opened| serving.opened(opened, reply);
        if truncates || super::convert::access(flags).writes() {
            if lacks {
                self.0.update_aside(Some(asked), attempt, answer);
            } else {
                self.0.update(Some(asked), attempt, answer);
            }
            return;
        }
        self.0.read(asked, lacks, attempt, answer);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let dir = serving.file(parent)?;
            let access = super::convert::access(OpenFlags(flags));
            let new = new_mode(mode, umask);
            serving.created(asked, access, || {
                serving.volume.create(asked.caller, dir, name.as_bytes(), new, access).map_err(errno)
            })
        };
        self.0.update(Some(asked), attempt, move |serving, created| {
            let (entry, handle) = match created {
                Ok(created) => created,
                // Another node has made it while this one waited: the kernel looks the name up again and opens what is there.
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => return reply.error(Errno::ESTALE),
                Err(error) => return reply.error(error),
            };
            let attr = serving.remembered(&entry);
            let (number, flags) = (FileHandle(handle.number), open_flags(handle.access));
            match serving.way(&handle) {
                Way::Kernel(backing) => backing.created(reply, (serving.ttl(), &attr), number, flags),
                Way::Daemon => reply.created(serving.ttl(), &attr, Generation(0), number, flags),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(&self.volume, || match self.volume.read(fh.0, offset, usize::try_from(size).unwrap_or(0)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded(&self.volume, || match self.volume.write(fh.0, offset, data) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let caller = caller(req);
        let attempt = move |serving: &Serving| serving.volume.flush(caller, fh.0).map_err(errno);
        self.0.close(attempt, move |serving, closed| match closed {
            Ok(lost_privileges) => {
                if lost_privileges && let Ok(id) = serving.file(ino) {
                    serving.attributes_lost(id);
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        });
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded(&self.volume, || {
            answer(self.volume.release(caller(req), fh.0).map_err(errno), reply);
        });
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let caller = caller(req);
        let attempt = move |serving: &Serving| serving.volume.fsync(caller, fh.0, datasync).map_err(errno);
        self.0.sync(attempt, move |_, synced| answer(synced, reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded(&self.volume, || {
            match self.file(ino).and_then(|id| self.volume.opendir(id).map_err(errno)) {
                // What the kernel keeps of a directory is right until it changes it itself or is told.
                Ok(number) => {
                    reply.opened(
                        FileHandle(number),
                        FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                    );
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded(&self.volume, || {
            if let Err(error) = self.resumed_stream(fh.0, self.file(ino)) {
                return reply.error(error);
            }
            let result = self.volume.readdir(fh.0, offset, |dir, name| {
                // The same number that stat shows.
                let node = match name.name.as_slice() {
                    b"." => ino.0,
                    b".." => self.above(ino, dir),
                    other => match self.volume.lower.child(dir, other) {
                        Ok(id) => self.nodes.of(id),
                        Err(_) => return true,
                    },
                };
                let kind = super::convert::kind(name.kind);
                !reply.add(INodeNo(node), name.next, kind, OsStr::from_bytes(&name.name))
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded(&self.volume, || {
            if let Err(error) = self.resumed_stream(fh.0, self.file(ino)) {
                return reply.error(error);
            }
            let result = self.volume.readdir(fh.0, offset, |dir, name| {
                let dots = matches!(name.name.as_slice(), b"." | b"..");
                let (node, attr) = if dots {
                    // The kernel takes only type and number from these.
                    let Ok(stat) = crate::lower::Stat::of(dir) else { return true };
                    let node = if name.name == b"." { ino.0 } else { self.above(ino, dir) };
                    (node, attr(node, &stat))
                } else {
                    let Ok(Some(entry)) = self.volume.resolve(dir, &name.name) else { return true };
                    let node = self.nodes.remember(entry.id);
                    (node, attr(node, &entry.stat))
                };
                let name_of = OsStr::from_bytes(&name.name);
                let full = reply.add(INodeNo(node), name.next, name_of, self.ttl(), &attr, Generation(0));
                if full && !dots {
                    self.nodes.forget(node, 1); // It was not sent.
                }
                !full
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded(&self.volume, || answer(self.volume.releasedir(fh.0).map_err(errno), reply));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let caller = caller(req);
        let attempt = move |serving: &Serving| {
            let id = serving.file(ino)?;
            serving.volume.fsyncdir(caller, id).map_err(errno)
        };
        self.0.sync(attempt, move |_, synced| answer(synced, reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guarded(&self.volume, || match self.volume.statfs() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                u32::try_from(space.f_bsize).unwrap_or(4096),
                u32::try_from(space.f_namemax).unwrap_or(255),
                u32::try_from(space.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (asked, name, value) = (asked(req), name.to_owned(), value.to_owned());
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        let attempt = move |serving: &Serving| {
            let (id, name) = (serving.file(ino)?, name.as_bytes());
            serving.changed(asked, || {
                serving.volume.setxattr(asked.caller, id, name, &value, flags).map_err(errno)
            })
        };
        self.0.update(Some(asked), attempt, move |_, done| answer(done, reply));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded(&self.volume, || {
            let value =
                self.file(ino).and_then(|id| self.volume.getxattr(id, name.as_bytes()).map_err(errno));
            sized(value, size, reply);
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded(&self.volume, || {
            let names = self.file(ino).and_then(|id| self.volume.listxattr(caller(req), id).map_err(errno));
            sized(names, size, reply);
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (asked, name) = (asked(req), name.to_owned());
        let attempt = move |serving: &Serving| {
            let id = serving.file(ino)?;
            serving.changed(asked, || {
                serving.volume.removexattr(asked.caller, id, name.as_bytes()).map_err(errno)
            })
        };
        self.0.update(Some(asked), attempt, move |_, done| answer(done, reply));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guarded(&self.volume, || {
            let result = self.volume.fallocate(fh.0, offset, length, mode.cast_unsigned());
            answer(result.map_err(errno), reply);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded(&self.volume, || {
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return reply.error(Errno::EINVAL),
            };
            let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
            match self.volume.lseek(fh.0, offset, what) {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        guarded(&self.volume, || {
            match self.volume.copy_file_range(fh_in.0, offset_in, fh_out.0, offset_out, len) {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }
}

/// The protocol of extended attributes: size 0 asks how large it is.
fn sized(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(error) => reply.error(error),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}
