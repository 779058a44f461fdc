//! What cores of two nodes say to each other about one volume. `proto/` gives it bytes; the shell converts.

use crate::lineage::Lineage;
pub use crate::tree::Stored;
use crate::types::Attributes;
use crate::types::Content;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;

/// Both directions.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Client, first.
    Hello(Hello),
    /// Client: records, in recno order.
    Submit(Vec<Operation>),
    /// Client: records of the server's log that the server has lost, each under its first origin. All up to this position of
    /// the lost part are now offered.
    Offer {
        /// The records.
        records: Vec<LogRecord>,
        /// Offered up to here.
        upto: Position,
    },
    /// Client: what it has not sent yet.
    Ahead {
        /// Removals among its records without a verdict.
        removals: u64,
        /// The newest of its records.
        upto: Recno,
    },
    /// Client: how far it is.
    Ack(Ack),
    /// Client: the objects of the snapshot up to this one are in its store.
    SnapshotStored(ObjectId),
    /// Client: tell when everything is everywhere.
    Barrier {
        /// Chosen by the client.
        id: u64,
        /// The client's own record that must have its verdict first.
        after: Recno,
    },
    /// Client: a user of its node wants to write, or goes on to.
    PermitAsk {
        /// Its clock.
        stamp: Millis,
    },
    /// Client: it has given the permit back; all that it admitted was submitted before.
    PermitReleased {
        /// Which grant.
        epoch: u64,
    },
    /// Server, first.
    Welcome(Welcome),
    /// Server: not here, or not you.
    Refused {
        /// For people.
        reason: String,
        /// Asking again later makes sense.
        retry: bool,
    },
    /// Server: positions in order; all up to `upto` are now sent.
    Records {
        /// The records.
        records: Vec<LogRecord>,
        /// Sent up to here (positions without a record are skipped).
        upto: Position,
        /// Durable at every Replicator up to here.
        stable: Position,
    },
    /// Server: what was offered up to here has its place, durably.
    Offered(Position),
    /// Server: the tree follows, object by object, each as it is when it is sent, and the log from this position on. What
    /// the client had of an earlier tree is void.
    SnapshotBegin {
        /// Where the log begins.
        position: Position,
        /// About how many objects there are.
        objects: u64,
    },
    /// Server: objects, in the order of their ids.
    SnapshotChunk(Vec<SnapshotObject>),
    /// Server: that was all. With the log up to this position it is the tree of that position.
    SnapshotEnd(Position),
    /// Server: a power cut tore this object's content here. Does the client have it?
    Backfetch {
        /// The object.
        object: ObjectId,
        /// What it held; `None`: the server has forgotten it.
        hash: Option<Hash>,
    },
    /// Client: what it has of a content that was asked for.
    Backfetched {
        /// The object.
        object: ObjectId,
        /// What there is.
        holds: Holds,
    },
    /// Server: the client may let its users write, once it has applied up to the position, and until its own clock is a lease
    /// beyond the stamp.
    PermitGranted {
        /// Which grant.
        epoch: u64,
        /// Others' updates end here.
        position: Position,
        /// Of the client's question.
        stamp: Millis,
    },
    /// Server: others wait for the permit.
    PermitRevoked {
        /// Which grant.
        epoch: u64,
    },
    /// Server: answer to `Barrier`.
    BarrierReached {
        /// The client's id.
        id: u64,
    },
}

/// What a client has of a content that its server has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// It has it and cannot give it just now.
    NotNow,
    /// It knows what it was, and has it no more.
    Named(Stored),
    /// It knows what it was, and sends it.
    Coming(Stored),
    /// All of it: inline, or staged at the server.
    Whole(Content),
}

/// Who the client is and what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Counts the client's hellos: the welcome says which one it answers.
    pub greeting: u64,
    /// Its replica id.
    pub replica: u64,
    /// Its incarnation.
    pub incarnation: u32,
    /// The eras of the log that it follows.
    pub lineage: Lineage,
    /// Base position in the newest of them.
    pub position: Position,
    /// What is visible in its tree.
    pub applied: Position,
    /// It still has the log's records from here on.
    pub tail_from: Position,
    /// Its base is a part of a snapshot: the objects up to this one, and the log up to `position`.
    pub snapshot: Option<ObjectId>,
    /// Its records that it still has, of this incarnation: first and last, both 0 if none.
    pub has: (Recno, Recno),
    /// Contents may lack there: its positions say nothing of them.
    pub partial: bool,
}

/// Where the client stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The hello it answers. A client may have said another one meanwhile; then this says nothing to it.
    pub greeting: u64,
    /// The server's eras.
    pub lineage: Lineage,
    /// Newest durable position: the client submits once it has applied up to here.
    pub position: Position,
    /// The client's last record of this incarnation that has a verdict.
    pub received: Recno,
}

/// How far a client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Base, durable: the server may forget records up to here.
    pub position: Position,
    /// Visible in the tree.
    pub applied: Position,
    /// Visible and durable.
    pub durable: Position,
}

/// One object of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotObject {
    /// Its id.
    pub object: ObjectId,
    /// Attributes.
    pub attributes: Attributes,
    /// Symbolic link's target.
    pub symlink: Vec<u8>,
    /// Content hash of a regular file; `None` if it is not known yet: the log will tell.
    pub hash: Option<Hash>,
    /// Content size.
    pub size: u64,
    /// All extended attributes.
    pub xattrs: Vec<(Name, Vec<u8>)>,
    /// All its names: directory and name.
    pub entries: Vec<(ObjectId, Name)>,
}
