//! One agent's rooms, with a presto driven by hand.

use super::Authority;
use super::HandChannel;
use super::HandPresto;
use super::install_crypto;
use super::soon;
use intermezzo_channel::v1 as channel;
use intermezzo_channel::v1::packet::Body;
use intermezzo_identity::Credentials;
use lento::dialer::Peers;
use lento::history::Historian;
use lento::jobs::Jobs;
use lento::jobs::Shared;
use lento::link::Link;
use lento::replication::ReplicationService;
use lento::replication::listen;
use lento::req_dispatcher::Downcalls;
use lento::req_dispatcher::ReqDispatcher;
use lento::req_handler::ReqHandler;
use lento::rooms::Limits;
use lento::rooms::Rooms;
use lento::stage_names::StageNames;
use lento::store::VolumeStore;
use lento::volume::Mail;
use lento::volume::VolumeHandle;
use lento::volume::Volumes;
use lento_core::message::Message;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

pub const VOLUME: &str = "ns/v";

/// One agent's rooms around a volume whose mailbox the test holds.
pub struct Node {
    pub volume: VolumeHandle,
    pub mailbox: mpsc::Receiver<Mail>,
    pub volumes: Volumes,
    pub presto: HandPresto,
    pub downcalls: Downcalls,
    pub contents: Arc<Semaphore>,
    pub limits: Limits,
    pub dir: tempfile::TempDir,
    pub stop: CancellationToken,
    _end: DropGuard,
}

pub fn node() -> Node {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("presto.sock");
    let presto = HandPresto::listen(&socket);
    let (volumes, stop) = (Volumes::default(), CancellationToken::new());
    let (volume, mailbox) = VolumeHandle::new(VOLUME);
    volumes.insert(volume.clone());
    let (dispatcher, downcalls) = ReqDispatcher::new(socket, ReqHandler::new(volumes.clone()), stop.clone());
    tokio::spawn(dispatcher.run());
    let _end = stop.clone().drop_guard();
    let contents = Arc::new(Semaphore::new(lento::jobs::CONCURRENCY));
    Node { volume, mailbox, volumes, presto, downcalls, contents, limits: Limits::default(), dir, stop, _end }
}

impl Node {
    /// Serves the volume to these nodes.
    pub fn serve(&self, authority: &Authority, name: &str, replication_list: &[&str]) -> SocketAddr {
        self.serve_as(authority.identity(name), replication_list)
    }

    /// The same with an identity that somebody else gave.
    pub fn serve_as(&self, credentials: Credentials, replication_list: &[&str]) -> SocketAddr {
        let mut admission = self.volume.admission().write();
        admission.serving = true;
        admission.replication_list = replication_list.iter().map(|&node| node.to_owned()).collect();
        let service = ReplicationService {
            volumes: self.volumes.clone(),
            downcalls: self.downcalls.clone(),
            contents: self.contents.clone(),
            names: StageNames::default(),
            rooms: Rooms::default(),
            limits: self.limits,
            historian: self.historian(Peers::new(credentials.clone(), BTreeMap::new())),
        };
        let any = "127.0.0.1:0".parse().unwrap();
        listen(service, any, credentials, self.stop.clone()).unwrap()
    }

    pub fn historian(&self, peers: Peers) -> Historian {
        Historian::new("a", self.downcalls.clone(), peers).unwrap()
    }

    /// Attaches a presto, and waits until lento knows.
    pub async fn attach(&self) -> HandChannel {
        let channel = self.presto.attach().await;
        soon(self.downcalls.state().wait_for(|state| state.generation().is_some())).await.unwrap();
        channel
    }

    pub async fn mail(&mut self) -> Mail {
        soon(self.mailbox.recv()).await.unwrap()
    }

    pub async fn nothing_comes(&mut self) {
        let waited = tokio::time::timeout(Duration::from_millis(400), self.mailbox.recv()).await;
        assert!(waited.is_err(), "{waited:?}");
    }

    pub async fn connected(&mut self, from: &str) -> Link {
        match self.mail().await {
            Mail::Connected(node, link) if node == from => link,
            other => panic!("{other:?}"),
        }
    }

    pub async fn message(&mut self, from: &str) -> Message {
        match self.mail().await {
            Mail::Message(node, _, message) if node == from => message,
            other => panic!("{other:?}"),
        }
    }

    /// A store of its own.
    pub fn store(&self) -> Arc<VolumeStore> {
        Arc::new(
            VolumeStore::open(&self.dir.path().join("store"), "boot", &self.dir.path().join("life")).unwrap(),
        )
    }

    pub fn jobs(&self, peers: &Peers, store: Arc<VolumeStore>) -> Jobs {
        Jobs::start(Shared {
            volume: self.volume.clone(),
            life: 1,
            downcalls: self.downcalls.clone(),
            peers: peers.clone(),
            server: "a".to_owned(),
            store,
            writing: Arc::default(),
            conflicts: self.dir.path().join("conflicts"),
            contents: self.contents.clone(),
            ended: CancellationToken::new(),
        })
    }
}

pub fn peers(authority: &Authority, name: &str, server: &str, address: SocketAddr) -> Peers {
    Peers::new(authority.identity(name), [(server.to_owned(), address.to_string())].into())
}

/// Answers one downcall of a kind; says for which file.
pub async fn answer_resolve(presto: &mut HandChannel, file: File) -> u64 {
    let packet = presto.receive().await;
    let Some(Body::Resolve(resolve)) = &packet.body else { panic!("{packet:?}") };
    let ino = resolve.files[0].ino;
    presto.answer(&packet, Body::Resolved(channel::Resolved { found: vec![true] }), &[file]).await;
    ino
}

pub async fn answer_open_stage(presto: &mut HandChannel, dir: &std::path::Path) -> std::path::PathBuf {
    let packet = presto.receive().await;
    let Some(Body::OpenStage(open)) = &packet.body else { panic!("{packet:?}") };
    assert!(open.name.bytes().all(|byte| b"0123456789abcdef-".contains(&byte)) && open.name.len() <= 80);
    let path = dir.join(&open.name);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    presto.answer(&packet, Body::Done(channel::Done {}), &[file]).await;
    path
}
