//! Volumes shown to users through FUSE.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::mount::{Mounted, Mounter};
use crate::filter::Volume;
use crate::fuse::{Mount, MountOptions};

/// Mounts by FUSE, all volumes with the same options.
#[derive(Clone, Debug, Default)]
pub struct Fuse {
    /// How.
    pub options: MountOptions,
}

impl Mounter for Fuse {
    fn mount(&self, volume: Arc<Volume>, at: &Path) -> Result<Box<dyn Mounted>, String> {
        match Mount::start(volume, at, &self.options) {
            Ok(mount) => Ok(Box::new(mount)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn offers(&self) -> Vec<String> {
        if self.options.passthrough { vec!["passthrough".to_owned()] } else { Vec::new() }
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

    fn wait(&self, limit: Duration) -> bool {
        Mount::wait(self, limit)
    }

    fn passthrough(&self) -> bool {
        self.has_passthrough()
    }
}
