//! Packets over a Unix SOCK_SEQPACKET socket, with descriptors beside them.
//!
//! Owns the sockets' options and limits. Knows packets, not what they ask: that is `dispatch.rs`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use intermezzo_channel::v1::Packet;
use intermezzo_channel::{MAX_FDS, MAX_PACKET};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

/// Room for one longest packet and the kernel's bookkeeping, twice (the kernel halves it again).
const BUFFER: usize = MAX_PACKET + MAX_PACKET / 4;

/// Longest wait for the far side to take a packet before the connection counts as dead.
const SEND_DEADLINE: Duration = Duration::from_secs(20);

/// Why a packet did not pass.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The far side has gone.
    #[error("the far side closed the channel")]
    Closed,
    /// Longer than `MAX_PACKET`, or with more than `MAX_FDS` descriptors.
    #[error("packet of {bytes} bytes and {fds} descriptors is over the channel's limits")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// Not a message of this protocol.
    #[error("packet is not a channel message: {0}")]
    Garbled(#[from] prost::DecodeError),
    /// The kernel refused.
    #[error("channel socket: {0}")]
    Io(#[from] Errno),
    /// A socket path could not be used.
    #[error("channel socket {path}: {errno}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        errno: Errno,
    },
}

/// A packet and the descriptors that came with it.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub packet: Packet,
    /// Descriptors, in the order sent.
    pub fds: Vec<OwnedFd>,
}

/// The listening socket; its path is removed when dropped.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, mode 0600; a socket left there by an earlier presto is replaced.
    ///
    /// # Errors
    /// The path cannot be bound (too long, no directory, no right).
    pub fn bind(path: &Path) -> Result<Listener, TransportError> {
        let at = |errno| TransportError::Path { path: path.to_owned(), errno };
        let fd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let is_socket = rustix::fs::lstat(path).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket
        });
        if is_socket {
            rustix::fs::unlink(path).map_err(at)?;
        }
        // The mode of the socket file itself, before anybody can connect: bind makes it with the inode's mode.
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o600))?;
        let address = SocketAddrUnix::new(path).map_err(at)?;
        rustix::net::bind(&fd, &address).map_err(at)?;
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600)).map_err(at)?;
        rustix::net::listen(&fd, 8)?;
        Ok(Listener { fd, path: path.to_owned() })
    }

    /// Waits up to `patience` for a connection.
    ///
    /// # Errors
    /// The kernel's; `Ok(None)` when nobody came.
    pub fn accept(&self, patience: Duration) -> Result<Option<Connection>, TransportError> {
        if !readable(self.fd.as_fd(), patience)? {
            return Ok(None);
        }
        match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(Connection::new(fd)?)),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.path);
    }
}

/// One end of a channel.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
}

impl Connection {
    fn new(fd: OwnedFd) -> Result<Connection, TransportError> {
        // Without CAP_NET_ADMIN the forced sizes are refused; short packets pass all the same.
        let _ = set_socket_send_buffer_size_force(&fd, BUFFER);
        let _ = set_socket_recv_buffer_size_force(&fd, BUFFER);
        set_socket_timeout(&fd, Timeout::Send, Some(SEND_DEADLINE))?;
        Ok(Connection { fd })
    }

    /// Connects to a listening presto (the tests' far side).
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Connection, TransportError> {
        let at = |errno| TransportError::Path { path: path.to_owned(), errno };
        let fd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path).map_err(at)?).map_err(at)?;
        Connection::new(fd)
    }

    /// Sends one packet; waits while the far side's queue is full, up to a deadline.
    ///
    /// # Errors
    /// Over the limits, gone, or not taken in time.
    pub fn send(&self, packet: &Packet, fds: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        let bytes = packet.encode_to_vec();
        if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(TransportError::TooLong { bytes: bytes.len(), fds: fds.len() });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        loop {
            match rustix::net::sendmsg(&self.fd, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
            {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(TransportError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for the next packet; `scratch` is reused between calls.
    ///
    /// # Errors
    /// Gone, over the limits, or not a message.
    pub fn receive(&self, scratch: &mut Vec<u8>) -> Result<Incoming, TransportError> {
        scratch.resize(MAX_PACKET, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut slices = [IoSliceMut::new(scratch)];
            match rustix::net::recvmsg(&self.fd, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(TransportError::Closed),
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
            return Err(TransportError::TooLong { bytes: got.bytes, fds: fds.len() });
        }
        if got.bytes == 0 {
            return Err(TransportError::Closed);
        }
        let packet = Packet::decode(scratch.get(..got.bytes).unwrap_or_default())?;
        Ok(Incoming { packet, fds })
    }

    /// Like [`Connection::receive`], but gives up after `patience`.
    ///
    /// # Errors
    /// As `receive`; `Ok(None)` when nothing came.
    pub fn receive_within(
        &self,
        scratch: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<Option<Incoming>, TransportError> {
        if readable(self.fd.as_fd(), patience)? { self.receive(scratch).map(Some) } else { Ok(None) }
    }

    /// Ends the connection for both sides; waiting threads return.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

fn readable(fd: BorrowedFd<'_>, patience: Duration) -> Result<bool, Errno> {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(n) => Ok(n > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}
