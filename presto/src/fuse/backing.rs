//! Kernel passthrough: one backing id per inode, kept with what is kept of an open file; and the memory of a kernel that
//! has none.
//!
//! While an inode is open, all its opens must be of one kind and, in passthrough, name the same backing id: otherwise
//! the kernel fails the open with EIO. The filter has one `OpenFile` per inode, so what is decided there holds for all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use fuser::BackingId;

use crate::filter::OpenFile;
use crate::lower::dropping_privileges;

/// How an inode's data goes.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Past presto. The id is closed with the last reference.
    Kernel(Arc<BackingId>),
    /// Through READ and WRITE requests.
    Daemon,
}

#[derive(Debug, Default)]
pub(crate) struct Backings {
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

    /// The way of this inode's data. `register` makes a backing id; it is called for the first open only.
    pub(crate) fn way(
        &self,
        volume: &str,
        file: &OpenFile,
        register: impl FnOnce() -> io::Result<BackingId>,
    ) -> Way {
        file.serving(|| self.choose(volume, register)).cloned().unwrap_or(Way::Daemon)
    }

    fn choose(&self, volume: &str, register: impl FnOnce() -> io::Result<BackingId>) -> Way {
        if !self.is_on() {
            return Way::Daemon;
        }
        // The kernel writes with the credentials of this moment: without CAP_FSETID, so that written files lose their
        // set-user-id bit.
        match dropping_privileges(register) {
            Ok(backing) => return Way::Kernel(Arc::new(backing)),
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
