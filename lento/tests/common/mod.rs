//! What tests of the shell need: certificates, and a hand-driven presto.

#![allow(dead_code, missing_docs)]

pub mod node;

use intermezzo_channel::MAX_PACKET;
use intermezzo_channel::v1::Attached;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use intermezzo_identity::Credentials;
use lento::channel::seqpacket::SeqPacket;
use lento::tls::NodeFiles;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// An authority that makes node certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `cert.pem`, `key.pem` and `ca.pem` for a node.
    pub fn files(&self, dir: &Path, node: &str) -> [PathBuf; 3] {
        let key = KeyPair::generate().unwrap();
        let name = format!("{node}{}", lento::tls::NODE_DOMAIN);
        let cert = CertificateParams::new([name]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let dir = dir.join(node);
        std::fs::create_dir_all(&dir).unwrap();
        let files = [dir.join("cert.pem"), dir.join("key.pem"), dir.join("ca.pem")];
        let texts = [cert.pem(), key.serialize_pem(), self.pem.clone()];
        for (file, text) in files.iter().zip(texts) {
            std::fs::write(file, text).unwrap();
        }
        files
    }

    pub fn identity(&self, node: &str) -> Credentials {
        let dir = tempfile::tempdir().unwrap();
        Credentials::fixed(self.node_files(dir.path(), node).load(node).unwrap())
    }

    pub fn node_files(&self, dir: &Path, node: &str) -> NodeFiles {
        let [certificate, key, authorities] = self.files(dir, node);
        NodeFiles { certificate, key, authorities }
    }
}

pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Fails instead of hanging.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this took too long")
}

/// Presto's end of the channel, driven by hand.
pub struct HandPresto {
    listener: OwnedFd,
}

pub struct HandChannel {
    socket: SeqPacket,
    buffer: Vec<u8>,
}

impl HandPresto {
    pub fn listen(path: &Path) -> HandPresto {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        HandPresto { listener }
    }

    pub async fn accept(&self) -> HandChannel {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = soon(async {
            loop {
                match rustix::net::accept_with(&self.listener, flags) {
                    Ok(socket) => return socket,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        HandChannel { socket: SeqPacket::from_fd(socket).unwrap(), buffer: Vec::with_capacity(MAX_PACKET) }
    }

    /// Accepts and answers `Attach`.
    pub async fn attach(&self) -> HandChannel {
        let mut channel = self.accept().await;
        let packet = channel.receive().await;
        assert!(matches!(packet.body, Some(Body::Attach(_))));
        let attached = Attached {
            protocol: intermezzo_channel::PROTOCOL,
            presto_version: "by hand".to_owned(),
            ..Default::default()
        };
        channel.answer(&packet, Body::Attached(attached), &[]).await;
        channel
    }
}

impl HandChannel {
    pub async fn receive(&mut self) -> Packet {
        soon(self.socket.receive(&mut self.buffer)).await.unwrap().expect("lento closed the channel").0
    }

    pub async fn send(&self, packet: &Packet) {
        soon(self.socket.send(packet, &[])).await.unwrap();
    }

    pub async fn answer(&self, to: &Packet, body: Body, files: &[std::fs::File]) {
        let packet = Packet { id: to.id, volume: to.volume.clone(), body: Some(body) };
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        soon(self.socket.send(&packet, &fds)).await.unwrap();
    }
}

/// A wire between two agents that counts what goes both ways and can be cut.
pub struct Wire {
    /// Dial here.
    pub address: SocketAddr,
    /// Bytes that went to the listener.
    pub sent: Arc<AtomicUsize>,
    /// Bytes that came from it.
    pub received: Arc<AtomicUsize>,
    /// Connections end when so many have.
    pub cut_at: Arc<AtomicUsize>,
}

impl Wire {
    pub async fn to(listener: SocketAddr) -> Wire {
        let incoming = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = incoming.local_addr().unwrap();
        let (sent, cut_at) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
        let received = Arc::new(AtomicUsize::new(0));
        let counters = (sent.clone(), received.clone(), cut_at.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = incoming.accept().await {
                let (sent, received, cut_at) = counters.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(listener).await else { return };
                    let (mut from_near, mut to_near) = near.into_split();
                    let (mut from_far, mut to_far) = far.into_split();
                    let there = async {
                        let mut bytes = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = from_near.read(&mut bytes).await {
                            if sent.load(Ordering::Relaxed) >= cut_at.load(Ordering::Relaxed)
                                || to_far.write_all(&bytes[..count]).await.is_err()
                            {
                                break;
                            }
                            sent.fetch_add(count, Ordering::Relaxed);
                        }
                    };
                    let back = async {
                        let mut bytes = vec![0; 64 << 10];
                        while let Ok(count @ 1..) = from_far.read(&mut bytes).await {
                            received.fetch_add(count, Ordering::Relaxed);
                            if to_near.write_all(&bytes[..count]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        () = there => {}
                        () = back => {}
                    }
                });
            }
        });
        Wire { address, sent, received, cut_at }
    }

    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends connections once so many more bytes went.
    pub fn cut_after(&self, bytes: usize) {
        self.cut_at.store(self.sent().saturating_add(bytes), Ordering::Relaxed);
    }
}
