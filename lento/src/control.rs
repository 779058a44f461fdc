//! The operator as the source of desired state: enrol, attach, do as it says, say how it goes.
//!
//! What it said last is kept on disk with this node's certificate, before it is acted upon: with the operator away an agent
//! goes on, and starts, from there. It holds no Kubernetes credentials but the token that the kubelet gives it, which only
//! the operator can use. How and why: `docs/technical/control.md`.

mod asked;
mod attach;
mod carried_out;
mod discard;
mod edge;
mod identity;
mod kept;
mod operator;
mod report;

use crate::desired::Desired;
use crate::dialer::Peers;
use crate::options::OperatorOptions;
use crate::random::Backoff;
use crate::req_dispatcher::Downcalls;
use crate::volume::Volumes;
use asked::Asked;
use attach::End;
use carried_out::CarriedOut;
use discard::Discarder;
use discard::Places;
use identity::KeptIdentity;
use intermezzo_identity::Identity;
use lento_core::io::NodeName;
use operator::Operator;
use report::Reporter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

/// Version of `Control` that this agent speaks.
const PROTOCOL: u32 = 1;
/// Waits between tries to reach the operator, from and to.
const TRIES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// What the agent's other rooms give.
#[derive(Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeName,
    /// How to reach the operator.
    pub operator: OperatorOptions,
    /// Where state is kept.
    pub state: PathBuf,
    /// This node's volumes.
    pub volumes: Volumes,
    /// Presto.
    pub downcalls: Downcalls,
    /// Told where other nodes listen.
    pub peers: Peers,
    /// Where this node's identity is put.
    pub identity: watch::Sender<Option<Arc<Identity>>>,
    /// Where caches lie.
    pub cache: PathBuf,
    /// Where what ends with the machine lies.
    pub run: PathBuf,
}

/// Begins with what is on disk, then follows the operator until told to stop. What this node shall do comes out; `None`:
/// the operator has never said.
#[must_use]
pub fn start(settings: Settings, stop: CancellationToken) -> watch::Receiver<Option<Desired>> {
    let Settings { node, operator, state, volumes, downcalls, peers, identity, cache, run } = settings;
    let (put_desired, desired) = watch::channel(None);
    let kept_identity = loud(KeptIdentity::load(&state, &node));
    let places = Places { state: state.clone(), cache, run };
    // Before any volume begins.
    let discarder = Discarder::start(places, volumes.clone(), downcalls.clone(), stop.clone());
    let mut control = Control {
        operator: Operator::new(operator, &node),
        carried_out: CarriedOut::new(&state, &node),
        asked: Asked::new(volumes.clone(), downcalls.clone()),
        reporter: Reporter::new(volumes, downcalls),
        discarder,
        state,
        identity: None,
        put_identity: identity,
        put_desired,
        peers,
    };
    if let Some(kept) = kept_identity {
        control.take_identity(kept);
    }
    if loud(control.carried_out.load()).is_some() {
        info!(target: "control", revision = control.carried_out.revision(), "going on with what the operator said last");
        control.publish();
    }
    tokio::spawn(stop.run_until_cancelled_owned(async move { control.run().await }));
    desired
}

/// What is broken on disk is said and taken as missing: the operator has it all.
fn loud<T>(read: Result<Option<T>, String>) -> Option<T> {
    read.unwrap_or_else(|reason| {
        error!(target: "control", reason, "a kept file is not used; the operator will be asked");
        None
    })
}

struct Control {
    state: PathBuf,
    operator: Operator,
    identity: Option<KeptIdentity>,
    carried_out: CarriedOut,
    asked: Asked,
    reporter: Reporter,
    discarder: Discarder,
    put_identity: watch::Sender<Option<Arc<Identity>>>,
    put_desired: watch::Sender<Option<Desired>>,
    peers: Peers,
}

impl Control {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(TRIES.0, TRIES.1);
        let mut said = String::new();
        loop {
            match self.turn(&mut backoff).await {
                Ok(End::Renewed) => {
                    said.clear();
                    continue;
                }
                // The same reason again and again is said once.
                Ok(End::Lost(reason)) | Err(reason) => {
                    if reason != said {
                        warn!(target: "control", reason, "the operator is away; going on with what it said last");
                        said = reason;
                    }
                }
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// From enrolment, where it is due, to the end of one stream.
    async fn turn(&mut self, backoff: &mut Backoff) -> Result<End, String> {
        if self.identity.as_ref().is_none_or(KeptIdentity::renewal_is_due)
            && let Err(reason) = self.enrol().await
        {
            // As long as the certificate is good, attaching may still work.
            if self.identity.as_ref().is_none_or(KeptIdentity::is_over) {
                return Err(reason);
            }
            warn!(target: "control", reason, "the certificate could not be renewed; trying again");
        }
        let stream = self.attach().await?;
        Ok(self.talk(stream, backoff).await)
    }

    /// Gets a certificate for a new key.
    async fn enrol(&mut self) -> Result<(), String> {
        let known = self.identity.as_ref().map(KeptIdentity::authorities);
        let kept = self.operator.enrol(known).await?;
        self.keep(&kept).await?;
        info!(target: "control", seconds = kept.lifetime().as_secs(), "enrolled");
        self.take_identity(kept);
        Ok(())
    }

    async fn keep(&self, kept: &KeptIdentity) -> Result<(), String> {
        let (kept, state) = (kept.clone(), self.state.clone());
        let save = tokio::task::spawn_blocking(move || kept.save(&state)).await;
        save.map_err(|error| error.to_string())?
    }

    fn take_identity(&mut self, kept: KeptIdentity) {
        self.put_identity.send_replace(Some(kept.identity()));
        self.identity = Some(kept);
    }

    fn publish(&mut self) {
        // First, or a volume would look for a server that nobody knows yet.
        self.peers.learn(self.carried_out.peers());
        self.discarder.want(self.carried_out.discard().cloned().collect());
        let desired = self.carried_out.of_node();
        self.put_desired.send_if_modified(|last| {
            let modified = last.as_ref() != Some(&desired);
            *last = Some(desired);
            modified
        });
        self.asked.follow(&self.carried_out.asks());
    }
}
