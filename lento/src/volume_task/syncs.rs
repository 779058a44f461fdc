//! Programs of this node whose fsync waits until the server has what they wrote (`durability: Server`).

use super::VolumeTask;
use super::life::Life;
use crate::volume::Kept;
use lento_core::types::FileId;
use lento_core::types::Recno;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A server that has been away for so long is not waited for: whoever syncs often would stand still.
const AWAY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Sync {
    file: FileId,
    newest: Recno,
    reply: oneshot::Sender<Kept>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    waiting: Vec<Sync>,
    away_since: Option<Instant>,
}

impl Syncs {
    /// Answers those for whom it is so by now. `life`: this node's part of the volume, where it runs.
    fn look(&mut self, life: Option<&Life>) {
        self.waiting.retain(|sync| !sync.reply.is_closed());
        if life.is_some_and(Life::reaches_server) {
            self.away_since = None;
        } else {
            let since = *self.away_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= AWAY {
                self.tell_away();
                return;
            }
        }
        let Some(life) = life.filter(|_| !self.waiting.is_empty()) else { return };
        let asked: Vec<_> = self.waiting.iter().map(|sync| (sync.file, sync.newest)).collect();
        // A store that cannot be read ends the life with its next step; until then nobody can say.
        let Ok(kept) = life.are_at_server(&asked) else { return };
        let mut kept = kept.into_iter();
        for sync in self.waiting.extract_if(.., |_| kept.next().unwrap_or(false)) {
            let _ = sync.reply.send(Kept::AtServer);
        }
    }

    fn tell_away(&mut self) {
        for sync in self.waiting.drain(..) {
            let _ = sync.reply.send(Kept::Away);
        }
    }
}

impl VolumeTask {
    /// One more. Looked at with the step that this letter is part of.
    pub(super) fn sync_wanted(&mut self, file: FileId, newest: Recno, reply: oneshot::Sender<Kept>) {
        self.syncs.waiting.push(Sync { file, newest, reply });
    }

    /// Something has happened.
    pub(super) fn look_at_syncs(&mut self) {
        self.syncs.look(self.life.as_ref());
    }
}
