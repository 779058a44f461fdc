//! One Volume on this node.
use crate::io::Input;
use crate::io::NodeName;
use crate::io::Output;
use crate::store::Store;
use crate::store::StoreError;
use crate::types::{FileId, Hash, ObjectId, Position, Recno, Version};

/// Milliseconds on a clock that never goes back (CLOCK_BOOTTIME); its zero means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// What this node is for the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its log is the volume's order.
    Server,
    /// It follows this node.
    Client {
        /// The server.
        server: NodeName,
    },
}

/// What the shell knows when it opens a volume.
#[derive(Clone, Debug)]
pub struct Config {
    /// namespace/name, for messages.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Random id for a store that is new.
    pub new_replica: u64,
    /// Identity of the lower root directory.
    pub root: FileId,
    /// Identity of the hidden staging directory.
    pub staging: FileId,
    /// The machine or the store lost what was not synced (power cut, restored backup): a new incarnation begins.
    pub unclean: bool,
}

/// The volume cannot go on; the text says why. Nothing was changed by the input that caused it (drop the transaction).
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The KML says something impossible.
    #[error("journal record {recno}: {reason}")]
    Journal {
        /// Which record.
        recno: Recno,
        /// Why.
        reason: String,
    },
    /// The core contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}

/// The state machine of one volume.
#[derive(Debug)]
pub struct Volume {}

impl Volume {
    /// Opens or begins the state in `store`.
    ///
    /// # Errors
    /// The store's, or a store of another volume or role.
    pub fn open(_config: Config, _store: &mut dyn Store) -> Result<Volume, Fault> {
        Ok(Volume {})
    }

    /// Takes one input.
    ///
    /// # Errors
    /// A [`Fault`] stops the volume.
    pub fn handle(&mut self, _now: Millis, _input: Input, _store: &mut dyn Store) -> Result<(), Fault> {
        Ok(())
    }

    /// Next thing to do, in order, after the store was committed.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// When to call `handle(Timeout)` at the latest, and who wants it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Millis, &'static str)> {
        None
    }

    /// The KML record it wants next.
    #[must_use]
    pub fn next_recno(&self) -> Recno {
        Recno(1)
    }

    /// Server: the lower file that should hold this content now, for a peer's fetch. `None`: superseded.
    ///
    /// # Errors
    /// The store's.
    pub fn content_source(
        _store: &dyn Store,
        _object: ObjectId,
        _hash: Hash,
    ) -> Result<Option<(FileId, Version)>, Fault> {
        Ok(None)
    }

    /// For people and metrics.
    ///
    /// # Errors
    /// The store's.
    pub fn status(&self, _store: &dyn Store) -> Result<Status, Fault> {
        Ok(Status::default())
    }
}

/// What `intermezzo status` shows of one volume.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Server: newest durable position. Client: base.
    pub position: Position,
    /// Visible in the tree.
    pub applied: Position,
    /// Own records without a verdict.
    pub pending: u64,
    /// Others' changes not yet in the tree.
    pub dirty: u64,
    /// Client: the stream to the server is up and welcomed.
    pub connected: bool,
    /// Server: its Replicators.
    pub replicators: Vec<ReplicatorStatus>,
    /// Server: conflicts kept.
    pub conflicts: u64,
    /// What it waits for and why.
    pub waiting: Vec<String>,
}

/// One Replicator, seen from the server.
#[derive(Clone, Debug, Default)]
pub struct ReplicatorStatus {
    /// Node.
    pub node: NodeName,
    /// Its stream is up.
    pub connected: bool,
    /// Visible in its tree.
    pub applied: Position,
    /// Visible and durable there.
    pub durable: Position,
    /// It takes a snapshot now.
    pub syncing: bool,
}
