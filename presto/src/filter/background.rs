//! What must happen without anybody's call: looks at files held open for writing or mapped, and what was put off.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Condvar;
use parking_lot::Mutex;

use super::Volume;

/// How often the thread looks around.
const ROUND: Duration = Duration::from_millis(50);
/// How often files that stay open for writing are looked at.
const LONG_OPEN: Duration = Duration::from_secs(2);
/// How often what is kept of closed files, and was kept a round ago, is let go.
const KEPT: Duration = Duration::from_secs(15);
/// How often it is looked whether earlier contents have to go.
const SWEEP: Duration = Duration::from_secs(1);

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Background {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it.
    pub fn start(volume: Arc<Volume>) -> std::io::Result<Background> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("look-around".to_owned()).spawn(move || {
            let now = Instant::now();
            let mut round = Round { looked: now, let_go: now, sweep: now };
            let (stopped, wake) = &*shared;
            let mut stopped = stopped.lock();
            while !*stopped {
                wake.wait_for(&mut stopped, ROUND);
                parking_lot::MutexGuard::unlocked(&mut stopped, || round.run(&volume));
            }
        })?;
        Ok(Background { stop, thread: Some(thread) })
    }

    /// Ends it and waits for its last round.
    pub fn stop(mut self) {
        self.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn signal(&self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.signal();
    }
}

struct Round {
    looked: Instant,
    let_go: Instant,
    /// When earlier contents are looked at next.
    sweep: Instant,
}

impl Round {
    /// Lets go earlier contents; how long to wait then.
    fn sweep(&self, volume: &Volume) -> Duration {
        match volume.history.sweep(&volume.lower) {
            Ok(true) => ROUND,
            Ok(false) => SWEEP,
            Err(errno) => {
                tracing::warn!(target: "history", volume = volume.name, %errno, "earlier contents are not removed");
                SWEEP * 10
            }
        }
    }

    fn run(&mut self, volume: &Volume) {
        let now = Instant::now();
        volume.tell_rest();
        let (open, probe) = volume.writers.due(now);
        for id in probe {
            volume.probe(id);
        }
        if now.duration_since(self.let_go) >= KEPT {
            self.let_go = now;
            volume.files.let_go_old();
        }
        if now >= self.sweep {
            self.sweep = now + self.sweep(volume);
        }
        if now.duration_since(self.looked) >= LONG_OPEN {
            self.looked = now;
            for id in open {
                if let Err(errno) = volume.look_in_passing(id) {
                    tracing::debug!(target: "filter", volume = volume.name, object = %id, %errno, "long-open file");
                }
            }
        }
    }
}
