//! The Dialer: one connection to each server of whose volumes this node is a client, held and renewed.

use crate::link::Link;
use crate::link::LinkQueue;
use crate::link::link;
use crate::random::Backoff;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use crate::wire;
use intermezzo_identity::Credentials;
use intermezzo_proto::v1::ClientFrame;
use intermezzo_proto::v1::Goodbye;
use intermezzo_proto::v1::ServerFrame;
use intermezzo_proto::v1::client_frame::Body;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use lento_core::io::NodeName;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tracing::info;
use tracing::warn;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// One server, and the volumes that follow it.
#[derive(Debug, Default)]
struct Server {
    followers: Mutex<BTreeMap<String, VolumeHandle>>,
    changed: Notify,
    channel: Mutex<Option<Channel>>,
    /// Why there is no connection; empty: there is one, or it is the first try.
    trouble: Mutex<String>,
    stop: CancellationToken,
}

/// All servers, by node.
#[derive(Clone, Debug)]
pub struct Peers {
    servers: Arc<Mutex<BTreeMap<NodeName, Arc<Server>>>>,
    addresses: Arc<Mutex<BTreeMap<NodeName, String>>>,
    credentials: Credentials,
    /// Of this process, for servers: another one with the same identity is another machine.
    process: Option<u64>,
}

impl Peers {
    /// Servers at these addresses (`host:port`).
    #[must_use]
    pub fn new(credentials: Credentials, addresses: BTreeMap<NodeName, String>) -> Peers {
        let (servers, addresses) = (Arc::default(), Arc::new(Mutex::new(addresses)));
        Peers { servers, addresses, credentials, process: crate::random::id().ok() }
    }

    /// Where nodes are from now on. A connection that is up stays; of a node that is not named nothing changes.
    pub fn learn(&self, addresses: &BTreeMap<NodeName, String>) {
        self.addresses.lock().extend(addresses.iter().map(|(node, at)| (node.clone(), at.clone())));
    }

    /// The connection to a server, while there is one.
    #[must_use]
    pub fn channel(&self, node: &str) -> Option<Channel> {
        let server = self.servers.lock().get(node).cloned()?;
        server.channel.lock().clone()
    }

    /// Why a server is not reached, with its address; `None`: nothing speaks against it.
    #[must_use]
    pub fn trouble(&self, node: &str) -> Option<String> {
        let server = self.servers.lock().get(node).cloned()?;
        let trouble = server.trouble.lock().clone();
        let address = self.addresses.lock().get(node).cloned().unwrap_or_else(|| "no address".to_owned());
        (!trouble.is_empty()).then(|| format!("{node} ({address}): {trouble}"))
    }

    /// From now on `volume` is told of the connection to `node`, which is made if need be.
    pub fn follow(&self, node: &str, volume: VolumeHandle) {
        let server = {
            let mut servers = self.servers.lock();
            match servers.get(node) {
                Some(server) => server.clone(),
                None => {
                    let server = Arc::new(Server::default());
                    servers.insert(node.to_owned(), server.clone());
                    let dialer =
                        Dialer { node: node.to_owned(), server: server.clone(), peers: self.clone() };
                    tokio::spawn(async move {
                        let stop = dialer.server.stop.clone();
                        stop.run_until_cancelled(dialer.run()).await;
                    });
                    server
                }
            }
        };
        server.followers.lock().insert(volume.name.to_string(), volume);
        server.changed.notify_one();
    }

    /// `volume` follows `node` no longer; with the last one the connection ends.
    pub fn unfollow(&self, node: &str, volume: &str) {
        let mut servers = self.servers.lock();
        let Some(server) = servers.get(node) else { return };
        let mut followers = server.followers.lock();
        followers.remove(volume);
        if followers.is_empty() {
            server.stop.cancel();
            *server.channel.lock() = None;
            drop(followers);
            servers.remove(node);
        }
    }

    fn endpoint(&self, node: &str) -> Result<Endpoint, String> {
        let address = self.addresses.lock().get(node).cloned();
        let address = address.ok_or_else(|| {
            format!("no address for node {node}: give --peer {node}=HOST:PORT, or wait until it is attached to the operator")
        })?;
        let identity = self.credentials.now().ok_or("this node has no certificate yet")?;
        Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(identity.client(node)))
            .map(|endpoint| {
                endpoint
                    .connect_timeout(CONNECT_DEADLINE)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_DEADLINE)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .tcp_nodelay(true)
            })
            .map_err(|error| format!("address {address} of node {node}: {}", chain(&error)))
    }
}

struct Dialer {
    node: NodeName,
    server: Arc<Server>,
    peers: Peers,
}

impl Dialer {
    async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut said = String::new();
        loop {
            let reason = match self.connect().await {
                Ok((inbound, link)) => {
                    info!(target: "dialer", server = self.node, "connected");
                    backoff.reset();
                    self.server.trouble.lock().clear();
                    let reason = self.serve(inbound, link).await;
                    *self.server.channel.lock() = None;
                    reason
                }
                Err(reason) => reason,
            };
            let reason = advised(reason);
            self.server.trouble.lock().clone_from(&reason);
            // The same reason again and again is said once.
            if reason != said {
                warn!(target: "dialer", server = self.node, reason, "not connected; trying again");
                said = reason;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn connect(&self) -> Result<(Streaming<ServerFrame>, Link), String> {
        let endpoint = self.peers.endpoint(&self.node)?;
        let channel = timeout(CONNECT_DEADLINE, endpoint.connect())
            .await
            .map_err(|_| format!("no connection within {CONNECT_DEADLINE:?}"))?
            .map_err(|error| chain(&error))?;
        let (link, queue) = link();
        let (frames, outbound) = mpsc::channel(16);
        tokio::spawn(forward(queue, frames));
        let mut client = ReplicationClient::new(channel.clone())
            .max_decoding_message_size(wire::MESSAGE_MAX)
            .max_encoding_message_size(wire::MESSAGE_MAX);
        let mut request = Request::new(ReceiverStream::new(outbound));
        if let Some(process) = self.peers.process {
            request.metadata_mut().insert(wire::PROCESS, process.into());
        }
        let inbound = timeout(CONNECT_DEADLINE, client.connect(request))
            .await
            .map_err(|_| format!("no stream within {CONNECT_DEADLINE:?}"))?
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        *self.server.channel.lock() = Some(channel);
        Ok((inbound, link))
    }

    /// One stream, to its end; why it ended.
    async fn serve(&self, mut inbound: Streaming<ServerFrame>, link: Link) -> String {
        let mut told: BTreeMap<String, VolumeHandle> = BTreeMap::new();
        let reason = loop {
            let followers = self.server.followers.lock().clone();
            for (name, volume) in &followers {
                if !told.contains_key(name) {
                    volume.send(Mail::Connected(self.node.clone(), link.clone())).await;
                }
            }
            told = followers;
            tokio::select! {
                () = self.server.changed.notified() => {}
                () = link.ended() => break link.reason(),
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        if let Err(reason) = self.pass_on(frame, &told, &link).await {
                            break reason;
                        }
                    }
                    Ok(None) => break "the server ended the stream".to_owned(),
                    Err(status) => break status.message().to_owned(),
                },
            }
        };
        for volume in told.values() {
            volume.send(Mail::Disconnected(self.node.clone(), link.id())).await;
        }
        reason
    }

    async fn pass_on(
        &self,
        frame: ServerFrame,
        told: &BTreeMap<String, VolumeHandle>,
        link: &Link,
    ) -> Result<(), String> {
        let message =
            wire::from_server(frame.body).map_err(|error| format!("volume {}: {error}", frame.volume))?;
        // A volume that has just left may still be spoken to.
        if let Some(volume) = told.get(&frame.volume) {
            volume.send(Mail::Message(self.node.clone(), link.id(), message)).await;
        }
        Ok(())
    }
}

/// Takes away what volumes say.
async fn forward(mut queue: LinkQueue, frames: mpsc::Sender<ClientFrame>) {
    while let Some(saying) = queue.next().await {
        let ready = match &saying.message {
            Some(message) => wire::client_frames(&saying.volume, message),
            None => {
                let volume = saying.volume.to_string();
                vec![ClientFrame { volume, body: Some(Body::Goodbye(Goodbye {})) }]
            }
        };
        for frame in ready {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
}

/// An error with its causes: the transport's own text says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some say what their cause says.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a person can do about it, behind the words of the TLS library and its alerts.
fn advised(reason: String) -> String {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let advice = if says(&["UnknownIssuer", "UnknownCA", "UnknownCa", "unknown issuer"]) {
        "the certificates of the two nodes are not from the same CA: both need one that the CA in ca.crt has signed"
    } else if says(&["NotValidForName", "not valid for name"]) {
        "another node answers there, or the certificate does not name the node: correct the address, or the server's name"
    } else if says(&["NotValidYet", "not valid yet", "Expired", "expired"]) {
        "a certificate is not valid now: look at the clock of both nodes, or make a new one (intermezzo pki node)"
    } else if says(&[
        "BadCertificate",
        "CertificateUnknown",
        "CertificateRequired",
        "AccessDenied",
        "DecryptError",
    ]) {
        "the server does not take the certificate of this node: it must be of the CA that the server trusts, and name this node"
    } else {
        return reason;
    };
    format!("{reason} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_comes_with_what_to_do() {
        for (reason, advice) in [
            ("transport error: invalid peer certificate: UnknownIssuer", "from the same CA"),
            ("received fatal alert: UnknownCA", "from the same CA"),
            ("invalid peer certificate: certificate expired: verification time 17", "the clock"),
            ("invalid peer certificate: certificate not valid for name \"b\"", "another node answers there"),
            ("received fatal alert: BadCertificate", "does not take the certificate"),
        ] {
            let advised = advised(reason.to_owned());
            assert!(advised.starts_with(reason) && advised.contains(advice), "{advised}");
        }
        assert_eq!(advised("connection refused".to_owned()), "connection refused");
    }
}
