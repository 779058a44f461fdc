//! Worker threads for downcalls: one volume never waits for another, and quick questions never wait for long work.
//!
//! Each volume has an ordered lane (one call after the other, answered in order), a quick lane, and one for the permit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use intermezzo_channel::v1::packet::Body;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Link, Reply, Service};

/// Calls that may wait in one lane.
const MAX_WAITING: usize = 1024;

/// Lanes at once; each is a thread.
const MAX_LANES: usize = 2048;

/// A lane without work for this long ends.
const IDLE: Duration = Duration::from_secs(120);

/// Which of a volume's lanes a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Whatever changes the volume, and `Sync`: in order.
    Ordered,
    /// The permit: a revocation waits for users, and no replay for it.
    Permit,
    /// Opens and looks at things; must not wait behind a sync or a long replay.
    Quick,
}

impl Lane {
    fn of(body: &Body) -> Lane {
        match body {
            Body::RevokePermit(_) | Body::AdmitWriters(_) => Lane::Permit,
            Body::Resolve(_) | Body::OpenStage(_) | Body::Stat(_) => Lane::Quick,
            _ => Lane::Ordered,
        }
    }
}

/// A downcall on its way.
#[derive(Debug)]
pub(super) struct Call {
    pub generation: u64,
    pub id: u64,
    pub volume: String,
    pub body: Body,
}

struct Worker {
    sender: Sender<Call>,
    waiting: Arc<AtomicUsize>,
}

type Workers = Mutex<BTreeMap<(String, Lane), Worker>>;

/// All lanes.
pub(super) struct Lanes {
    link: Arc<Link>,
    service: Arc<dyn Service>,
    workers: Arc<Workers>,
}

impl Lanes {
    pub fn new(link: Arc<Link>, service: Arc<dyn Service>) -> Lanes {
        Lanes { link, service, workers: Arc::default() }
    }

    /// Puts a call into its lane; answers at once where there is no room.
    pub fn put(&self, call: Call) {
        let (generation, id) = (call.generation, call.id);
        if let Err(reason) = self.try_put(call) {
            self.link.reply(generation, id, Reply::failure(Errno::AGAIN, reason));
        }
    }

    fn try_put(&self, call: Call) -> Result<(), String> {
        let key = (call.volume.clone(), Lane::of(&call.body));
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.get(&key) {
            if worker.waiting.load(Ordering::Relaxed) >= MAX_WAITING {
                return Err(format!("volume {}: too many calls wait", key.0));
            }
            worker.waiting.fetch_add(1, Ordering::Relaxed);
            return worker.sender.send(call).map_err(|_| format!("volume {}: worker ended", key.0));
        }
        if workers.len() >= MAX_LANES {
            return Err(format!("volume {}: too many volumes at once", key.0));
        }
        let (sender, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(1));
        let run = Run {
            key: key.clone(),
            link: Arc::clone(&self.link),
            service: Arc::clone(&self.service),
            workers: Arc::clone(&self.workers),
            waiting: Arc::clone(&waiting),
        };
        std::thread::Builder::new()
            .name("downcall".to_owned())
            .spawn(move || run.work(&receiver))
            .map_err(|error| format!("volume {}: no thread: {error}", key.0))?;
        sender.send(call).map_err(|_| format!("volume {}: worker ended", key.0))?;
        workers.insert(key, Worker { sender, waiting });
        Ok(())
    }
}

struct Run {
    key: (String, Lane),
    link: Arc<Link>,
    service: Arc<dyn Service>,
    workers: Arc<Workers>,
    waiting: Arc<AtomicUsize>,
}

impl Run {
    fn work(&self, receiver: &Receiver<Call>) {
        loop {
            match receiver.recv_timeout(IDLE) {
                Ok(call) => self.handle(call),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    // Under the table's lock nobody can send any more once the entry is gone.
                    let mut workers = self.workers.lock();
                    if self.waiting.load(Ordering::Relaxed) == 0 {
                        workers.remove(&self.key);
                        return;
                    }
                }
            }
        }
    }

    fn handle(&self, call: Call) {
        // What a former Lento asked and nobody began is not done: the present one has seen the KML and asks anew.
        if self.link.current(call.generation) {
            let reply = self.service.call(&call.volume, call.body);
            self.link.reply(call.generation, call.id, reply);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
