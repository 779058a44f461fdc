//! What was: answers about a volume's history, from this node's store where it serves the volume, else from the server.
//!
//! Owns the seal by which a content that was told of is known again: nobody can ask presto for any other file.

mod answers;
mod ask;
mod contents;
mod words;

use crate::dialer::Peers;
use crate::jobs::CONCURRENCY;
use crate::req_dispatcher::Downcalls;
use crate::rooms::Open;
use crate::rooms::QUESTIONS;
use crate::volume::VolumeHandle;
use lento_core::history::Former;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Answers, one by one.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;
/// The way there.
type Way<T> = mpsc::Sender<Result<T, Status>>;

/// How long whoever asked may take nothing.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// How long a question waits for others.
const TURN_WITHIN: Duration = Duration::from_secs(30);

/// What a question has taken of this agent; dropped, it makes room.
#[derive(Debug)]
struct Turn {
    _room: Option<Open>,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Historian {
    node: Arc<str>,
    downcalls: Downcalls,
    peers: Peers,
    key: Arc<[u8; 32]>,
    questions: Arc<Semaphore>,
    /// People at this node: no peer can take their turn.
    own: Arc<Semaphore>,
    contents: Arc<Semaphore>,
}

impl Historian {
    /// With a seal of its own.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new(node: &str, downcalls: Downcalls, peers: Peers) -> std::io::Result<Historian> {
        let mut key = [0; 32];
        for part in key.chunks_mut(8) {
            part.copy_from_slice(&crate::random::id()?.to_le_bytes());
        }
        Ok(Historian {
            node: node.into(),
            downcalls,
            peers,
            key: Arc::new(key),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            own: Arc::new(Semaphore::new(QUESTIONS)),
            contents: Arc::new(Semaphore::new(CONCURRENCY)),
        })
    }

    /// Waits until one more question may be looked into. `room`: what a peer may take of this agent.
    fn question(&self, room: Option<Open>) -> impl Future<Output = Result<Turn, Status>> + use<> {
        let (all, own) = (self.questions.clone(), self.own.clone());
        async move {
            let permits = match &room {
                Some(open) => open.question(&all).await?.into(),
                None => vec![own.acquire_owned().await.map_err(|_| Status::unavailable("stopping"))?],
            };
            Ok(Turn { _room: room, _permits: permits })
        }
    }

    /// The same for a content. A person at this node needs none.
    fn content(&self, room: Option<Open>) -> impl Future<Output = Result<Turn, Status>> + use<> {
        let all = self.contents.clone();
        async move {
            let permits = match &room {
                Some(open) => open.turn(&all).await?.into(),
                None => Vec::new(),
            };
            Ok(Turn { _room: room, _permits: permits })
        }
    }

    /// Of what this node has told about itself.
    fn seal(&self, volume: &VolumeHandle, former: &Former) -> [u8; 16] {
        let Former { file, mtime, size, hash } = former;
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for number in [file.ino, file.generation, mtime.sec.cast_unsigned(), u64::from(mtime.nsec), *size] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(hash.as_ref().map_or(&[][..], |hash| &hash.0));
        hasher.update(volume.name.as_bytes());
        let mut seal = [0; 16];
        hasher.finalize_xof().fill(&mut seal);
        seal
    }
}

/// Whether this node keeps the volume's history.
fn serves(volume: &VolumeHandle) -> bool {
    volume.admission().read().serving
}

fn stopped(volume: &VolumeHandle, error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("volume {}: {error}", volume.name))
}

/// A request of a person, or of another agent for one, that cannot be meant.
fn check(path: &[bytes::Bytes]) -> Result<Vec<Vec<u8>>, Status> {
    crate::wire::limit("path", path.len(), crate::wire::TEXT_MAX)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let plain = |name: &bytes::Bytes| {
        (1..=crate::wire::NAME_MAX).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0)
    };
    if path.iter().all(plain) {
        Ok(path.iter().map(|name| name.to_vec()).collect())
    } else {
        Err(Status::invalid_argument("a path with a name that cannot be"))
    }
}

/// Answers from a thread of their own, `ahead` of whoever takes them at most, once it is their turn.
fn answered<T: Send + 'static>(
    turn: impl Future<Output = Result<Turn, Status>> + Send + 'static,
    ahead: usize,
    tell: impl FnOnce(&Way<T>) -> Result<(), Status> + Send + 'static,
) -> Answers<T> {
    let (way, answers) = mpsc::channel(ahead);
    tokio::spawn(async move {
        let late = |_| Status::resource_exhausted("too much is asked about what was; ask again later");
        let turn = tokio::select! {
            turn = tokio::time::timeout(TURN_WITHIN, turn) => turn.map_err(late).flatten(),
            () = way.closed() => return,
        };
        let told = match turn {
            Ok(turn) => {
                let way = way.clone();
                let telling = tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    tell(&way)
                });
                telling.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
            }
            Err(status) => Err(status),
        };
        if let Err(status) = told {
            let _ = way.send_timeout(Err(status), TAKEN_WITHIN).await;
        }
    });
    ReceiverStream::new(answers)
}

/// One answer to whoever asked, from a thread that may wait.
fn say<T>(way: &Way<T>, answer: T) -> Result<(), Status> {
    let said = way.send_timeout(Ok(answer), TAKEN_WITHIN);
    tokio::runtime::Handle::current()
        .block_on(said)
        .map_err(|_| Status::cancelled("nobody takes the answers"))
}
