//! Packets over a Unix SOCK_SEQPACKET socket, with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::protocol::MAX_PACKET;

/// Descriptors of one packet.
const MAX_FDS: usize = 4;

/// Why a packet did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The far side has gone.
    #[error("the far side has gone")]
    Closed,
    /// Over a limit.
    #[error("a packet is too long")]
    TooLong,
    /// The kernel refused.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// One end.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Link {
        Link { fd }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Listens at `path`, mode 0600; a socket left there is replaced.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = socket()?;
    let is_socket =
        rustix::fs::lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    if is_socket {
        rustix::fs::unlink(path)?;
    }
    // Bind makes the file with the socket's own mode, so nobody else can connect in between.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o600))?;
    rustix::net::listen(&fd, 8)?;
    Ok(fd)
}

pub(crate) fn accept(listener: &OwnedFd) -> Result<Link, Errno> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC).map(Link::from)
}

impl Link {
    /// Connects to a holder.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Link, LinkError> {
        let fd = socket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Link { fd })
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pair() -> Result<(Link, Link), LinkError> {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Link { fd: a }, Link { fd: b }))
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// The far side is gone, or takes nothing and this end was told not to wait.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<(), LinkError> {
        if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(LinkError::TooLong);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        loop {
            let flags = flags | SendFlags::NOSIGNAL;
            match rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for the next packet.
    ///
    /// # Errors
    /// The far side is gone, or the packet is over a limit.
    pub fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), LinkError> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.fd, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(LinkError::TooLong);
        }
        if got.bytes == 0 {
            return Err(LinkError::Closed);
        }
        bytes.truncate(got.bytes);
        Ok((bytes, fds))
    }

    /// Whether the far side has gone; waits at most this long for that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_hung_up(&self, patience: Duration) -> Result<bool, LinkError> {
        match poll(&mut [PollFd::new(&self.fd, PollFlags::empty())], Some(&timespec(patience))) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether something is to be read, or the far side has gone; waits at most this long.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_readable(&self, patience: Duration) -> Result<bool, LinkError> {
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timespec(patience))) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
