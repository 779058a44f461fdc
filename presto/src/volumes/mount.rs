//! The place where users see a volume: the directory under the mount, and dead mounts left on it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::filter::Volume;

/// Dead mounts stacked on one another that are taken away before giving up.
const STACK: usize = 16;

/// A mount; it goes when dropped.
pub trait Mounted: Send + Sync {
    /// Takes the mount away from its place at once; what has it open goes on. Never waits for users.
    fn detach(&self);
    /// Ends what still goes on in a detached mount: its users get errors from now on.
    fn abort(&self) {}
    /// Waits until the last user of the detached mount is gone, at most this long. Says whether it is so.
    fn wait(&self, limit: Duration) -> bool;
    /// Whether data goes past presto in the kernel.
    fn passthrough(&self) -> bool;
    /// Whether it outlives this presto.
    fn is_held(&self) -> bool {
        false
    }
}

/// Makes mounts. FUSE in production; nothing where only the channel is of interest.
pub trait Mounter: Send + Sync {
    /// Mounts a volume that recovery has brought in order.
    ///
    /// # Errors
    /// A text for people, naming the path.
    fn mount(&self, volume: Arc<Volume>, at: &Path) -> Result<Box<dyn Mounted>, String>;
    /// Goes on serving the mount that an earlier presto left and a holder kept, if there is one and it can be used. What
    /// cannot be used is nobody's any more.
    fn adopt(&self, _volume: &Arc<Volume>, _at: &Path) -> Option<Box<dyn Mounted>> {
        None
    }

    /// Whether a holder keeps this volume's mount: it must not be taken away, and a look at it would hang.
    fn holds(&self, _volume: &str) -> bool {
        false
    }

    /// The adopted directory that the kept mount of this volume covers, if there is such a mount.
    fn covered(&self, _volume: &str) -> Option<OwnedFd> {
        None
    }

    /// What the running kernel offers, e.g. "passthrough".
    fn offers(&self) -> Vec<String>;
}

/// Serves volumes without showing them to users.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMount;

impl Mounter for NoMount {
    fn mount(&self, _volume: Arc<Volume>, _at: &Path) -> Result<Box<dyn Mounted>, String> {
        Ok(Box::new(NoMount))
    }

    fn offers(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Mounted for NoMount {
    fn detach(&self) {}

    fn wait(&self, _limit: Duration) -> bool {
        true
    }

    fn passthrough(&self) -> bool {
        false
    }
}

/// Takes away what an earlier presto left mounted at this place, and aborts its connection. A look at the path would
/// not tell: the kernel answers from its caches. Nobody may be serving it: the caller holds the table's lock, or knows
/// the one who does to be dying.
pub(super) fn clear(at: &Path) -> Result<(), String> {
    for _ in 0..STACK {
        if !is_ours(at) {
            vacate(at);
            return Ok(());
        }
        tracing::info!(target: "volumes", path = %at.display(), "a dead mount is taken away");
        // FORCE ends requests that nobody will answer; one of them may even keep the dead presto from ending.
        let _ = rustix::mount::unmount(at, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
        if is_ours(at) {
            rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|errno| format!("mount point {}: a dead mount stays: {errno}", at.display()))?;
        }
    }
    Err(format!("mount point {}: too many dead mounts on it", at.display()))
}

/// Whether what is mounted there last, on top of anything else, is a presto's.
pub(super) fn is_ours(at: &Path) -> bool {
    crate::lower::top(at).is_some_and(|top| top.kind == b"fuse.intermezzo")
}

/// Removes the directory under a mount that is gone, if `prepare` made it: who looks for the volume finds nothing then,
/// and never an empty directory in its place.
pub(super) fn vacate(at: &Path) {
    let is_made_here = rustix::fs::lstat(at).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
            && rustix::fs::Mode::from_raw_mode(stat.st_mode).is_empty()
    });
    // The kernel refuses it where something is mounted or anything is in it.
    if is_made_here && let Err(errno) = rustix::fs::rmdir(at) {
        tracing::warn!(target: "volumes", path = %at.display(), %errno, "the directory under the mount stays");
    }
}

/// Makes the directory under the mount, right before that, with mode 0000, so that nobody writes "under" a missing mount;
/// and takes away what an earlier presto left mounted there.
pub(super) fn prepare(at: &Path) -> Result<(), String> {
    let text =
        |what: &str, error: &dyn std::fmt::Display| format!("mount point {}: {what}: {error}", at.display());
    clear(at)?;
    match rustix::fs::stat(at) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory => {
            Ok(())
        }
        Ok(_) => Err(text("not usable", &Errno::NOTDIR)),
        Err(Errno::NOENT) => {
            if let Some(parent) = at.parent() {
                std::fs::create_dir_all(parent).map_err(|error| text("cannot make its parent", &error))?;
            }
            let made = std::fs::DirBuilder::new().mode(0o000).create(at);
            made.map_err(|error| text("cannot make it", &error))
        }
        Err(errno) => Err(text("cannot look at it", &errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_that_was_made_for_a_mount_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (made, users) = (dir.path().join("ns/made"), dir.path().join("users"));
        prepare(&made).unwrap();
        std::fs::create_dir(&users).unwrap();
        prepare(&users).unwrap();
        std::fs::write(made.join("file"), "written under it").unwrap();
        vacate(&made);
        assert!(made.join("file").exists());
        std::fs::remove_file(made.join("file")).unwrap();
        for path in [&made, &users] {
            vacate(path);
        }
        assert!(!made.exists());
        assert!(users.is_dir(), "it was there before the volume");
    }
}
