//! The UpcallWheel reads the channel (the /dev/presto of today): one packet after the other, with its descriptors.
//!
//! It owns the reading side and the first exchange (`Attach`); the `ReqDispatcher` owns it.

use crate::channel::seqpacket::SeqPacket;
use intermezzo_channel::PROTOCOL;
use intermezzo_channel::v1::Attach;
use intermezzo_channel::v1::Attached;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long Presto may take to answer `Attach`.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// Why the wheel does not turn.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// The socket.
    #[error("channel: {0}")]
    Socket(#[from] io::Error),
    /// Presto did not answer in time.
    #[error("presto did not answer Attach within {ATTACH_DEADLINE:?}")]
    Late,
    /// Presto closed the connection.
    #[error("presto closed the channel")]
    Closed,
    /// Presto refuses.
    #[error("presto refuses to be attached: {0}")]
    Refused(String),
    /// Another protocol.
    #[error("presto speaks channel protocol {0}, this lento {PROTOCOL}: upgrade the older of the two")]
    Protocol(u32),
}

/// The reading side of an attached channel.
#[derive(Debug)]
pub struct UpcallWheel {
    socket: Arc<SeqPacket>,
    buffer: Vec<u8>,
}

impl UpcallWheel {
    /// Connects to Presto's socket and attaches.
    ///
    /// # Errors
    /// Presto is not there, late, or of another protocol.
    pub async fn connect(path: &Path) -> Result<(UpcallWheel, Attached), WheelError> {
        let socket = Arc::new(SeqPacket::connect(path)?);
        let mut wheel = UpcallWheel { socket, buffer: Vec::new() };
        let attached = timeout(ATTACH_DEADLINE, wheel.attach()).await.map_err(|_| WheelError::Late)??;
        if attached.protocol != PROTOCOL {
            return Err(WheelError::Protocol(attached.protocol));
        }
        Ok((wheel, attached))
    }

    async fn attach(&mut self) -> Result<Attached, WheelError> {
        let attach = Attach { protocol: PROTOCOL, lento_version: env!("CARGO_PKG_VERSION").to_owned() };
        let packet = Packet { id: 1, volume: String::new(), body: Some(Body::Attach(attach)) };
        self.socket.send(&packet, &[]).await?;
        loop {
            let (packet, _) = self.next().await?;
            match packet.body {
                Some(Body::Attached(attached)) if packet.id == 1 => return Ok(attached),
                Some(Body::Failure(failure)) if packet.id == 1 => {
                    return Err(WheelError::Refused(failure.message));
                }
                // An upcall may overtake the answer. Journals are read from the KML anyway, and whoever waits for
                // another answer asks again by its deadline.
                _ => {}
            }
        }
    }

    /// The next packet.
    ///
    /// # Errors
    /// The channel broke.
    pub async fn next(&mut self) -> Result<(Packet, Vec<OwnedFd>), WheelError> {
        self.socket.receive(&mut self.buffer).await?.ok_or(WheelError::Closed)
    }

    /// The sending side.
    #[must_use]
    pub fn socket(&self) -> Arc<SeqPacket> {
        self.socket.clone()
    }
}
