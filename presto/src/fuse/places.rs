//! Where a request is served: on the thread that has read it, if it has to wait for nobody, else on one of others.
//!
//! The threads that read requests serve everybody, so none of them may wait for Lento: not for a permit, not for a content, not
//! for room in the journal, not for the server. Each of these has threads of its own, so that those who wait for one never keep those out who wait for
//! another.

use std::sync::Arc;

use fuser::Errno;
use fuser::INodeNo;

use super::convert::Asked;
use super::convert::errno;
use super::serving::Serving;
use super::serving::guarded;
use super::waits::Waits;
use crate::filter::ELSEWHERE;
use crate::filter::Volume;

/// Threads of one mount on which requests may wait.
pub(crate) struct Waiting {
    /// For the permit, for room in the journal, and for what an update needs besides.
    updates: Arc<Waits>,
    /// For contents that are only read.
    contents: Arc<Waits>,
    /// For room in the journal, at a close.
    closes: Arc<Waits>,
    /// For the server, where fsync asks it.
    syncs: Arc<Waits>,
}

impl Waiting {
    pub fn new(volume: &Arc<Volume>) -> Waiting {
        let [updates, contents, closes, syncs] = [(); 4].map(|()| Waits::new(volume));
        Waiting { updates, contents, closes, syncs }
    }
}

/// What a request does. Where it would have to wait and may not, it ends with `ELSEWHERE` and is done once more.
pub(super) trait Attempt<T>: Fn(&Serving) -> Result<T, Errno> + Send + 'static {}
impl<T, F: Fn(&Serving) -> Result<T, Errno> + Send + 'static> Attempt<T> for F {}

/// How it is answered, once.
pub(super) trait Answer<T>: FnOnce(&Serving, Result<T, Errno>) + Send + 'static {}
impl<T, F: FnOnce(&Serving, Result<T, Errno>) + Send + 'static> Answer<T> for F {}

impl Serving {
    /// Whether what is in a file has to be brought before it is opened.
    pub(super) fn lacks(&self, ino: INodeNo) -> bool {
        self.file(ino).is_ok_and(|id| self.volume.must_fetch(id))
    }

    /// Serves an update: here, if it is let in at once and comes through without waiting. What is journaled belongs to
    /// `request`.
    pub(super) fn update<T>(
        self: &Arc<Self>,
        request: Option<Asked>,
        attempt: impl Attempt<T>,
        answer: impl Answer<T>,
    ) {
        let mut answer = Some(answer);
        let waits = match self.volume.admit() {
            Some(_admitted) => self.tried(request, &attempt, &mut answer),
            None => true,
        };
        if let Some(answer) = answer.filter(|_| waits) {
            self.update_aside(request, attempt, answer);
        }
    }

    /// The same where it has to wait in any case.
    pub(super) fn update_aside<T>(
        self: &Arc<Self>,
        request: Option<Asked>,
        attempt: impl Attempt<T>,
        answer: impl Answer<T>,
    ) {
        self.aside(&self.waiting.updates, request, attempt, answer);
    }

    /// Serves an open for reading: here, unless the content has to come first.
    pub(super) fn read<T>(
        self: &Arc<Self>,
        asked: Asked,
        lacks: bool,
        attempt: impl Attempt<T>,
        answer: impl Answer<T>,
    ) {
        if lacks {
            self.aside(&self.waiting.contents, Some(asked), attempt, answer);
        } else {
            self.hurried(&self.waiting.contents, Some(asked), attempt, answer);
        }
    }

    /// Serves a close: here, unless the journal is full.
    pub(super) fn close<T>(self: &Arc<Self>, attempt: impl Attempt<T>, answer: impl Answer<T>) {
        self.hurried(&self.waiting.closes, None, attempt, answer);
    }

    /// Serves an fsync: here, unless the journal is full or the server is asked.
    pub(super) fn sync<T>(self: &Arc<Self>, attempt: impl Attempt<T>, answer: impl Answer<T>) {
        if self.volume.syncs_to_server() {
            self.aside(&self.waiting.syncs, None, attempt, answer);
        } else {
            self.hurried(&self.waiting.syncs, None, attempt, answer);
        }
    }

    fn hurried<T>(
        self: &Arc<Self>,
        waits: &Arc<Waits>,
        request: Option<Asked>,
        attempt: impl Attempt<T>,
        answer: impl Answer<T>,
    ) {
        let mut answer = Some(answer);
        let hurried = Volume::hurry();
        let must_wait = self.tried(request, &attempt, &mut answer);
        drop(hurried);
        if let Some(answer) = answer.filter(|_| must_wait) {
            self.aside(waits, request, attempt, answer);
        }
    }

    /// Says whether it has to wait; if not, it is answered.
    fn tried<T, A: Answer<T>>(
        &self,
        request: Option<Asked>,
        attempt: &impl Attempt<T>,
        answer: &mut Option<A>,
    ) -> bool {
        let mut waits = false;
        guarded(&self.volume, || {
            let _request = request.and_then(|asked| self.serving(asked));
            match attempt(self) {
                Err(error) if error == errno(ELSEWHERE) => waits = true,
                result => {
                    if let Some(answer) = answer.take() {
                        answer(self, result);
                    }
                }
            }
        });
        waits
    }

    fn aside<T>(
        self: &Arc<Self>,
        waits: &Arc<Waits>,
        request: Option<Asked>,
        attempt: impl Attempt<T>,
        answer: impl Answer<T>,
    ) {
        let serving = Arc::clone(self);
        waits.run(move || {
            guarded(&serving.volume, || {
                let _request = request.and_then(|asked| serving.serving(asked));
                answer(&serving, attempt(&serving));
            });
        });
    }
}
