//! What the computer outside and the program in the machine say to each other: one JSON object a line.

use std::collections::BTreeMap;

use intermezzo::fleet::Config;
use serde::{Deserialize, Serialize};

use super::model::Model;
use super::observe::Observed;
use crate::walk::Tree;

/// Where the machine finds its part.
pub const PART: &str = "/etc/part.json";

/// The machine's part in a fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// The fleet.
    pub config: Config,
    /// Which of its nodes the machine is.
    pub node: String,
}

/// What a worker is to do until the power goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its directory.
    pub worker: String,
    /// Of its plan.
    pub seed: u64,
    /// What it has.
    pub model: Model,
}

/// Said to the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// What is on the disk, before anybody has touched it?
    Look(Vec<String>),
    /// Start the agents.
    Start,
    /// Make directories for workers.
    Prepare(Vec<String>),
    /// Work.
    Work(Vec<Task>),
    /// Wait until what was written is everywhere.
    Settle,
    /// What does the mounted volume show?
    Walk,
    /// Which conflicts are there?
    Conflicts,
    /// sync(2).
    Sync,
    /// What do the agent and the journal say, about these names?
    Explain(Vec<String>),
}

/// Said by the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Word {
    /// It is up, with its disk.
    Ready,
    /// The answer to `Look`, by worker.
    Seen(BTreeMap<String, Observed>),
    /// The answer to `Walk`.
    Tree(Box<Tree>),
    /// The answer to `Conflicts`: path and how it came to be.
    Conflicts(Vec<(String, String)>),
    /// The answer to `Explain`.
    Explained(String),
    /// The answer to all others.
    Done,
    /// Something is not as it must be.
    Failed(String),
    /// A worker begins a step.
    Begun(String, usize),
    /// A worker has its promise.
    Synced(String, usize),
}
