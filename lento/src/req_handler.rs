//! The ReqHandler handles upcalls: a journal upcall wakes the volume; what a user of Presto waits for is answered by the volume,
//! within the deadline that the upcall names, or dropped when nobody waits any more.

use crate::channel::convert::file_id_back;
use crate::volume::Kept;
use crate::volume::Permit;
use crate::volume::Volumes;
use intermezzo_channel::v1;
use intermezzo_channel::v1::Coming;
use intermezzo_channel::v1::Done;
use intermezzo_channel::v1::Failure;
use intermezzo_channel::v1::GetData;
use intermezzo_channel::v1::GetPermit;
use intermezzo_channel::v1::GetSafety;
use intermezzo_channel::v1::PermitGranted;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::safety::Is;
use lento_core::io::Demanded;
use lento_core::types::Recno;
use lento_core::volume::Safety;
use rustix::io::Errno;
use std::time::Duration;
use tokio::time::Instant;
use tokio::time::timeout;
use tracing::debug;
use tracing::warn;

/// How long a volume that does not run yet is waited for, and how often it is asked.
const BEGINNING: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// So much earlier than presto gives up waiting for the permit, it is told so.
const SOONER: Duration = Duration::from_millis(500);

/// Knows the volumes.
#[derive(Clone, Debug)]
pub struct ReqHandler {
    volumes: Volumes,
}

impl ReqHandler {
    /// Routes to these volumes.
    #[must_use]
    pub fn new(volumes: Volumes) -> ReqHandler {
        ReqHandler { volumes }
    }

    /// Handles an upcall that wants no answer; the others come back.
    #[must_use]
    pub fn handle(&self, volume: &str, body: Body) -> Option<Body> {
        match body {
            // The KML is the truth, so the upcall only says "look".
            Body::Journal(_) => {
                if let Some(volume) = self.volumes.get(volume) {
                    volume.wake();
                }
                None
            }
            other => Some(other),
        }
    }

    /// Answers an upcall that somebody waits for.
    pub async fn answer(&self, volume: &str, body: Body) -> Body {
        match body {
            Body::GetSafety(asked) if asked.at_server => self.keep(volume, &asked).await,
            Body::GetSafety(asked) => self.safety(volume, &asked).await,
            Body::GetData(asked) => self.data(volume, &asked).await,
            Body::GetPermit(asked) => self.permit(volume, &asked).await,
            other => {
                debug!(target: "channel", volume, ?other, "not an upcall");
                let message = format!("{volume}: this lento does not know that upcall");
                Body::Failure(Failure { errno: Errno::NOSYS.raw_os_error(), message })
            }
        }
    }

    /// Presto's deadline is a little later than ours, so that it hears why.
    async fn permit(&self, volume: &str, asked: &GetPermit) -> Body {
        let failure = |errno: Errno, why: &str| failure(volume, errno, why);
        let nobody = || failure(Errno::NOTCONN, "nobody here can say who may write");
        let Some(handle) = self.volumes.get(volume) else { return nobody() };
        let deadline = Duration::from_millis(asked.deadline_ms).saturating_sub(SOONER);
        match timeout(deadline, handle.permit()).await {
            Ok(Some(Permit::Granted { serial, until })) => {
                Body::PermitGranted(PermitGranted { serial, until_ms: until.0 })
            }
            Ok(Some(Permit::ReadOnly)) => failure(Errno::ROFS, "the server is away: read-only meanwhile"),
            Ok(None) => nobody(),
            Err(_) => failure(Errno::TIMEDOUT, "the permit did not come in time"),
        }
    }

    async fn data(&self, name: &str, asked: &GetData) -> Body {
        let file = file_id_back(&asked.object.unwrap_or_default());
        let began = Instant::now();
        let answered = loop {
            let answered = match self.volumes.get(name) {
                Some(volume) => volume.demand(file).await,
                None => None,
            };
            if answered.is_some() || began.elapsed() >= BEGINNING {
                break answered;
            }
            // It may be about to begin.
            tokio::time::sleep(ASK_AGAIN).await;
        };
        let (errno, why) = match answered {
            Some(Demanded::Look) => return Body::Done(Done {}),
            Some(Demanded::Coming) => return Body::Coming(Coming {}),
            Some(Demanded::Gone) => (Errno::STALE.raw_os_error(), "it is another file by now".to_owned()),
            Some(Demanded::Unreachable) => {
                (Errno::HOSTUNREACH.raw_os_error(), "its server is away".to_owned())
            }
            Some(Demanded::Failed { errno, why }) => {
                warn!(target: "volume", volume = name, errno, why, "somebody waited for a content, and did not get it");
                (errno, why)
            }
            None => {
                (Errno::HOSTUNREACH.raw_os_error(), "this node's part of the volume does not run".to_owned())
            }
        };
        Body::Failure(Failure { errno, message: format!("volume {name}: a content that is not here: {why}") })
    }

    /// Presto's deadline is a little later than ours here as well.
    async fn keep(&self, volume: &str, asked: &GetSafety) -> Body {
        let file = file_id_back(&asked.object.unwrap_or_default());
        let nobody = || failure(volume, Errno::NOTCONN, "this node's part of the volume does not run");
        let Some(handle) = self.volumes.get(volume) else { return nobody() };
        let deadline = Duration::from_millis(asked.deadline_ms).saturating_sub(SOONER);
        match timeout(deadline, handle.keep(file, Recno(asked.newest))).await {
            Ok(Some(Kept::AtServer)) => Body::Safety(v1::Safety { is: Is::Server.into() }),
            Ok(Some(Kept::Away)) => failure(volume, Errno::HOSTUNREACH, "the server is away"),
            Ok(None) => nobody(),
            Err(_) => failure(volume, Errno::TIMEDOUT, "the server has not got it in time"),
        }
    }

    async fn safety(&self, volume: &str, asked: &GetSafety) -> Body {
        let file = file_id_back(&asked.object.unwrap_or_default());
        let answered = match self.volumes.get(volume) {
            Some(volume) => {
                let waited = volume.safety(file, Recno(asked.newest));
                timeout(Duration::from_millis(asked.deadline_ms), waited).await.ok().flatten()
            }
            None => None,
        };
        let is = match answered {
            Some(Safety::Local) => Is::Local,
            Some(Safety::Server) => Is::Server,
            Some(Safety::Everywhere) => Is::Everywhere,
            None => Is::Unspecified,
        };
        Body::Safety(v1::Safety { is: is.into() })
    }
}

fn failure(volume: &str, errno: Errno, why: &str) -> Body {
    Body::Failure(Failure { errno: errno.raw_os_error(), message: format!("{volume}: {why}") })
}
