//! Volumes shown to users through FUSE.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::mount::{Mounted, Mounter};
use crate::filter::Volume;
use crate::fuse::{self, Mount, MountOptions};
use crate::holding::Holding;

/// Mounts by FUSE, all volumes with the same options.
#[derive(Debug, Default)]
pub struct Fuse {
    /// How.
    pub options: MountOptions,
    /// Keeps the mounts beyond this presto.
    pub holding: Option<Arc<Holding>>,
    /// What the kernel offers, once it has been asked.
    pub kernel: OnceLock<Vec<&'static str>>,
}

impl Mounter for Fuse {
    fn mount(&self, volume: Arc<Volume>, at: &Path) -> Result<Box<dyn Mounted>, String> {
        match Mount::start(volume, at, &self.options, self.holding.as_ref()) {
            Ok(mount) => Ok(Box::new(mount)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn adopt(&self, volume: &Arc<Volume>, at: &Path) -> Option<Box<dyn Mounted>> {
        let holding = self.holding.as_ref()?;
        let found = holding.find(&volume.name)?;
        match Mount::take_over(Arc::clone(volume), at, &self.options, holding, found) {
            Ok(mount) => Some(Box::new(mount)),
            Err(error) => {
                tracing::error!(target: "volumes", volume = volume.name, mountpoint = %at.display(), %error,
                    "the mount that was kept cannot be taken over: its users get errors, and it is mounted anew");
                holding.forget(&volume.name);
                None
            }
        }
    }

    fn holds(&self, volume: &str) -> bool {
        self.holding.as_ref().is_some_and(|holding| holding.find(volume).is_some())
    }

    fn covered(&self, volume: &str) -> Option<OwnedFd> {
        let held = self.holding.as_ref()?.find(volume)?;
        held.tree().inspect_err(|error| {
            tracing::warn!(target: "volumes", volume, %error, "the directory under a kept mount is not at hand");
        }).ok()?
    }

    fn offers(&self) -> Vec<String> {
        let kernel = self.kernel.get_or_init(|| match fuse::offered() {
            Ok(offers) => {
                tracing::info!(target: "fuse", ?offers, "what this kernel's FUSE offers");
                offers
            }
            Err(errno) => {
                tracing::error!(target: "fuse", %errno, "this kernel's FUSE cannot be asked");
                Vec::new()
            }
        });
        let holder = self.holding.as_ref().filter(|holding| holding.is_connected()).map(|_| "holder");
        kernel.iter().copied().chain(holder).map(str::to_owned).collect()
    }
}

impl Mounted for Mount {
    fn detach(&self) {
        if let Err(errno) = self.unmount()
            && self.is_alive()
        {
            let (volume, path) = (&self.volume().name, self.mountpoint().display());
            tracing::warn!(target: "volumes", volume, %path, %errno, "not unmounted");
        }
    }

    fn abort(&self) {
        if let Err(errno) = Mount::abort(self) {
            tracing::warn!(target: "volumes", volume = self.volume().name, %errno, "its users cannot be told that it ended");
        }
    }

    fn wait(&self, limit: Duration) -> bool {
        Mount::wait(self, limit)
    }

    fn passthrough(&self) -> bool {
        self.has_passthrough()
    }

    fn is_held(&self) -> bool {
        Mount::is_held(self)
    }
}
