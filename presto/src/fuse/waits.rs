//! Threads for requests that may have to wait for Lento, so that they keep none of those that serve everybody.
//!
//! They begin when they are needed and end when they have had nothing to do for a while. A request that finds none free waits
//! for one; each of those before it has its deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Condvar;
use parking_lot::Mutex;

use crate::filter::Volume;

/// At most so many of a mount.
const MOST: usize = 256;
/// A thread without work for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

pub(super) struct Waits {
    volume: Arc<Volume>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    idle: usize,
    threads: usize,
}

impl Waits {
    pub fn new(volume: &Arc<Volume>) -> Arc<Waits> {
        Arc::new(Waits { volume: Arc::clone(volume), state: Mutex::default(), wake: Condvar::new() })
    }

    /// Runs it on one of these threads.
    pub fn run(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        state.queue.push_back(Box::new(work));
        if state.idle >= state.queue.len() {
            self.wake.notify_one();
            return;
        }
        if state.threads >= MOST {
            return;
        }
        state.threads = state.threads.saturating_add(1);
        drop(state);
        let waits = Arc::clone(self);
        if let Err(error) = std::thread::Builder::new().name("waits".to_owned()).spawn(move || waits.work()) {
            tracing::warn!(target: "fuse", volume = self.volume.name, %error,
                "no thread for a request that waits: it keeps one of those that serve everybody");
            self.work();
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(work) = state.queue.pop_front() {
                drop(state);
                work();
                state = self.state.lock();
                continue;
            }
            state.idle = state.idle.saturating_add(1);
            let late = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle = state.idle.saturating_sub(1);
            if late && state.queue.is_empty() {
                state.threads = state.threads.saturating_sub(1);
                break;
            }
        }
        drop(state);
        if let Some(memory) = self.volume.session() {
            memory.thread_ends();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::filter::Alone;
    use crate::filter::Options;

    #[test]
    fn as_many_wait_as_there_are_and_more_wait_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, _) = Volume::open("a/b", dir.path(), Options::default(), Arc::new(Alone)).unwrap();
        let waits = Waits::new(&Arc::new(volume));
        let (done, results) = channel();
        let (release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for nth in 0..MOST + 10 {
            let (done, released) = (done.clone(), Arc::clone(&released));
            waits.run(move || {
                // Each is let go by one word, in whatever order they get it.
                let _ = released.lock().recv_timeout(Duration::from_secs(20));
                let _ = done.send(nth);
            });
        }
        assert_eq!(waits.state.lock().threads, MOST);
        for _ in 0..MOST + 10 {
            release.send(()).unwrap();
        }
        let mut seen: Vec<usize> =
            (0..MOST + 10).map(|_| results.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..MOST + 10).collect::<Vec<_>>());
    }
}
