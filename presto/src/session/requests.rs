//! Which record belongs to the request that a thread is serving, so that a request which the kernel sends a second time
//! is answered by what became of it the first time.
//!
//! A slot is written between the intent and the operation, so where there is none, nothing happened; where there is one,
//! the slot or the journal says whether it happened. It goes once the reply is written. The slots of a dead presto stay
//! until their requests have come again: that presto's successor may be killed as well.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;

use super::memory::Memory;
use super::table::Slot;

/// FUSE_UNIQUE_RESEND: the kernel sets it in the number of a request that it sends again.
const RESENT: u64 = 1 << 63;
/// The kernel sends requests again before all others, so what has not come by now was answered.
const PATIENCE: Duration = Duration::from_secs(10);

const BEGUN: u64 = 1;
const DONE: u64 = 2;
const AT_STATE: usize = 2;
const AT_INO: usize = 3;
const AT_GENERATION: usize = 4;

thread_local! {
    /// The request that this thread serves; 0 for none.
    static SERVED: Cell<u64> = const { Cell::new(0) };
    /// Its record is noted: those that follow belong to it.
    static NOTED: Cell<bool> = const { Cell::new(false) };
    /// This thread's slot, and in which memory.
    static SLOT: Cell<Option<(usize, Slot)>> = const { Cell::new(None) };
    /// The slot of an earlier presto that this request has found.
    static FOUND: Cell<Option<Slot>> = const { Cell::new(None) };
}

/// The request that this thread serves.
pub(super) fn current() -> u64 {
    SERVED.get()
}

/// While it lives, this thread serves a request; dropped when the reply is written.
#[derive(Debug)]
#[must_use = "it lives until the reply is written"]
pub struct Request<'a> {
    memory: &'a Memory,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        SERVED.set(0);
        if NOTED.replace(false)
            && let Some((_, slot)) = SLOT.get()
        {
            self.memory.requests.set(&self.memory.shared, slot, 0, 0);
        }
        if let Some(slot) = FOUND.take() {
            self.memory.requests.remove(&self.memory.shared, slot);
        }
    }
}

/// A noted record, whose end is noted as well.
#[derive(Debug)]
pub struct Went<'a> {
    memory: &'a Memory,
    slot: Slot,
}

impl Went<'_> {
    /// It happened, to this object.
    pub fn done(self, object: FileId) {
        let (requests, shared) = (&self.memory.requests, &self.memory.shared);
        requests.set(shared, self.slot, AT_INO, object.ino);
        requests.set(shared, self.slot, AT_GENERATION, object.generation);
        requests.set(shared, self.slot, AT_STATE, DONE);
    }

    /// It did not happen.
    pub fn failed(self) {
        self.memory.requests.set(&self.memory.shared, self.slot, 0, 0);
    }
}

/// What became of a request the first time.
#[derive(Debug)]
pub struct Earlier {
    /// The object concerned. It may have lost its name since, but it is there as long as this is.
    pub object: FileId,
    _hold: Option<OwnedFd>,
}

/// The outcomes that an earlier presto left.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    any: AtomicBool,
    outcomes: Mutex<BTreeMap<u64, (Slot, Earlier)>>,
    since: Mutex<Option<Instant>>,
}

impl Memory {
    /// This thread begins to serve a request.
    pub fn serve(&self, unique: u64) -> Request<'_> {
        SERVED.set(unique & !RESENT);
        NOTED.set(false);
        Request { memory: self }
    }

    /// This thread serves no more requests: its slot is another's.
    pub fn thread_ends(&self) {
        let me = std::ptr::from_ref(self).addr();
        if let Some((memory, slot)) = SLOT.take()
            && memory == me
        {
            self.requests.remove(&self.shared, slot);
        }
    }

    /// An intent was journaled; called before its operation. `None` if it is no request's first.
    pub fn begun(&self, recno: Recno) -> Option<Went<'_>> {
        let unique = SERVED.get();
        if unique == 0 || NOTED.get() {
            return None;
        }
        let values = [unique, recno.0, BEGUN, 0, 0];
        let me = std::ptr::from_ref(self).addr();
        let slot = match SLOT.get() {
            Some((memory, slot)) if memory == me => {
                self.requests.write(&self.shared, slot, &values);
                slot
            }
            _ => {
                let slot = self.requests.insert(&self.shared, &values)?;
                SLOT.set(Some((me, slot)));
                slot
            }
        };
        NOTED.set(true);
        Some(Went { memory: self, slot })
    }

    /// Takes over what an earlier presto left. `decided` tells what the journal says of a record after recovery, `hold`
    /// keeps an object from vanishing.
    pub fn inherit(
        &self,
        decided: impl Fn(Recno) -> Option<FileId>,
        hold: impl Fn(FileId) -> Option<OwnedFd>,
    ) -> usize {
        let mut outcomes = self.inherited.outcomes.lock();
        for (slot, [unique, recno, state, ino, generation]) in self.requests.all::<5>(&self.shared) {
            let object = if state == DONE { Some(FileId { ino, generation }) } else { decided(Recno(recno)) };
            match object {
                Some(object) => {
                    outcomes.insert(unique, (slot, Earlier { object, _hold: hold(object) }));
                }
                None => self.requests.remove(&self.shared, slot),
            }
        }
        self.inherited.any.store(!outcomes.is_empty(), Ordering::Release);
        *self.inherited.since.lock() = Some(Instant::now());
        outcomes.len()
    }

    /// What became of this request when an earlier presto served it; `None`: nothing happened.
    #[must_use]
    pub fn earlier(&self, unique: u64) -> Option<Earlier> {
        if !is_resent(unique) || !self.inherited.any.load(Ordering::Acquire) {
            return None;
        }
        let (slot, earlier) = self.inherited.outcomes.lock().remove(&(unique & !RESENT))?;
        FOUND.set(Some(slot));
        Some(earlier)
    }

    /// Lets go what was answered before the earlier presto died. Call it now and then.
    pub fn let_go_earlier(&self) {
        let mut since = self.inherited.since.lock();
        if since.is_none_or(|since| since.elapsed() < PATIENCE) {
            return;
        }
        *since = None;
        self.inherited.any.store(false, Ordering::Release);
        for (slot, _) in std::mem::take(&mut *self.inherited.outcomes.lock()).into_values() {
            self.requests.remove(&self.shared, slot);
        }
    }
}

/// Whether the kernel has sent this request before.
pub(crate) fn is_resent(unique: u64) -> bool {
    unique & RESENT != 0
}

/// The number without that mark.
pub(crate) fn number(unique: u64) -> u64 {
    unique & !RESENT
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::memory::Agreed;
    use super::super::memory::Identity;
    use super::*;

    const IDENTITY: Identity = Identity { root: FileId { ino: 2, generation: 0 }, lower: 1, mount: 1 };

    fn next(memory: &Memory) -> Memory {
        Memory::open(memory.as_fd().try_clone_to_owned().unwrap(), &IDENTITY).unwrap()
    }

    fn file(ino: u64) -> FileId {
        FileId { ino, generation: 1 }
    }

    /// Serves a request on a thread of its own, as far as `work` goes, and is killed then.
    fn killed_in(memory: &Memory, unique: u64, work: impl FnOnce(&Memory) + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let request = memory.serve(unique);
                work(memory);
                std::mem::forget(request);
            });
        });
    }

    #[test]
    fn a_request_is_known_by_how_far_it_came() {
        let memory = Memory::create(&IDENTITY, Agreed::default()).unwrap();
        killed_in(&memory, 10, |memory| memory.begun(Recno(1)).unwrap().done(file(5)));
        killed_in(&memory, 12, |memory| assert!(memory.begun(Recno(2)).is_some()));
        killed_in(&memory, 14, |memory| assert!(memory.begun(Recno(3)).is_some()));
        killed_in(&memory, 16, |memory| memory.begun(Recno(4)).unwrap().failed());
        killed_in(&memory, 18, |_| {});
        drop(memory.serve(20));
        let second = next(&memory);
        let decided = |recno: Recno| (recno == Recno(2)).then(|| file(6));
        assert_eq!(second.inherit(decided, |_| None), 2);
        let became = |unique: u64| {
            let _request = second.serve(unique | RESENT);
            second.earlier(unique | RESENT).map(|earlier| earlier.object)
        };
        assert_eq!(second.earlier(10).map(|earlier| earlier.object), None, "it was not sent again");
        assert_eq!([10, 12, 14, 16, 18].map(became), [Some(file(5)), Some(file(6)), None, None, None]);
        assert_eq!(next(&memory).inherit(|_| None, |_| None), 0, "all were answered");
    }

    #[test]
    fn what_was_not_sent_again_yet_outlives_a_second_kill() {
        let memory = Memory::create(&IDENTITY, Agreed::default()).unwrap();
        killed_in(&memory, 10, |memory| memory.begun(Recno(1)).unwrap().done(file(5)));
        let second = next(&memory);
        second.inherit(|_| None, |_| None);
        killed_in(&second, 30, |memory| memory.begun(Recno(2)).unwrap().done(file(7)));
        killed_in(&second, 10 | RESENT, |memory| drop(memory.earlier(10 | RESENT)));
        let third = next(&memory);
        assert_eq!(third.inherit(|_| None, |_| None), 2);
        assert_eq!(third.earlier(10 | RESENT).unwrap().object, file(5));
        assert_eq!(third.earlier(30 | RESENT).unwrap().object, file(7));
    }

    #[test]
    fn only_the_first_record_of_a_request_counts() {
        let memory = Memory::create(&IDENTITY, Agreed::default()).unwrap();
        assert!(memory.begun(Recno(1)).is_none(), "nobody's request");
        let request = memory.serve(10);
        memory.begun(Recno(2)).unwrap().done(file(5));
        assert!(memory.begun(Recno(3)).is_none());
        drop(request);
        assert_eq!(next(&memory).inherit(|_| None, |_| None), 0, "it was answered");
    }
}
