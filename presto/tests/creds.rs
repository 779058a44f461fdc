//! Whose rights a thread that serves users has: with CAP_FSETID only where that is needed. Takes root.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::os::fd::OwnedFd;
use std::path::Path;

use presto::lower::Owner;
use presto::lower::as_owner;
use presto::lower::serve;
use presto::lower::with_fsetid;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;

fn mode(fd: &OwnedFd) -> u32 {
    rustix::fs::fstat(fd).unwrap().st_mode & 0o7777
}

fn chmod(fd: &OwnedFd, mode: u32) {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).unwrap();
}

fn served(dir: &Path) {
    serve();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    let make = |name: &str, owner: Owner| {
        let open = || rustix::fs::open(dir.join(name), flags, Mode::from_raw_mode(owner.mode));
        as_owner(owner, open).unwrap()
    };
    let fd = make("f", Owner { mode: 0o2755, ..Owner::default() });
    assert_eq!(mode(&fd), 0o2755);
    // A group that nobody here is in.
    rustix::fs::fchown(&fd, None, Some(Gid::from_raw(12_345))).unwrap();
    with_fsetid(|| chmod(&fd, 0o6775));
    assert_eq!(mode(&fd), 0o6775);
    rustix::io::pwrite(&fd, b"x", 0).unwrap();
    assert_eq!(mode(&fd), 0o775, "written without CAP_FSETID");
    let user = Owner { uid: 12_345, gid: 12_345, umask: 0o027, mode: 0o666 };
    assert_eq!(mode(&make("g", user)), 0o640);
    chmod(&fd, 0o2775);
    assert_eq!(mode(&fd), 0o775, "no CAP_FSETID after a user's file either");
    assert_eq!(
        mode(&make("h", Owner { mode: 0o666, ..Owner::default() })),
        0o666,
        "no mask of the last user"
    );
}

#[test]
fn a_serving_thread_has_fsetid_only_for_what_needs_it() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    std::thread::spawn(move || served(&path)).join().unwrap();
}
