//! The core's edge: what the shell tells it ([`Input`]) and what it asks of the shell ([`Output`]).
//!
//! The shell feeds inputs in any order that happens, runs outputs in the order given, and commits the store before it
//! runs them. It answers every output that carries a [`Ticket`] exactly once, with a failure if need be.

mod conflicts;
mod demand;
mod event;
mod mass;
mod permit;
mod scrub;

pub use conflicts::ConflictOptions;
pub use conflicts::Policy;
pub use demand::Demanded;
pub use event::Event;
pub use mass::Judgement;
pub use mass::MassOptions;
pub use permit::Alone;
pub use permit::Writes;

pub use scrub::Listed;
pub use scrub::Listing;
pub use scrub::ScrubItem;
pub use scrub::ScrubOutcome;

use crate::history::HistoryOptions;
use crate::keeping::Keeping;
use crate::message::Message;
use crate::record::KmlRecord;
use crate::scrub::Found;
use crate::types::Attributes;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::types::Time;
use crate::types::Version;
use crate::volume::Millis;

/// Name of a node, as its certificate proves it.
pub type NodeName = String;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Presto serves the volume. `untold` from before are answered `PrestoGone` first.
    PrestoUp {
        /// Oldest record still in the KML.
        first: Recno,
        /// Newest published record.
        last: Recno,
    },
    /// The channel broke; every open ticket of it has been answered with a failure.
    PrestoDown,
    /// The next records of the KML, gap-free from [`crate::Volume::next_recno`].
    Journal(Vec<KmlRecord>),
    /// Answer to [`Output::Replay`].
    Replayed {
        /// Which.
        ticket: Ticket,
        /// One for each item tried, in order; empty if presto went away.
        outcomes: Vec<ReplayOutcome>,
    },
    /// Answer to [`Output::ReadContent`].
    ContentRead {
        /// Which.
        ticket: Ticket,
        /// What was there.
        result: ReadResult,
    },
    /// Answer to [`Output::Fetch`], one for each item, in order.
    Fetched {
        /// Which.
        ticket: Ticket,
        /// What came.
        results: Vec<FetchResult>,
    },
    /// Answer to [`Output::Keep`].
    Kept {
        /// Which.
        ticket: Ticket,
        /// Whether it is safe on disk now.
        result: Result<(), String>,
    },
    /// Answer to [`Output::Sync`]: log and lower tree up to `recno`, and the store as it was when the output was
    /// polled, are durable. `None`: it failed.
    Synced {
        /// Which.
        ticket: Ticket,
        /// Newest durable record.
        recno: Option<Recno>,
    },
    /// A stream to or from this node is up. Client: send the hello.
    Connected(NodeName),
    /// It is gone. A new `Connected` for the same node implies this.
    Disconnected(NodeName),
    /// A message from a peer.
    Message(NodeName, Message),
    /// Server: a peer's content is verified and durable under this staged name.
    Staged {
        /// Which peer.
        node: NodeName,
        /// The content.
        hash: Hash,
        /// Its length.
        size: u64,
        /// Name in presto's stage.
        name: String,
    },
    /// Server: a person has resolved the conflict at this position.
    Resolved(Position),
    /// Server: when a person is asked before one node's removals are done.
    MassRemoval(MassOptions),
    /// Server: how much of what was is kept; `None`: nothing.
    History(Option<HistoryOptions>),
    /// Server: a person has decided about what this node is about to remove.
    Judged(NodeName, Judgement),
    /// Server: what becomes of updates that exclude each other.
    Conflicts(ConflictOptions),
    /// How users' updates are admitted.
    Writes(Writes),
    /// A user of this node waits for the permit.
    PermitWanted,
    /// Answer to [`Output::Revoke`]: no user is let in any more, and what was ends with this record. `None`: some update does not
    /// end, or presto went away.
    Revoked {
        /// Which.
        ticket: Ticket,
        /// The last record.
        upto: Option<Recno>,
    },
    /// Server: the nodes of the replication list, this one not among them.
    Replist(Vec<NodeName>),
    /// Server: how much of the log is kept for Replicators that are away.
    LogLimit(LogLimit),
    /// A person waits: answer with [`Output::BarrierReached`] when all records up to `upto` are accepted and durable
    /// at the server, and with `all` at every Replicator.
    Barrier {
        /// Chosen by the shell.
        id: u64,
        /// Newest record of this node that matters.
        upto: Recno,
        /// Every Replicator, not only the server.
        all: bool,
    },
    /// Client: somebody opens a lower file that lacks its content. Answered by [`Output::Demanded`].
    Demand {
        /// Chosen by the shell.
        id: u64,
        /// The file.
        file: FileId,
    },
    /// Client: he waits no more.
    Undemand(u64),
    /// Client: how much of the volume is kept here.
    Keep(Keeping),
    /// Client: whether others' updates stay out of the tree; this node's own go out in any case.
    HoldBack(bool),
    /// A person, or the shell, wants the lower tree looked through.
    Scrub(Found),
    /// Answer to [`Output::List`].
    Listed {
        /// Which.
        ticket: Ticket,
        /// What is there.
        listing: Listing,
    },
    /// Answer to [`Output::Scrub`].
    Scrubbed {
        /// Which.
        ticket: Ticket,
        /// One for each item, in order; none if presto went away.
        outcomes: Vec<ScrubOutcome>,
    },
    /// The time that [`crate::Volume::poll_timeout`] named has come.
    Timeout,
}

/// How much of its log a server keeps for Replicators that are away; whoever is connected gets all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Bytes of the log.
    pub bytes: u64,
    /// How long one must be away, in milliseconds.
    pub patience: u64,
}

impl Default for LogLimit {
    fn default() -> LogLimit {
        LogLimit { bytes: u64::MAX, patience: 60_000 }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send to a connected peer; dropped if it is gone.
    Send(NodeName, Message),
    /// End the stream with this peer: it broke the protocol, for the reason given.
    Hangup(NodeName, String),
    /// Downcall `Replay`.
    Replay {
        /// To answer with.
        ticket: Ticket,
        /// In order.
        items: Vec<ReplayItem>,
        /// Newest record the core has read (rule 13).
        untouched_since: Recno,
    },
    /// Read a lower file's content: whole and unchanged while being read, else `Unstable`.
    ReadContent {
        /// To answer with.
        ticket: Ticket,
        /// The lower file.
        file: FileId,
        /// Contents above [`crate::types::INLINE_MAX`] are staged at this node while being read.
        stage_at: Option<NodeName>,
    },
    /// Get contents from the server.
    Fetch {
        /// To answer with.
        ticket: Ticket,
        /// Which contents.
        items: Vec<FetchItem>,
    },
    /// Keep a conflict's losing side durably in the conflict store, under the position-independent name `record`.
    Keep {
        /// To answer with.
        ticket: Ticket,
        /// The refused record.
        record: OpId,
        /// What to keep.
        content: KeepContent,
    },
    /// Make contents, tree, log (downcall `Sync`) and then the store durable.
    Sync {
        /// To answer with.
        ticket: Ticket,
    },
    /// Downcall `Mark{settled}`.
    Settled(Recno),
    /// Downcall `ReleaseLimbo`: nothing of what records up to `upto` say about these is needed.
    ReleaseLimbo {
        /// The files.
        files: Vec<FileId>,
        /// The newest record that counts.
        upto: Recno,
    },
    /// The same for everything in limbo but these.
    RetainLimbo {
        /// The files.
        files: Vec<FileId>,
        /// The newest record that counts.
        upto: Recno,
    },
    /// Downcall `Truncate`: all up to here is in the durable store.
    Truncate(Recno),
    /// Server: what was kept of this record can go.
    Forget(OpId),
    /// Downcall `Mark{history_floor}`: of what records before this one ended no content is needed.
    HistoryFloor(Recno),
    /// Downcall `DropStage`: names no record needs any more.
    DropStage(Vec<String>),
    /// The barrier with this id is reached.
    BarrierReached(u64),
    /// Client: what became of the demand with this id.
    Demanded(u64, Demanded),
    /// Downcall `List`.
    List {
        /// To answer with.
        ticket: Ticket,
        /// The directory.
        dir: FileId,
        /// Where the page before ended; 0: the beginning.
        after: u64,
    },
    /// Downcall `Scrub`.
    Scrub {
        /// To answer with.
        ticket: Ticket,
        /// What is believed.
        items: Vec<ScrubItem>,
        /// Newest record the core has read.
        untouched_since: Recno,
        /// What becomes of what differs.
        found: Found,
    },
    /// Users' updates are let in until then, and those that wait go on: downcall `Mark`, and the answer to upcalls `GetPermit`.
    Admit {
        /// Larger each time; what was revoked with a number as large means nothing any more.
        serial: u64,
        /// On the node's clock.
        until: Millis,
    },
    /// Those that wait for the permit fail: the server is away, and users may only read.
    RefuseWriters,
    /// Downcall `RevokePermit`: whatever was let in with this number or a smaller one.
    Revoke {
        /// To answer with.
        ticket: Ticket,
        /// The number.
        serial: u64,
    },
    /// Downcall `Mark{adopted}`: everything in an adopted tree is known.
    Adopted,
    /// Worth telling a person.
    Event(Event),
}

/// A lower object by identity, or by the replicated object that an earlier item of the same or an earlier batch made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    /// By identity.
    File(FileId),
    /// By replicated object.
    Object(ObjectId),
}

/// One replay.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayItem {
    /// Server: the client's record. Client: replica 0 and the server's position.
    pub record: OpId,
    /// The object.
    pub object: ObjectId,
    /// Content it installs or keeps.
    pub hash: Option<Hash>,
    /// Stored with the record.
    pub verdict: u8,
    /// Modification time to leave on the (source) directory; `None`: as before.
    pub parent_mtime: Option<Time>,
    /// Modification time to leave on the target directory; `None`: as before.
    pub target_parent_mtime: Option<Time>,
    /// What to do.
    pub op: ReplayOp,
}

/// What a replay does. Preconditions stand in the fields called `expect*`.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplayOp {
    /// New object at an absent entry.
    Make {
        /// Directory.
        dir: Ref,
        /// Name.
        name: Name,
        /// All attributes.
        attributes: Attributes,
        /// Symbolic link's target.
        symlink: Vec<u8>,
        /// Regular file's content; `None`: empty.
        content: Option<ReplayContent>,
        /// All extended attributes.
        xattrs: Vec<(Name, Vec<u8>)>,
    },
    /// Another name at an absent entry.
    Link {
        /// Object.
        file: Ref,
        /// Directory.
        dir: Ref,
        /// Name.
        name: Name,
    },
    /// Remove the entry.
    Remove {
        /// Directory.
        dir: Ref,
        /// Name.
        name: Name,
        /// What must stand there.
        expect: Ref,
        /// Its version; `None`: any.
        expect_version: Option<Version>,
        /// Wait for writers or not.
        busy: Busy,
    },
    /// Move or exchange.
    Rename {
        /// Source directory.
        from: Ref,
        /// Source name.
        from_name: Name,
        /// What must stand there.
        expect: Ref,
        /// Target directory.
        to: Ref,
        /// Target name.
        to_name: Name,
        /// What must stand there; `None`: nothing.
        replaced: Option<Ref>,
        /// Its version; `None`: any.
        replaced_version: Option<Version>,
        /// Exchange the two.
        exchange: bool,
        /// Wait for writers of `replaced` or not.
        busy: Busy,
    },
    /// Attributes.
    SetAttr {
        /// Object.
        file: Ref,
        /// Which.
        mask: Mask,
        /// Values.
        attributes: Attributes,
    },
    /// New content for a regular file.
    Install {
        /// Object.
        file: Ref,
        /// Its version; `None`: any.
        expect_version: Option<Version>,
        /// The content.
        content: ReplayContent,
        /// All attributes.
        attributes: Attributes,
        /// All extended attributes.
        xattrs: Vec<(Name, Vec<u8>)>,
        /// Directory of one of its names.
        dir: Ref,
        /// That name.
        name: Name,
        /// Wait for writers or not.
        busy: Busy,
    },
    /// The content of a file that lacks it, in place: the one that the item's hash names.
    Fill {
        /// Object.
        file: Ref,
        /// The content.
        content: ReplayContent,
    },
    /// Extended attribute set.
    SetXattr {
        /// Object.
        file: Ref,
        /// Name.
        name: Name,
        /// Value.
        value: Vec<u8>,
    },
    /// Extended attribute removed.
    DelXattr {
        /// Object.
        file: Ref,
        /// Name.
        name: Name,
    },
    /// A verdict: takes a recno, changes nothing.
    Noop,
}

impl ReplayOp {
    /// The directories in which it names something.
    pub(crate) fn dirs(&self) -> Vec<Ref> {
        match self {
            ReplayOp::Make { dir, .. }
            | ReplayOp::Link { dir, .. }
            | ReplayOp::Remove { dir, .. }
            | ReplayOp::Install { dir, .. } => vec![*dir],
            ReplayOp::Rename { from, to, .. } => vec![*from, *to],
            ReplayOp::SetAttr { .. }
            | ReplayOp::Fill { .. }
            | ReplayOp::SetXattr { .. }
            | ReplayOp::DelXattr { .. }
            | ReplayOp::Noop => Vec::new(),
        }
    }
}

/// What a replay does about a file that is open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Answer `Busy`, touch nothing (clients).
    Wait,
    /// Go on; what the writer leaves becomes an orphan record (servers).
    Decide,
}

/// Bytes for a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayContent {
    /// At hand.
    Inline(Vec<u8>),
    /// In presto's stage: name and size.
    Staged(String, u64),
    /// Not here: the file stands for it, and is as large. The item's hash says which it is.
    Missing(u64),
}

/// Answer to one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// Done (or it was so already); the record is in the KML.
    Applied {
        /// Lower identity of the object.
        file: FileId,
        /// The record.
        recno: Recno,
    },
    /// A precondition failed: read the KML up to `recno` (if any) and decide again.
    Stale {
        /// Newest record that touches it.
        recno: Option<Recno>,
    },
    /// Open for writing.
    Busy,
    /// The lower file system said no.
    Refused {
        /// Errno.
        errno: i32,
        /// Presto's words.
        message: String,
    },
}

/// Answer to [`Output::ReadContent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadResult {
    /// Whole and unchanged while it was read.
    Whole {
        /// blake3.
        hash: Hash,
        /// Bytes.
        size: u64,
        /// The version that was read.
        version: Version,
        /// The version is younger than one clock tick of the lower file system: a store may hide behind it.
        racy: bool,
        /// The bytes where they are few; otherwise it is staged at `stage_at` if that was asked.
        inline: Option<Vec<u8>>,
    },
    /// It kept changing.
    Unstable,
    /// No such file any more.
    Gone,
    /// It could not be read or staged; try again later.
    Failed(String),
}

/// A content to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchItem {
    /// Of this object.
    pub object: ObjectId,
    /// With this hash.
    pub hash: Hash,
    /// And this size.
    pub size: u64,
}

/// What came for one [`FetchItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchResult {
    /// Small: the bytes, verified.
    Inline(Vec<u8>),
    /// Large: staged under this name, verified and durable.
    Staged(String),
    /// The server has newer content; its record is on the way.
    Superseded,
    /// Try again later.
    Failed(String),
}

/// What a conflict keeps beside the facts that stand in its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepContent {
    /// These bytes.
    Inline(Vec<u8>),
    /// The staged file of this name; it may be dropped afterwards.
    Staged(String),
    /// The content of a lower file (an orphan in limbo).
    File(FileId),
}
