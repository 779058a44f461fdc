//! One stream with the operator: what it says is carried out, how the node is goes back.

use super::Control;
use super::PROTOCOL;
use super::edge;
use super::identity::KeptIdentity;
use super::report::Due;
use crate::random::Backoff;
use intermezzo_proto::v1;
use intermezzo_proto::v1::agent_frame;
use intermezzo_proto::v1::operator_frame::Body;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tonic::Streaming;
use tracing::info;
use tracing::warn;

/// How often the node is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Waits between tries to renew the certificate, from and to.
const RENEWALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// How a stream ended.
pub(super) enum End {
    /// On purpose: the next one shows the new certificate.
    Renewed,
    /// Not ours.
    Lost(String),
}

pub(super) struct Stream {
    frames: mpsc::Sender<v1::AgentFrame>,
    inbound: Streaming<v1::OperatorFrame>,
}

impl Control {
    pub(super) async fn attach(&mut self) -> Result<Stream, String> {
        let kept = self.identity.as_ref().ok_or("this node has no certificate yet")?;
        let hello = agent_frame::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            advertise: self.operator.advertise(),
            revision: self.carried_out.revision().to_owned(),
        };
        let hello = v1::AgentFrame { body: Some(agent_frame::Body::Hello(hello)) };
        let (frames, inbound) = self.operator.attach(kept, hello).await?;
        Ok(Stream { frames, inbound })
    }

    /// To the end of the stream. `tries` begins anew once the operator has said something: one that takes streams only to
    /// end them is not there.
    pub(super) async fn talk(&mut self, mut stream: Stream, tries: &mut Backoff) -> End {
        let mut greeted = false;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewals = Backoff::new(RENEWALS.0, RENEWALS.1);
        let mut renew_not_before = Instant::now();
        self.reporter.begin();
        loop {
            tokio::select! {
                frame = stream.inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        if !std::mem::replace(&mut greeted, true) {
                            info!(target: "control", operator = self.operator.address(), "attached");
                            tries.reset();
                        }
                        if let Err(reason) = self.heard(frame).await {
                            return End::Lost(reason);
                        }
                    }
                    Ok(None) => return End::Lost("the operator ended the stream".to_owned()),
                    Err(status) => return End::Lost(status.message().to_owned()),
                },
                _ = look.tick() => {
                    if let Err(reason) = self.tell(&stream).await {
                        return End::Lost(reason);
                    }
                    let due = self.identity.as_ref().is_some_and(KeptIdentity::renewal_is_due);
                    if due && renew_not_before <= Instant::now() {
                        match self.enrol().await {
                            Ok(()) => return End::Renewed,
                            Err(reason) => {
                                let wait = renewals.wait();
                                warn!(target: "control", reason, again_in = ?wait, "the certificate could not be renewed");
                                renew_not_before = Instant::now() + wait;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn heard(&mut self, frame: v1::OperatorFrame) -> Result<(), String> {
        match frame.body {
            Some(Body::Desired(said)) => {
                edge::desired(&said)?;
                self.carried_out.replace(said)?;
                for problem in self.carried_out.problems() {
                    let (kind, object, field) = (&problem.kind, &problem.object, &problem.field);
                    warn!(target: "control", kind, object, field, reason = problem.reason, "an object is not carried out");
                }
                info!(target: "control", revision = self.carried_out.revision(), "new desired state");
                self.publish();
                Ok(())
            }
            Some(Body::Authorities(said)) => {
                edge::authorities(&said.authorities)?;
                let Some(kept) = self.identity.as_ref() else { return Ok(()) };
                if kept.authorities() == said.authorities {
                    return Ok(());
                }
                let kept = kept.trusting(said.authorities).map_err(|error| error.to_string())?;
                self.keep(&kept).await?;
                info!(target: "control", "the operator's authorities changed");
                self.take_identity(kept);
                Ok(())
            }
            None => Err("the operator is newer and says something that this agent does not know".to_owned()),
        }
    }

    /// Reports, if there is something to say and the operator has taken what was said before.
    async fn tell(&mut self, stream: &Stream) -> Result<(), String> {
        let room = match stream.frames.try_reserve() {
            Ok(room) => room,
            Err(mpsc::error::TrySendError::Full(())) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(())) => {
                return Err("the operator takes no reports any more".to_owned());
            }
        };
        if let Due::Now(report) =
            self.reporter.look(&self.carried_out, &self.discarder.fates(), &self.asked).await
        {
            room.send(v1::AgentFrame { body: Some(agent_frame::Body::Report(*report)) });
        }
        Ok(())
    }
}
