//! Locks between programs of one node.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::calls::errno;
use crate::places::{Notes, same};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn flock_locks_open_files() {
    same(|place, notes| {
        let (a, b) = (open(&place.path("f")), open(&place.path("f")));
        let mut lock =
            |what: &str, file: &File, operation| notes.done(what, rustix::fs::flock(file, operation));
        lock("shared", &a, FlockOperation::NonBlockingLockShared);
        lock("shared as well", &b, FlockOperation::NonBlockingLockShared);
        lock("exclusive beside it", &a, FlockOperation::NonBlockingLockExclusive);
        lock("given up", &b, FlockOperation::Unlock);
        lock("exclusive", &a, FlockOperation::NonBlockingLockExclusive);
        lock("shared beside it", &b, FlockOperation::NonBlockingLockShared);
        drop(a);
        lock("closed", &b, FlockOperation::NonBlockingLockExclusive);
        // The same open file in another process.
        let again = b.try_clone().unwrap();
        lock("by a duplicate", &again, FlockOperation::NonBlockingLockExclusive);
    });
}

#[test]
fn flock_waits_until_it_is_free() {
    same(|place, notes| {
        let (a, b) = (open(&place.path("f")), open(&place.path("f")));
        rustix::fs::flock(&a, FlockOperation::LockExclusive).unwrap();
        let waiting = std::thread::spawn(move || rustix::fs::flock(&b, FlockOperation::LockExclusive));
        std::thread::sleep(std::time::Duration::from_millis(50));
        notes.note("waits", !waiting.is_finished());
        rustix::fs::flock(&a, FlockOperation::Unlock).unwrap();
        notes.done("then has it", waiting.join().unwrap());
    });
}

fn range(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    // SAFETY: plain numbers, for which zero is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = i16::try_from(kind).unwrap();
    range.l_whence = 0;
    range.l_start = start;
    range.l_len = length;
    range
}

fn fcntl(file: &File, command: libc::c_int, range: &mut libc::flock) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, the range lives as long as the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, range) } {
        -1 => Err(errno(std::io::Error::last_os_error())),
        _ => Ok(()),
    }
}

#[test]
fn ofd_locks_hold_ranges() {
    same(|place, notes| {
        let (a, b) = (open(&place.path("f")), open(&place.path("f")));
        let mut lock = |what: &str, file: &File, kind, start, length| {
            notes.done(what, fcntl(file, libc::F_OFD_SETLK, &mut range(kind, start, length)));
        };
        lock("0..10", &a, libc::F_WRLCK, 0, 10);
        lock("5..15 of another", &b, libc::F_WRLCK, 5, 10);
        lock("10..20 of another", &b, libc::F_WRLCK, 10, 10);
        lock("to read 0..5", &b, libc::F_RDLCK, 0, 5);
        lock("given up 0..5", &a, libc::F_UNLCK, 0, 5);
        lock("to read 0..5", &b, libc::F_RDLCK, 0, 5);
        lock("all", &a, libc::F_WRLCK, 0, 0);
        let mut asked = range(libc::F_WRLCK, 0, 0);
        notes.done("ask", fcntl(&a, libc::F_OFD_GETLK, &mut asked));
        notes.note("who", (asked.l_type, asked.l_start, asked.l_len, asked.l_pid));
    });
}

#[test]
fn fcntl_locks_are_a_processs() {
    same(|place, notes| {
        let file = open(&place.path("f"));
        notes.done("ours", fcntl(&file, libc::F_SETLK, &mut range(libc::F_WRLCK, 0, 10)));
        notes.done(
            "ours again",
            fcntl(&open(&place.path("g")), libc::F_SETLK, &mut range(libc::F_WRLCK, 0, 10)),
        );
        child(notes, "another process", &file, 5);
        child(notes, "another range", &file, 50);
        // Closing any descriptor of the file gives up the locks of the process.
        drop(open(&place.path("f")));
        child(notes, "after a close", &file, 5);
    });
}

/// What another process is told that asks for one byte.
fn child(notes: &mut Notes, what: &str, file: &File, at: i64) {
    let mut wanted = range(libc::F_WRLCK, at, 1);
    // SAFETY: the child makes two system calls and touches nothing else.
    let status = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let told = libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &mut wanted);
            libc::_exit(if told == 0 { 0 } else { *libc::__errno_location() });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        libc::WEXITSTATUS(status)
    };
    notes.note(what, status);
}
