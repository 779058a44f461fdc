//! Group commit: contents and tree first, then the journal; on demand, and each second while something changes. Beside
//! it, replays that the disk stopped in the middle are tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use intermezzo_kml::KmlError;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::filter::Volume;
use crate::replay::Replayer;

/// What a power cut may take.
const INTERVAL: Duration = Duration::from_millis(900);
const BREATH: Duration = Duration::from_millis(100);

/// Why nothing is durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error("volume {volume}: the lower file system cannot be synced: {errno}")]
    Lower { volume: String, errno: Errno },
    #[error("volume {volume}: {source}")]
    Journal { volume: String, source: KmlError },
}

/// Keeps one volume durable.
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    volume: Arc<Volume>,
    replayer: Arc<Replayer>,
    stop: AtomicBool,
    durable: Mutex<Recno>,
}

impl Syncer {
    pub fn start(volume: &Arc<Volume>, replayer: &Arc<Replayer>) -> Syncer {
        let shared = Arc::new(Shared {
            volume: Arc::clone(volume),
            replayer: Arc::clone(replayer),
            stop: AtomicBool::new(false),
            durable: Mutex::new(Recno::NONE),
        });
        let worker = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("sync".to_owned()).spawn(move || worker.run());
        let thread = spawned
            .inspect_err(|error| {
                tracing::error!(target: "volumes", volume = volume.name, %error, "no thread for the background sync");
            })
            .ok();
        Syncer { shared, thread: Mutex::new(thread) }
    }

    /// Makes everything published so far durable; answers up to where.
    pub fn sync(&self) -> Result<Recno, SyncError> {
        self.shared.sync()
    }

    /// Ends the background sync and waits for one that runs.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn run(&self) {
        let mut waited = Duration::ZERO;
        let mut noted = Recno::NONE;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(BREATH);
            self.replayer.finish_left();
            waited += BREATH;
            if waited < INTERVAL {
                continue;
            }
            waited = Duration::ZERO;
            if self.volume.journal.published() <= noted {
                continue;
            }
            match self.sync().and_then(|_| self.note()) {
                Ok(recno) => noted = recno,
                Err(error) => tracing::error!(target: "volumes", %error, "background sync failed"),
            }
        }
    }

    fn sync(&self) -> Result<Recno, SyncError> {
        let volume = || self.volume.name.clone();
        // Who waits here finds the work done by whoever held the lock.
        let wanted = self.volume.journal.published();
        let mut durable = self.durable.lock();
        if *durable >= wanted {
            return Ok(*durable);
        }
        // A record must not be durable before what it tells of: a later one may come in between and is not promised.
        let upto = self.volume.journal.published();
        let one_flush = self.volume.lower.syncs_journal() && self.is_written_out();
        let lower = &self.volume.lower;
        lower.note_synced(upto).map_err(|errno| SyncError::Lower { volume: volume(), errno })?;
        rustix::fs::syncfs(lower.stage()).map_err(|errno| SyncError::Lower { volume: volume(), errno })?;
        *durable = if one_flush { upto } else { upto.min(self.note()?) };
        Ok(*durable)
    }

    /// Whether the device has the journal, so that the next flush of it is all that is missing.
    fn is_written_out(&self) -> bool {
        match self.volume.journal.start_write_out() {
            Ok(Some(records)) => self.volume.journal.wait_written_out(&records).is_ok(),
            Ok(None) | Err(_) => false,
        }
    }

    /// Syncs the journal by itself, which also notes in it how far it is whole: a start then looks at less.
    fn note(&self) -> Result<Recno, SyncError> {
        let volume = || self.volume.name.clone();
        self.volume.journal.sync().map_err(|source| {
            if self.volume.journal.is_broken() {
                self.volume.tell_broken();
            }
            SyncError::Journal { volume: volume(), source }
        })
    }
}
