//! Going on with a mount that an earlier presto left and the holder kept.
//!
//! fuser has no word for it: it insists on a handshake. So it gets one, over a socket, in which the "kernel" offers what was
//! agreed with the real one; then the device takes the socket's place. Requests that the dead presto had read come again
//! (`resent.rs`), in front of all others.

use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use fuser::Session;
use fuser::SessionACL;
use intermezzo_kml::KmlError;
use presto_holder::Link;
use presto_holder::LinkError;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::Mount;
use super::MountOptions;
use super::Parts;
use super::config;
use super::notify::Device;
use crate::filter::Volume;
use crate::holding::Held;
use crate::holding::Holding;
use crate::lower::put_in_place;
use crate::session::Agreed;
use crate::session::Memory;
use crate::session::Refusal;

/// FUSE_INIT.
const INIT: u32 = 26;
/// FUSE_INIT_EXT: there are flags in the second word.
const INIT_EXT: u64 = 1 << 30;
/// Length of the request header and of `fuse_init_in`.
const LENGTH: usize = 40 + 64;

/// Why a kept mount cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// It is no longer mounted where the volume belongs.
    #[error("it is not what is mounted at its mount point")]
    Elsewhere,
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] Refusal),
    /// The journal, in which the outcomes are.
    #[error(transparent)]
    Journal(#[from] KmlError),
    /// This presto would want something else of the kernel.
    #[error("this presto cannot serve what an earlier one agreed with the kernel")]
    Agreement,
    /// Its adopted directory lies bare.
    #[error("its adopted directory {} cannot be covered: {errno}", path.display())]
    Cover {
        /// The directory.
        path: PathBuf,
        /// Reason.
        errno: Errno,
    },
    /// A system call.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// A socket.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The session.
    #[error("no session: {0}")]
    Session(#[from] std::io::Error),
}

impl Mount {
    /// Serves a mount of an earlier presto. The volume has been brought in order; users wait for their answers.
    pub fn take_over(
        volume: Arc<Volume>,
        mountpoint: &Path,
        options: &MountOptions,
        holding: &Arc<Holding>,
        held: Arc<Held>,
    ) -> Result<Mount, TakeoverError> {
        super::allow_many_files();
        let [device, memory] = held.descriptors()?;
        let parts = Parts::new(volume, &device, mountpoint)?;
        let identity = parts.identity().map_err(|errno| match errno {
            Errno::NOENT => TakeoverError::Elsewhere,
            errno => TakeoverError::Errno(errno),
        })?;
        let memory = Arc::new(Memory::open(memory, &identity)?);
        let session = parts.handshake(options, memory.agreed())?;
        put_in_place(device.as_fd(), session.as_fd())?;
        parts.nodes.resume(&memory);
        let resumed = parts.volume.resume(&memory)?;
        parts.kernel.backings.resume(&memory, &parts.device, &resumed);
        holding.hand_over(&parts.volume.name, &held);
        // Only now, with nothing read yet: what this presto reads must not come a second time.
        let own = rustix::io::fcntl_dupfd_cloexec(&parts.device, 3)?;
        Device::new(own, false).resend()?;
        tracing::info!(target: "fuse", volume = parts.volume.name, ?mountpoint, handles = resumed.handles,
            lost = resumed.lost, requests = resumed.requests, "taken over from an earlier presto");
        let mount = parts.run(session, Some(holding), Some(held))?;
        mount.cover().map_err(|(path, errno)| TakeoverError::Cover { path, errno })?;
        Ok(mount)
    }
}

impl Parts {
    fn handshake(
        &self,
        options: &MountOptions,
        agreed: Agreed,
    ) -> Result<Session<super::Adapter>, TakeoverError> {
        let (ours, theirs) = Link::pair()?;
        theirs.send(&init(agreed), &[], SendFlags::empty())?;
        let place = rustix::io::fcntl_dupfd_cloexec(&ours, 3)?;
        let session = Session::from_fd(self.adapter(options), place, SessionACL::All, config(options))?;
        if self.kernel.agreed() == agreed { Ok(session) } else { Err(TakeoverError::Agreement) }
    }
}

/// The request by which a kernel would offer this.
fn init(agreed: Agreed) -> Vec<u8> {
    let flags = agreed.flags | INIT_EXT;
    let low = u32::try_from(flags & 0xffff_ffff).unwrap_or(0);
    let high = u32::try_from(flags >> 32).unwrap_or(0);
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend(u32::try_from(LENGTH).unwrap_or(0).to_ne_bytes());
    bytes.extend(INIT.to_ne_bytes());
    bytes.extend(1u64.to_ne_bytes()); // Its number.
    bytes.resize(40, 0);
    // Major and minor version, readahead (which presto leaves to the kernel), flags.
    for word in [7, agreed.minor, 0, low, high] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(LENGTH, 0);
    bytes
}
