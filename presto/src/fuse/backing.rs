//! Kernel passthrough: one backing id per open inode, counted; and the memory of a kernel that has none.
//!
//! While an inode is open, all its opens must be of one kind and, in passthrough, name the same backing id: otherwise
//! the kernel fails the open with EIO.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use fuser::BackingId;
use intermezzo_kml::record::FileId;
use parking_lot::Mutex;

use crate::lower::dropping_privileges;

/// How an open's data goes.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Past presto.
    Kernel(Arc<BackingId>),
    /// Through READ and WRITE requests.
    Daemon,
}

#[derive(Debug, Default)]
pub(crate) struct Backings {
    open: Mutex<BTreeMap<FileId, (Way, u64)>>,
    off: AtomicBool,
}

impl Backings {
    /// No passthrough from now on, for inodes that are not open.
    pub(crate) fn turn_off(&self) {
        self.off.store(true, Ordering::Release);
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.off.load(Ordering::Acquire)
    }

    /// One more open of this inode. `register` makes a backing id; it is called for the first open only.
    pub(crate) fn acquire(
        &self,
        volume: &str,
        id: FileId,
        register: impl FnOnce() -> io::Result<BackingId>,
    ) -> Way {
        let mut open = self.open.lock();
        if let Some((way, count)) = open.get_mut(&id) {
            *count = count.saturating_add(1);
            return way.clone();
        }
        let mut way = Way::Daemon;
        if self.is_on() {
            // The kernel writes with the credentials of this moment: without CAP_FSETID, so that written files lose
            // their set-user-id bit.
            match dropping_privileges(register) {
                Ok(backing) => way = Way::Kernel(Arc::new(backing)),
                Err(error) if is_passing(&error) => {
                    tracing::debug!(target: "fuse", volume, %error, "no passthrough for this file");
                }
                Err(error) => {
                    self.turn_off();
                    tracing::warn!(target: "fuse", volume, %error,
                        "no kernel passthrough on this lower file system; data goes through presto");
                }
            }
        }
        open.insert(id, (way.clone(), 1));
        way
    }

    /// One less.
    pub(crate) fn release(&self, id: FileId) {
        let mut open = self.open.lock();
        let Some((_, count)) = open.get_mut(&id) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            // Dropping the last reference closes the backing id, under the lock: nobody can be given it any more.
            open.remove(&id);
        }
    }
}

/// Not the file system's inability (ELOOP, EPERM, EOPNOTSUPP, ENOTTY) but a shortage.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::EINTR)
    )
}
