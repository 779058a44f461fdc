//! The channel to Lento: the /dev/presto of today.
//!
//! Owns the socket, the packets' order and the waits for answers. Decides nothing about volumes: downcalls go to a
//! [`Service`]. Lento may vanish and come back at any time; nothing here waits without a deadline.

pub mod convert;
mod lanes;
mod link;
mod names;
mod server;
pub mod transport;
mod upcalls;

use std::os::fd::OwnedFd;

use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{Done, Failure};
use rustix::io::Errno;

pub use link::{Answer, Link, NoLento};
pub use names::{entry_name, stage_name, volume_name};
pub use server::Server;

/// What answers a downcall.
#[derive(Debug)]
pub struct Reply {
    /// The answer.
    pub body: Body,
    /// Descriptors that travel with it.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// An answer without descriptors.
    #[must_use]
    pub fn of(body: Body) -> Reply {
        Reply { body, fds: Vec::new() }
    }

    /// Nothing to say.
    #[must_use]
    pub fn done() -> Reply {
        Reply::of(Body::Done(Done {}))
    }

    /// A refusal; `message` names volume and path.
    #[must_use]
    pub fn failure(errno: Errno, message: impl std::fmt::Display) -> Reply {
        Reply::of(Body::Failure(Failure { errno: errno.raw_os_error(), message: message.to_string() }))
    }
}

/// Who does what downcalls ask. Calls for one volume come one after the other, except those of [`lanes::Lane::Quick`].
pub trait Service: Send + Sync + 'static {
    /// Answers a downcall about `volume` (empty: the channel itself).
    fn call(&self, volume: &str, body: Body) -> Reply;
}
