//! The server side of `Replication`: streams of clients, routed to the volumes they speak about.
//!
//! Contents are served by `fetch_service` and taken in by `stage_service`.

use crate::fetch_service;
use crate::history;
use crate::history::Historian;
use crate::link::Link;
use crate::link::LinkQueue;
use crate::link::link;
use crate::req_dispatcher::Downcalls;
use crate::rooms::Caller;
use crate::rooms::Limits;
use crate::rooms::Open;
use crate::rooms::Rooms;
use crate::stage_names::StageNames;
use crate::stage_service;
use crate::tls::peer_node;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use crate::volume::Volumes;
use crate::wire;
use intermezzo_identity::Credentials;
use intermezzo_identity::incoming;
use intermezzo_proto::v1;
use intermezzo_proto::v1::replication_server::Replication;
use intermezzo_proto::v1::replication_server::ReplicationServer;
use lento_core::io::NodeName;
use lento_core::message::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Server;
use tracing::info;
use tracing::warn;

const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(10);
/// A client that does not answer is gone after so long.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(15);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves this node's volumes.
#[derive(Clone, Debug)]
pub struct ReplicationService {
    /// This node's volumes.
    pub volumes: Volumes,
    /// Presto.
    pub downcalls: Downcalls,
    /// Room for contents in work.
    pub contents: Arc<Semaphore>,
    /// Names of the files that clients' contents arrive in.
    pub names: StageNames,
    /// What each client may take of it.
    pub rooms: Rooms,
    /// How long clients are waited for.
    pub limits: Limits,
    /// What was.
    pub historian: Historian,
}

/// Listens at `address`; each new connection meets the identity of then. The port may be 0: the answer says which one it
/// became.
///
/// # Errors
/// The address cannot be had.
pub fn listen(
    service: ReplicationService,
    address: SocketAddr,
    credentials: Credentials,
    stop: CancellationToken,
) -> Result<SocketAddr, String> {
    let config = move || credentials.now().map(|identity| identity.server());
    let (local, incoming) = incoming::listen(address, config, stop.clone())
        .map_err(|error| format!("listen at {address}: {error}"))?;
    let service = ReplicationServer::new(service)
        .max_decoding_message_size(wire::MESSAGE_MAX)
        .max_encoding_message_size(wire::MESSAGE_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_DEADLINE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    tokio::spawn(async move {
        // Streams last for ever, so stopping does not wait for them.
        let serve = server.serve_with_incoming(service, incoming);
        if let Some(Err(error)) = stop.run_until_cancelled(serve).await {
            warn!(target: "replication", %error, "the listener ended");
        }
    });
    Ok(local)
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    type ConnectStream = ReceiverStream<Result<v1::ServerFrame, Status>>;
    type FetchStream = ReceiverStream<Result<v1::FetchChunk, Status>>;
    type StageStream = stage_service::Replies;
    type HistoryStream = history::Answers<v1::HistoryLine>;
    type PastStream = history::Answers<v1::PastReply>;
    type FormerStream = history::Answers<v1::FormerChunk>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let node = peer_node(&request)?;
        let process = request.metadata().get(wire::PROCESS).and_then(|text| text.to_str().ok()?.parse().ok());
        let caller = Caller { process, address: request.remote_addr() };
        let (frames, outbound) = mpsc::channel(16);
        let (link, queue) = link();
        self.rooms.stream(&node, link.clone(), caller).await.inspect_err(|refused| {
            warn!(target: "replication", client = node, address = ?caller.address, reason = refused.message(), "refused");
        })?;
        tokio::spawn(forward(queue, frames.clone(), link.clone(), self.limits));
        let stream = ClientStream { node, volumes: self.volumes.clone(), link, joined: BTreeMap::new() };
        tokio::spawn(stream.run(request.into_inner(), frames));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let node = peer_node(&request)?;
        fetch_service::fetch(self, &node, request.into_inner()).map(Response::new)
    }

    async fn stage(
        &self,
        request: Request<Streaming<v1::StageChunk>>,
    ) -> Result<Response<Self::StageStream>, Status> {
        let node = peer_node(&request)?;
        Ok(Response::new(stage_service::stage(self, &node, request.into_inner())))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<Self::HistoryStream>, Status> {
        let (volume, room) = self.asked(&peer_node(&request)?, &request.get_ref().volume)?;
        self.historian.lines_here(&volume, request.get_ref(), Some(room)).map(Response::new)
    }

    async fn past(&self, request: Request<v1::PastRequest>) -> Result<Response<Self::PastStream>, Status> {
        let (volume, room) = self.asked(&peer_node(&request)?, &request.get_ref().volume)?;
        self.historian.past_here(&volume, request.get_ref(), Some(room)).map(Response::new)
    }

    async fn former(
        &self,
        request: Request<v1::FormerRequest>,
    ) -> Result<Response<Self::FormerStream>, Status> {
        let (volume, room) = self.asked(&peer_node(&request)?, &request.get_ref().volume)?;
        let content = request.get_ref().content.as_ref();
        self.historian.former_here(&volume, content, Some(room)).map(Response::new)
    }
}

impl ReplicationService {
    /// The volume about which `node` asks something, and its room for that.
    fn asked(&self, node: &str, volume: &str) -> Result<(VolumeHandle, Open), Status> {
        Ok((self.admitted(node, volume)?, self.rooms.enter(node)?))
    }

    /// The volume of this name, if `node` may follow it.
    ///
    /// # Errors
    /// It may not.
    pub fn admitted(&self, node: &str, volume: &str) -> Result<VolumeHandle, Status> {
        let handle = self.volumes.get(volume);
        let handle = handle.ok_or_else(|| Status::not_found(not_here(volume)))?;
        match handle.refusal(node) {
            None => Ok(handle),
            Some(reason) => Err(Status::permission_denied(reason)),
        }
    }
}

fn not_here(volume: &str) -> String {
    format!("volume {volume} is not on this node")
}

/// Takes away what volumes say to one client.
async fn forward(
    mut queue: LinkQueue,
    frames: mpsc::Sender<Result<v1::ServerFrame, Status>>,
    link: Link,
    limits: Limits,
) {
    let take = async {
        while let Some(saying) = queue.next().await {
            let Some(message) = &saying.message else { continue };
            for frame in wire::server_frames(&saying.volume, message) {
                match frames.send_timeout(Ok(frame), limits.taken_within).await {
                    Ok(()) => {}
                    Err(SendTimeoutError::Timeout(_)) => {
                        let reason = format!("it has taken nothing for {:?}", limits.taken_within);
                        return link.hang_up(&reason);
                    }
                    Err(SendTimeoutError::Closed(_)) => return,
                }
            }
        }
    };
    tokio::select! {
        () = take => {}
        () = link.ended() => {}
        () = frames.closed() => {}
    }
}

/// What one client's stream says.
struct ClientStream {
    node: NodeName,
    volumes: Volumes,
    link: Link,
    joined: BTreeMap<String, VolumeHandle>,
}

impl ClientStream {
    async fn run(
        mut self,
        mut inbound: Streaming<v1::ClientFrame>,
        frames: mpsc::Sender<Result<v1::ServerFrame, Status>>,
    ) {
        info!(target: "replication", client = self.node, "connected");
        let reason = loop {
            tokio::select! {
                () = self.link.ended() => break self.link.reason(),
                () = frames.closed() => break "the client ended the stream".to_owned(),
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(reason) = self.route(frame).await {
                            break reason;
                        }
                    }
                    Ok(None) => break "the client ended the stream".to_owned(),
                    Err(status) => break status.message().to_owned(),
                },
            }
        };
        for volume in self.joined.values() {
            volume.send(Mail::Disconnected(self.node.clone(), self.link.id())).await;
        }
        info!(target: "replication", client = self.node, reason, "disconnected");
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            frames.send(Err(Status::invalid_argument(reason.clone()))),
        )
        .await;
        // Ends the other half too.
        self.link.hang_up(&reason);
    }

    async fn route(&mut self, frame: v1::ClientFrame) -> Result<(), String> {
        let name = frame.volume;
        wire::limit("frame.volume", name.len(), wire::TEXT_MAX).map_err(|error| error.to_string())?;
        let message = wire::from_client(frame.body).map_err(|error| format!("volume {name}: {error}"))?;
        let Some(message) = message else {
            if let Some(volume) = self.joined.remove(&name) {
                volume.send(Mail::Disconnected(self.node.clone(), self.link.id())).await;
            }
            return Ok(());
        };
        if matches!(message, Message::Hello(_)) {
            return self.join(name, message).await;
        }
        // Whoever was refused may have said more before he knew.
        if let Some(volume) = self.joined.get(&name) {
            volume.send(Mail::Message(self.node.clone(), self.link.id(), message)).await;
        }
        Ok(())
    }

    async fn join(&mut self, name: String, hello: Message) -> Result<(), String> {
        let volume = self.volumes.get(&name);
        let refusal = match &volume {
            None => Some(not_here(&name)),
            Some(volume) => volume.refusal(&self.node),
        };
        match (volume, refusal) {
            (Some(volume), None) => {
                // A second hello on one stream begins anew: the client's volume was restarted.
                volume.send(Mail::Connected(self.node.clone(), self.link.clone())).await;
                volume.send(Mail::Message(self.node.clone(), self.link.id(), hello)).await;
                self.joined.insert(name, volume);
            }
            (_, reason) => {
                let reason = reason.unwrap_or_default();
                warn!(target: "replication", client = self.node, volume = name, reason, "refused");
                self.joined.remove(&name);
                // Manifests reach nodes at different times, so asking again makes sense.
                self.link.say(&name.into(), Message::Refused { reason, retry: true });
            }
        }
        Ok(())
    }
}
