//! Accepts Lento and reads its packets: downcalls go to their lanes, answers to the upcalls that wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use intermezzo_channel::PROTOCOL;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use rustix::io::Errno;

use super::lanes::{Call, Lanes};
use super::transport::{Connection, Listener, TransportError};
use super::{Link, Reply, Service, volume_name};

/// How often the accepting thread looks whether it should end.
const BREATH: Duration = Duration::from_millis(200);

/// Serves the channel until dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`; downcalls go to `service`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path, link: Arc<Link>, service: Arc<dyn Service>) -> Result<Server, TransportError> {
        let listener = Listener::bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared =
            Arc::new(Shared { lanes: Lanes::new(Arc::clone(&link), Arc::clone(&service)), link, service });
        let (seen, link) = (Arc::clone(&stop), Arc::clone(&shared.link));
        let thread = std::thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || accept(&listener, &shared, &seen))
            .map_err(|_| TransportError::Io(Errno::AGAIN))?;
        Ok(Server { stop, link, thread: Some(thread) })
    }

    /// Takes no more downcalls; the present connection ends.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.link.hang_up();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    lanes: Lanes,
    link: Arc<Link>,
    service: Arc<dyn Service>,
}

fn accept(listener: &Listener, shared: &Arc<Shared>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept(BREATH) {
            Ok(None) => {}
            Ok(Some(connection)) => start(shared, Arc::new(connection)),
            Err(error) => {
                tracing::warn!(target: "channel", %error, "cannot accept Lento");
                std::thread::sleep(BREATH);
            }
        }
    }
}

fn start(shared: &Arc<Shared>, connection: Arc<Connection>) {
    let generation = shared.link.replace(Arc::clone(&connection));
    let (writer, line) = (Arc::clone(shared), Arc::clone(&connection));
    let write = std::thread::Builder::new()
        .name("channel-write".to_owned())
        .spawn(move || writer.link.write(generation, &line));
    let reader = Arc::clone(shared);
    let read = std::thread::Builder::new()
        .name("channel-read".to_owned())
        .spawn(move || reader.read(generation, &connection));
    if write.is_err() || read.is_err() {
        tracing::warn!(target: "channel", "no thread for Lento's connection");
        shared.link.drop_connection(generation);
    }
}

impl Shared {
    fn read(&self, generation: u64, connection: &Connection) {
        let mut scratch = Vec::new();
        loop {
            match connection.receive(&mut scratch) {
                Ok(incoming) => {
                    // Lento never sends descriptors; what came is closed here.
                    drop(incoming.fds);
                    self.take(generation, incoming.packet);
                }
                Err(TransportError::Closed) => break,
                Err(error @ (TransportError::Garbled(_) | TransportError::TooLong { .. })) => {
                    tracing::warn!(target: "channel", %error, "Lento's packet refused");
                    break;
                }
                Err(error) => {
                    tracing::info!(target: "channel", %error, "Lento's connection ended");
                    break;
                }
            }
        }
        self.link.drop_connection(generation);
    }

    fn take(&self, generation: u64, packet: Packet) {
        let Packet { id, volume, body } = packet;
        let refuse = |errno, message: String| self.link.reply(generation, id, Reply::failure(errno, message));
        let Some(body) = body else {
            return refuse(
                Errno::NOSYS,
                "a packet without a known body; is Lento newer than Presto?".to_owned(),
            );
        };
        match body {
            Body::Attach(attach) if attach.protocol != PROTOCOL => {
                let theirs = attach.protocol;
                refuse(
                    Errno::PROTO,
                    format!("Lento speaks channel protocol {theirs}, Presto speaks {PROTOCOL}"),
                );
            }
            Body::Attach(_) => {
                let reply = self.service.call(&volume, body);
                self.link.reply(generation, id, reply);
                self.link.attach(generation);
            }
            Body::SetVolume(_)
            | Body::ClearVolume(_)
            | Body::DiscardVolume(_)
            | Body::Replay(_)
            | Body::RevokePermit(_)
            | Body::AdmitWriters(_)
            | Body::Mark(_)
            | Body::Truncate(_)
            | Body::Resolve(_)
            | Body::OpenStage(_)
            | Body::FindContents(_)
            | Body::Sync(_)
            | Body::ReleaseLimbo(_)
            | Body::Stat(_)
            | Body::DropStage(_)
            | Body::List(_)
            | Body::Scrub(_) => {
                if volume_name(&volume) {
                    self.lanes.put(Call { generation, id, volume, body });
                } else {
                    refuse(Errno::INVAL, format!("volume {volume:?}: not a namespace/name"));
                }
            }
            Body::Failure(_) | Body::Done(_) | Body::Coming(_) | Body::PermitGranted(_) | Body::Safety(_) => {
                self.link.answered(generation, id, body)
            }
            Body::Interrupt(_) => {}
            Body::Remount(_) | Body::Rest(_) => {
                refuse(Errno::OPNOTSUPP, "only the socket of the root file system takes that".to_owned())
            }
            Body::Journal(_)
            | Body::GetData(_)
            | Body::GetPermit(_)
            | Body::GetSafety(_)
            | Body::Attached(_)
            | Body::VolumeInfo(_)
            | Body::Replayed(_)
            | Body::Resolved(_)
            | Body::FoundContents(_)
            | Body::Synced(_)
            | Body::Listed(_)
            | Body::Scrubbed(_)
            | Body::Discarded(_)
            | Body::PermitRevoked(_)
            | Body::Resting(_)
            | Body::Stats(_) => refuse(Errno::OPNOTSUPP, "only Presto sends that".to_owned()),
        }
    }
}
