//! What the running kernel offers, and what is agreed with it when a volume is mounted.

use std::sync::OnceLock;
use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

use super::backing::Backings;
use crate::session::Agreed;

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
    agreed: OnceLock<(InitFlags, u32)>,
    pub(super) backings: Backings,
}

impl Kernel {
    pub(crate) fn has_passthrough(&self) -> bool {
        self.backings.is_on()
    }

    pub(crate) fn expires(&self) -> bool {
        self.has(InitFlags::FUSE_HAS_EXPIRE_ONLY)
    }

    /// Whether it can send a request again that a dead presto had begun to serve.
    pub(crate) fn resends(&self) -> bool {
        self.has(InitFlags::FUSE_HAS_RESEND)
    }

    /// What holds for as long as the mount lives.
    pub(crate) fn agreed(&self) -> Agreed {
        let (flags, minor) = self.agreed.get().copied().unwrap_or((InitFlags::empty(), 0));
        Agreed { flags: flags.bits(), minor }
    }

    fn has(&self, flag: InitFlags) -> bool {
        self.agreed.get().is_some_and(|(agreed, _)| agreed.contains(flag))
    }

    /// Answers a mount's INIT. Gives how long the kernel may believe what it is told.
    pub(super) fn agree(
        &self,
        config: &mut KernelConfig,
        passthrough: bool,
        long: Duration,
    ) -> std::io::Result<Duration> {
        let refused = |missing: InitFlags| {
            std::io::Error::other(format!(
                "this kernel's FUSE lacks {missing:?}; Linux 5.10 or newer is needed"
            ))
        };
        config.add_capabilities(NEEDED).map_err(refused)?;
        let mut agreed = NEEDED;
        for flag in WANTED {
            // A flag that is not offered has its fallback.
            agreed.set(flag, config.add_capabilities(flag).is_ok());
        }
        // Depth 1 lets an overlayfs (containerd's) lie on top of this mount.
        if !passthrough
            || config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err()
            || config.set_max_stack_depth(1).is_err()
        {
            self.backings.turn_off();
        } else {
            agreed |= InitFlags::FUSE_PASSTHROUGH;
        }
        let _ = config.set_max_background(128);
        let _ = self.agreed.set((agreed, config.kernel_abi().1));
        Ok(if self.expires() { long } else { SHORT })
    }
}
