//! Presto's side of the holder: has sessions kept, and everything again by a new holder when the old one has gone.
//!
//! Owns the connection and copies of what is kept. Without a holder all goes on as ever, but mounts end with presto.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use presto_holder::Client;
use presto_holder::ClientError;
use presto_holder::Kept;
use presto_holder::Link;
use rustix::net::SendFlags;

/// How often a holder is looked for while there is none.
const RETRY: Duration = Duration::from_millis(20);
/// The longest pause between two tries with a holder that is there and of no use.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the thread looks whether it is needed.
const WATCH: Duration = Duration::from_secs(1);

/// The holder, as presto sees it.
#[derive(Debug)]
pub struct Holding {
    path: PathBuf,
    client: Mutex<Option<Arc<Client>>>,
    /// Taken for each question, and for the change from one holder to the next.
    asking: Mutex<()>,
    sessions: Mutex<BTreeMap<String, Arc<Held>>>,
}

/// One session that is kept.
#[derive(Debug)]
pub struct Held {
    kept: Kept,
    corrections: Mutex<Option<Arc<Link>>>,
    sent: AtomicU64,
}

impl Holding {
    /// Connects to the holder at this path, or waits for one in the background.
    pub fn start(path: &Path) -> std::io::Result<Arc<Holding>> {
        let holding = Arc::new(Holding {
            path: path.to_owned(),
            client: Mutex::default(),
            asking: Mutex::default(),
            sessions: Mutex::default(),
        });
        if let Err(error) = holding.connect() {
            tracing::warn!(target: "holding", socket = %path.display(), %error,
                "no holder: until one comes, mounts do not outlive presto");
        }
        let weak = Arc::downgrade(&holding);
        std::thread::Builder::new().name("holder".to_owned()).spawn(move || watch(&weak))?;
        Ok(holding)
    }

    /// Whether there is a holder now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let client = self.client.lock().clone();
        client.is_some_and(|client| !client.is_gone(Duration::ZERO))
    }

    /// What an earlier presto has had kept of this session. From then on this presto has it as well, and a new holder gets
    /// it from here: ask early.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Held>> {
        if let Some(held) = self.sessions.lock().get(name) {
            return Some(Arc::clone(held));
        }
        let kept = self.ask(|client| client.find(name)).flatten()?;
        Some(self.insert(name, kept))
    }

    /// Has a new session kept, by this holder and by those to come. `None`: the present one does not take such a session.
    pub fn keep(&self, name: &str, kept: Kept) -> Option<Arc<Held>> {
        let held = self.insert(name, kept);
        if !self.hand_over(name, &held) && self.is_connected() {
            self.sessions.lock().remove(name);
            return None;
        }
        Some(held)
    }

    fn insert(&self, name: &str, kept: Kept) -> Arc<Held> {
        let held = Arc::new(Held { kept, corrections: Mutex::default(), sent: AtomicU64::new(0) });
        self.sessions.lock().insert(name.to_owned(), Arc::clone(&held));
        held
    }

    /// The session is over.
    pub fn forget(&self, name: &str) {
        self.sessions.lock().remove(name);
        self.ask(|client| client.forget(name));
    }

    /// Gives the holder everything of a session, and gets the way for corrections. Says whether it is kept.
    pub fn hand_over(&self, name: &str, held: &Held) -> bool {
        let done = self.ask(|client| {
            let (mine, theirs) = Link::pair()?;
            client.keep(name, &held.kept, theirs.as_fd())?;
            Ok(mine)
        });
        let is_kept = done.is_some();
        if let Some(link) = done {
            *held.corrections.lock() = Some(Arc::new(link));
        }
        is_kept
    }

    fn ask<T>(&self, question: impl FnOnce(&Client) -> Result<T, ClientError>) -> Option<T> {
        let _one = self.asking.lock();
        let client = self.client.lock().clone()?;
        match question(&client) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(target: "holding", socket = %self.path.display(), %error, "the holder is of no use");
                if !matches!(error, ClientError::Refused(_)) {
                    self.has_gone(&client);
                }
                None
            }
        }
    }

    /// Whether this was the present one: there may be another already.
    fn has_gone(&self, client: &Arc<Client>) -> bool {
        let mut present = self.client.lock();
        let same = present.as_ref().is_some_and(|present| Arc::ptr_eq(present, client));
        if same {
            *present = None;
        }
        same
    }

    fn connect(&self) -> Result<(), ClientError> {
        let client = Arc::new(Client::connect(&self.path)?);
        *self.client.lock() = Some(client);
        tracing::info!(target: "holding", socket = %self.path.display(), "the holder is here: mounts outlive presto");
        let sessions = self.sessions.lock().clone();
        for (name, held) in sessions {
            self.hand_over(&name, &held);
        }
        Ok(())
    }
}

/// Notices when the holder goes, and when another one comes.
fn watch(holding: &Weak<Holding>) {
    let mut pause = RETRY;
    loop {
        let Some(strong) = holding.upgrade() else { return };
        let client = strong.client.lock().clone();
        match client {
            None => {
                let connected = strong.connect();
                drop(strong);
                if connected.is_err() {
                    std::thread::sleep(RETRY);
                } else {
                    // One that is there and of no use is asked less and less often.
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
            Some(client) => {
                if !client.is_gone(WATCH) {
                    pause = RETRY;
                } else if strong.has_gone(&client) {
                    tracing::warn!(target: "holding", socket = %strong.path.display(),
                        "the holder has gone: until another one comes, mounts do not outlive presto");
                }
            }
        }
    }
}

impl Held {
    /// Copies of its descriptors: device and memory.
    pub fn descriptors(&self) -> std::io::Result<[OwnedFd; 2]> {
        Ok([self.kept.device.try_clone()?, self.kept.memory.try_clone()?])
    }

    /// A copy of the directory that its mount covers, if there is one.
    pub fn tree(&self) -> std::io::Result<Option<OwnedFd>> {
        self.kept.tree.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Has messages written to the device by the holder. False: it did not, or not all; do it yourself.
    #[must_use]
    pub fn correct(&self, messages: &[Vec<u8>]) -> bool {
        let Some(link) = self.corrections.lock().clone() else { return false };
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let answer = link
            .send(&presto_holder::batch(number, messages), &[], SendFlags::empty())
            .and_then(|()| link.receive());
        if answer.is_ok_and(|(answer, _)| presto_holder::ack(&answer) == Some(number)) {
            return true;
        }
        let mut present = self.corrections.lock();
        if present.as_ref().is_some_and(|present| Arc::ptr_eq(present, &link)) {
            *present = None;
        }
        false
    }
}
