//! Limits of this process, and what all of these tests need.

use std::time::{Duration, Instant};

use intermezzo_kml::record::{FileId, Opcode, OriginKind, Record};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::world::*;

static ALONE: Mutex<()> = Mutex::new(());

/// Limits are the process's: where tests are threads of one they wait for each other.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock()
}

/// A limit of the process, as long as this lives.
pub struct Limit {
    resource: Resource,
    before: Rlimit,
    _alone: MutexGuard<'static, ()>,
}

impl Limit {
    /// None yet.
    pub fn of(resource: Resource) -> Limit {
        let alone = alone();
        // SAFETY: nothing is called when the signal comes. Its default ends the process where a write would say EFBIG.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        Limit { resource, before: getrlimit(resource), _alone: alone }
    }

    pub fn set(&self, limit: u64) {
        setrlimit(self.resource, Rlimit { current: Some(limit), ..self.before }).unwrap();
    }

    pub fn lift(&self) {
        setrlimit(self.resource, self.before).unwrap();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.lift();
    }
}

/// `f` with another name `g`.
pub fn two_names(w: &World, text: &str) -> FileId {
    let file = w.save("f", text);
    w.volume.link(user(), file, w.root(), b"g").unwrap();
    file
}

pub fn closes(w: &World, file: FileId, kind: OriginKind) -> Vec<Record> {
    w.records()
        .into_iter()
        .filter(|record| {
            let (intent, outcome) = (&record.intent, &record.outcome);
            record.opcode == Opcode::Close && outcome.object == file && intent.origin.kind == kind
        })
        .collect()
}

pub fn nothing_in(w: &World, dir: &str) -> bool {
    std::fs::read_dir(w.home.join(dir)).unwrap().next().is_none()
}

#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(40), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
