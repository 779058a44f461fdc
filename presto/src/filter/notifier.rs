//! Queue of kernel cache entries that no longer hold, because a replay changed the lower tree behind them.
//!
//! Who puts something in never waits; the thread of `fuse/notify.rs` takes it out and holds no locks.

use std::collections::VecDeque;
use std::time::Duration;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use parking_lot::Condvar;
use parking_lot::Mutex;

/// One thing to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// What a name means.
    Entry {
        /// Directory.
        dir: FileId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Attributes and cached contents of a file.
    Inode(FileId),
    /// Only the attributes.
    Attributes(FileId),
    /// Nothing: what was said before this covers every replay up to this record.
    Upto(Recno),
}

/// The queue. Without a mount it drops what it gets: then no cache can be wrong.
#[derive(Debug, Default)]
pub struct Notifier {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    attached: bool,
    queue: VecDeque<Notice>,
}

impl Notifier {
    /// The meaning of a name changed.
    pub fn entry(&self, dir: FileId, name: &[u8]) {
        self.push(Notice::Entry { dir, name: name.to_vec() });
    }

    /// Contents and attributes of a file (or directory) changed.
    pub fn inode(&self, id: FileId) {
        self.push(Notice::Inode(id));
    }

    /// Attributes of a file changed.
    pub fn attributes(&self, id: FileId) {
        self.push(Notice::Attributes(id));
    }

    /// All replays up to this record have said what they had to.
    pub fn upto(&self, recno: Recno) {
        self.push(Notice::Upto(recno));
    }

    /// From now on there is a mount, or there is none any more.
    pub fn attach(&self, attached: bool) {
        let mut state = self.state.lock();
        state.attached = attached;
        if !attached {
            state.queue.clear();
        }
        drop(state);
        self.wake.notify_all();
    }

    /// All that is queued; waits at most this long for the first. `None` when detached.
    #[must_use]
    pub fn take(&self, wait: Duration) -> Option<VecDeque<Notice>> {
        let mut state = self.state.lock();
        if state.attached && state.queue.is_empty() {
            self.wake.wait_for(&mut state, wait);
        }
        state.attached.then(|| std::mem::take(&mut state.queue))
    }

    fn push(&self, notice: Notice) {
        let mut state = self.state.lock();
        if state.attached && state.queue.back() != Some(&notice) {
            state.queue.push_back(notice);
            drop(state);
            self.wake.notify_one();
        }
    }
}
