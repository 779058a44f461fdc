//! Presto's side: one question at a time, each with a deadline.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use crate::link::{Link, LinkError};
use crate::protocol::{Kept, Kind, Malformed, Word};

/// A holder does nothing that takes long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the holder gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It says nothing.
    #[error("the holder does not answer")]
    Silent,
    /// Not of this protocol.
    #[error("the holder's answer: {0}")]
    Malformed(#[from] Malformed),
    /// It does not want to.
    #[error("the holder refuses: {0}")]
    Refused(String),
}

/// A connection to the holder.
#[derive(Debug)]
pub struct Client {
    link: Link,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Ok(Client { link: Link::connect(path)? })
    }

    /// Has a session kept, with the end of a socket on which corrections come.
    ///
    /// # Errors
    /// It is not kept.
    pub fn keep(&self, name: &str, kept: &Kept, corrections: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.ask(Kind::Keep, name, &kept.beside(Some(corrections))).map(|_| ())
    }

    /// What is kept of a session, if it is.
    ///
    /// # Errors
    /// No answer.
    pub fn find(&self, name: &str) -> Result<Option<Kept>, ClientError> {
        let (kind, fds) = self.ask(Kind::Find, name, &[])?;
        if kind == Kind::Absent {
            return Ok(None);
        }
        Kept::found(fds).map(Some).ok_or_else(|| Malformed::Length.into())
    }

    /// The session is over.
    ///
    /// # Errors
    /// No answer.
    pub fn forget(&self, name: &str) -> Result<(), ClientError> {
        self.ask(Kind::Forget, name, &[]).map(|_| ())
    }

    /// Whether the holder has gone; waits at most this long for that.
    #[must_use]
    pub fn is_gone(&self, patience: Duration) -> bool {
        self.link.is_hung_up(patience).unwrap_or(true)
    }

    fn ask(
        &self,
        kind: Kind,
        name: &str,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Kind, Vec<OwnedFd>), ClientError> {
        self.link.send(&Word::new(kind, name.as_bytes()).encode(), fds, SendFlags::DONTWAIT)?;
        let end = Instant::now() + PATIENCE;
        while !self.link.is_readable(end.saturating_duration_since(Instant::now()))? {
            if Instant::now() >= end {
                return Err(ClientError::Silent);
            }
        }
        let (bytes, fds) = self.link.receive()?;
        let word = Word::decode(&bytes)?;
        match word.kind {
            Kind::Done | Kind::Found | Kind::Absent => Ok((word.kind, fds)),
            Kind::Refused => Err(ClientError::Refused(String::from_utf8_lossy(&word.name).into_owned())),
            Kind::Keep | Kind::Find | Kind::Forget => Err(Malformed::Kind(word.kind as u16).into()),
        }
    }
}
