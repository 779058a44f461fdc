//! bindfs, the plainest file system over a directory that people have: what a filter by FUSE costs at least with libfuse.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::peers::{is_installed, visible};

/// A mount of it; taken away when this goes.
#[derive(Debug)]
pub(super) struct Bindfs {
    child: Child,
    mount: PathBuf,
}

impl Bindfs {
    /// Mounts a new directory below `scratch` with several threads and caches that are kept for a minute, as ours are.
    /// `None` if it is not installed.
    pub(super) fn mount(scratch: &Path) -> Result<Option<Bindfs>> {
        if !is_installed("bindfs")? {
            return Ok(None);
        }
        let (lower, mount) = (scratch.join("bindfs-lower"), scratch.join("bindfs"));
        fs::create_dir(&lower)?;
        fs::create_dir(&mount)?;
        let before = fs::metadata(&mount)?.dev();
        // It goes with this process however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "bindfs", "-f", "--multithreaded", "-o"])
            .arg("attr_timeout=60,entry_timeout=60,negative_timeout=60")
            .args([&lower, &mount])
            .spawn()
            .context("cannot start bindfs")?;
        let this = Bindfs { child, mount };
        visible(|| fs::metadata(&this.mount).is_ok_and(|meta| meta.dev() != before))
            .context("bindfs does not mount")?;
        Ok(Some(this))
    }

    pub(super) fn mount_point(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        // It ends when its mount is gone.
        if unmount(&self.mount, UnmountFlags::DETACH).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
