//! When a person is asked before one node's removals are done.

use serde::Deserialize;
use serde::Serialize;

/// What the volume's owner wants asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MassOptions {
    /// One node removes more than this part of the tree. `None`: nothing is asked.
    pub percent: Option<u8>,
    /// Fewer files and directories than this are never asked about.
    pub minimum: u64,
}

impl MassOptions {
    /// Half of the tree.
    pub const PERCENT: u8 = 50;
    /// A thousand.
    pub const MINIMUM: u64 = 1000;
}

impl Default for MassOptions {
    fn default() -> MassOptions {
        MassOptions { percent: Some(MassOptions::PERCENT), minimum: MassOptions::MINIMUM }
    }
}

/// What a person has said about removals that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Judgement {
    /// They are done.
    Approved,
    /// They are not, and the node gets back what it has removed.
    Refused,
}
