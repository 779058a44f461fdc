//! What the running kernel offers, and what is agreed with it when a volume is mounted.

use std::sync::OnceLock;
use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

use super::backing::Backings;

/// How long the kernel may believe what it was told: every change goes through it or is notified.
const LONG: Duration = Duration::from_secs(86_400);
/// The same where the kernel cannot be told gently about names.
const SHORT: Duration = Duration::from_secs(1);
/// Wanted, each where the kernel has it.
const WANTED: [InitFlags; 8] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_ALLOW_IDMAP,
    InitFlags::FUSE_HAS_RESEND,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_HAS_EXPIRE_ONLY,
    InitFlags::FUSE_AUTO_INVAL_DATA,
];
/// Without these, modes and ACLs of new files would be wrong.
const NEEDED: InitFlags = InitFlags::FUSE_DONT_MASK.union(InitFlags::FUSE_POSIX_ACL);

/// What the running kernel offers.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    offered: OnceLock<InitFlags>,
    pub(super) backings: Backings,
}

impl Kernel {
    pub(crate) fn has_passthrough(&self) -> bool {
        self.backings.is_on()
    }

    pub(crate) fn expires(&self) -> bool {
        self.offered.get().is_some_and(|offered| offered.contains(InitFlags::FUSE_HAS_EXPIRE_ONLY))
    }

    /// Answers a mount's INIT. Gives how long the kernel may believe what it is told.
    pub(super) fn agree(&self, config: &mut KernelConfig, passthrough: bool) -> std::io::Result<Duration> {
        let offered = config.capabilities();
        let refused = |missing: InitFlags| {
            std::io::Error::other(format!(
                "this kernel's FUSE lacks {missing:?}; Linux 5.10 or newer is needed"
            ))
        };
        config.add_capabilities(NEEDED).map_err(refused)?;
        for flag in WANTED {
            // A flag that is not offered has its fallback.
            let _ = config.add_capabilities(flag);
        }
        // Depth 1 lets an overlayfs (containerd's) lie on top of this mount.
        if !passthrough
            || config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err()
            || config.set_max_stack_depth(1).is_err()
        {
            self.backings.turn_off();
        }
        let _ = config.set_max_background(128);
        let _ = self.offered.set(offered);
        Ok(if self.expires() { LONG } else { SHORT })
    }
}
