//! What the jobs of one volume count while they work. Counters run for as long as the agent knows the volume, over all of
//! its lives; whoever counts never waits.

use crate::clock;
use lento_core::io::NodeName;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::histogram::exponential_buckets;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Counters of one volume.
#[derive(Debug)]
pub struct Meters {
    /// Records submitted to the server.
    pub submitted: Counter,
    /// Log records sent, for each Replicator.
    forwarded: RwLock<BTreeMap<NodeName, Counter>>,
    /// Bytes of contents read from the lower tree.
    pub read_bytes: Counter,
    /// Bytes of contents that came from the server.
    pub fetched_bytes: Counter,
    /// Bytes of contents that Replicators fetched here.
    pub served_bytes: Counter,
    /// Bytes of contents that clients staged here.
    pub staged_bytes: Counter,
    /// The same and what was sent to the server, piece by piece, also of what has not arrived whole: whether anything moves.
    pub moved_bytes: Counter,
    /// Seconds that making everything durable took.
    pub syncs: Histogram,
    /// Syncs that failed.
    pub sync_failures: Counter,
    /// Seconds that replay batches took.
    pub replays: Histogram,
    /// Items of these batches that Presto tried.
    pub replayed: Counter,
    /// Lives that ended by a fault.
    faults: Counter,
    /// When the last one did, in seconds since 1970; 0: never.
    last_fault: AtomicI64,
}

impl Default for Meters {
    fn default() -> Meters {
        // From half a millisecond to half a minute: beyond that a disk is broken.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 17));
        Meters {
            submitted: Counter::default(),
            forwarded: RwLock::default(),
            read_bytes: Counter::default(),
            fetched_bytes: Counter::default(),
            served_bytes: Counter::default(),
            staged_bytes: Counter::default(),
            moved_bytes: Counter::default(),
            syncs: seconds(),
            sync_failures: Counter::default(),
            replays: seconds(),
            replayed: Counter::default(),
            faults: Counter::default(),
            last_fault: AtomicI64::new(0),
        }
    }
}

impl Meters {
    /// Log records went to this Replicator.
    pub fn forwarded(&self, node: &NodeName, records: usize) {
        let records = records as u64;
        if let Some(counter) = self.forwarded.read().get(node) {
            counter.inc_by(records);
            return;
        }
        self.forwarded.write().entry(node.clone()).or_default().inc_by(records);
    }

    /// Log records sent so far, for each Replicator.
    #[must_use]
    pub fn forwarded_to(&self) -> Vec<(NodeName, u64)> {
        self.forwarded.read().iter().map(|(node, counter)| (node.clone(), counter.get())).collect()
    }

    /// A sync has ended.
    pub fn synced(&self, took: Duration, result: &Result<impl Sized, impl Sized>) {
        match result {
            Ok(_) => self.syncs.observe(took.as_secs_f64()),
            Err(_) => drop(self.sync_failures.inc()),
        }
    }

    /// A life ended by a fault.
    pub fn fault(&self) {
        self.faults.inc();
        self.last_fault.store(clock::wall().sec, Ordering::Relaxed);
    }

    /// How many lives ended by a fault, and when the last one did, in seconds since 1970.
    #[must_use]
    pub fn faults(&self) -> (u64, Option<i64>) {
        let last = self.last_fault.load(Ordering::Relaxed);
        (self.faults.get(), Some(last).filter(|last| *last > 0))
    }
}
