//! What passes between the reconcilers and the far side of the agents: what each node shall do goes out, what each agent
//! says comes in. Nothing here knows of Kubernetes clients or of gRPC.

use std::collections::{BTreeMap, BTreeSet};

use intermezzo_api::{Replicator, Volume};
use intermezzo_proto::v1::{ConflictRecord, VolumeStatus};
use jiff::Timestamp;
use tokio::sync::watch;

/// A node's name.
pub type NodeName = String;

/// What one node shall do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeDesired {
    /// Volumes in which it takes part, each with its server in `spec.server.nodeName`.
    pub volumes: Vec<Volume>,
    /// All Replicators of the volumes that it serves, else its own.
    pub replicators: Vec<Replicator>,
    /// Where the nodes listen that it has to do with.
    pub peers: BTreeMap<NodeName, String>,
    /// Volumes (`namespace/name`) whose data on the node is to be removed.
    pub discard: BTreeSet<String>,
}

/// What every node shall do. `None` until the operator has seen all objects: an empty answer would end every volume.
pub type DesiredByNode = Option<BTreeMap<NodeName, NodeDesired>>;

/// What an attached agent said last.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Since when it is attached.
    pub since: Timestamp,
    /// Where other nodes reach it, `host:port`.
    pub advertise: String,
    /// Version of lento.
    pub version: String,
    /// Revision of the desired state in force; empty before it has one.
    pub revision: String,
    /// Whether presto is there.
    pub presto_connected: bool,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// What it cannot carry out.
    pub problems: Vec<Problem>,
    /// Conflicts kept, by volume; the newest.
    pub conflicts: BTreeMap<String, Vec<ConflictRecord>>,
    /// Volumes of `discard` of which nothing is left.
    pub discarded: BTreeSet<String>,
}

/// An object that an agent cannot carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `namespace/name` of the Volume.
    pub volume: String,
    /// Field, such as `spec.mode`; empty: the object as a whole.
    pub field: String,
    /// Why.
    pub reason: String,
}

/// Attached agents, by node.
pub type Reports = BTreeMap<NodeName, Report>;

impl Report {
    /// What it says of a volume.
    #[must_use]
    pub fn volume(&self, id: &str) -> Option<&VolumeStatus> {
        self.volumes.iter().find(|volume| volume.name == id)
    }
}

/// The reconcilers' ends of the two channels.
#[derive(Debug)]
pub struct Ends {
    /// Out.
    pub desired: watch::Sender<DesiredByNode>,
    /// In.
    pub reports: watch::Receiver<Reports>,
}

/// The agents' ends of the two channels.
#[derive(Debug)]
pub struct FarEnds {
    /// What to hand out.
    pub desired: watch::Receiver<DesiredByNode>,
    /// Where to tell what agents say.
    pub reports: watch::Sender<Reports>,
}

/// Both.
#[must_use]
pub fn channels() -> (Ends, FarEnds) {
    let (desired_out, desired) = watch::channel(None);
    let (reports, reports_in) = watch::channel(Reports::new());
    (Ends { desired: desired_out, reports: reports_in }, FarEnds { desired, reports })
}
