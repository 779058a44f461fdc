//! Requests that have to wait, for a permit, for a content, for room in the journal: they keep nobody else from anything. Needs
//! root and /dev/fuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "common/mounted.rs"]
mod mounted;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use intermezzo_kml::record::{Caller, FileId, Recno};
use mounted::{Mounted, mounted_asking, options};
use presto::filter::{DataAnswer, Kept, NewMode, PermitAnswer, Safety, Upcalls, Volume, Wait, WhenFull};
use presto::fuse::MountOptions;
use rustix::time::{ClockId, clock_gettime};

const NEW: NewMode = NewMode { mode: 0o755, umask: 0 };
const ME: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// Long enough for what does not wait, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Lento's answers.
#[derive(Default)]
struct Lento {
    /// Permits come from now on.
    grants: AtomicBool,
    /// How often one was asked for.
    asked: AtomicU64,
    /// What comes first so often: one whose lease has ended.
    late: u64,
}

impl Upcalls for Lento {
    fn journal(&self, _volume: &str, _to: Recno) {}

    fn get_permit(&self, _volume: &str, wait: Wait) -> PermitAnswer {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if asked < self.late {
            return PermitAnswer::Granted { serial: asked + 1, until: 1 };
        }
        let since = Instant::now();
        while !self.grants.load(Ordering::SeqCst) && since.elapsed() < wait.deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        PermitAnswer::Granted { serial: asked + 1_000_000, until: u64::MAX }
    }

    fn get_data(&self, _volume: &str, _object: FileId, _wait: Wait) -> DataAnswer {
        DataAnswer::Refused(rustix::io::Errno::IO)
    }

    fn safety(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Safety {
        Safety::Unknown
    }

    fn keep(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Kept {
        Kept::Unheard
    }
}

/// What it comes to, if that takes no wait.
#[track_caller]
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    std::thread::spawn(move || done.send(work()));
    result.recv_timeout(SOON).unwrap_or_else(|_| panic!("{what} waits"))
}

/// So many directories, one for each program: the kernel lets one at a time change a directory.
fn dirs(m: &Mounted, count: usize) -> Vec<PathBuf> {
    let dirs: Vec<PathBuf> = (0..count).map(|number| m.path(&format!("d{number}"))).collect();
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    dirs
}

fn from_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap()
}

#[test]
fn while_updates_wait_for_room_others_read_and_the_permit_is_given_back() {
    let mut small = options();
    small.journal.max_bytes = 4 << 20;
    small.journal.segment_bytes = 1 << 20;
    small.journal.reserve_bytes = 2 << 20;
    small.when_full = WhenFull::Block(Duration::from_secs(80));
    let lento = Arc::new(Lento::default());
    let asked = Arc::clone(&lento);
    let m = mounted_asking(tempfile::tempdir().unwrap(), small, &MountOptions::default(), lento);
    let dirs = dirs(&m, 20);
    m.volume.permit.set_needed(true);
    m.volume.permit.admit(1, u64::MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let programs: Vec<_> = dirs
        .into_iter()
        .map(|dir| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                for mode in (0..).take_while(|_| !stop.load(Ordering::SeqCst)) {
                    fs::set_permissions(&dir, Permissions::from_mode(0o700 | mode & 0o77))?;
                }
                Ok::<(), std::io::Error>(())
            })
        })
        .collect();
    // Until all of them wait.
    let (mut last, mut since) = (Recno(0), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(20));
        let now = m.volume.journal.begun();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    let unknown = m.path("a name that the kernel has not asked for yet");
    soon("a look at a name", move || assert!(fs::metadata(unknown).is_err()));
    let volume = Arc::clone(&m.volume);
    soon("giving the permit back", move || volume.revoke_permit(1, SOON).unwrap());
    let full = m.volume.journal.begun();
    m.volume.journal.truncate(full).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(m.volume.journal.begun(), full, "nobody goes on with a permit that was given back");
    assert!(asked.asked.load(Ordering::SeqCst) > 0, "they ask for it anew");
    stop.store(true, Ordering::SeqCst);
    asked.grants.store(true, Ordering::SeqCst);
    for program in programs {
        program.join().unwrap().unwrap();
    }
    assert!(m.volume.journal.begun() > full);
}

#[test]
fn however_many_wait_for_the_permit_contents_come() {
    let lento = Arc::new(Lento::default());
    let answers = Arc::clone(&lento);
    let m = mounted_asking(tempfile::tempdir().unwrap(), options(), &MountOptions::default(), lento);
    let dirs = dirs(&m, 300);
    fs::write(m.lower("f"), "0123456789").unwrap();
    m.volume.marks.on_demand.set(true);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(m.lower("f"), "trusted.intermezzo.lacks", &[7; 32], flags).unwrap();
    m.volume.permit.set_needed(true);
    let programs: Vec<_> = dirs
        .into_iter()
        .map(|dir| std::thread::spawn(move || fs::set_permissions(dir, Permissions::from_mode(0o700))))
        .collect();
    let since = Instant::now();
    while answers.asked.load(Ordering::SeqCst) < 250 {
        assert!(since.elapsed() < SOON, "{} ask", answers.asked.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(10));
    }
    let file = m.path("f");
    let opened = soon("who only reads", move || fs::File::open(file).map(drop));
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EIO), "Lento's answer");
    answers.grants.store(true, Ordering::SeqCst);
    for program in programs {
        program.join().unwrap().unwrap();
    }
}

#[test]
fn an_update_asks_for_the_permit_as_often_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let lento = Arc::new(Lento { late: 1500, grants: true.into(), ..Lento::default() });
    let (volume, _) = Volume::open("a/b", dir.path(), options(), lento).unwrap();
    volume.permit.set_needed(true);
    volume.mkdir(ME, volume.lower.root(), b"d", NEW).unwrap();
}

#[test]
fn an_update_that_was_held_up_does_not_begin_after_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let lento = Arc::new(Lento { grants: true.into(), ..Lento::default() });
    let answers = Arc::clone(&lento);
    let (volume, _) = Volume::open("a/b", dir.path(), options(), lento).unwrap();
    volume.permit.set_needed(true);
    volume.permit.admit(1, from_boot() + 300);
    let root = volume.lower.root();
    std::thread::scope(|scope| {
        let held = volume.locks.lock(&[root]);
        let update = scope.spawn(|| volume.mkdir(ME, root, b"d", NEW).map(drop));
        std::thread::sleep(Duration::from_millis(800));
        assert_eq!(answers.asked.load(Ordering::SeqCst), 0, "it was let in");
        drop(held);
        update.join().unwrap().unwrap();
    });
    assert_eq!(answers.asked.load(Ordering::SeqCst), 1, "and asked anew");
}
