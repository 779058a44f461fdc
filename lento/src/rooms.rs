//! What one peer may take of this agent at a time, so that the others find room whatever it does.
//!
//! Owns, for each node that ever came: its one stream, and how many contents it may have open and in work. Two machines with one
//! identity would take the stream from each other for ever: the one that has it keeps it.

use crate::jobs::CONCURRENCY;
use crate::link::Link;
use crate::replication::FORGOTTEN;
use lento_core::io::NodeName;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tonic::Status;

/// Most contents of one peer that are open, most of them waiting.
const OPEN: usize = 256;
/// Most of them in work: half of what there is.
const IN_WORK: usize = CONCURRENCY / 2;
/// Most questions about what was that are in work, each with a thread and an earlier tree in memory.
pub const QUESTIONS: usize = 4;
/// The least throughput of a peer that is waited for, in bytes per second.
const SLOWEST: u64 = 8 << 10;

/// The end of a process and the first call of the next one may come in the wrong order.
const CHANGE: Duration = Duration::from_secs(2);

/// Who has opened a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Number of the process, made at random; older ones say none.
    pub process: Option<u64>,
    /// Where it is.
    pub address: Option<SocketAddr>,
}

impl Caller {
    fn is_another(&self, earlier: &Caller) -> bool {
        self.process.zip(earlier.process).is_some_and(|(now, before)| now != before)
    }
}

/// How long peers are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A message that the peer has not taken by then ends its stream, and so does a content of which nothing comes.
    pub taken_within: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { taken_within: Duration::from_secs(60) }
    }
}

impl Limits {
    /// How long all in all a peer may let us wait for a content, when so many bytes have come.
    #[must_use]
    pub fn budget(&self, patience: Duration, received: u64) -> Duration {
        let patience = patience.saturating_sub(Limits::default().taken_within);
        patience + self.taken_within + Duration::from_secs(received / SLOWEST)
    }
}

#[derive(Debug)]
struct Room {
    open: Arc<Semaphore>,
    in_work: Arc<Semaphore>,
    /// One question about what was at a time.
    question: Arc<Semaphore>,
    stream: Option<(Link, Caller)>,
}

impl Default for Room {
    fn default() -> Room {
        Room {
            open: Arc::new(Semaphore::new(OPEN)),
            in_work: Arc::new(Semaphore::new(IN_WORK)),
            question: Arc::new(Semaphore::new(1)),
            stream: None,
        }
    }
}

/// All rooms of one agent.
#[derive(Clone, Debug, Default)]
pub struct Rooms(Arc<Mutex<BTreeMap<NodeName, Room>>>);

/// A content that is open; dropped, it makes room.
#[derive(Debug)]
pub struct Open {
    in_work: Arc<Semaphore>,
    question: Arc<Semaphore>,
    _open: OwnedSemaphorePermit,
}

impl Rooms {
    /// The node's stream from now on; an earlier one of the same process ends.
    ///
    /// # Errors
    /// Another process with the node's identity has one. If that process is gone without a word, its stream ends soon, because
    /// nobody answers there.
    pub async fn stream(&self, node: &str, link: Link, caller: Caller) -> Result<(), Status> {
        let earlier = self.0.lock().get(node).and_then(|room| room.stream.clone());
        if let Some((earlier, before)) = earlier
            && caller.is_another(&before)
            && tokio::time::timeout(CHANGE, earlier.ended()).await.is_err()
        {
            let at = before.address.map(|at| format!(" from {}", at.ip())).unwrap_or_default();
            return Err(Status::already_exists(format!(
                "node {node} is connected already{at}: if that is another machine, two have the same identity, so give each a \
                 certificate of its own; an earlier run of this machine is forgotten within {} s",
                FORGOTTEN.as_secs()
            )));
        }
        let earlier = self.0.lock().entry(node.to_owned()).or_default().stream.replace((link, caller));
        if let Some((earlier, _)) = earlier {
            earlier.hang_up("the node has opened another stream");
        }
        Ok(())
    }

    /// One more content of this node.
    ///
    /// # Errors
    /// It has too many open.
    pub fn enter(&self, node: &str) -> Result<Open, Status> {
        let mut rooms = self.0.lock();
        let room = rooms.entry(node.to_owned()).or_default();
        let full = |_| Status::resource_exhausted(format!("node {node} has {OPEN} contents open"));
        let _open = room.open.clone().try_acquire_owned().map_err(full)?;
        Ok(Open { in_work: room.in_work.clone(), question: room.question.clone(), _open })
    }
}

impl Open {
    /// Waits for its turn among those of the same node, then among all.
    ///
    /// # Errors
    /// The agent stops.
    pub async fn turn(&self, all: &Arc<Semaphore>) -> Result<[OwnedSemaphorePermit; 2], Status> {
        both(&self.in_work, all).await
    }

    /// The same for a question about what was.
    ///
    /// # Errors
    /// The agent stops.
    pub async fn question(&self, all: &Arc<Semaphore>) -> Result<[OwnedSemaphorePermit; 2], Status> {
        both(&self.question, all).await
    }
}

async fn both(own: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Result<[OwnedSemaphorePermit; 2], Status> {
    let stopping = |_| Status::unavailable("stopping");
    let own = own.clone().acquire_owned().await.map_err(stopping)?;
    Ok([own, all.clone().acquire_owned().await.map_err(stopping)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::link;

    #[tokio::test]
    async fn one_peer_never_has_all_the_room_and_an_end_gives_it_back() {
        let (rooms, all) = (Rooms::default(), Arc::new(Semaphore::new(CONCURRENCY)));
        let open: Vec<Open> = (0..OPEN).map(|_| rooms.enter("greedy").unwrap()).collect();
        assert!(rooms.enter("greedy").unwrap_err().message().contains("greedy"));
        let mut taken = Vec::new();
        for content in &open {
            let turn = tokio::time::timeout(Duration::from_millis(1), content.turn(&all));
            taken.extend(turn.await.ok().map(Result::unwrap));
        }
        assert_eq!(taken.len(), IN_WORK);
        let modest = rooms.enter("modest").unwrap();
        let _turn = tokio::time::timeout(Duration::from_secs(5), modest.turn(&all)).await.unwrap().unwrap();
        drop(open);
        assert!(rooms.enter("greedy").is_ok());
    }

    fn process(number: u64) -> Caller {
        Caller { process: Some(number), address: Some("10.0.0.7:5".parse().unwrap()) }
    }

    #[tokio::test]
    async fn a_node_has_one_stream() {
        let rooms = Rooms::default();
        let (first, _queue) = link();
        let (second, _queue) = link();
        rooms.stream("b", first.clone(), process(1)).await.unwrap();
        rooms.stream("c", link().0, process(2)).await.unwrap();
        assert!(first.reason().is_empty());
        rooms.stream("b", second.clone(), process(1)).await.unwrap();
        assert!(first.reason().contains("another stream"));
        assert!(second.reason().is_empty());
        // An older one says nothing of itself.
        rooms.stream("b", link().0, Caller::default()).await.unwrap();
        assert!(second.reason().contains("another stream"));
    }

    #[tokio::test]
    async fn of_two_machines_with_one_identity_the_first_goes_on_and_the_second_is_told() {
        tokio::time::pause();
        let rooms = Rooms::default();
        let (first, _queue) = link();
        rooms.stream("b", first.clone(), process(1)).await.unwrap();
        let refused = rooms.stream("b", link().0, process(2)).await.unwrap_err();
        assert!(refused.message().contains("connected already from 10.0.0.7"), "{refused}");
        assert!(refused.message().contains("certificate of its own"), "{refused}");
        assert!(first.reason().is_empty(), "the first is not disturbed");
        // The first has just ended, or does so meanwhile.
        let ending = first.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CHANGE / 2).await;
            ending.hang_up("gone");
        });
        rooms.stream("b", link().0, process(2)).await.unwrap();
    }

    #[test]
    fn who_sends_little_is_not_waited_for_for_ever() {
        let limits = Limits { taken_within: Duration::from_secs(2) };
        let patience = crate::jobs::patience(0);
        assert_eq!(limits.budget(patience, 0), Duration::from_secs(2));
        assert_eq!(limits.budget(patience, 80 << 10), Duration::from_secs(12));
    }

    #[tokio::test]
    async fn one_peer_asks_one_question_at_a_time() {
        let (rooms, all) = (Rooms::default(), Arc::new(Semaphore::new(QUESTIONS)));
        let asked: Vec<Open> = (0..3).map(|_| rooms.enter("curious").unwrap()).collect();
        let first = asked[0].question(&all).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(1), asked[1].question(&all));
        assert!(second.await.is_err());
        let other = rooms.enter("modest").unwrap();
        let _turn =
            tokio::time::timeout(Duration::from_secs(5), other.question(&all)).await.unwrap().unwrap();
        drop(first);
        let _turn =
            tokio::time::timeout(Duration::from_secs(5), asked[2].question(&all)).await.unwrap().unwrap();
    }
}
