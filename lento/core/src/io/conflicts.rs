//! What a volume's owner wants done about updates that exclude each other.

use serde::Deserialize;
use serde::Serialize;

/// Which of two updates that exclude each other stays in the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// What the server has. The other one waits for a person.
    #[default]
    KeepBoth,
    /// What the server has. The other one is kept for a while.
    ServerWins,
    /// The later one, where it is about a content or a name that is there. What stood there is kept for a while.
    ClientWins,
    /// What the server has, and no other node's update changes it until a person has decided.
    Manual,
}

/// How conflicts are decided, and how long what a policy has decided is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConflictOptions {
    /// Who stays in the tree.
    pub policy: Policy,
    /// Kept for so long, in milliseconds in which this server runs.
    pub keep_for: u64,
    /// Bytes that are kept at most. What waits for a person is never dropped, also beyond this.
    pub keep_bytes: u64,
}

impl ConflictOptions {
    /// Thirty days.
    pub const KEEP_FOR: u64 = 30 * 24 * 3600 * 1000;
    /// One GiB.
    pub const KEEP_BYTES: u64 = 1 << 30;
}

impl Default for ConflictOptions {
    fn default() -> ConflictOptions {
        ConflictOptions {
            policy: Policy::default(),
            keep_for: ConflictOptions::KEEP_FOR,
            keep_bytes: ConflictOptions::KEEP_BYTES,
        }
    }
}
