//! Extended attributes in all name spaces.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use rustix::fs::XattrFlags;

use crate::calls::{as_user, chmod};
use crate::places::{Notes, Place, Way, same, same_on};

fn set(path: &Path, name: &str, value: &[u8], flags: XattrFlags) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, CString::new(name).unwrap(), value, flags)
}

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    let size = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut buffer)?;
    buffer.truncate(size);
    Ok(buffer)
}

fn list(notes: &mut Notes, path: &Path) {
    let mut buffer = vec![0; 70_000];
    let names = rustix::fs::llistxattr(path, &mut buffer).map(|size| {
        let names = buffer[..size].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort();
        names
    });
    notes.call("list", names);
}

fn of_each_kind(place: &Place) {
    fs::write(place.path("file"), b"x").unwrap();
    fs::create_dir(place.path("dir")).unwrap();
    std::os::unix::fs::symlink("file", place.path("symlink")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, place.path("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn each_name_space_is_kept() {
    same(|place, notes| {
        of_each_kind(place);
        for kind in ["file", "dir", "symlink", "fifo"] {
            let path = place.path(kind);
            for name in ["user.a", "trusted.a", "security.a", "system.a", "unknown.a", "user.", "nodot"] {
                notes.done(&format!("{name} of a {kind}"), set(&path, name, b"value", XattrFlags::empty()));
                notes.call("get", get(&path, name));
            }
            list(notes, &path);
            for name in ["user.a", "trusted.a", "security.a", "user.absent"] {
                let removed = rustix::fs::lremovexattr(&path, CString::new(name).unwrap());
                notes.done(&format!("remove {name} of a {kind}"), removed);
            }
            list(notes, &path);
        }
    });
}

#[test]
fn values_may_be_large() {
    same(|place, notes| {
        of_each_kind(place);
        let path = place.path("file");
        // ext4 has one block for all of a file's; others have more.
        for size in [0, 1, 255, 3000, 16_000, 65_535, 65_536, 65_537] {
            let value: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0]).collect();
            let result = set(&path, "user.large", &value, XattrFlags::empty());
            let fits = result.is_ok();
            notes.done(&format!("{size} bytes"), result);
            notes.note("as it was given", get(&path, "user.large").ok() == Some(value) || !fits);
            let _ = rustix::fs::removexattr(&path, c"user.large");
        }
        for length in [1, 250, 251] {
            let name = format!("user.{}", "n".repeat(length));
            notes.done(&format!("a name of {}", name.len()), set(&path, &name, b"v", XattrFlags::empty()));
        }
        list(notes, &path);
        notes.done("a short value", set(&path, "user.short", b"12345", XattrFlags::empty()));
        notes.done("a buffer too small", rustix::fs::getxattr(&path, c"user.short", &mut [0u8; 3][..]));
        notes.call("no buffer", rustix::fs::getxattr(&path, c"user.short", &mut [0u8; 0][..]));
        notes.done("a list too small", rustix::fs::listxattr(&path, &mut [0u8; 3][..]));
    });
}

#[test]
fn flags_say_whether_it_may_be_there() {
    same(|place, notes| {
        of_each_kind(place);
        let path = place.path("file");
        notes.done("replace nothing", set(&path, "user.a", b"1", XattrFlags::REPLACE));
        notes.done("create", set(&path, "user.a", b"1", XattrFlags::CREATE));
        notes.done("create again", set(&path, "user.a", b"2", XattrFlags::CREATE));
        notes.done("replace", set(&path, "user.a", b"3", XattrFlags::REPLACE));
        notes.call("get", get(&path, "user.a"));
        notes.done("of nothing", set(&place.path("absent"), "user.a", b"1", XattrFlags::empty()));
    });
}

#[test]
fn users_see_what_is_theirs() {
    // btrfs shows everybody the names of `trusted.` attributes; a volume on it does not.
    for kind in ["ext4", "xfs", "tmpfs"] {
        same_on(kind, &[Way::Passthrough], users);
    }
}

fn users(place: &Place, notes: &mut Notes) {
    of_each_kind(place);
    let path = place.path("file");
    // tmpfs has `user.` since Linux 6.6.
    for name in ["user.a", "trusted.a", "security.a"] {
        notes.done(name, set(&path, name, b"v", XattrFlags::empty()));
    }
    for mode in [0o644, 0o600, 0o666] {
        chmod(&path, mode);
        as_user(1000, 1000, || {
            list(notes, &path);
            for name in ["user.a", "trusted.a", "security.a"] {
                notes.call(&format!("{mode:o} get {name}"), get(&path, name));
                notes.done("set", set(&path, name, b"w", XattrFlags::empty()));
                notes.done("remove", rustix::fs::lremovexattr(&path, CString::new(name).unwrap()));
            }
        });
        notes.done("again", set(&path, "user.a", b"v", XattrFlags::empty()));
    }
}

#[test]
fn attributes_go_with_the_file_through_rename_and_link() {
    same(|place, notes| {
        of_each_kind(place);
        for kind in ["file", "dir", "symlink"] {
            set(&place.path(kind), "trusted.a", kind.as_bytes(), XattrFlags::empty()).unwrap();
        }
        fs::rename(place.path("file"), place.path("dir/moved")).unwrap();
        fs::hard_link(place.path("dir/moved"), place.path("second")).unwrap();
        fs::rename(place.path("dir"), place.path("other")).unwrap();
        for name in ["other", "other/moved", "second", "symlink"] {
            notes.call(name, get(&place.path(name), "trusted.a"));
        }
    });
}
