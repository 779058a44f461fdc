//! Enrolment: a token proves which node an agent runs on, and only that name goes into its certificate.

use crate::authority::Authority;
use crate::edge;
use intermezzo_proto::v1;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Status;
use tracing::info;
use tracing::warn;

/// Most enrolments at a time: each asks the API server.
const AT_A_TIME: usize = 32;
/// How long one may take in all.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is said of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Review {
    /// It belongs to an agent on this node.
    Node(String),
    /// It does not; the sentence goes to the agent.
    Refused(String),
    /// Nobody can say at the moment; the agent tries again.
    Unavailable(String),
}

/// Who knows to which node a token belongs.
#[tonic::async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Looks at one token.
    async fn review(&self, token: &str) -> Review;
}

/// The room of `Control.Enrol`.
#[derive(Clone)]
pub(crate) struct Enrolment {
    pub(crate) authority: watch::Receiver<Arc<Authority>>,
    pub(crate) reviewer: Arc<dyn Reviewer>,
    pub(crate) lifetime: Duration,
    room: Arc<Semaphore>,
}

impl Enrolment {
    pub(crate) fn new(
        authority: watch::Receiver<Arc<Authority>>,
        reviewer: Arc<dyn Reviewer>,
        lifetime: Duration,
    ) -> Enrolment {
        Enrolment { authority, reviewer, lifetime, room: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    pub(crate) async fn enrol(&self, request: v1::EnrolRequest) -> Result<v1::EnrolReply, Status> {
        let claimed = request.node.clone();
        let reply = match timeout(DEADLINE, self.admit(request)).await {
            Ok(reply) => reply,
            Err(_) => Err(Status::unavailable("the operator could not review the token in time")),
        };
        match &reply {
            Ok(reply) => info!(target: "enrol", node = claimed, seconds = reply.lifetime, "enrolled"),
            Err(status) => {
                let node: String = claimed.chars().take(253).collect();
                warn!(target: "enrol", node, reason = status.message(), "refused");
            }
        }
        reply
    }

    async fn admit(&self, request: v1::EnrolRequest) -> Result<v1::EnrolReply, Status> {
        edge::enrol(&request)?;
        let _room = self.room.acquire().await.map_err(|_| Status::unavailable("stopping"))?;
        let node = match self.reviewer.review(&request.token).await {
            Review::Node(node) => node,
            Review::Refused(reason) => return Err(Status::permission_denied(reason)),
            Review::Unavailable(reason) => return Err(Status::unavailable(reason)),
        };
        if node != request.node {
            let reason = format!("the token is of node {node}, the agent says that it is {}", request.node);
            return Err(Status::permission_denied(reason));
        }
        let authority = self.authority.borrow().clone();
        let issued = authority
            .issue_node(&node, &request.csr, self.lifetime, SystemTime::now())
            .map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        Ok(v1::EnrolReply {
            certificate: issued.certificate,
            authorities: authority.bundle(),
            lifetime: issued.lifetime.as_secs(),
        })
    }
}
