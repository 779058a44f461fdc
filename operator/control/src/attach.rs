//! One agent's stream. Each has a task and a queue of its own: one that does not read delays nobody.

use crate::authority::Authority;
use crate::desired::Desired;
use crate::desired::NodeName;
use crate::edge;
use crate::registry::Registry;
use crate::registry::Seat;
use intermezzo_proto::v1;
use intermezzo_proto::v1::agent_frame::Body;
use intermezzo_proto::v1::agent_frame::Hello;
use intermezzo_proto::v1::operator_frame;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tonic::Status;
use tonic::Streaming;
use tracing::debug;
use tracing::info;

/// How long an agent may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// An agent that reports more often than this has to wait.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// Messages under way to one agent; what comes later replaces what has not been sent.
pub(crate) const QUEUE: usize = 2;

/// What every node shall do.
pub type DesiredByNode = BTreeMap<NodeName, Arc<Desired>>;

pub(crate) type Frames = mpsc::Sender<Result<v1::OperatorFrame, Status>>;

/// What all streams look at.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) authority: watch::Receiver<Arc<Authority>>,
    pub(crate) desired: watch::Receiver<DesiredByNode>,
    pub(crate) registry: Registry,
}

/// One stream, to its end.
pub(crate) async fn run(
    sources: Sources,
    node: NodeName,
    expiry: SystemTime,
    mut inbound: Streaming<v1::AgentFrame>,
    frames: Frames,
) {
    let hello = match hello(&mut inbound).await {
        Ok(hello) => hello,
        Err(status) => return drop(frames.try_send(Err(status))),
    };
    info!(target: "control", node, version = hello.version, advertise = hello.advertise, "attached");
    let has = hello.revision.clone();
    let seat = sources.registry.take_seat(&node, hello);
    let stream = Stream { sources, seat, has, trusts: String::new(), frames: frames.clone() };
    let status = stream.serve(inbound, expiry).await;
    debug!(target: "control", node, reason = status.message(), "the stream ended");
    let _ = frames.try_send(Err(status));
}

async fn hello(inbound: &mut Streaming<v1::AgentFrame>) -> Result<Hello, Status> {
    let first = timeout(HELLO_DEADLINE, inbound.message());
    let first = first.await.map_err(|_| Status::deadline_exceeded("no hello came"))??;
    match first.and_then(|frame| frame.body) {
        Some(Body::Hello(hello)) => edge::hello(&hello).map(|()| hello),
        _ => Err(Status::invalid_argument("a stream begins with hello")),
    }
}

struct Stream {
    sources: Sources,
    seat: Seat,
    /// Revision that the agent has.
    has: String,
    /// Bundle that it was sent on this stream.
    trusts: String,
    frames: Frames,
}

impl Stream {
    async fn serve(mut self, mut inbound: Streaming<v1::AgentFrame>, expiry: SystemTime) -> Status {
        let remaining = expiry.duration_since(SystemTime::now()).unwrap_or_default();
        let expires = Instant::now() + remaining;
        let mut listen_from = Instant::now();
        let replaced = self.seat.replaced.clone();
        loop {
            let waiting = self.next();
            tokio::select! {
                () = replaced.cancelled() => {
                    return Status::aborted("another stream of this node took the place of this one");
                }
                () = sleep_until(expires) => {
                    return Status::unauthenticated("the certificate of this stream has ended; attach with the new one");
                }
                room = self.frames.reserve(), if waiting.is_some() => {
                    let (Ok(room), Some(body)) = (room, waiting) else { return Status::cancelled("the agent left") };
                    match &body {
                        operator_frame::Body::Authorities(sent) => self.trusts.clone_from(&sent.authorities),
                        operator_frame::Body::Desired(sent) => self.has.clone_from(&sent.revision),
                    }
                    room.send(Ok(v1::OperatorFrame { body: Some(body) }));
                }
                changed = self.sources.authority.changed() => {
                    if changed.is_err() {
                        return Status::unavailable("the operator is stopping");
                    }
                }
                changed = self.sources.desired.changed() => {
                    if changed.is_err() {
                        return Status::unavailable("the operator is stopping");
                    }
                }
                frame = async { sleep_until(listen_from).await; inbound.message().await } => {
                    match frame {
                        Ok(Some(frame)) => {
                            if let Err(status) = self.heard(frame) {
                                return status;
                            }
                            listen_from = Instant::now() + REPORT_PAUSE;
                        }
                        Ok(None) => return Status::cancelled("the agent left"),
                        Err(status) => return status,
                    }
                }
            }
        }
    }

    /// What the agent has not got yet; whom to trust comes first.
    fn next(&mut self) -> Option<operator_frame::Body> {
        let bundle = self.sources.authority.borrow_and_update().bundle();
        let desired = self.sources.desired.borrow_and_update().get(&self.seat.node).cloned();
        if bundle != self.trusts {
            return Some(operator_frame::Body::Authorities(v1::Authorities { authorities: bundle }));
        }
        // A node of which the operator says nothing keeps what it has.
        let desired = desired.filter(|desired| desired.revision() != self.has)?;
        Some(operator_frame::Body::Desired(desired.message()))
    }

    fn heard(&self, frame: v1::AgentFrame) -> Result<(), Status> {
        let Some(Body::Report(mut report)) = frame.body else {
            return Err(Status::invalid_argument("after hello only reports are wanted"));
        };
        edge::report(&report)?;
        let mine = self.sources.desired.borrow().get(&self.seat.node).cloned();
        // Of volumes that are none of its business a node has nothing to say.
        let concerns = |volume: &str| mine.as_ref().is_some_and(|desired| desired.concerns(volume));
        report.volumes.retain(|volume| concerns(&volume.name));
        report.conflicts.retain(|of_volume| concerns(&of_volume.volume));
        report.discarded.retain(|volume| concerns(volume));
        report.problems.retain(|problem| problem.volume.is_empty() || concerns(&problem.volume));
        self.seat.report(report);
        Ok(())
    }
}
