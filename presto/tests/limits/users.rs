//! What programs meet on a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};

use presto::filter::Limits;
use presto::fuse::MountOptions;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::mounted::{Mounted, mounted};
use crate::{bytes, counted, inodes, walked};

fn limited(limits: Limits) -> Mounted {
    let m = mounted(&MountOptions::default());
    m.volume.set_limits(limits);
    counted(&m.volume);
    m
}

fn errno<T>(result: io::Result<T>) -> Errno {
    Errno::from_io_error(&result.map(drop).unwrap_err()).unwrap()
}

#[test]
fn no_inode_comes_beyond_the_limit_and_each_that_goes_makes_room() {
    let m = limited(inodes(4));
    fs::write(m.path("a"), "a").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    symlink("a", m.path("s")).unwrap();
    fs::write(m.path("d/b"), "b").unwrap();
    assert_eq!(errno(File::create_new(m.path("c"))), Errno::DQUOT);
    assert_eq!(errno(fs::create_dir(m.path("e"))), Errno::DQUOT);
    assert_eq!(errno(symlink("a", m.path("t"))), Errno::DQUOT);
    assert!(!m.lower("c").exists() && !m.lower("e").exists());
    // What needs no inode goes on.
    fs::hard_link(m.path("a"), m.path("a2")).unwrap();
    fs::remove_file(m.path("a")).unwrap();
    fs::write(m.path("a2"), "longer than before").unwrap();
    assert_eq!(errno(File::create_new(m.path("c"))), Errno::DQUOT, "a name that goes is no inode that goes");
    fs::rename(m.path("d/b"), m.path("a2")).unwrap();
    File::create_new(m.path("c")).unwrap();
    fs::remove_file(m.path("s")).unwrap();
    fs::create_dir(m.path("e")).unwrap();
    assert_eq!(errno(File::create_new(m.path("f"))), Errno::DQUOT);
    assert_eq!(counted(&m.volume), walked(&m.cache.join("tree")));
}

#[test]
fn no_byte_comes_beyond_the_limit_and_what_is_there_may_be_changed() {
    let m = limited(bytes(100_000));
    let file = File::create(m.path("f")).unwrap();
    let mut left = 100_000;
    // As with a full disk: what fits is written, then comes the error.
    let refused = loop {
        match (&file).write(&[1; 30_000]) {
            Ok(count) => left -= count,
            Err(error) => break error,
        }
    };
    assert_eq!((left, Errno::from_io_error(&refused)), (0, Some(Errno::DQUOT)));
    file.write_all_at(&[2; 50_000], 20_000).unwrap();
    assert_eq!(errno(file.set_len(100_001)), Errno::DQUOT);
    let grow = rustix::fs::fallocate(&file, FallocateFlags::empty(), 90_000, 20_000);
    assert_eq!(grow, Err(Errno::DQUOT));
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).unwrap();
    assert_eq!(errno(fs::write(m.path("g"), "x")), Errno::DQUOT);
    file.set_len(60_000).unwrap();
    fs::write(m.path("g"), vec![3; 40_000]).unwrap();
    assert_eq!(errno(OpenOptions::new().append(true).open(m.path("g")).unwrap().write(b"4")), Errno::DQUOT);
    assert_eq!(fs::metadata(m.path("g")).unwrap().len(), 40_000);
    fs::remove_file(m.path("f")).unwrap();
    fs::write(m.path("h"), vec![5; 60_000]).unwrap();
    drop(file);
    assert_eq!(counted(&m.volume), walked(&m.cache.join("tree")));
}

#[test]
fn what_is_refused_takes_no_room() {
    let m = limited(bytes(100_000));
    let file = File::create(m.path("f")).unwrap();
    assert_eq!(errno(file.write_all_at(b"far behind the end", 200_000)), Errno::DQUOT);
    assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 200_000), Err(Errno::DQUOT));
    fs::write(m.path("g"), vec![1; 100_000]).unwrap();
}

#[test]
fn df_tells_the_limit_and_what_is_left() {
    let m = limited(Limits { bytes: Some(1 << 20), inodes: Some(10) });
    fs::write(m.path("f"), vec![1; 256 << 10]).unwrap();
    let space = rustix::fs::statvfs(&m.mnt).unwrap();
    assert_eq!(space.f_blocks * space.f_frsize, 1 << 20);
    assert_eq!(space.f_bavail * space.f_frsize, 768 << 10);
    assert_eq!((space.f_files, space.f_ffree), (10, 9));
}

#[test]
fn a_limit_set_or_raised_under_open_files_holds_for_what_is_opened_then() {
    let m = mounted(&MountOptions::default());
    fs::write(m.path("before"), "1234").unwrap();
    let open = OpenOptions::new().append(true).open(m.path("before")).unwrap();
    (&open).write_all(b"5678").unwrap();
    m.volume.set_limits(bytes(20));
    assert_eq!(counted(&m.volume).bytes, 8);
    let mut later = File::create(m.path("later")).unwrap();
    later.write_all(&[0; 12]).unwrap();
    assert_eq!(errno(later.write_all(b"x")), Errno::DQUOT);
    m.volume.set_limits(bytes(21));
    later.write_all(b"x").unwrap();
    assert_eq!(errno(later.write_all(b"x")), Errno::DQUOT);
    m.volume.set_limits(Limits::default());
    later.write_all(&[0; 4096]).unwrap();
    drop((open, later));
    fs::write(m.path("more"), "more").unwrap();
}

#[test]
fn a_file_without_a_name_does_not_count() {
    let m = limited(bytes(10));
    let file = File::create(m.path("f")).unwrap();
    fs::remove_file(m.path("f")).unwrap();
    (&file).write_all(&[1; 4096]).unwrap();
    fs::write(m.path("g"), [2; 10]).unwrap();
    assert_eq!(counted(&m.volume).bytes, 10);
}
