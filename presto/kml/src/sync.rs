//! Group commit: whoever comes first syncs for all who wait.

use std::io;

use parking_lot::{Condvar, Mutex};

use crate::error::KmlError;
use crate::record::Recno;

/// Turns many requests for durability into few.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    ended: u64,
    last: Recno,
    failed: Option<io::ErrorKind>,
}

/// Why a request for durability failed.
pub(crate) enum Refused {
    /// This caller led the round that failed.
    Now(KmlError),
    /// An earlier round failed, or one that another caller led.
    Before(io::ErrorKind),
}

impl GroupCommit {
    /// Whether a round has failed: nothing can be made durable any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.rounds.lock().failed.is_some()
    }

    /// A page could not be written. After that the kernel counts it as clean: a later success would be a lie.
    pub(crate) fn fail(&self, error: &KmlError) {
        self.rounds.lock().failed.get_or_insert(kind(error));
    }

    /// Returns when a round that began after this call has ended. `lead` is run by one of the callers.
    pub(crate) fn join(&self, lead: impl FnOnce() -> Result<Recno, KmlError>) -> Result<Recno, Refused> {
        let mut rounds = self.rounds.lock();
        let needed = rounds.started + 1;
        loop {
            if let Some(kind) = rounds.failed {
                return Err(Refused::Before(kind));
            }
            if rounds.ended >= needed {
                return Ok(rounds.last);
            }
            if rounds.started == rounds.ended {
                break;
            }
            self.ended.wait(&mut rounds);
        }
        rounds.started += 1;
        drop(rounds);
        let result = lead();
        let mut rounds = self.rounds.lock();
        rounds.ended = rounds.started;
        match &result {
            Ok(recno) => rounds.last = (*recno).max(rounds.last),
            Err(error) => rounds.failed = Some(kind(error)),
        }
        self.ended.notify_all();
        result.map_err(Refused::Now)
    }
}

fn kind(error: &KmlError) -> io::ErrorKind {
    match error {
        KmlError::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    }
}
