//! Kernel passthrough: one backing id per inode, kept with what is kept of an open file; and the memory of a kernel that
//! has none.
//!
//! While an inode is open, all its opens must be of one kind and, in passthrough, name the same backing id: otherwise
//! the kernel fails the open with EIO. The filter has one `OpenFile` per inode, so what is decided there holds for all.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::BackingId;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::ReplyCreate;
use fuser::ReplyOpen;
use intermezzo_kml::record::FileId;

use crate::filter::OpenFile;
use crate::filter::Resumed;
use crate::filter::Volume;
use crate::lower::close_backing;
use crate::lower::dropping_privileges;
use crate::session;
use crate::session::Memory;
use crate::session::Slot;

/// How an inode's data goes.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Past presto. The id is closed with the last reference.
    Kernel(Arc<Backing>),
    /// Through READ and WRITE requests.
    Daemon,
}

/// A backing id of the kernel.
#[derive(Debug)]
pub(crate) struct Backing {
    id: u32,
    device: Arc<OwnedFd>,
    noted: Option<(Arc<Memory>, Slot)>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        // First: an id that is noted can be used.
        if let Some((memory, slot)) = &self.noted {
            memory.remove_backing(*slot);
        }
        if let Err(errno) = close_backing(self.device.as_fd(), self.id) {
            tracing::debug!(target: "fuse", id = self.id, %errno, "a backing id was not closed");
        }
    }
}

impl Backing {
    /// Answers an open with it.
    pub(crate) fn opened(&self, reply: ReplyOpen, number: FileHandle, flags: FopenFlags) {
        // SAFETY: the id is open on this session's device, and closed by nobody but our own drop.
        let lent = unsafe { reply.wrap_backing(self.id) };
        reply.opened_passthrough(number, flags, &lent);
        let _ = lent.into_raw();
    }

    /// Answers a create with it.
    pub(crate) fn created(
        &self,
        reply: ReplyCreate,
        (ttl, attr): (&Duration, &FileAttr),
        number: FileHandle,
        flags: FopenFlags,
    ) {
        // SAFETY: as above.
        let lent = unsafe { reply.wrap_backing(self.id) };
        reply.created_passthrough(ttl, attr, Generation(0), number, flags, &lent);
        let _ = lent.into_raw();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Backings {
    off: AtomicBool,
    memory: OnceLock<Arc<Memory>>,
}

impl Backings {
    /// No passthrough from now on, for inodes that are not open.
    pub(crate) fn turn_off(&self) {
        self.off.store(true, Ordering::Release);
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.off.load(Ordering::Acquire)
    }

    /// Notes ids there from now on.
    pub(crate) fn keep_in(&self, memory: &Arc<Memory>) {
        let _ = self.memory.set(Arc::clone(memory));
    }

    /// Takes over the ids of an earlier presto: those of open files go on, the others are closed.
    pub(crate) fn resume(&self, memory: &Arc<Memory>, device: &Arc<OwnedFd>, resumed: &Resumed) {
        self.keep_in(memory);
        let mut ways: BTreeMap<FileId, Way> = BTreeMap::new();
        for (slot, id, file) in memory.backings() {
            let noted = Some((Arc::clone(memory), slot));
            ways.insert(file, Way::Kernel(Arc::new(Backing { id, device: Arc::clone(device), noted })));
        }
        for (id, (file, way)) in &resumed.files {
            let way = match way {
                session::Way::Daemon => Some(Way::Daemon),
                session::Way::Kernel | session::Way::Unknown => ways.remove(id),
            };
            if let Some(way) = way {
                file.serving(|| way);
            }
        }
    }

    /// The way of this inode's data, decided by its first open.
    pub(crate) fn way(&self, volume: &Volume, file: &OpenFile, device: &Arc<OwnedFd>) -> Way {
        file.serving(|| self.choose(volume, file, device)).cloned().unwrap_or(Way::Daemon)
    }

    fn choose(&self, volume: &Volume, file: &OpenFile, device: &Arc<OwnedFd>) -> Way {
        // What the kernel writes past presto no limit can stop.
        if !self.is_on() || volume.quota.limits_bytes() {
            return Way::Daemon;
        }
        let volume = &volume.name;
        // The kernel writes with the credentials of this moment: without CAP_FSETID, so that written files lose their
        // set-user-id bit.
        match dropping_privileges(|| BackingId::create_raw(device, file)) {
            Ok(id) => {
                let note =
                    |memory: &Arc<Memory>| Some((Arc::clone(memory), memory.add_backing(id, file.id)?));
                let noted = self.memory.get().and_then(note);
                return Way::Kernel(Arc::new(Backing { id, device: Arc::clone(device), noted }));
            }
            Err(error) if is_passing(&error) => {
                tracing::debug!(target: "fuse", volume, %error, "no passthrough for this file");
            }
            Err(error) => {
                self.turn_off();
                tracing::warn!(target: "fuse", volume, %error,
                    "no kernel passthrough on this lower file system; data goes through presto");
            }
        }
        Way::Daemon
    }
}

/// Not the file system's inability (ELOOP, EPERM, EOPNOTSUPP, ENOTTY) but a shortage.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::EINTR)
    )
}
