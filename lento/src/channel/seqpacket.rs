//! A Unix SOCK_SEQPACKET socket that carries one channel packet per message, with descriptors beside it.

use intermezzo_channel::MAX_FDS;
use intermezzo_channel::MAX_PACKET;
use intermezzo_channel::v1::Packet;
use prost::Message;
use rustix::io::Errno;
use rustix::io::IoSlice;
use rustix::io::IoSliceMut;
use rustix::net::AddressFamily;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// What to ask the kernel for; it grants less without CAP_NET_ADMIN.
const WANTED_BUFFER: usize = 8 << 20;
/// What the kernel needs of the buffer for itself.
const OVERHEAD: usize = 4 << 10;

/// One end of a channel.
#[derive(Debug)]
pub struct SeqPacket {
    fd: AsyncFd<OwnedFd>,
    limit: usize,
}

impl SeqPacket {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<SeqPacket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        SeqPacket::from_fd(socket)
    }

    /// Takes over a connected, non-blocking socket.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn from_fd(socket: OwnedFd) -> io::Result<SeqPacket> {
        // A packet must fit the send buffer whole, or the kernel refuses it with EMSGSIZE.
        if sockopt::set_socket_send_buffer_size_force(&socket, WANTED_BUFFER).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, WANTED_BUFFER)?;
        }
        let granted = sockopt::socket_send_buffer_size(&socket)?;
        let limit = granted.saturating_sub(OVERHEAD).min(MAX_PACKET);
        // Its replacement is unsafe for types that may close or swap their descriptor; an `OwnedFd` never does.
        #[allow(deprecated)]
        let fd = AsyncFd::new(socket)?;
        Ok(SeqPacket { fd, limit })
    }

    /// Longest packet that can be sent, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Sends one packet whole.
    ///
    /// # Errors
    /// It is too long, or the other end is gone.
    pub async fn send(&self, packet: &Packet, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = packet.encode_to_vec();
        if bytes.len() > self.limit {
            return Err(Errno::MSGSIZE.into());
        }
        loop {
            let mut guard = self.fd.writable().await?;
            match guard.try_io(|fd| send_now(fd.get_ref(), &bytes, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Receives the next packet; `None` when the other end is gone.
    ///
    /// # Errors
    /// The socket's, or a packet that is too long or not a packet.
    pub async fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<(Packet, Vec<OwnedFd>)>> {
        buffer.resize(MAX_PACKET, 0);
        let (length, fds) = loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| receive_now(fd.get_ref(), buffer)) {
                Ok(result) => break result?,
                Err(_would_block) => {}
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let packet = Packet::decode(buffer.get(..length).unwrap_or_default())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some((packet, fds)))
    }
}

fn send_now(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_now(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet longer than the channel allows"));
    }
    Ok((received.bytes, fds))
}
