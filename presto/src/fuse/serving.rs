//! What every request of a mount is served with, on whichever thread.

use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::Generation;
use fuser::INodeNo;
use fuser::OpenFlags;
use fuser::ReplyEntry;
use fuser::ReplyOpen;
use intermezzo_kml::record::FileId;

use super::MountOptions;
use super::adapter::open_flags;
use super::backing::Way;
use super::convert::Asked;
use super::convert::access;
use super::convert::attr;
use super::convert::errno;
use super::kernel::Kernel;
use super::nodes::Nodes;
use super::notify::Device;
use super::places::Waiting;
use crate::filter::Changes;
use crate::filter::Entry;
use crate::filter::Handle;
use crate::filter::Volume;
use crate::session;

pub(crate) struct Serving {
    pub volume: Arc<Volume>,
    pub nodes: Arc<Nodes>,
    pub kernel: Arc<Kernel>,
    device: Arc<OwnedFd>,
    privileges: OnceLock<Device>,
    pub passthrough: bool,
    pub believed: Duration,
    /// How long the kernel may believe what it is told; agreed with it at the beginning.
    pub ttl: OnceLock<Duration>,
    pub(super) waiting: Waiting,
}

impl Serving {
    pub fn new(
        volume: Arc<Volume>,
        nodes: Arc<Nodes>,
        kernel: Arc<Kernel>,
        device: Arc<OwnedFd>,
        options: &MountOptions,
    ) -> Serving {
        Serving {
            waiting: Waiting::new(&volume),
            volume,
            nodes,
            kernel,
            device,
            privileges: OnceLock::new(),
            passthrough: options.passthrough,
            believed: options.believed,
            ttl: OnceLock::new(),
        }
    }

    pub fn ttl(&self) -> &Duration {
        self.ttl.get().unwrap_or(&Duration::ZERO)
    }

    pub fn file(&self, node: INodeNo) -> Result<FileId, Errno> {
        self.nodes.file(node.0).ok_or(Errno::ESTALE)
    }

    /// The number of the directory that holds this one.
    pub fn above(&self, ino: INodeNo, dir: &crate::lower::Dir) -> u64 {
        self.volume.lower.parent(dir).map_or(ino.0, |id| self.nodes.of(id))
    }

    /// Attributes for a reply after which the kernel remembers the file.
    pub fn remembered(&self, entry: &Entry) -> FileAttr {
        attr(self.nodes.remember(entry.id), &entry.stat)
    }

    pub fn reply_entry(&self, result: Result<Entry, Errno>, reply: ReplyEntry) {
        match result {
            Ok(entry) => reply.entry(self.ttl(), &self.remembered(&entry), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    /// How the data of an open file goes; noted before the kernel hears of it.
    pub fn way(&self, handle: &Handle) -> Way {
        let way = self.kernel.backings.way(&self.volume, &handle.file, &self.device);
        let noted = if matches!(way, Way::Kernel(_)) { session::Way::Kernel } else { session::Way::Daemon };
        self.volume.files.set_way(handle, noted);
        way
    }

    pub fn attributes_lost(&self, id: FileId) {
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

    pub fn open(&self, asked: Asked, ino: INodeNo, flags: OpenFlags) -> Result<Arc<Handle>, Errno> {
        let id = self.file(ino)?;
        let truncate = flags.0 & libc::O_TRUNC != 0;
        match self.claim(asked) {
            Some(handle) => Ok(handle),
            None => self.volume.open_file(asked.caller, id, access(flags), truncate).map_err(errno),
        }
    }

    pub fn opened(&self, opened: Result<Arc<Handle>, Errno>, reply: ReplyOpen) {
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) => return reply.error(error),
        };
        let (number, flags) = (FileHandle(handle.number), open_flags(handle.access));
        match self.way(&handle) {
            Way::Kernel(backing) => backing.opened(reply, number, flags),
            Way::Daemon => reply.opened(number, flags),
        }
    }

    pub fn setattr(&self, asked: Asked, ino: INodeNo, changes: &Changes) -> Result<FileAttr, Errno> {
        let id = self.file(ino)?;
        let stat = self.volume.setattr(asked.caller, id, changes).map_err(errno)?;
        Ok(attr(ino.0, &stat))
    }
}

/// A panic must not take a serving thread along: its callers would wait for ever. The reply, dropped, answers EIO.
pub(super) fn guarded(volume: &Volume, serve: impl FnOnce()) {
    crate::lower::serve();
    if catch_unwind(AssertUnwindSafe(serve)).is_err() {
        tracing::error!(target: "fuse", volume = volume.name, "a request panicked; this is a bug in presto");
    }
}
