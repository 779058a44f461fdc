//! Making and removing names.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{AtFlags, CWD, FileType, Mode};

use crate::calls::{as_user, as_user_in, chmod};
use crate::places::same;

#[test]
fn what_is_made_belongs_to_its_maker_with_his_umask() {
    same(|place, notes| {
        as_user(1234, 2345, || {
            rustix::process::umask(Mode::from_raw_mode(0o027));
            notes.done("create", File::create_new(place.path("file")));
            notes.done("mkdir", fs::create_dir(place.path("dir")));
            notes.done("symlink", symlink("file", place.path("symlink")));
            let mode = Mode::from_raw_mode(0o666);
            notes.done("fifo", rustix::fs::mknodat(CWD, place.path("fifo"), FileType::Fifo, mode, 0));
            notes
                .done("mknod", rustix::fs::mknodat(CWD, place.path("plain"), FileType::RegularFile, mode, 0));
            let device = rustix::fs::makedev(1, 3);
            let node = rustix::fs::mknodat(CWD, place.path("null"), FileType::CharacterDevice, mode, device);
            notes.done("device node", node);
        });
        for name in ["file", "dir", "symlink", "fifo", "plain"] {
            notes.stat(place.path(name));
        }
    });
}

#[test]
fn a_directory_with_setgid_gives_its_group_to_what_is_made_in_it() {
    same(|place, notes| {
        let dir = place.path("shared");
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, None, Some(777)).unwrap();
        chmod(&dir, 0o2777);
        as_user(1234, 2345, || {
            notes.done("create", File::create_new(dir.join("file")));
            notes.done("mkdir", fs::create_dir(dir.join("dir")));
            notes.done("symlink", symlink("file", dir.join("symlink")));
            let mode = Mode::from_raw_mode(0o2755);
            let open = rustix::fs::open(
                dir.join("program"),
                rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
                mode,
            );
            notes.done("create with setgid by no member", open);
        });
        as_user_in(1234, &[2345, 777], || {
            let mode = Mode::from_raw_mode(0o2755);
            let open = rustix::fs::open(
                dir.join("member"),
                rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
                mode,
            );
            notes.done("create with setgid by a member", open);
        });
        for name in ["file", "dir", "symlink", "program", "member"] {
            notes.stat(dir.join(name));
        }
    });
}

#[test]
fn a_name_is_made_once() {
    same(|place, notes| {
        let path = place.path("name");
        notes.done("create", File::create_new(&path));
        notes.done("create again", File::create_new(&path));
        notes.done("mkdir", fs::create_dir(&path));
        notes.done("symlink", symlink("x", &path));
        notes.done("link", fs::hard_link(&path, &path));
        let mode = Mode::from_raw_mode(0o644);
        notes.done("mknod", rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0));
        symlink("nowhere", place.path("dangling")).unwrap();
        notes.done("O_EXCL on a dangling link", File::create_new(place.path("dangling")));
        notes.done("create through it", File::create(place.path("dangling")));
        notes.list(&place.dir);
    });
}

#[test]
fn hard_links_are_names_of_one_file() {
    same(|place, notes| {
        let (a, b) = (place.path("a"), place.path("dir/b"));
        fs::create_dir(place.path("dir")).unwrap();
        fs::write(&a, b"content").unwrap();
        notes.done("link", fs::hard_link(&a, &b));
        notes.note("one inode", fs::metadata(&a).unwrap().ino() == fs::metadata(&b).unwrap().ino());
        OpenOptions::new().append(true).open(&b).unwrap().write_all(b" and more").unwrap();
        chmod(&b, 0o600);
        notes.stat(&a);
        notes.content(&a);
        notes.done("unlink", fs::remove_file(&a));
        notes.stat(&b);
        notes.content(&b);
        notes.done("link of a directory", fs::hard_link(place.path("dir"), place.path("other")));
        notes.done("link into nowhere", fs::hard_link(&b, place.path("absent/c")));
        symlink("dir/b", place.path("s")).unwrap();
        notes.done("link of a symlink", fs::hard_link(place.path("s"), place.path("t")));
        notes.stat(place.path("t"));
        let followed =
            rustix::fs::linkat(CWD, place.path("s"), CWD, place.path("u"), AtFlags::SYMLINK_FOLLOW);
        notes.done("link of what it names", followed);
        notes.stat(place.path("u"));
    });
}

#[test]
fn only_empty_directories_are_removed() {
    same(|place, notes| {
        fs::create_dir_all(place.path("d/e")).unwrap();
        File::create(place.path("f")).unwrap();
        notes.done("rmdir of a full one", fs::remove_dir(place.path("d")));
        notes.done("rmdir of a file", fs::remove_dir(place.path("f")));
        notes.done("unlink of a directory", fs::remove_file(place.path("d")));
        notes.done("rmdir of .", fs::remove_dir(place.path("d/e/.")));
        notes.done("rmdir of ..", fs::remove_dir(place.path("d/e/..")));
        notes.done("rmdir", fs::remove_dir(place.path("d/e")));
        notes.done("rmdir", fs::remove_dir(place.path("d")));
        notes.done("rmdir of nothing", fs::remove_dir(place.path("d")));
        notes.done("unlink of nothing", fs::remove_file(place.path("d")));
        notes.done("unlink with a slash", fs::remove_file(place.path("f/")));
        notes.list(&place.dir);
    });
}

#[test]
fn names_have_any_bytes_and_up_to_255_of_them() {
    same(|place, notes| {
        let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        for name in [&all[..], &[0xff, 0xfe][..], b" ", b"\n", "ä€😀".as_bytes(), b"-rf", b"..."] {
            let path = place.path(OsStr::from_bytes(name));
            notes.done("create", fs::write(&path, name));
            notes.call("read", fs::read(&path));
        }
        notes.list(&place.dir);
        let long = |length: usize| place.path("n".repeat(length));
        notes.done("255 bytes", File::create_new(long(255)));
        notes.done("256 bytes", File::create_new(long(256)));
        notes.done("look at 256 bytes", fs::metadata(long(256)));
        notes.done("mkdir", fs::create_dir(long(256)));
        notes.done("rename", fs::rename(long(255), long(256)));
        notes.done("symlink", symlink("x", long(256)));
        notes.done("unlink", fs::remove_file(long(256)));
    });
}

#[test]
fn paths_go_up_to_the_limit() {
    same(|place, notes| {
        // 4095 bytes with what is before, which is made as long for both places.
        let mut path = place.path("b".repeat(250 - place.dir.as_os_str().len() - 1));
        notes.done("mkdir", fs::create_dir(&path));
        while path.as_os_str().len() + 101 <= 4095 {
            path.push("p".repeat(100));
            notes.done("mkdir", fs::create_dir(&path));
        }
        let rest = 4095 - path.as_os_str().len() - 1;
        notes.done("the longest", fs::write(path.join("f".repeat(rest)), b"deep"));
        notes.done("read it", fs::metadata(path.join("f".repeat(rest))));
        notes.done("one more", File::create_new(path.join("f".repeat(rest + 1))));
        // And deeper, step by step.
        let mut dir = rustix::fs::open(&path, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..20 {
            let name = "q".repeat(200);
            rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
            dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        notes.done("below that", rustix::fs::openat(&dir, "file", flags, Mode::from_raw_mode(0o644)));
        notes.note("it is listed", rustix::fs::Dir::read_from(&dir).unwrap().count());
    });
}

#[test]
fn symbolic_links_hold_any_text_and_are_followed() {
    same(|place, notes| {
        fs::write(place.path("target"), b"here").unwrap();
        symlink("target", place.path("s")).unwrap();
        notes.call("readlink", fs::read_link(place.path("s")));
        notes.content(place.path("s"));
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW;
        notes.done("O_NOFOLLOW", rustix::fs::open(place.path("s"), flags, Mode::empty()));
        symlink("loop", place.path("loop")).unwrap();
        notes.done("a loop", fs::read(place.path("loop")));
        for length in [1000, 4095, 4096] {
            let path = place.path(format!("long-{length}"));
            notes.done(&format!("{length} bytes"), symlink("x".repeat(length), &path));
            notes.call("its length", fs::read_link(&path).map(|target| target.as_os_str().len()));
        }
        notes.done("an empty one", symlink("", place.path("empty")));
        notes.done("lchown", std::os::unix::fs::lchown(place.path("s"), Some(5), Some(6)));
        notes.stat(place.path("s"));
        notes.stat(place.path("target"));
        notes.call("readlink of a file", fs::read_link(place.path("target")));
    });
}

#[test]
fn fifos_sockets_and_devices_work() {
    same(|place, notes| {
        let mode = Mode::from_raw_mode(0o644);
        let fifo = place.path("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        let writer = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::write(fifo, b"through the fifo")
        });
        notes.call("fifo", fs::read_to_string(&fifo));
        notes.done("writer", writer.join().unwrap());
        let socket = place.path("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = UnixStream::connect(&socket);
        notes.done("connect", client.as_ref().map(drop).map_err(|e| std::io::Error::from(e.kind())));
        client.unwrap().write_all(b"hello").unwrap();
        let mut said = String::new();
        notes.call("socket", listener.accept().unwrap().0.read_to_string(&mut said));
        let null = place.path("null");
        rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3)).unwrap();
        notes.done(
            "write to a device",
            OpenOptions::new().write(true).open(&null).and_then(|mut f| f.write_all(b"x")),
        );
        let block = rustix::fs::mknodat(
            CWD,
            place.path("block"),
            FileType::BlockDevice,
            mode,
            rustix::fs::makedev(7, 200),
        );
        notes.done("block device", block);
        for name in ["fifo", "socket", "null", "block"] {
            notes.stat(place.path(name));
        }
        notes.done("unlink", fs::remove_file(&socket));
        notes.done("connect to nothing", UnixStream::connect(&socket));
    });
}

#[test]
fn a_trailing_slash_means_a_directory() {
    same(|place, notes| {
        File::create(place.path("f")).unwrap();
        fs::create_dir(place.path("d")).unwrap();
        notes.done("stat of f/", fs::metadata(place.path("f/")));
        notes.done("mkdir with a slash", fs::create_dir(place.path("e/")));
        notes.done("create with a slash", File::create(place.path("g/")));
        notes.done("rename of f/", fs::rename(place.path("f/"), place.path("h")));
        notes.done("rename to a slash", fs::rename(place.path("d/"), place.path("i/")));
        let path = CString::new(place.path("f/x").as_os_str().as_bytes()).unwrap();
        notes.done("below a file", fs::metadata(OsStr::from_bytes(path.as_bytes())));
        notes.list(&place.dir);
    });
}
