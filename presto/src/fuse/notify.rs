//! The thread that corrects the kernel's caches after replays. It holds no locks and nobody waits for it: the kernel
//! may make it wait for a request that is being served right now.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use intermezzo_kml::record::FileId;
use rustix::io::Errno;

use super::nodes::Nodes;
use crate::filter::Notice;
use crate::filter::Volume;

/// FUSE_NOTIFY_INVAL_INODE.
const INVAL_INODE: i32 = 2;
/// FUSE_NOTIFY_INVAL_ENTRY.
const INVAL_ENTRY: i32 = 3;
/// FUSE_EXPIRE_ONLY: the name is looked up anew at next use; nothing is unmounted or unhashed.
const EXPIRE_ONLY: u32 = 1;

/// Writes notifications to the FUSE device.
#[derive(Debug)]
pub(crate) struct Device {
    fd: OwnedFd,
    /// The kernel knows EXPIRE_ONLY. One that does not would unmount what is mounted on the name, so it is told nothing
    /// about names; there they live a second only.
    expire: bool,
}

impl Device {
    pub(crate) fn new(fd: OwnedFd, expire: bool) -> Device {
        Device { fd, expire }
    }

    pub(crate) fn send(&self, nodes: &Nodes, notice: &Notice) -> Result<(), Errno> {
        match notice {
            Notice::Entry { dir, name } if self.expire => self.entry(nodes.of(*dir), name),
            Notice::Entry { dir, .. } => self.inode(nodes.of(*dir), true),
            Notice::Inode(id) => self.inode(nodes.of(*id), true),
            Notice::Attributes(id) => self.inode(nodes.of(*id), false),
        }
    }

    /// Attributes only: touches no page and so waits for nothing.
    pub(crate) fn attributes(&self, nodes: &Nodes, id: FileId) -> Result<(), Errno> {
        self.inode(nodes.of(id), false)
    }

    fn entry(&self, dir: u64, name: &[u8]) -> Result<(), Errno> {
        let mut body = Vec::with_capacity(name.len().saturating_add(17));
        body.extend_from_slice(&dir.to_ne_bytes());
        body.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
        body.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
        body.extend_from_slice(name);
        body.push(0);
        self.write(INVAL_ENTRY, &body)
    }

    fn inode(&self, node: u64, content: bool) -> Result<(), Errno> {
        let mut body = Vec::with_capacity(24);
        body.extend_from_slice(&node.to_ne_bytes());
        // A negative offset spares the pages.
        body.extend_from_slice(&(if content { 0i64 } else { -1 }).to_ne_bytes());
        body.extend_from_slice(&0i64.to_ne_bytes());
        self.write(INVAL_INODE, &body)
    }

    fn write(&self, code: i32, body: &[u8]) -> Result<(), Errno> {
        let length = body.len().saturating_add(16);
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_ne_bytes());
        message.extend_from_slice(&code.to_ne_bytes());
        message.extend_from_slice(&0u64.to_ne_bytes());
        message.extend_from_slice(body);
        match rustix::io::write(self.fd.as_fd(), &message) {
            // The kernel does not have it cached.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Runs until the volume's notifier is detached.
pub(crate) fn run(volume: &Volume, nodes: &Nodes, device: &Arc<Device>) {
    while let Some(notices) = volume.notifier.take(Duration::from_secs(1)) {
        // All of these changes were made before: once is enough.
        let mut said = BTreeSet::new();
        for notice in &notices {
            if !said.insert(notice) {
                continue;
            }
            match device.send(nodes, notice) {
                Ok(()) => {}
                Err(Errno::NODEV | Errno::PERM | Errno::NOTCONN) => return, // Unmounted.
                Err(errno) => {
                    tracing::debug!(target: "fuse", volume = volume.name, ?notice, %errno, "not invalidated");
                }
            }
        }
    }
}
