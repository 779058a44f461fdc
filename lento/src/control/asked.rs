//! "Is it safe yet?" The operator passes the question on with a Volume; the answer goes back with the report. It means what
//! `intermezzo wait` on this node means, for what the journal held when the question came.

use crate::req_dispatcher::Downcalls;
use crate::volume::Mail;
use crate::volume::Volumes;
use intermezzo_api::wait::Ask;
use intermezzo_api::wait::Scope;
use intermezzo_channel::v1::Stat;
use intermezzo_channel::v1::packet::Body;
use lento_core::types::Recno;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

const STAT_DEADLINE: Duration = Duration::from_secs(5);
/// What is not there yet is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// The questions of now, and those that are answered.
pub(super) struct Asked {
    volumes: Volumes,
    downcalls: Downcalls,
    open: BTreeMap<String, (Ask, AbortHandle)>,
    /// The question of now, and whether it is answered.
    reached: Arc<Mutex<BTreeMap<String, (Ask, bool)>>>,
}

impl Asked {
    pub(super) fn new(volumes: Volumes, downcalls: Downcalls) -> Asked {
        Asked { volumes, downcalls, open: BTreeMap::new(), reached: Arc::default() }
    }

    /// These are the questions now. A new one of a volume takes the place of the one before.
    pub(super) fn follow(&mut self, asks: &BTreeMap<String, Ask>) {
        self.open.retain(|volume, (ask, task)| {
            let goes_on = asks.get(volume) == Some(&*ask);
            if !goes_on {
                task.abort();
            }
            goes_on
        });
        self.reached.lock().retain(|volume, _| asks.contains_key(volume));
        for (volume, ask) in asks {
            if self.open.contains_key(volume) {
                continue;
            }
            let (volumes, downcalls) = (self.volumes.clone(), self.downcalls.clone());
            let (reached, name, ask) = (Arc::clone(&self.reached), volume.clone(), *ask);
            reached.lock().insert(name.clone(), (ask, false));
            let task = tokio::spawn(async move {
                wait(&volumes, &downcalls, &name, ask.scope).await;
                // A task that was aborted too late answers nobody's question.
                if let Some((_, answered)) = reached.lock().get_mut(&name).filter(|(now, _)| *now == ask) {
                    *answered = true;
                }
            });
            self.open.insert(volume.clone(), (ask, task.abort_handle()));
        }
    }

    /// The question that is answered for a volume, as text; empty: none.
    pub(super) fn reached(&self, volume: &str) -> String {
        let reached = self.reached.lock();
        reached
            .get(volume)
            .filter(|(_, answered)| *answered)
            .map(|(ask, _)| ask.to_string())
            .unwrap_or_default()
    }
}

/// Until all that the journal holds now is safe.
async fn wait(volumes: &Volumes, downcalls: &Downcalls, name: &str, scope: Scope) {
    let upto = loop {
        let stat = downcalls.call(name, Body::Stat(Stat {}), "Stat", STAT_DEADLINE).await;
        if let Ok((Body::Stats(stats), _)) = stat {
            break Recno(stats.last_recno);
        }
        tokio::time::sleep(AGAIN).await;
    };
    loop {
        let (reached, answer) = oneshot::channel();
        // Dropped unanswered where the volume begins a new life, or has none yet.
        if let Some(volume) = volumes.get(name)
            && volume.send(Mail::Wait { upto, all: scope == Scope::Everywhere, reached }).await
            && answer.await.is_ok()
        {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
