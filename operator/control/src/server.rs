//! Puts the rooms together: the listener, its certificate, and the two calls.

use crate::attach;
use crate::attach::DesiredByNode;
use crate::attach::Sources;
use crate::authority::Authority;
use crate::edge;
use crate::enrol::Enrolment;
use crate::enrol::Reviewer;
use crate::registry::Agents;
use crate::registry::Registry;
use intermezzo_identity::Credentials;
use intermezzo_identity::Identity;
use intermezzo_identity::IdentityError;
use intermezzo_identity::credentials::Strangers;
use intermezzo_identity::incoming;
use intermezzo_identity::peer::peer_expiry;
use intermezzo_identity::peer::peer_node;
use intermezzo_proto::v1;
use intermezzo_proto::v1::control_server::Control;
use intermezzo_proto::v1::control_server::ControlServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Server;
use tracing::error;
use tracing::warn;

const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(20);
/// Calls at a time on one connection.
const CALLS: u32 = 8;
/// How long to wait where no certificate could be made.
const AGAIN: Duration = Duration::from_secs(5);

/// Why it cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address cannot be had.
    #[error("listen for agents at {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The authority does not work.
    #[error(transparent)]
    Authority(#[from] crate::authority::AuthorityError),
    /// What the authority made does not work.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What the operator gives.
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long nodes' certificates live. Agents renew after a third of it.
    pub lifetime: Duration,
    /// The authority of now, as it is in stable storage.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// Who knows tokens.
    pub reviewer: Arc<dyn Reviewer>,
    /// What every node shall do. A node that is not in it keeps what it was told before.
    pub desired: watch::Receiver<DesiredByNode>,
}

/// What the operator gets.
#[derive(Debug)]
pub struct Listening {
    /// The address, with the port that it became.
    pub address: SocketAddr,
    /// Who is attached and how each is.
    pub agents: watch::Receiver<Agents>,
}

/// Serves agents until `stop`.
///
/// # Errors
/// It cannot begin.
pub fn listen(settings: Settings, stop: CancellationToken) -> Result<Listening, ControlError> {
    let Settings { listen: address, lifetime, authority, reviewer, desired } = settings;
    let first = identity(&authority.borrow().clone(), lifetime)?;
    let (put, credentials) = Credentials::channel();
    put.send_replace(Some(Arc::new(first)));
    let renewal = renew(authority.clone(), lifetime, put);
    tokio::spawn(stop.clone().run_until_cancelled_owned(renewal));

    let config = move || credentials.now().map(|identity| identity.server());
    let (address, incoming) = incoming::listen(address, config, stop.clone())
        .map_err(|source| ControlError::Listen { address, source })?;
    let (registry, agents) = Registry::new();
    let service = Service {
        enrolment: Enrolment::new(authority.clone(), reviewer, lifetime),
        sources: Sources { authority, desired, registry },
        stop: stop.clone(),
    };
    let service = ControlServer::new(service).max_decoding_message_size(edge::MESSAGE_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_DEADLINE))
        .max_concurrent_streams(Some(CALLS));
    tokio::spawn(async move {
        let serve = server.serve_with_incoming(service, incoming);
        if let Some(Err(error)) = stop.run_until_cancelled(serve).await {
            error!(target: "control", %error, "the listener ended");
        }
    });
    Ok(Listening { address, agents })
}

/// The operator's own certificate follows the authority, and is renewed well before its end.
async fn renew(
    mut authority: watch::Receiver<Arc<Authority>>,
    lifetime: Duration,
    put: watch::Sender<Option<Arc<Identity>>>,
) {
    let mut wait = lifetime / 3;
    loop {
        tokio::select! {
            changed = authority.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
        let now = authority.borrow_and_update().clone();
        match identity(&now, lifetime) {
            Ok(identity) => {
                put.send_replace(Some(Arc::new(identity)));
                wait = lifetime / 3;
            }
            Err(error) => {
                warn!(target: "control", %error, "no new certificate for the operator; trying again");
                wait = AGAIN;
            }
        }
    }
}

fn identity(authority: &Authority, lifetime: Duration) -> Result<Identity, ControlError> {
    let (certificate, key) = authority.issue_operator(lifetime, SystemTime::now())?;
    Ok(Identity::from_pem(&certificate, &key, &authority.bundle(), Strangers::Admitted)?)
}

struct Service {
    enrolment: Enrolment,
    sources: Sources,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Control for Service {
    type AttachStream = ReceiverStream<Result<v1::OperatorFrame, Status>>;

    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolReply>, Status> {
        self.enrolment.enrol(request.into_inner()).await.map(Response::new)
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (node, expiry) = (peer_node(&request)?, peer_expiry(&request)?);
        let (frames, outbound) = mpsc::channel(attach::QUEUE);
        let stream = attach::run(self.sources.clone(), node, expiry, request.into_inner(), frames);
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(stream));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}
