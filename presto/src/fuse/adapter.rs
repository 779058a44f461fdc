//! `fuser::Filesystem` for a volume: converts, calls the filter, replies. Decides nothing.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::SystemTime;

use fuser::*;
use intermezzo_kml::record::FileId;
use rustix::fs::XattrFlags;

use super::MountOptions;
use super::backing::Way;
use super::convert::attr;
use super::convert::caller;
use super::convert::decode_device;
use super::convert::errno;
use super::convert::nothing;
use super::convert::set_time;
use super::kernel::Kernel;
use super::nodes::Nodes;
use super::notify::Device;
use crate::filter::Access;
use crate::filter::Changes;
use crate::filter::Entry;
use crate::filter::Handle;
use crate::filter::NewMode;
use crate::filter::Place;
use crate::filter::Seek;
use crate::filter::Volume;
use crate::session;

pub(crate) struct Adapter {
    pub(super) volume: Arc<Volume>,
    nodes: Arc<Nodes>,
    kernel: Arc<Kernel>,
    device: Arc<OwnedFd>,
    privileges: OnceLock<Device>,
    passthrough: bool,
    believed: Duration,
    ttl: Duration,
}

impl Adapter {
    pub(crate) fn new(
        volume: Arc<Volume>,
        nodes: Arc<Nodes>,
        kernel: Arc<Kernel>,
        device: Arc<OwnedFd>,
        options: &MountOptions,
    ) -> Adapter {
        Adapter {
            volume,
            nodes,
            kernel,
            device,
            privileges: OnceLock::new(),
            passthrough: options.passthrough,
            believed: options.believed,
            ttl: Duration::ZERO,
        }
    }

    fn file(&self, node: INodeNo) -> Result<FileId, Errno> {
        self.nodes.file(node.0).ok_or(Errno::ESTALE)
    }

    /// The number of the directory that holds this one.
    fn above(&self, ino: INodeNo, dir: &crate::lower::Dir) -> u64 {
        self.volume.lower.parent(dir).map_or(ino.0, |id| self.nodes.of(id))
    }

    /// Attributes for a reply after which the kernel remembers the file.
    fn remembered(&self, entry: &Entry) -> FileAttr {
        attr(self.nodes.remember(entry.id), &entry.stat)
    }

    fn reply_entry(&self, result: Result<Entry, Errno>, reply: ReplyEntry) {
        match result {
            Ok(entry) => reply.entry(&self.ttl, &self.remembered(&entry), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    /// How the data of an open file goes; noted before the kernel hears of it.
    fn way(&self, handle: &Handle) -> Way {
        let way = self.kernel.backings.way(&self.volume, &handle.file, &self.device);
        let noted = if matches!(way, Way::Kernel(_)) { session::Way::Kernel } else { session::Way::Daemon };
        self.volume.files.set_way(handle, noted);
        way
    }

    fn attributes_lost(&self, id: FileId) {
        let device = match self.privileges.get() {
            Some(device) => device,
            None => {
                let Ok(fd) = rustix::io::fcntl_dupfd_cloexec(&self.device, 3) else { return };
                self.privileges.get_or_init(|| Device::new(fd, false))
            }
        };
        if let Err(errno) = device.attributes(&self.nodes, id) {
            tracing::warn!(target: "fuse", volume = self.volume.name, object = %id, %errno,
                "the kernel still believes that a written file is set-user-id");
        }
    }
}

/// A panic must not take a serving thread along: its callers would wait for ever. The reply, dropped, answers EIO.
fn guarded(volume: &Volume, serve: impl FnOnce()) {
    crate::lower::serve();
    if catch_unwind(AssertUnwindSafe(serve)).is_err() {
        tracing::error!(target: "fuse", volume = volume.name, "a request panicked; this is a bug in presto");
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
fn open_flags(access: Access) -> FopenFlags {
    if access.writes() { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.ttl = self.kernel.agree(config, self.passthrough, self.believed)?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(&self.volume, || {
            let found =
                self.file(parent).and_then(|dir| self.volume.lookup(dir, name.as_bytes()).map_err(errno));
            match found {
                // A name that is free is remembered as well.
                Ok(None) => reply.entry(&self.ttl, &nothing(), Generation(0)),
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
                Ok(stat) => reply.attr(&self.ttl, &attr(ino.0, &stat)),
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
        guarded(&self.volume, || {
            let changes =
                Changes { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
            let result =
                self.file(ino).and_then(|id| self.volume.setattr(caller(req), id, &changes).map_err(errno));
            match result {
                Ok(stat) => reply.attr(&self.ttl, &attr(ino.0, &stat)),
                Err(error) => reply.error(error),
            }
        });
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
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|dir| {
                let (new, device) = (new_mode(mode, umask), decode_device(rdev));
                self.made(req, || {
                    self.volume.mknod(caller(req), dir, name.as_bytes(), new, device).map_err(errno)
                })
            });
            self.reply_entry(result, reply);
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|dir| {
                let new = new_mode(mode, umask);
                self.made(req, || self.volume.mkdir(caller(req), dir, name.as_bytes(), new).map_err(errno))
            });
            self.reply_entry(result, reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|dir| {
                self.changed(req, || self.volume.unlink(caller(req), dir, name.as_bytes()).map_err(errno))
            });
            answer(result, reply);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|dir| {
                self.changed(req, || self.volume.rmdir(caller(req), dir, name.as_bytes()).map_err(errno))
            });
            answer(result, reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|dir| {
                let target = target.as_os_str().as_bytes();
                let name = link_name.as_bytes();
                self.made(req, || self.volume.symlink(caller(req), dir, name, target).map_err(errno))
            });
            self.reply_entry(result, reply);
        });
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
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(parent).and_then(|from| {
                let from = Place { dir: from, name: name.as_bytes() };
                let to = Place { dir: self.file(newparent)?, name: newname.as_bytes() };
                let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
                self.changed(req, || self.volume.rename(caller(req), from, to, flags).map_err(errno))
            });
            answer(result, reply);
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(ino).and_then(|object| {
                let dir = self.file(newparent)?;
                let name = newname.as_bytes();
                self.made(req, || self.volume.link(caller(req), object, dir, name).map_err(errno))
            });
            self.reply_entry(result, reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let opened = self.file(ino).and_then(|id| {
                let truncate = flags.0 & libc::O_TRUNC != 0;
                let access = super::convert::access(flags);
                match self.claim(req) {
                    Some(handle) => Ok(handle),
                    None => self.volume.open_file(caller(req), id, access, truncate).map_err(errno),
                }
            });
            let handle = match opened {
                Ok(handle) => handle,
                Err(error) => return reply.error(error),
            };
            let (number, flags) = (FileHandle(handle.number), open_flags(handle.access));
            match self.way(&handle) {
                Way::Kernel(backing) => backing.opened(reply, number, flags),
                Way::Daemon => reply.opened(number, flags),
            }
        });
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
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let created = self.file(parent).and_then(|dir| {
                let access = super::convert::access(OpenFlags(flags));
                let new = new_mode(mode, umask);
                self.created(req, access, || {
                    self.volume.create(caller(req), dir, name.as_bytes(), new, access).map_err(errno)
                })
            });
            let (entry, handle) = match created {
                Ok(created) => created,
                Err(error) => return reply.error(error),
            };
            let attr = self.remembered(&entry);
            let (number, flags) = (FileHandle(handle.number), open_flags(handle.access));
            match self.way(&handle) {
                Way::Kernel(backing) => backing.created(reply, (&self.ttl, &attr), number, flags),
                Way::Daemon => reply.created(&self.ttl, &attr, Generation(0), number, flags),
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
        guarded(&self.volume, || match self.volume.flush(caller(req), fh.0) {
            Ok(lost_privileges) => {
                if lost_privileges && let Ok(id) = self.file(ino) {
                    self.attributes_lost(id);
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
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
        guarded(&self.volume, || {
            answer(self.volume.fsync(caller(req), fh.0, datasync).map_err(errno), reply);
        });
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
                let full = reply.add(INodeNo(node), name.next, name_of, &self.ttl, &attr, Generation(0));
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

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        guarded(&self.volume, || {
            answer(self.file(ino).and_then(|id| self.volume.fsyncdir(id).map_err(errno)), reply);
        });
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
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
            let result = self.file(ino).and_then(|id| {
                let (caller, name) = (caller(req), name.as_bytes());
                self.changed(req, || self.volume.setxattr(caller, id, name, value, flags).map_err(errno))
            });
            answer(result, reply);
        });
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
        guarded(&self.volume, || {
            let _serving = self.serving(req);
            let result = self.file(ino).and_then(|id| {
                self.changed(req, || self.volume.removexattr(caller(req), id, name.as_bytes()).map_err(errno))
            });
            answer(result, reply);
        });
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
