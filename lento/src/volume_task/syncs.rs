//! Programs of this node whose fsync waits until the server has what they wrote (`durability: Server`).

use super::VolumeTask;
use super::life::Life;
use crate::volume::Kept;
use lento_core::types::FileId;
use lento_core::types::Recno;
use lento_core::volume::Safety;
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
    /// Answers those for whom it is so by now.
    fn look(&mut self, life: &Life) {
        if life.reaches_server() {
            self.away_since = None;
        }
        let away = match self.away_since {
            Some(since) => since.elapsed() >= AWAY,
            None if !life.reaches_server() => {
                self.away_since = Some(Instant::now());
                false
            }
            None => false,
        };
        self.waiting.retain(|sync| !sync.reply.is_closed());
        let is_kept = |sync: &mut Sync| {
            life.safety(sync.file, sync.newest).is_ok_and(|safety| safety >= Safety::Server)
        };
        for sync in self.waiting.extract_if(.., is_kept) {
            let _ = sync.reply.send(Kept::AtServer);
        }
        if away {
            for sync in self.waiting.drain(..) {
                let _ = sync.reply.send(Kept::Away);
            }
        }
    }
}

impl VolumeTask {
    /// One more. Looked at with the step that this letter is part of.
    pub(super) fn sync_wanted(&mut self, file: FileId, newest: Recno, reply: oneshot::Sender<Kept>) {
        self.syncs.waiting.push(Sync { file, newest, reply });
    }

    /// Something has happened. Whoever waits for a volume without a life goes on waiting, up to his deadline.
    pub(super) fn look_at_syncs(&mut self) {
        if let Some(life) = &self.life {
            self.syncs.look(life);
        }
    }
}
