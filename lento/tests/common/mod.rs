//! What tests of the shell need: certificates, and a hand-driven presto.

#![allow(dead_code, missing_docs)]

use intermezzo_channel::MAX_PACKET;
use intermezzo_channel::v1::Attached;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use lento::channel::seqpacket::SeqPacket;
use lento::tls::NodeIdentity;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

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

    pub fn identity(&self, node: &str) -> NodeIdentity {
        let dir = tempfile::tempdir().unwrap();
        let [cert, key, ca] = self.files(dir.path(), node);
        NodeIdentity::load(node, &cert, &key, &ca).unwrap()
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
