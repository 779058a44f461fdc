//! The ReqHandler handles upcalls. It never waits: a journal upcall wakes the volume, the others are answered by policy.

use crate::channel::convert::file_id_back;
use crate::volume::Volumes;
use intermezzo_channel::v1;
use intermezzo_channel::v1::Done;
use intermezzo_channel::v1::Failure;
use intermezzo_channel::v1::GetSafety;
use intermezzo_channel::v1::PermitGranted;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::safety::Is;
use lento_core::types::Recno;
use lento_core::volume::Safety;
use rustix::io::Errno;
use std::time::Duration;
use tokio::time::timeout;
use tracing::debug;

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

    /// Answers the upcall that only the volume can answer: it may take as long as a step of the volume.
    pub async fn safety(&self, volume: &str, asked: &GetSafety) -> Body {
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

    /// Handles one upcall; the answer, if it wants one.
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
            // Every content is here in full mode: an open may go on.
            Body::GetData(_) => Some(Body::Done(Done {})),
            // Writes are optimistic: everybody may write, the server's verdicts decide.
            Body::GetPermit(_) => Some(Body::PermitGranted(PermitGranted { epoch: 0 })),
            Body::Interrupt(_) => None,
            other => {
                debug!(target: "channel", volume, ?other, "not an upcall");
                let message = format!("{volume}: this lento does not know that upcall");
                Some(Body::Failure(Failure { errno: Errno::NOSYS.raw_os_error(), message }))
            }
        }
    }
}
