//! What a volume tells people.

use super::Judgement;
use super::NodeName;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Recno;

/// For people, logs and metrics.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Server: a conflict was found and kept.
    Conflict {
        /// The refused record.
        record: OpId,
        /// What clashed.
        kind: crate::types::ConflictKind,
        /// Path, as far as known.
        path: String,
    },
    /// Server: a node is about to remove so much of the tree that a person has to say whether that is meant.
    RemovalsHeld {
        /// The node.
        node: NodeName,
        /// Files and directories that it removes.
        removals: u64,
        /// Of so many.
        objects: u64,
        /// One of them.
        path: String,
    },
    /// Server: a person has said it.
    RemovalsJudged {
        /// The node.
        node: NodeName,
        /// Files and directories that it removes.
        removals: u64,
        /// Of so many.
        objects: u64,
        /// What.
        judgement: Judgement,
    },
    /// Server: what a policy had decided is kept no longer.
    ConflictDropped {
        /// The record.
        record: crate::types::OpId,
        /// Path, as far as known.
        path: String,
        /// It has been kept for as long as the volume wants; else there was more than it wants.
        is_old: bool,
    },
    /// Server: conflicts that wait for a person take more room than the volume wants.
    ConflictsLarge {
        /// How many.
        count: u64,
        /// What is kept of them.
        bytes: u64,
        /// What is wanted.
        limit: u64,
    },
    /// Server: a power cut may have torn a file. What it held before is looked for; what is there now is kept as a conflict.
    Torn {
        /// Path.
        path: String,
    },
    /// Server: it has its good content again.
    Restored {
        /// Path.
        path: String,
    },
    /// Server: nobody has a better content of a torn file than what is left of it: that is its content from now on.
    TornTaken {
        /// Path.
        path: String,
        /// What is left, where that is known by now.
        left: Option<Hash>,
    },
    /// Client, under permits: users write without the server (or no longer do).
    PermitStolen(bool),
    /// Client: the server was not heard of for so long that the permit is another's by now.
    PermitLapsed,
    /// Server: the holder of the permit was not heard of for so long that it goes to whoever waits.
    PermitExpired(NodeName),
    /// Something waits: text names the path and the reason.
    Waiting(String),
    /// A replay that the lower file system refuses; retried.
    ReplayRefused {
        /// Path, as far as known.
        path: String,
        /// Errno.
        errno: i32,
        /// Presto's words.
        message: String,
    },
    /// Client: the server has lost the log behind a position, and gets it from here.
    Offering {
        /// The server.
        server: NodeName,
        /// Where its log ends.
        fork: Position,
        /// Where ours does.
        position: Position,
    },
    /// Server: the log is too long to be kept for a Replicator that is away: it will get the whole tree.
    MustResync {
        /// Its node.
        node: NodeName,
        /// It has the log up to here.
        position: Position,
        /// Bytes of the log behind that.
        stored: u64,
        /// Bytes that may be kept.
        limit: u64,
    },
    /// A scrub has come to its end.
    Scrubbed {
        /// Names looked at.
        looked: u64,
        /// Differences.
        found: u64,
        /// They were journaled.
        taken: bool,
    },
    /// A user's record names a lower file that no record made. It says nothing; a scrub will tell what is there.
    Unknown {
        /// The record.
        recno: Recno,
        /// The file.
        file: FileId,
    },
}
