//! The thread that corrects the kernel's caches after replays. It holds no locks and nobody waits for it: the kernel
//! may make it wait for a request that is being served right now.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::FileId;
use rustix::io::Errno;

use super::nodes::Nodes;
use crate::filter::Notice;
use crate::filter::Volume;
use crate::holding::Held;

/// FUSE_NOTIFY_INVAL_INODE.
const INVAL_INODE: i32 = 2;
/// FUSE_NOTIFY_INVAL_ENTRY.
const INVAL_ENTRY: i32 = 3;
/// FUSE_EXPIRE_ONLY: the name is looked up anew at next use; nothing is unmounted or unhashed.
const EXPIRE_ONLY: u32 = 1;
/// FUSE_NOTIFY_RESEND.
const RESEND: i32 = 7;
/// Bytes of messages handed on at once.
const BATCH: usize = 24 << 10;
/// Requests that are sent again after a takeover have all come by then.
const RESENT: Duration = Duration::from_secs(10);

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

    fn message(&self, nodes: &Nodes, notice: &Notice) -> Option<Vec<u8>> {
        match notice {
            Notice::Entry { dir, name } if self.expire => Some(entry(nodes.of(*dir), name)),
            Notice::Entry { dir, .. } => Some(inode(nodes.of(*dir), Extent::All)),
            Notice::Inode(id) => Some(inode(nodes.of(*id), Extent::All)),
            Notice::Attributes(id) => Some(inode(nodes.of(*id), Extent::Attributes)),
            Notice::Upto(_) => None,
        }
    }

    /// Attributes only: touches no page and so waits for nothing.
    pub(crate) fn attributes(&self, nodes: &Nodes, id: FileId) -> Result<(), Errno> {
        self.write(&inode(nodes.of(id), Extent::Attributes))
    }

    /// Has the kernel send again what an earlier presto had read and not answered.
    pub(crate) fn resend(&self) -> Result<(), Errno> {
        self.write(&message(RESEND, &[]))
    }

    fn write(&self, message: &[u8]) -> Result<(), Errno> {
        match rustix::io::write(self.fd.as_fd(), message) {
            // The kernel does not have it cached.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// What of an inode is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    All,
    Attributes,
}

fn entry(dir: u64, name: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(name.len().saturating_add(17));
    body.extend_from_slice(&dir.to_ne_bytes());
    body.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
    body.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
    body.extend_from_slice(name);
    body.push(0);
    message(INVAL_ENTRY, &body)
}

fn inode(node: u64, extent: Extent) -> Vec<u8> {
    let mut body = Vec::with_capacity(24);
    body.extend_from_slice(&node.to_ne_bytes());
    // A negative offset spares the pages.
    let offset: i64 = if extent == Extent::All { 0 } else { -1 };
    body.extend_from_slice(&offset.to_ne_bytes());
    body.extend_from_slice(&0i64.to_ne_bytes());
    message(INVAL_INODE, &body)
}

fn message(code: i32, body: &[u8]) -> Vec<u8> {
    let length = body.len().saturating_add(16);
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

/// One mount's corrections.
pub(crate) struct Corrections<'a> {
    pub volume: &'a Volume,
    pub nodes: &'a Nodes,
    pub device: &'a Device,
    /// Writes them, where there is one: who writes may wait for a user who waits for presto, and could not be killed.
    pub held: Option<&'a Held>,
}

impl Corrections<'_> {
    /// Runs until the volume's notifier is detached.
    pub(crate) fn run(&self) {
        let started = Instant::now();
        let mut resuming = self.held.is_some();
        while let Some(notices) = self.volume.notifier.take(Duration::from_secs(1)) {
            let mut messages = Vec::new();
            let mut bytes = 0usize;
            // All of these changes were made before: once is enough.
            let mut said = BTreeSet::new();
            for notice in &notices {
                if !said.insert(notice) {
                    continue;
                }
                if let Some(message) = self.device.message(self.nodes, notice) {
                    bytes = bytes.saturating_add(message.len());
                    messages.push(message);
                }
                if let Notice::Upto(recno) = notice {
                    if self.flush(&mut messages).is_err() {
                        return;
                    }
                    if let Some(memory) = self.volume.session() {
                        memory.set_notified(*recno);
                    }
                    bytes = 0;
                } else if bytes > BATCH {
                    if self.flush(&mut messages).is_err() {
                        return;
                    }
                    bytes = 0;
                }
            }
            if self.flush(&mut messages).is_err() {
                return;
            }
            if resuming && started.elapsed() > RESENT {
                resuming = false;
                self.volume.files.let_go_unclaimed();
            }
            if let Some(memory) = self.volume.session() {
                memory.let_go_earlier();
            }
        }
    }

    /// Err: there is no mount any more.
    fn flush(&self, messages: &mut Vec<Vec<u8>>) -> Result<(), Errno> {
        let messages = std::mem::take(messages);
        if messages.is_empty() || self.held.is_some_and(|held| held.correct(&messages)) {
            return Ok(());
        }
        for message in messages {
            match self.device.write(&message) {
                Err(errno @ (Errno::NODEV | Errno::PERM | Errno::NOTCONN)) => return Err(errno),
                Err(errno) => {
                    tracing::debug!(target: "fuse", volume = self.volume.name, %errno, "not invalidated");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
