//! An operator's far side with a reviewer that knows its tokens, and agents around it.

use super::common::install_crypto;
use super::common::node::node;
use super::common::soon;
use super::stream_of;
use clap::Parser;
use intermezzo_api::Volume;
use intermezzo_control::Agents;
use intermezzo_control::Authority;
use intermezzo_control::Desired;
use intermezzo_control::DesiredByNode;
use intermezzo_control::Lifetimes;
use intermezzo_control::Listening;
use intermezzo_control::Review;
use intermezzo_control::Reviewer;
use intermezzo_control::Settings;
use intermezzo_identity::Credentials;
use intermezzo_identity::Identity;
use intermezzo_identity::credentials::Strangers;
use intermezzo_identity::credentials::client_of_operator;
use intermezzo_proto::v1;
use intermezzo_proto::v1::control_client::ControlClient;
use lento::agent::Agent;
use lento::agent::AgentError;
use lento::dialer::Peers;
use lento::options::Options;
use lento::volume::Mail;
use rcgen::CertificateParams;
use rcgen::KeyPair;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

/// Longer than any test.
pub const LONG: Duration = Duration::from_secs(3600);

struct Tokens;

#[tonic::async_trait]
impl Reviewer for Tokens {
    async fn review(&self, token: &str) -> Review {
        match token.strip_prefix("token-of-") {
            Some(node) => Review::Node(node.to_owned()),
            None => Review::Refused("this is no token of this cluster".to_owned()),
        }
    }
}

pub struct World {
    lifetimes: Lifetimes,
    authority: watch::Sender<Arc<Authority>>,
    desired: watch::Sender<DesiredByNode>,
    listening: Listening,
    stop: CancellationToken,
    dir: TempDir,
}

pub struct Running {
    pub listen: SocketAddr,
    pub metrics: SocketAddr,
    node: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    dir: TempDir,
}

pub fn volume(name: &str, server: &str) -> Volume {
    let mut volume = Volume::new(name, Default::default());
    volume.metadata.namespace = Some("t".to_owned());
    volume.spec.server.node_name = Some(server.to_owned());
    volume
}

pub fn desired(names: &[&str], server: &str) -> Desired {
    let volumes: Vec<Volume> = names.iter().map(|name| volume(name, server)).collect();
    Desired::new(&volumes, [], &Default::default(), &Default::default()).unwrap()
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl World {
    pub fn begin(lifetime: Duration) -> World {
        install_crypto();
        let lifetimes = Lifetimes::new(lifetime * 1000, lifetime).unwrap();
        let (authority, authority_now) =
            watch::channel(Arc::new(Authority::create(SystemTime::now(), &lifetimes).unwrap()));
        let (desired, desired_now) = watch::channel(DesiredByNode::new());
        let stop = CancellationToken::new();
        let settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            lifetime,
            authority: authority_now,
            reviewer: Arc::new(Tokens),
            desired: desired_now,
        };
        let listening = intermezzo_control::listen(settings, stop.clone()).unwrap();
        let world =
            World { lifetimes, authority, desired, listening, stop, dir: tempfile::tempdir().unwrap() };
        world.write_bundle();
        world
    }

    /// The ConfigMap that agents have as a file.
    fn write_bundle(&self) {
        let bundle = self.authority.borrow().bundle();
        let beside = self.dir.path().join("new");
        std::fs::write(&beside, bundle).unwrap();
        std::fs::rename(beside, self.dir.path().join("ca.crt")).unwrap();
    }

    fn put(&self, authority: Authority) {
        self.authority.send_replace(Arc::new(authority));
        self.write_bundle();
    }

    pub fn roll(&self) {
        let next = self.authority.borrow().roll(SystemTime::now(), &self.lifetimes).unwrap();
        self.put(next);
    }

    /// Does what is due.
    pub fn step(&self) {
        let due = self.authority.borrow().due(SystemTime::now(), &self.lifetimes).unwrap();
        if let Some(next) = due {
            self.put(next);
        }
    }

    pub fn state(&self) -> &'static str {
        self.authority.borrow().state_name()
    }

    pub fn tell(&self, node: &str, desired: Desired) {
        self.desired.send_modify(|all| drop(all.insert(node.to_owned(), Arc::new(desired))));
    }

    pub fn agents(&self) -> Agents {
        self.listening.agents.borrow().clone()
    }

    /// Waits for a report.
    pub async fn reported(&self, node: &str, wanted: impl Fn(&v1::Report) -> bool) -> Arc<v1::Report> {
        let mut agents = self.listening.agents.clone();
        let report = |agents: &Agents| agents.get(node)?.report.clone().filter(|report| wanted(report));
        let agents = soon(agents.wait_for(|agents| report(agents).is_some())).await.unwrap();
        report(&agents).unwrap()
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    async fn client(&self, identity: Option<&Identity>) -> Result<ControlClient<Channel>, Status> {
        let tls = client_of_operator(identity, &[self.authority.borrow().bundle()]);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.listening.address)).unwrap();
        let channel = soon(endpoint.tls_config(tls).unwrap().connect()).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(ControlClient::new(channel))
    }

    /// Enrols by hand: the certificate, its key and the authorities.
    pub async fn enrol(&self, node: &str, token: &str) -> Result<(v1::EnrolReply, String), Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
        let request = v1::EnrolRequest {
            node: node.to_owned(),
            token: token.to_owned(),
            csr: csr.der().to_vec().into(),
        };
        let reply = soon(self.client(None).await?.enrol(request)).await?;
        Ok((reply.into_inner(), key.serialize_pem()))
    }

    pub async fn identity(&self, node: &str) -> Identity {
        let (reply, key) = self.enrol(node, &format!("token-of-{node}")).await.unwrap();
        Identity::from_pem(&reply.certificate, &key, &reply.authorities, Strangers::Refused).unwrap()
    }

    /// Attaches by hand.
    pub async fn attach(
        &self,
        identity: Option<&Identity>,
        hello: v1::AgentFrame,
    ) -> Result<(mpsc::Sender<v1::AgentFrame>, Streaming<v1::OperatorFrame>), Status> {
        let mut client = self.client(identity).await?;
        let (frames, outbound) = mpsc::channel(4);
        frames.send(hello).await.unwrap();
        let inbound = soon(client.attach(stream_of(outbound))).await?.into_inner();
        Ok((frames, inbound))
    }

    pub fn agent(&self, node: &str) -> Running {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), format!("token-of-{node}\n")).unwrap();
        self.agent_in(node, dir)
    }

    pub fn agent_in(&self, node: &str, dir: TempDir) -> Running {
        let (listen, metrics) = (free_port(), free_port());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let authorities = self.dir.path().join("ca.crt").display().to_string();
        let options = Options::parse_from([
            "lento".to_owned(),
            format!("--node={node}"),
            format!("--operator={}", self.listening.address),
            format!("--operator-ca={authorities}"),
            format!("--token={}", at("token")),
            format!("--advertise={listen}"),
            format!("--listen={listen}"),
            format!("--metrics={metrics}"),
            format!("--presto-socket={}", at("presto.sock")),
            format!("--state={}", at("state")),
            format!("--cache={}", at("cache")),
            format!("--mounts={}", at("mounts")),
            format!("--admin-socket={}", at("lento.sock")),
        ]);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Agent::run(options, stop.clone()));
        Running { listen, metrics, node: node.to_owned(), stop, task, dir }
    }

    /// Whether who has this identity gets a stream at an agent's replication.
    pub async fn reaches(&self, agent: &Running, identity: Identity) -> bool {
        let addresses = [(agent.node.clone(), agent.listen.to_string())].into();
        let peers = Peers::new(Credentials::fixed(identity), addresses);
        let mut client = node();
        peers.follow(&agent.node, client.volume.clone());
        let connected = tokio::time::timeout(Duration::from_secs(10), client.mailbox.recv()).await;
        peers.unfollow(&agent.node, &client.volume.name);
        matches!(connected, Ok(Some(Mail::Connected(..))))
    }

    /// What an agent's listener shows; waits until it shows something.
    pub async fn certificate_at(&self, agent: &Running) -> Vec<u8> {
        use tokio_rustls::TlsConnector;
        let mut roots = rustls::RootCertStore::empty();
        let bundle = self.authority.borrow().bundle();
        for one in intermezzo_identity::credentials::certificates("bundle", &bundle).unwrap() {
            roots.add(one).unwrap();
        }
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let name = intermezzo_identity::name::node_identity(&agent.node);
        soon(async {
            loop {
                if let Ok(stream) = tokio::net::TcpStream::connect(agent.listen).await
                    && let Ok(stream) = connector.connect(name.clone().try_into().unwrap(), stream).await
                {
                    return stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }
}

impl Running {
    /// Ends it in order; its directory stays.
    pub async fn stop(self) -> TempDir {
        self.stop.cancel();
        soon(self.task).await.unwrap().unwrap();
        self.dir
    }

    /// The page of numbers; empty while there is none.
    pub async fn metrics(&self) -> String {
        let Ok(mut stream) = tokio::net::TcpStream::connect(self.metrics).await else { return String::new() };
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut page = String::new();
        let _ = soon(stream.read_to_string(&mut page)).await;
        page
    }
}
