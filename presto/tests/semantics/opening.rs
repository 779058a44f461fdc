//! open(2), descriptors, and files whose names are gone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::calls::{as_user, chmod, truncate};
use crate::places::same;

#[test]
fn open_flags_mean_what_they_mean_below() {
    same(|place, notes| {
        fs::write(place.path("f"), b"0123456789").unwrap();
        fs::create_dir(place.path("d")).unwrap();
        let mut open = |what: &str, path: &str, flags: OFlags| {
            notes.done(what, rustix::fs::open(place.path(path), flags, Mode::from_raw_mode(0o644)));
        };
        open("a directory to write", "d", OFlags::WRONLY);
        open("a directory to read", "d", OFlags::RDONLY);
        open("create a directory", "d", OFlags::CREATE);
        open("O_DIRECTORY of a file", "f", OFlags::DIRECTORY);
        open("absent", "g", OFlags::RDONLY);
        open("below a file", "f/x", OFlags::CREATE | OFlags::WRONLY);
        open("O_PATH", "f", OFlags::PATH);
        open("O_NOATIME", "f", OFlags::NOATIME);
        open("O_SYNC", "f", OFlags::SYNC | OFlags::WRONLY);
        open("O_DSYNC", "f", OFlags::DSYNC | OFlags::WRONLY);
        open("O_TRUNC for reading", "f", OFlags::TRUNC);
        notes.content(place.path("f"));
        let read_only = File::open(place.path("f")).unwrap();
        notes.done("write by a descriptor for reading", read_only.write_at(b"x", 0));
        notes.done("ftruncate by it", read_only.set_len(3));
        let write_only = OpenOptions::new().write(true).open(place.path("f")).unwrap();
        notes.done("read by a descriptor for writing", write_only.read_at(&mut [0], 0));
        notes.done("read a directory", File::open(place.path("d")).unwrap().read_at(&mut [0], 0));
    });
}

#[test]
fn an_open_file_outlives_its_name() {
    same(|place, notes| {
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).open(place.path("f")).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(place.path("f")).unwrap();
        notes.call("write", file.write(b" after"));
        file.rewind().unwrap();
        let mut text = String::new();
        notes.call("read", file.read_to_string(&mut text));
        notes.note("text", &text);
        notes.done("truncate", file.set_len(3));
        notes.done("chmod", rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)));
        notes.done("chown", rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(3)), None));
        let xattr = rustix::fs::fsetxattr(&file, c"trusted.x", b"v", rustix::fs::XattrFlags::empty());
        notes.done("setxattr", xattr);
        let stat = file.metadata().unwrap();
        notes.note("stat", (stat.mode(), stat.uid(), stat.len(), stat.nlink()));
        notes.done("fsync", file.sync_all());
        let again: PathBuf = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        notes.call("by /proc", fs::read_to_string(&again));
        let revived = rustix::fs::linkat(CWD, &again, CWD, place.path("g"), AtFlags::SYMLINK_FOLLOW);
        notes.done("a new name for it", revived);
        notes.done("a new file at the name", fs::write(place.path("f"), b"new"));
        notes.content(place.path("f"));
        drop(file);
        notes.list(&place.dir);
    });
}

#[test]
fn a_replaced_file_stays_whole_for_who_has_it_open() {
    same(|place, notes| {
        fs::write(place.path("f"), b"the old text").unwrap();
        let mut old = File::open(place.path("f")).unwrap();
        for round in 0..20 {
            fs::write(place.path(".tmp"), format!("text {round}")).unwrap();
            fs::rename(place.path(".tmp"), place.path("f")).unwrap();
            notes.content(place.path("f"));
        }
        let mut text = String::new();
        notes.call("read", old.read_to_string(&mut text));
        notes.note("text", text);
    });
}

#[test]
fn appends_of_several_writers_do_not_overlap() {
    same(|place, notes| {
        let path = place.path("log");
        File::create(&path).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    let mut file = OpenOptions::new().append(true).open(path).unwrap();
                    for _ in 0..300 {
                        file.write_all(&[b'a' + writer; 100]).unwrap();
                        file.write_all(b"\n").unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        let full = |line: &str| line.len().is_multiple_of(100) && !line.is_empty();
        let mut bytes = text.bytes().collect::<Vec<u8>>();
        bytes.sort_unstable();
        notes.note("size", text.len());
        notes.note("blocks of one writer each", text.lines().filter(|line| !line.is_empty()).all(full));
        notes.note(
            "all bytes",
            bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte))),
        );
        notes.done("pwrite goes to the end too", {
            let file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_at(b"end", 0)
        });
        notes.note("end", fs::read_to_string(&path).unwrap().ends_with("end"));
    });
}

#[test]
fn truncation_cuts_and_extends_with_zeros() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"0123456789").unwrap();
        for size in [4, 12, 0, 70_000, 3] {
            notes.done(
                "truncate",
                rustix::fs::open(&path, OFlags::WRONLY, Mode::empty())
                    .and_then(|fd| rustix::fs::ftruncate(fd, size)),
            );
            notes.note("content", fs::read(&path).unwrap());
        }
        notes.done("too large", File::options().write(true).open(&path).unwrap().set_len(u64::MAX / 2));
        notes.stat(&path);
        let file = File::options().append(true).open(&path).unwrap();
        notes.done("of a file that is open to append", file.set_len(1));
        notes.done("by name", truncate(&path, 5));
        notes.note("content", fs::read(&path).unwrap());
        notes.done("open with O_TRUNC", OpenOptions::new().write(true).truncate(true).open(&path));
        notes.stat(&path);
    });
}

#[test]
fn direct_io_goes_through() {
    // Where the lower file system knows it.
    for kind in ["ext4", "xfs", "btrfs"] {
        crate::places::same_on(
            kind,
            &[crate::places::Way::Passthrough, crate::places::Way::Daemon],
            |place, notes| {
                let path = place.path("f");
                let direct = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .custom_flags(libc::O_DIRECT)
                    .open(&path);
                notes.done(
                    "open",
                    direct
                        .as_ref()
                        .map(drop)
                        .map_err(|e| std::io::Error::from_raw_os_error(e.raw_os_error().unwrap())),
                );
                let direct = direct.unwrap();
                let mut pages = vec![0u8; 3 * 4096];
                let at = pages.as_ptr().align_offset(4096);
                let page = &mut pages[at..at + 4096];
                page.fill(b'd');
                notes.call("write", direct.write_at(page, 0));
                notes.call("further on", direct.write_at(page, 8192));
                page.fill(0);
                notes.call("read", direct.read_at(page, 8192));
                notes.note("what", page.iter().all(|byte| *byte == b'd'));
                notes.note(
                    "as others see it",
                    fs::read(&path).unwrap().iter().filter(|byte| **byte == b'd').count(),
                );
                notes.call("behind the end", direct.read_at(page, 1 << 20));
            },
        );
    }
}

#[test]
fn permissions_are_asked_when_a_file_is_opened() {
    same(|place, notes| {
        fs::write(place.path("f"), b"text").unwrap();
        let open = File::open(place.path("f")).unwrap();
        chmod(place.path("f"), 0o000);
        as_user(1000, 1000, || {
            notes.done("open", File::open(place.path("f")));
            let mut text = [0; 4];
            notes.call("read by a descriptor from before", open.read_at(&mut text, 0));
            notes.done("open it anew", File::open(format!("/proc/self/fd/{}", open.as_raw_fd())));
        });
    });
}
