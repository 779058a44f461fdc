//! Volumes that the operator wants gone from this node: what presto keeps of them goes first, then what this agent keeps.
//!
//! Only presto removes a cache. Here the intent is kept (`state/discards`) until nothing is left: from the moment that a
//! removal has begun it goes to its end, whether the operator still says so or not, and another volume may have the name.

use super::kept::Kind;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::Downcalls;
use crate::store::Remains;
use crate::volume::Volumes;
use intermezzo_channel::v1::ClearVolume;
use intermezzo_channel::v1::DiscardVolume;
use intermezzo_channel::v1::packet::Body;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

const KIND: Kind = Kind { file: "discards", name: "discards", version: 1 };
/// What cannot go on is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Presto may have to wait for users.
const CLEAR_DEADLINE: Duration = Duration::from_secs(30);
/// One call is short; one unlink of a huge file may not be.
const DISCARD_DEADLINE: Duration = Duration::from_secs(60);

/// What has become of a volume that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes.
    Removing,
    /// It does not go on, for this reason.
    Stuck(String),
    /// Nothing is left.
    Gone,
}

/// By `namespace/name`.
pub(super) type Fates = BTreeMap<String, Fate>;

/// A removal that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    volume: String,
    /// Of its cache.
    uid: u64,
    /// Presto has set the cache aside: what has its name by now is another's.
    aside: bool,
}

/// Where this agent and presto keep things.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) state: PathBuf,
    pub(super) cache: PathBuf,
    pub(super) run: PathBuf,
}

impl Places {
    fn remains(&self, volume: &str) -> Remains {
        Remains::new(&self.state, &self.run, volume)
    }

    fn cache(&self, volume: &str) -> PathBuf {
        self.cache.join(volume)
    }
}

/// The other end of the worker.
pub(super) struct Discarder {
    wanted: watch::Sender<BTreeSet<String>>,
    fates: watch::Receiver<Fates>,
}

impl Discarder {
    /// Reads what has begun, so that no volume begins on what is to go, and works until told to stop.
    pub(super) fn start(
        places: Places,
        volumes: Volumes,
        downcalls: Downcalls,
        stop: CancellationToken,
    ) -> Discarder {
        let begun: Vec<Begun> = super::loud(KIND.read(&places.state)).unwrap_or_default();
        for one in &begun {
            if let Err(error) = places.remains(&one.volume).set_aside(one.uid) {
                error!(target: "discard", volume = one.volume, error, "a deleted volume's store stays where it is");
            }
        }
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (tell, fates) = watch::channel(Fates::new());
        let mut worker = Worker { places, volumes, downcalls, begun, wanted: wants, fates: tell };
        tokio::spawn(stop.run_until_cancelled_owned(async move { worker.run().await }));
        Discarder { wanted, fates }
    }

    /// These are to go; those that were before and have not begun stay.
    pub(super) fn want(&self, volumes: BTreeSet<String>) {
        self.wanted.send_if_modified(|before| {
            let modified = *before != volumes;
            *before = volumes;
            modified
        });
    }

    /// What has become of them.
    pub(super) fn fates(&self) -> Fates {
        self.fates.borrow().clone()
    }
}

struct Worker {
    places: Places,
    volumes: Volumes,
    downcalls: Downcalls,
    begun: Vec<Begun>,
    wanted: watch::Receiver<BTreeSet<String>>,
    fates: watch::Sender<Fates>,
}

/// How one step went.
enum Step {
    More,
    Done,
}

impl Worker {
    async fn run(&mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.fates.send_modify(|fates| fates.retain(|volume, _| wanted.contains(volume)));
            for volume in &wanted {
                let known = self.fates.borrow().get(volume) == Some(&Fate::Gone);
                if !known && !self.begun.iter().any(|begun| begun.volume == *volume) {
                    let fate = self.begin(volume).await;
                    self.tell(volume, fate);
                }
            }
            let mut busy = false;
            for begun in self.begun.clone() {
                match self.go_on(&begun).await {
                    Ok(Step::More) => {
                        busy = true;
                        self.tell(&begun.volume, Fate::Removing);
                    }
                    Ok(Step::Done) => {
                        info!(target: "discard", volume = begun.volume, "nothing is left of a deleted volume");
                        self.tell(&begun.volume, Fate::Gone);
                    }
                    Err(reason) => self.tell(&begun.volume, Fate::Stuck(reason)),
                }
            }
            if busy {
                continue;
            }
            let settled =
                self.begun.is_empty() && self.fates.borrow().values().all(|fate| *fate == Fate::Gone);
            let changed = self.wanted.changed();
            let ended = match settled {
                true => changed.await.is_err(),
                false => matches!(tokio::time::timeout(AGAIN, changed).await, Ok(Err(_))),
            };
            if ended {
                return;
            }
        }
    }

    fn tell(&self, volume: &str, fate: Fate) {
        if let Fate::Stuck(reason) = &fate
            && self.fates.borrow().get(volume) != Some(&fate)
        {
            warn!(target: "discard", volume, reason, "a deleted volume's data cannot be removed; trying again");
        }
        // One that nobody asks for any more goes to its end in silence.
        if self.wanted.borrow().contains(volume) {
            self.fates.send_if_modified(|fates| fates.insert(volume.to_owned(), fate.clone()) != Some(fate));
        }
    }

    /// Notes the intent and sets this agent's own part aside.
    async fn begin(&mut self, volume: &str) -> Fate {
        if self.volumes.get(volume).is_some() {
            return Fate::Removing; // It is stopping.
        }
        let (remains, state) = (self.places.remains(volume), self.places.state.clone());
        let (name, mut all) = (volume.to_owned(), self.begun.clone());
        let begin = move || {
            remains.begin(|uid| {
                all.push(Begun { volume: name, uid, aside: false });
                KIND.write(&state, &all).map(|()| all)
            })
        };
        match tokio::task::spawn_blocking(begin).await.map_err(|error| error.to_string()) {
            Ok(Ok(Some(all))) => {
                self.begun = all;
                Fate::Removing
            }
            Ok(Ok(None)) => self.without_store(volume),
            Ok(Err(reason)) | Err(reason) => Fate::Stuck(reason),
        }
    }

    /// Nothing says which cache was this volume's.
    fn without_store(&self, volume: &str) -> Fate {
        let cache = self.places.cache(volume);
        match cache.symlink_metadata() {
            // Where no cache can be seen at all, nothing is known about one.
            Err(error) if error.kind() == ErrorKind::NotFound && self.places.cache.is_dir() => Fate::Gone,
            _ => Fate::Stuck(format!(
                "its data is still in {}, and nothing says that it is this volume's; remove the directory by hand",
                cache.display()
            )),
        }
    }

    async fn go_on(&mut self, begun: &Begun) -> Result<Step, String> {
        let volume = &begun.volume;
        if !begun.aside && begun.uid != 0 {
            let clear = Body::ClearVolume(ClearVolume { uid: begun.uid });
            self.downcalls
                .call(volume, clear, "ClearVolume", CLEAR_DEADLINE)
                .await
                .map_err(|e| e.to_string())?;
        }
        let cache = self.places.cache(volume).display().to_string();
        let body = Body::DiscardVolume(DiscardVolume { uid: begun.uid, cache, begun: begun.aside });
        let answer = self.downcalls.call(volume, body, "DiscardVolume", DISCARD_DEADLINE).await;
        let finished = match answer {
            Ok((Body::Discarded(discarded), _)) => discarded.finished,
            Ok(_) => return Err("presto answered DiscardVolume with another message".to_owned()),
            Err(CallError::Refused { message, .. }) => return Err(message),
            Err(error) => return Err(error.to_string()),
        };
        if !finished {
            if !begun.aside {
                self.keep(|one| one.aside |= *one == *begun).await?;
            }
            return Ok(Step::More);
        }
        let (remains, uid) = (self.places.remains(volume), begun.uid);
        let removed = tokio::task::spawn_blocking(move || remains.remove(uid)).await;
        removed.map_err(|error| error.to_string())??;
        self.begun.retain(|one| one.uid != uid);
        self.keep(|_| {}).await?;
        Ok(Step::Done)
    }

    async fn keep(&mut self, change: impl Fn(&mut Begun)) -> Result<(), String> {
        self.begun.iter_mut().for_each(change);
        let (all, state) = (self.begun.clone(), self.places.state.clone());
        tokio::task::spawn_blocking(move || KIND.write(&state, &all))
            .await
            .map_err(|error| error.to_string())?
    }
}
