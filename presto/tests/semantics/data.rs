//! Bytes of files: holes, space, copies.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use crate::places::{Notes, same};

fn new(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Where data and holes begin.
fn extents(notes: &mut Notes, file: &File) {
    let size = file.metadata().unwrap().len();
    let mut at = 0;
    while at < size {
        let data = rustix::fs::seek(file, SeekFrom::Data(at));
        notes.call("data", data);
        let Ok(data) = data else { break };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data));
        notes.call("hole", hole);
        at = hole.unwrap();
    }
    notes.done("data behind the end", rustix::fs::seek(file, SeekFrom::Data(size)));
    notes.done("hole behind the end", rustix::fs::seek(file, SeekFrom::Hole(size + 1)));
}

#[test]
fn holes_are_kept_and_found() {
    same(|place, notes| {
        let path = place.path("f");
        let file = new(&path);
        for at in [0, 1 << 20, 5 << 20] {
            file.write_all_at(&[b'x'; 65536], at).unwrap();
        }
        file.set_len(8 << 20).unwrap();
        file.sync_all().unwrap();
        extents(notes, &file);
        let mut hole = [1; 16];
        notes.call("read of a hole", file.read_at(&mut hole, 2 << 20));
        notes.note("zeros", hole);
        notes.note("blocks", fs::metadata(&path).unwrap().blocks() < 1024);
    });
}

#[test]
fn fallocate_allocates_punches_and_zeroes() {
    same(|place, notes| {
        for (name, flags) in [
            ("allocate", FallocateFlags::empty()),
            ("keep size", FallocateFlags::KEEP_SIZE),
            ("punch hole", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            ("zero range", FallocateFlags::ZERO_RANGE),
            ("zero range, keep size", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
            ("punch hole without keep size", FallocateFlags::PUNCH_HOLE),
        ] {
            let file = new(&place.path(name));
            file.write_all_at(&[b'y'; 16384], 0).unwrap();
            notes.done(name, rustix::fs::fallocate(&file, flags, 4096, 8192));
            notes.note("size", file.metadata().unwrap().len());
            notes.note(
                "content",
                fs::read(place.path(name)).unwrap().iter().filter(|byte| **byte == b'y').count(),
            );
            notes.done("further on", rustix::fs::fallocate(&file, flags, 32768, 4096));
            notes.note("size", file.metadata().unwrap().len());
        }
        let file = new(&place.path("f"));
        notes.done("no bytes", rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 0));
        drop(file);
        let file = File::open(place.path("f")).unwrap();
        notes.done("for reading", rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 10));
    });
}

#[test]
fn copy_file_range_copies_within_the_volume() {
    same(|place, notes| {
        let from = new(&place.path("from"));
        from.write_all_at(&(0..=255).cycle().take(100_000).collect::<Vec<u8>>(), 0).unwrap();
        let to = new(&place.path("to"));
        let (mut at, mut goal) = (1000, 500);
        notes.call("copy", rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut goal), 50_000));
        notes.note("offsets", (at, goal));
        notes.stat(place.path("to"));
        let (copy, original) = (fs::read(place.path("to")).unwrap(), fs::read(place.path("from")).unwrap());
        notes.note("equal", copy[500..] == original[1000..51_000]);
        let (mut at, mut goal) = (200_000, 0);
        notes.call(
            "behind the end",
            rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut goal), 10),
        );
        let (mut at, mut goal) = (0, 100);
        notes.call(
            "overlapping",
            rustix::fs::copy_file_range(&from, Some(&mut at), &from, Some(&mut goal), 1000),
        );
        let (mut at, mut goal) = (0, 50_000);
        notes.call(
            "within one file",
            rustix::fs::copy_file_range(&from, Some(&mut at), &from, Some(&mut goal), 1000),
        );
        let reading = File::open(place.path("to")).unwrap();
        notes.done("to who only reads", rustix::fs::copy_file_range(&from, None, &reading, None, 10));
    });
}

#[test]
fn copies_from_elsewhere_arrive() {
    same(|place, notes| {
        let elsewhere = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[1]).collect();
        fs::write(elsewhere.path().join("from"), &content).unwrap();
        // Tries copy_file_range, sendfile and splice before it reads and writes.
        notes.call("copy", fs::copy(elsewhere.path().join("from"), place.path("to")));
        notes.note("equal", fs::read(place.path("to")).unwrap() == content);
        let from = File::open(place.path("to")).unwrap();
        let to = new(&place.path("sent"));
        notes.call("sendfile", rustix::fs::sendfile(&to, &from, None, 150_000));
        notes.note("equal", fs::read(place.path("sent")).unwrap() == content[..150_000]);
        // Between a file and a pipe io::copy splices.
        let (mut out, mut into) = std::io::pipe().unwrap();
        notes.call("splice out", std::io::copy(&mut (&from).take(4096), &mut into));
        drop(into);
        let mut spliced = new(&place.path("spliced"));
        notes.call("splice in", std::io::copy(&mut out, &mut spliced));
        notes.note("equal", fs::read(place.path("spliced")).unwrap() == content[150_000..154_096]);
    });
}

#[test]
fn vectors_and_their_flags_work() {
    same(|place, notes| {
        let file = new(&place.path("f"));
        let parts = [IoSlice::new(b"one "), IoSlice::new(b"two "), IoSlice::new(b"three")];
        notes.call("pwritev", rustix::io::pwritev2(&file, &parts, 5, ReadWriteFlags::empty()));
        notes.call(
            "RWF_APPEND",
            rustix::io::pwritev2(&file, &[IoSlice::new(b"!")], 0, ReadWriteFlags::APPEND),
        );
        notes.call("RWF_DSYNC", rustix::io::pwritev2(&file, &[IoSlice::new(b"0")], 0, ReadWriteFlags::DSYNC));
        notes.call("RWF_SYNC", rustix::io::pwritev2(&file, &[IoSlice::new(b"1")], 1, ReadWriteFlags::SYNC));
        notes.content(place.path("f"));
        let (mut a, mut b) = ([0; 7], [0; 20]);
        let mut parts = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        notes.call("preadv", rustix::io::preadv(&file, &mut parts, 2));
        notes.note("what", (a, b));
    });
}

#[test]
fn files_end_where_the_limits_are() {
    same(|place, notes| {
        let file = new(&place.path("f"));
        notes.done("behind any limit", file.write_at(b"x", i64::MAX as u64 - 1));
        notes.done("4 TiB", file.write_at(b"x", 4 << 40));
        notes.done("read there", file.read_at(&mut [0], 4 << 40));
        notes.done("read far behind", file.read_at(&mut [0], 6 << 60));
        notes.stat(place.path("f"));
        // SAFETY: nothing is called when the signal comes.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let resource = rustix::process::Resource::Fsize;
        let before = rustix::process::getrlimit(resource);
        let limit = rustix::process::Rlimit { current: Some(1000), ..before };
        let file = new(&place.path("limited"));
        rustix::process::setrlimit(resource, limit).unwrap();
        let (first, second) = (file.write_at(&[1; 2000], 0), file.write_at(&[1; 10], 1000));
        rustix::process::setrlimit(resource, before).unwrap();
        notes.call("as far as the process may", first);
        notes.call("and no further", second);
        notes.stat(place.path("limited"));
    });
}

#[test]
fn what_one_wrote_the_others_read() {
    same(|place, notes| {
        let path = place.path("f");
        let (a, b) = (new(&path), File::open(&path).unwrap());
        let mut text = [0; 8];
        for round in 0..50u64 {
            a.write_all_at(&round.to_le_bytes(), round * 8).unwrap();
            notes.call("by another descriptor", b.read_at(&mut text, round * 8));
            notes.note("what", u64::from_le_bytes(text));
            notes.note("its size", fs::metadata(&path).unwrap().len());
        }
        notes.note("by a new one", fs::read(&path).unwrap().len());
    });
}
