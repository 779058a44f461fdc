//! The way to Lento: answers, journal notices and upcalls, whoever is connected at the moment.
//!
//! Owns the outgoing queue and the table of upcalls that wait. A notice is sent at once when the line is free and
//! merged with what waits already when it is not; nobody who calls in here waits for the socket.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use intermezzo_channel::MAX_FDS;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{Interrupt, Journal, Packet};
use parking_lot::{Condvar, Mutex};

use super::Reply;
use super::transport::Connection;
use crate::filter::Wait;
use crate::lower::{is_ended, is_interrupted};

/// Answers that may wait for the socket; a Lento that asks and never reads is cut off.
const MAX_QUEUE: usize = 4096;

/// Time between two notices. The first after a rest goes out at once; under load a notice for each record would cost
/// some thread switches each, here and in Lento. So each pause that was not enough for a rest makes the next one longer.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// How often it is looked whether the user who waits has got a signal.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

/// What a synchronous upcall does when Lento is away or late; set by volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum NoLento {
    /// Go on as if granted.
    #[default]
    Steal,
    /// Fail with a clear errno.
    Fail,
}

/// How an upcall ended.
#[allow(clippy::large_enum_variant, reason = "one for each upcall, taken apart at once")]
#[derive(Debug)]
pub enum Answer {
    /// Lento's word.
    Answered(Body),
    /// Nobody is connected, or the connection broke meanwhile.
    Away,
    /// No answer within the deadline; Lento was told to stop.
    Late,
    /// The user whom it was for has got a signal; Lento was told to stop.
    Interrupted,
}

/// Shared by everybody who has something to tell Lento.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Counts connections; what belongs to an earlier one is dropped.
    generation: u64,
    connection: Option<Arc<Connection>>,
    /// Lento has said `Attach` on this connection.
    attached: bool,
    queue: VecDeque<(u64, Option<String>, Reply)>,
    /// Per volume, the range of records not announced yet.
    notices: BTreeMap<String, (u64, u64)>,
    /// Per volume, the newest record announced on this connection.
    announced: BTreeMap<String, u64>,
    /// When the last notice was sent.
    noticed: Option<Instant>,
    /// How long until the next one.
    pause: Duration,
    /// The writer waits for `pause` to pass: it need not be woken for another notice.
    pausing: bool,
    last_id: u64,
    waiting: BTreeMap<u64, SyncSender<Body>>,
    policies: BTreeMap<String, NoLento>,
}

impl Link {
    /// Nobody connected yet.
    #[must_use]
    pub fn new() -> Arc<Link> {
        Arc::new(Link::default())
    }

    /// "There are records up to `to`." Never waits; dropped when Lento is away, because the KML is the truth.
    pub fn announce(&self, volume: &str, to: u64) {
        let mut state = self.state.lock();
        if !state.attached {
            return;
        }
        if let Some(range) = state.notices.get_mut(volume) {
            range.1 = range.1.max(to);
            return;
        }
        let from = state.announced.get(volume).map_or(to, |known| known.saturating_add(1));
        if from > to {
            return;
        }
        state.notices.insert(volume.to_owned(), (from, to));
        let pausing = state.pausing;
        drop(state);
        if !pausing {
            self.wake.notify_all();
        }
    }

    /// Asks Lento and waits for its answer.
    #[must_use]
    pub fn ask(&self, volume: &str, body: Body, wait: Wait) -> Answer {
        let (sender, receiver) = sync_channel(1);
        let (id, generation) = {
            let mut state = self.state.lock();
            if !state.attached || state.queue.len() >= MAX_QUEUE {
                return Answer::Away;
            }
            state.last_id = state.last_id.wrapping_add(2).max(2);
            let id = state.last_id;
            state.waiting.insert(id, sender);
            state.queue.push_back((id, Some(volume.to_owned()), Reply::of(body)));
            (id, state.generation)
        };
        self.wake.notify_all();
        let answer = wait_for(&receiver, wait);
        if matches!(answer, Answer::Answered(_) | Answer::Away) {
            return answer;
        }
        let mut state = self.state.lock();
        if state.waiting.remove(&id).is_none() {
            // The answer came between the end of the wait and the lock.
            drop(state);
            return receiver.try_recv().map_or(Answer::Away, Answer::Answered);
        }
        if state.generation == generation {
            let interrupt = Reply::of(Body::Interrupt(Interrupt {}));
            state.queue.push_back((id, Some(volume.to_owned()), interrupt));
            drop(state);
            self.wake.notify_all();
        }
        answer
    }

    /// What to do for `volume` when Lento is away.
    #[must_use]
    pub fn policy(&self, volume: &str) -> NoLento {
        self.state.lock().policies.get(volume).copied().unwrap_or_default()
    }

    /// Sets what to do for `volume` when Lento is away.
    pub fn set_policy(&self, volume: &str, policy: NoLento) {
        self.state.lock().policies.insert(volume.to_owned(), policy);
    }

    /// Whether a Lento is connected and has said so.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.state.lock().attached
    }

    /// Takes a new connection in place of the present one; returns its generation.
    pub(super) fn replace(&self, connection: Arc<Connection>) -> u64 {
        let mut state = self.state.lock();
        state.hang_up();
        state.connection = Some(connection);
        let generation = state.generation;
        drop(state);
        self.wake.notify_all();
        generation
    }

    /// Upcalls may be sent from here on.
    pub(super) fn attach(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.attached = true;
        }
    }

    /// Ends a connection, if it is still the present one.
    pub(super) fn drop_connection(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation {
            state.hang_up();
            drop(state);
            self.wake.notify_all();
        }
    }

    /// Ends whatever connection there is.
    pub(super) fn hang_up(&self) {
        self.state.lock().hang_up();
        self.wake.notify_all();
    }

    /// Whether this connection is still the one in use.
    pub(super) fn current(&self, generation: u64) -> bool {
        let state = self.state.lock();
        state.generation == generation && state.connection.is_some()
    }

    /// Queues the answer to downcall `id`.
    pub(super) fn reply(&self, generation: u64, id: u64, reply: Reply) {
        let mut state = self.state.lock();
        if state.generation != generation || id == 0 {
            return;
        }
        if state.queue.len() >= MAX_QUEUE {
            tracing::warn!(target: "channel", "Lento does not read its answers; connection closed");
            state.hang_up();
        } else {
            state.queue.push_back((id, None, reply));
        }
        drop(state);
        self.wake.notify_all();
    }

    /// Hands an answer of Lento to the upcall that waits for it; a late one is dropped.
    pub(super) fn answered(&self, generation: u64, id: u64, body: Body) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        if let Some(sender) = state.waiting.remove(&id) {
            let _ = sender.try_send(body);
        }
    }

    /// The writer thread of one connection: sends until the connection is replaced.
    pub(super) fn write(&self, generation: u64, connection: &Connection) {
        while let Some((packet, fds)) = self.next(generation) {
            let borrowed: Vec<_> = fds.iter().take(MAX_FDS).map(OwnedFd::as_fd).collect();
            if let Err(error) = connection.send(&packet, &borrowed) {
                tracing::info!(target: "channel", %error, "Lento's connection ended while sending");
                self.drop_connection(generation);
                return;
            }
        }
    }

    fn next(&self, generation: u64) -> Option<(Packet, Vec<OwnedFd>)> {
        let mut state = self.state.lock();
        loop {
            if state.generation != generation || state.connection.is_none() {
                return None;
            }
            if let Some((id, volume, reply)) = state.queue.pop_front() {
                let packet = Packet { id, volume: volume.unwrap_or_default(), body: Some(reply.body) };
                return Some((packet, reply.fds));
            }
            if state.notices.is_empty() {
                self.wake.wait(&mut state);
                continue;
            }
            let rested = state.noticed.map_or(Duration::MAX, |at| at.elapsed());
            if let Some(left) = state.pause.checked_sub(rested).filter(|left| !left.is_zero()) {
                state.pausing = true;
                self.wake.wait_for(&mut state, left);
                state.pausing = false;
            } else {
                state.pause = next_pause(state.pause, rested);
                state.notice_all();
            }
        }
    }
}

/// Waits for the answer, and for no longer than the user does.
fn wait_for(receiver: &Receiver<Body>, wait: Wait) -> Answer {
    let since = Instant::now();
    loop {
        // The kernel tells presto of signals, but the FUSE library does not pass it on. Who is killed while the kernel keeps
        // him waiting for another one comes here with his signal.
        let ends = if wait.only_the_end { is_ended } else { is_interrupted };
        if wait.thread != 0 && ends(wait.thread) {
            return Answer::Interrupted;
        }
        let left = wait.deadline.saturating_sub(since.elapsed());
        match receiver.recv_timeout(left.min(SIGNAL_POLL)) {
            Ok(body) => return Answer::Answered(body),
            Err(RecvTimeoutError::Disconnected) => return Answer::Away,
            Err(RecvTimeoutError::Timeout) if left <= SIGNAL_POLL => return Answer::Late,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Who comes a whole pause late was at rest.
fn next_pause(pause: Duration, rested: Duration) -> Duration {
    if rested >= pause.saturating_mul(2) {
        SHORTEST_PAUSE
    } else {
        pause.saturating_mul(2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }
}

impl State {
    /// Queues the notices that wait.
    fn notice_all(&mut self) {
        self.noticed = Some(Instant::now());
        for (volume, (from, to)) in std::mem::take(&mut self.notices) {
            self.announced.insert(volume.clone(), to);
            self.queue.push_back((0, Some(volume), Reply::of(Body::Journal(Journal { from, to }))));
        }
    }

    fn hang_up(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.attached = false;
        self.queue.clear();
        self.notices.clear();
        self.announced.clear();
        (self.noticed, self.pause, self.pausing) = (None, Duration::ZERO, false);
        // Dropping the senders wakes whoever waits for an answer.
        self.waiting.clear();
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
    }
}
