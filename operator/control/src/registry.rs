//! Which agents are attached, and what each said last.

use crate::desired::NodeName;
use intermezzo_proto::v1;
use intermezzo_proto::v1::agent_frame::Hello;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// A stream that is replaced within this time was never away: certificates change by a new stream.
const GRACE: Duration = Duration::from_secs(5);

/// One agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its stream is up.
    pub attached: bool,
    /// Since when it is attached, or away.
    pub since: SystemTime,
    /// Of lento.
    pub version: String,
    /// `host:port` where other nodes reach it; empty: it did not say.
    pub advertise: String,
    /// What it reported last; `None`: nothing yet on this stream or an earlier one.
    pub report: Option<Arc<v1::Report>>,
}

/// All agents that have been attached since this operator began, by node.
pub type Agents = BTreeMap<NodeName, Arc<Agent>>;

#[derive(Clone, Debug)]
pub(crate) struct Registry {
    agents: Arc<watch::Sender<Agents>>,
    streams: Arc<Mutex<Streams>>,
}

#[derive(Debug, Default)]
struct Streams {
    last: u64,
    current: BTreeMap<NodeName, (u64, CancellationToken)>,
}

/// The right to speak for a node, until another stream of it takes its place.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) node: NodeName,
    pub(crate) replaced: CancellationToken,
    number: u64,
    registry: Registry,
}

impl Registry {
    pub(crate) fn new() -> (Registry, watch::Receiver<Agents>) {
        let (agents, seen) = watch::channel(Agents::new());
        (Registry { agents: Arc::new(agents), streams: Arc::default() }, seen)
    }

    pub(crate) fn take_seat(&self, node: &str, hello: Hello) -> Seat {
        let replaced = CancellationToken::new();
        let number = {
            let mut streams = self.streams.lock();
            streams.last += 1;
            let number = streams.last;
            if let Some((_, before)) = streams.current.insert(node.to_owned(), (number, replaced.clone())) {
                before.cancel();
            }
            // Under the lock, so that the order of streams is the order here.
            self.agents.send_modify(|agents| attach(agents, node, hello));
            number
        };
        Seat { node: node.to_owned(), replaced, number, registry: self.clone() }
    }

    fn is_current(&self, node: &str, number: u64) -> bool {
        self.streams.lock().current.get(node).is_some_and(|(current, _)| *current == number)
    }

    fn leave(&self, node: &str, number: u64) {
        let mut streams = self.streams.lock();
        if streams.current.get(node).is_none_or(|(current, _)| *current != number) {
            return;
        }
        streams.current.remove(node);
        self.agents.send_modify(|agents| {
            if let Some(agent) = agents.get_mut(node) {
                *agent = Arc::new(Agent { attached: false, since: SystemTime::now(), ..(**agent).clone() });
            }
        });
        info!(target: "control", node, "away");
    }
}

fn attach(agents: &mut Agents, node: &str, hello: Hello) {
    let before = agents.get(node);
    let since = before.filter(|agent| agent.attached).map_or_else(SystemTime::now, |agent| agent.since);
    let report = before.and_then(|agent| agent.report.clone());
    let Hello { version, advertise, .. } = hello;
    let agent = Agent { attached: true, since, version, advertise, report };
    agents.insert(node.to_owned(), Arc::new(agent));
}

impl Seat {
    /// Puts a report in the place of the one before.
    pub(crate) fn report(&self, report: v1::Report) {
        if !self.registry.is_current(&self.node, self.number) {
            return;
        }
        self.registry.agents.send_if_modified(|agents| {
            let Some(agent) = agents.get_mut(&self.node) else { return false };
            if agent.report.as_deref() == Some(&report) {
                return false;
            }
            *agent = Arc::new(Agent { report: Some(Arc::new(report)), ..(**agent).clone() });
            true
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (registry, node, number) = (self.registry.clone(), self.node.clone(), self.number);
        // Without a runtime the operator is ending, and nobody looks any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GRACE).await;
                registry.leave(&node, number);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_stream_takes_the_place_of_the_old_one_and_nobody_notices_a_gap() {
        let (registry, agents) = Registry::new();
        let first = registry.take_seat("a", Hello::default());
        first.report(v1::Report { revision: "1".to_owned(), ..Default::default() });
        let second = registry.take_seat("a", Hello { version: "2".to_owned(), ..Default::default() });
        assert!(first.replaced.is_cancelled() && !second.replaced.is_cancelled());
        first.report(v1::Report { revision: "late".to_owned(), ..Default::default() });
        drop(first);
        tokio::time::sleep(GRACE * 2).await;
        let agent = agents.borrow()["a"].clone();
        assert!(agent.attached && agent.version == "2");
        assert_eq!(agent.report.as_ref().unwrap().revision, "1");

        drop(second);
        tokio::time::sleep(GRACE / 2).await;
        assert!(agents.borrow()["a"].attached);
        tokio::time::sleep(GRACE).await;
        let agent = agents.borrow()["a"].clone();
        assert!(!agent.attached && agent.report.is_some());
    }
}
