//! Where the operator is, whom it must prove to be, and the calls to it.

use super::edge;
use super::identity::KeptIdentity;
use crate::options::OperatorOptions;
use crate::random;
use intermezzo_identity::Identity;
use intermezzo_identity::credentials::client_of_operator;
use intermezzo_proto::v1;
use intermezzo_proto::v1::control_client::ControlClient;
use rcgen::CertificateParams;
use rcgen::KeyPair;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The operator has the token reviewed by the API server.
const ENROL_DEADLINE: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(20);
/// A token is a few kilobytes; anything else is another file.
const TOKEN_MAX: usize = 16 << 10;

pub(super) struct Operator {
    options: OperatorOptions,
    node: String,
}

impl Operator {
    pub(super) fn new(options: OperatorOptions, node: &str) -> Operator {
        Operator { options, node: node.to_owned() }
    }

    pub(super) fn address(&self) -> &str {
        &self.options.address
    }

    /// Where the other nodes reach this one; empty: the operator is to find out.
    pub(super) fn advertise(&self) -> String {
        self.options.advertise.clone().unwrap_or_default()
    }

    /// A certificate for a new key. `known`: authorities from before (PEM), trusted beside those of the file.
    ///
    /// # Errors
    /// Text for people; the operator's own sentence where it refuses.
    pub(super) async fn enrol(&self, known: Option<&str>) -> Result<KeptIdentity, String> {
        let making = |error: rcgen::Error| format!("no certificate request could be made: {error}");
        let key = KeyPair::generate().map_err(making)?;
        let params = CertificateParams::new(Vec::new()).map_err(making)?;
        let csr = params.serialize_request(&key).map_err(making)?;
        let request = v1::EnrolRequest {
            node: self.node.clone(),
            token: self.token()?,
            csr: bytes::Bytes::copy_from_slice(csr.der()),
        };
        // Without the old certificate: if it has ended, nobody would talk to us.
        let tls = self.tls(None, known)?;
        let call = async |mut client: ControlClient<Channel>| client.enrol(request.clone()).await;
        let mut refusals = Vec::new();
        for address in self.addresses().await? {
            let answer = match self.connect(address, tls.clone()).await {
                Ok(client) => timeout(ENROL_DEADLINE, call(client)).await,
                Err(reason) => {
                    refusals.push(reason);
                    continue;
                }
            };
            match answer {
                Ok(Ok(reply)) => {
                    let reply = reply.into_inner();
                    edge::enrolled(&reply)?;
                    let lifetime = Duration::from_secs(reply.lifetime);
                    let (certificate, authorities) = (reply.certificate, reply.authorities);
                    return KeptIdentity::new(
                        &self.node,
                        certificate,
                        key.serialize_pem(),
                        authorities,
                        lifetime,
                    )
                    .map_err(|error| format!("the operator's answer: {error}"));
                }
                Ok(Err(status)) if elsewhere(&status) => refusals.push(status.message().to_owned()),
                Ok(Err(status)) => return Err(format!("the operator refuses: {}", status.message())),
                Err(_) => refusals.push(format!("{address}: no answer within {ENROL_DEADLINE:?}")),
            }
        }
        Err(refusals.join("; "))
    }

    /// A stream with whoever of the operator's addresses takes it.
    ///
    /// # Errors
    /// Text for people.
    pub(super) async fn attach(
        &self,
        kept: &KeptIdentity,
        hello: v1::AgentFrame,
    ) -> Result<(mpsc::Sender<v1::AgentFrame>, Streaming<v1::OperatorFrame>), String> {
        let tls = self.tls(Some(&kept.identity()), Some(kept.authorities()))?;
        let mut refusals = Vec::new();
        for address in self.addresses().await? {
            let mut client = match self.connect(address, tls.clone()).await {
                Ok(client) => client,
                Err(reason) => {
                    refusals.push(reason);
                    continue;
                }
            };
            let (frames, outbound) = mpsc::channel(2);
            // There is room: the queue is new.
            let _ = frames.try_send(hello.clone());
            match timeout(CONNECT_DEADLINE, client.attach(ReceiverStream::new(outbound))).await {
                Ok(Ok(inbound)) => return Ok((frames, inbound.into_inner())),
                Ok(Err(status)) => refusals.push(format!("{address}: {}", status.message())),
                Err(_) => refusals.push(format!("{address}: no stream within {CONNECT_DEADLINE:?}")),
            }
        }
        Err(refusals.join("; "))
    }

    /// Both change on disk, so they are read each time.
    fn token(&self) -> Result<String, String> {
        let path = &self.options.token;
        let token =
            std::fs::read_to_string(path).map_err(|error| format!("token {}: {error}", path.display()))?;
        let token = token.trim();
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(format!("token {}: {} bytes cannot be a token", path.display(), token.len()));
        }
        Ok(token.to_owned())
    }

    fn tls(&self, identity: Option<&Identity>, known: Option<&str>) -> Result<ClientTlsConfig, String> {
        let path = &self.options.authorities;
        let file = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let file = file.and_then(|text| edge::authorities(&text).map(|()| text));
        let trusted = match (file, known) {
            (Ok(file), Some(known)) => vec![file, known.to_owned()],
            (Ok(file), None) => vec![file],
            // The operator's own word, kept from before, is as good.
            (Err(_), Some(known)) => vec![known.to_owned()],
            (Err(reason), None) => return Err(format!("operator's CA {}: {reason}", path.display())),
        };
        Ok(client_of_operator(identity, &trusted))
    }

    /// All that the name stands for, in an order of chance: one of several operators serves agents, nobody knows which.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        let name = &self.options.address;
        let found = timeout(CONNECT_DEADLINE, tokio::net::lookup_host(name.as_str())).await;
        let found =
            found.map_err(|_| format!("{name}: the name was not resolved within {CONNECT_DEADLINE:?}"))?;
        let mut found: Vec<SocketAddr> = found.map_err(|error| format!("{name}: {error}"))?.collect();
        if found.is_empty() {
            return Err(format!("{name}: the name stands for no address"));
        }
        let turn = usize::try_from(random::id().unwrap_or(0) % (found.len() as u64)).unwrap_or(0);
        found.rotate_left(turn);
        Ok(found)
    }

    async fn connect(
        &self,
        address: SocketAddr,
        tls: ClientTlsConfig,
    ) -> Result<ControlClient<Channel>, String> {
        let fail = |error: &dyn std::error::Error| format!("{address}: {}", crate::dialer::chain(error));
        let endpoint = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| fail(&error))?
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_DEADLINE)
            .keep_alive_while_idle(true);
        let channel = timeout(CONNECT_DEADLINE, endpoint.connect())
            .await
            .map_err(|_| format!("{address}: no connection within {CONNECT_DEADLINE:?}"))?
            .map_err(|error| fail(&error))?;
        Ok(ControlClient::new(channel).max_decoding_message_size(edge::MESSAGE_MAX))
    }
}

/// Whether another address, or a later try, may say something else.
fn elsewhere(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
