//! The ReqDispatcher owns the upcall wheel: it routes answers to the downcalls that wait for them, by id, and upcalls
//! to the `ReqHandler`. It reconnects for as long as the agent runs.

use crate::asked::Asked;
use crate::channel::seqpacket::SeqPacket;
use crate::random::Backoff;
use crate::req_handler::ReqHandler;
use crate::upcall_wheel::UpcallWheel;
use crate::upcall_wheel::WheelError;
use intermezzo_channel::v1::Attached;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

/// Whether Presto is there.
#[derive(Clone, Debug, Default)]
pub enum ChannelState {
    /// Not now.
    #[default]
    Down,
    /// Attached; the number tells connections apart.
    Up(u64, Arc<Attached>),
}

impl ChannelState {
    /// Number of the connection.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        match self {
            ChannelState::Down => None,
            ChannelState::Up(generation, _) => Some(*generation),
        }
    }
}

/// Why a downcall has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Presto is not there, or went away.
    #[error("presto is away")]
    Gone,
    /// No answer by the deadline.
    #[error("presto did not answer {call} within {deadline:?}")]
    Late {
        /// Which downcall.
        call: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
    /// The packet is longer than the kernel carries.
    #[error("{0}: too long for the channel")]
    TooLong(&'static str),
    /// Presto said no.
    #[error("{call}: {message} (errno {errno})")]
    Refused {
        /// Which downcall.
        call: &'static str,
        /// Errno.
        errno: i32,
        /// Presto's words.
        message: String,
    },
    /// Presto answered something else.
    #[error("presto answered {0} with another message")]
    Confused(&'static str),
}

/// Body and descriptors of an answer.
pub type Answer = (Body, Vec<OwnedFd>);

#[derive(Debug)]
struct Live {
    generation: u64,
    socket: Arc<SeqPacket>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    next_id: u64,
}

/// The asking side: clones of it make downcalls from any task.
#[derive(Clone, Debug)]
pub struct Downcalls {
    live: Arc<Mutex<Option<Live>>>,
    state: watch::Receiver<ChannelState>,
    pin: Option<u64>,
}

impl Downcalls {
    /// The same, but only on this connection: what is asked in the belief that a Presto is there that has gone must not
    /// reach the next one.
    #[must_use]
    pub fn pinned(&self, generation: u64) -> Downcalls {
        Downcalls { pin: Some(generation), ..self.clone() }
    }

    /// Whether Presto is there, and when that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ChannelState> {
        self.state.clone()
    }

    /// Longest packet that can be sent now, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.live.lock().as_ref().map_or(0, |live| live.socket.limit())
    }

    /// Asks Presto and waits for the answer. A `Failure` comes back as [`CallError::Refused`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(
        &self,
        volume: &str,
        body: Body,
        call: &'static str,
        deadline: Duration,
    ) -> Result<Answer, CallError> {
        let (generation, id, socket, answer) = self.register()?;
        let packet = Packet { id, volume: volume.to_owned(), body: Some(body) };
        let exchange = async {
            socket.send(&packet, &[]).await.map_err(|error| {
                let too_long = error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error());
                if too_long { CallError::TooLong(call) } else { CallError::Gone }
            })?;
            answer.await.map_err(|_| CallError::Gone)
        };
        let result = timeout(deadline, exchange).await.unwrap_or(Err(CallError::Late { call, deadline }));
        if result.is_err() {
            self.forget(generation, id);
        }
        match result? {
            (Body::Failure(failure), _) => {
                Err(CallError::Refused { call, errno: failure.errno, message: failure.message })
            }
            answer => Ok(answer),
        }
    }

    fn register(&self) -> Result<(u64, u64, Arc<SeqPacket>, oneshot::Receiver<Answer>), CallError> {
        let mut live = self.live.lock();
        let pinned = |live: &&mut Live| self.pin.is_none_or(|pin| pin == live.generation);
        let live = live.as_mut().filter(pinned).ok_or(CallError::Gone)?;
        let id = live.next_id;
        live.next_id = id.wrapping_add(2);
        let (sender, receiver) = oneshot::channel();
        live.waiting.insert(id, sender);
        Ok((live.generation, id, live.socket.clone(), receiver))
    }

    fn forget(&self, generation: u64, id: u64) {
        if let Some(live) = self.live.lock().as_mut()
            && live.generation == generation
        {
            live.waiting.remove(&id);
        }
    }

    fn answered(&self, id: u64) -> Option<oneshot::Sender<Answer>> {
        self.live.lock().as_mut().and_then(|live| live.waiting.remove(&id))
    }
}

/// Owns the wheel.
#[derive(Debug)]
pub struct ReqDispatcher {
    path: PathBuf,
    handler: ReqHandler,
    downcalls: Downcalls,
    state: watch::Sender<ChannelState>,
    stop: CancellationToken,
}

impl ReqDispatcher {
    /// For Presto's socket at `path`; [`ReqDispatcher::run`] does the work.
    #[must_use]
    pub fn new(path: PathBuf, handler: ReqHandler, stop: CancellationToken) -> (ReqDispatcher, Downcalls) {
        let (state, receiver) = watch::channel(ChannelState::Down);
        let downcalls = Downcalls { live: Arc::default(), state: receiver, pin: None };
        (ReqDispatcher { path, handler, downcalls: downcalls.clone(), state, stop }, downcalls)
    }

    /// Connects, routes, reconnects, until told to stop.
    pub async fn run(self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.turn()).await;
    }

    async fn turn(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut generation = 0;
        let mut told = false;
        loop {
            match UpcallWheel::connect(&self.path).await {
                Ok((wheel, attached)) => {
                    generation += 1;
                    info!(target: "channel", presto = attached.presto_version, kernel = ?attached.kernel, "attached to presto");
                    backoff.reset();
                    told = false;
                    let reason = self.serve(generation, wheel, attached).await;
                    warn!(target: "channel", %reason, "lost presto; connecting again");
                }
                Err(error) if !told => {
                    warn!(target: "channel", socket = %self.path.display(), %error, "no presto yet; trying again");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// One connection, to its end.
    async fn serve(&self, generation: u64, mut wheel: UpcallWheel, attached: Attached) -> WheelError {
        let live = Live { generation, socket: wheel.socket(), waiting: BTreeMap::new(), next_id: 3 };
        *self.downcalls.live.lock() = Some(live);
        self.state.send_replace(ChannelState::Up(generation, Arc::new(attached)));
        let asked = Asked::default();
        let reason = loop {
            match wheel.next().await {
                Ok((packet, fds)) => self.route(&wheel.socket(), &asked, packet, fds),
                Err(error) => break error,
            }
        };
        // Dropping the waiters tells each of them that Presto is gone.
        *self.downcalls.live.lock() = None;
        self.state.send_replace(ChannelState::Down);
        reason
    }

    fn route(&self, socket: &Arc<SeqPacket>, asked: &Asked, packet: Packet, fds: Vec<OwnedFd>) {
        let Packet { id, volume, body } = packet;
        let Some(body) = body else {
            warn!(target: "channel", id, volume, "a packet of a newer presto was ignored");
            return;
        };
        if id % 2 == 1 {
            // Nobody waits any more where the deadline has passed.
            if let Some(waiter) = self.downcalls.answered(id) {
                let _ = waiter.send((body, fds));
            }
            return;
        }
        if let Body::Interrupt(_) = body {
            asked.interrupt(id);
        } else if let Some(body) = self.handler.handle(&volume, body)
            && id != 0
        {
            let (handler, socket, ended) = (self.handler.clone(), socket.clone(), asked.begin(id));
            tokio::spawn(async move {
                let answered = async {
                    let body = handler.answer(&volume, body).await;
                    answer(&socket, id, volume, body).await;
                };
                ended.until_interrupted(answered).await;
            });
        }
    }
}

/// Sends the answer to an upcall; nobody waits for one that cannot be sent.
async fn answer(socket: &SeqPacket, id: u64, volume: String, body: Body) {
    let packet = Packet { id, volume, body: Some(body) };
    let _ = timeout(Duration::from_secs(5), socket.send(&packet, &[])).await;
}
