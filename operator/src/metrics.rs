//! The operator's numbers, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::node_parts::status::PartStatus;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    daemonset: String,
}

/// Shared by whoever counts and whoever asks.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Mutex<Registry>,
    turns: Family<Kind, Counter>,
    errors: Family<Kind, Counter>,
    objects: Family<Kind, Gauge>,
    wanted: Family<Part, Gauge>,
    ready: Family<Part, Gauge>,
    old: Family<Part, Gauge>,
    leads: Gauge<i64, AtomicI64>,
    /// Whether the lists have been read, or are not this operator's business.
    listed: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let inner = Inner {
            registry: Mutex::new(Registry::with_prefix("intermezzo_operator")),
            turns: Family::default(),
            errors: Family::default(),
            objects: Family::default(),
            wanted: Family::default(),
            ready: Family::default(),
            old: Family::default(),
            leads: Gauge::default(),
            listed: AtomicBool::new(false),
        };
        {
            let mut registry = inner.registry.lock();
            registry.register("reconciles", "Turns of the reconcilers", inner.turns.clone());
            registry.register(
                "reconcile_errors",
                "Turns that failed and are tried again",
                inner.errors.clone(),
            );
            registry.register("objects", "Objects that the operator looks at", inner.objects.clone());
            registry.register("daemonset_nodes_wanted", "Nodes that shall run it", inner.wanted.clone());
            registry.register("daemonset_nodes_ready", "Nodes where it is ready", inner.ready.clone());
            registry.register("daemonset_nodes_old", "Nodes with an older template", inner.old.clone());
            registry.register("leader", "1 while this operator holds the Lease", inner.leads.clone());
        }
        Metrics(Arc::new(inner))
    }
}

impl Metrics {
    /// A turn of a reconciler.
    pub fn turn(&self, kind: &'static str, failed: bool) {
        self.0.turns.get_or_create(&Kind { kind }).inc();
        if failed {
            self.0.errors.get_or_create(&Kind { kind }).inc();
        }
    }

    /// How many objects of a kind there are.
    pub fn objects(&self, kind: &'static str, count: usize) {
        self.0.objects.get_or_create(&Kind { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How one of the node parts is.
    pub fn part(&self, status: &PartStatus) {
        let part = Part { daemonset: status.name.clone() };
        self.0.wanted.get_or_create(&part).set(status.wanted.into());
        self.0.ready.get_or_create(&part).set(status.ready.into());
        self.0.old.get_or_create(&part).set(status.old.into());
    }

    /// Whether this operator leads.
    pub fn leads(&self, leads: bool) {
        self.0.leads.set(leads.into());
    }

    /// It can do its work: it waits for its turn, or has read everything.
    pub fn listed(&self, listed: bool) {
        self.0.listed.store(listed, Ordering::Relaxed);
    }

    /// Whether it can do its work.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.0.listed.load(Ordering::Relaxed)
    }

    /// As text.
    ///
    /// # Errors
    /// None known.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.registry.lock())?;
        Ok(text)
    }
}
