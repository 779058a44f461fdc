//! Who may do what: mode bits, sticky directories, POSIX ACLs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::chown;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, XattrFlags};

use crate::calls::{acl, as_user, as_user_in, chmod};
use crate::places::{Notes, same};

fn tried(notes: &mut Notes, path: &Path) {
    notes.done("read", File::open(path));
    notes.done("write", OpenOptions::new().write(true).open(path));
    for access in [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK] {
        notes.done("access", rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS));
    }
}

#[test]
fn mode_bits_are_honoured() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"x").unwrap();
        chown(&path, Some(100), Some(200)).unwrap();
        for mode in [0o000, 0o400, 0o040, 0o004, 0o777, 0o222, 0o070] {
            chmod(&path, mode);
            notes.note("mode", mode);
            as_user(100, 300, || tried(notes, &path));
            as_user(101, 200, || tried(notes, &path));
            as_user_in(101, &[300, 200], || tried(notes, &path));
            as_user(101, 300, || tried(notes, &path));
            tried(notes, &path);
        }
    });
}

#[test]
fn directories_ask_for_their_bits() {
    same(|place, notes| {
        let dir = place.path("d");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), b"x").unwrap();
        chmod(dir.join("f"), 0o666);
        for mode in [0o000, 0o001, 0o004, 0o005, 0o003, 0o007] {
            chmod(&dir, mode);
            as_user(1, 1, || {
                notes.list(&dir);
                notes.content(dir.join("f"));
                notes.done("stat", fs::metadata(dir.join("f")));
                let made = File::create_new(dir.join("g"));
                let is_made = made.is_ok();
                notes.done("create", made);
                if is_made {
                    notes.done("unlink", fs::remove_file(dir.join("g")));
                }
                notes.done("link", fs::hard_link(dir.join("f"), dir.join("h")));
                notes.done("rename", fs::rename(dir.join("f"), dir.join("f2")));
                notes.done("back", fs::rename(dir.join("f2"), dir.join("f")));
            });
            let _ = fs::remove_file(dir.join("h"));
        }
    });
}

#[test]
fn all_groups_of_a_user_count() {
    same(|place, notes| {
        let dir = place.path("team");
        fs::create_dir(&dir).unwrap();
        chown(&dir, None, Some(77)).unwrap();
        chmod(&dir, 0o770);
        as_user_in(1000, &[1000, 5, 77], || {
            notes.done("create", fs::write(dir.join("f"), b"x"));
            notes.done("mkdir", fs::create_dir(dir.join("d")));
            notes.done("rename", fs::rename(dir.join("f"), dir.join("d/g")));
            notes.done("link", fs::hard_link(dir.join("d/g"), dir.join("h")));
            notes.done("unlink", fs::remove_file(dir.join("h")));
        });
        as_user_in(1001, &[1000, 5], || notes.done("another", File::create_new(dir.join("i"))));
        notes.stat(dir.join("d/g"));
    });
}

#[test]
fn in_a_sticky_directory_only_owners_take_names_away() {
    same(|place, notes| {
        let dir = place.path("tmp");
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o1777);
        as_user(1, 1, || {
            fs::write(dir.join("mine"), b"1").unwrap();
            fs::create_dir(dir.join("my-dir")).unwrap();
        });
        as_user(2, 2, || {
            fs::write(dir.join("other"), b"2").unwrap();
            notes.done("unlink", fs::remove_file(dir.join("mine")));
            notes.done("rmdir", fs::remove_dir(dir.join("my-dir")));
            notes.done("rename", fs::rename(dir.join("mine"), dir.join("yours")));
            notes.done("rename over", fs::rename(dir.join("other"), dir.join("mine")));
            notes.done("his own", fs::rename(dir.join("other"), dir.join("renamed")));
        });
        chown(&dir, Some(2), None).unwrap();
        as_user(2, 2, || notes.done("by the directory's owner", fs::remove_file(dir.join("mine"))));
        notes.done("by root", fs::remove_dir(dir.join("my-dir")));
        notes.list(&dir);
    });
}

const NOBODY: u32 = u32::MAX;

#[test]
fn acls_let_in_and_keep_out() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"x").unwrap();
        chmod(&path, 0o600);
        // user::rw-, user:7:rw-, user:8:---, group::r--, group:9:r--, mask::r--, other::---
        let value = acl(&[
            (1, 6, NOBODY),
            (2, 6, 7),
            (2, 0, 8),
            (4, 4, NOBODY),
            (8, 4, 9),
            (0x10, 4, NOBODY),
            (0x20, 0, NOBODY),
        ]);
        let set = rustix::fs::setxattr(&path, c"system.posix_acl_access", &value, XattrFlags::empty());
        notes.done("set", set);
        notes.stat(&path);
        for (uid, gid) in [(7, 100), (8, 9), (100, 9), (100, 0), (100, 100)] {
            as_user(uid, gid, || tried(notes, &path));
        }
        chmod(&path, 0o660);
        notes.note("a wider mask", {
            let mut buffer = [0; 200];
            let size = rustix::fs::getxattr(&path, c"system.posix_acl_access", &mut buffer).unwrap();
            buffer[..size].to_vec()
        });
        as_user(7, 100, || tried(notes, &path));
        notes.done(
            "garbage",
            rustix::fs::setxattr(&path, c"system.posix_acl_access", b"garbage", XattrFlags::empty()),
        );
        let default = rustix::fs::setxattr(&path, c"system.posix_acl_default", &value, XattrFlags::empty());
        notes.done("a default of a file", default);
        notes.done("remove", rustix::fs::removexattr(&path, c"system.posix_acl_access"));
        notes.stat(&path);
        as_user(7, 100, || tried(notes, &path));
        as_user(7, 100, || {
            let set = rustix::fs::setxattr(&path, c"system.posix_acl_access", &value, XattrFlags::empty());
            notes.done("by a stranger", set);
        });
    });
}

#[test]
fn default_acls_are_inherited() {
    same(|place, notes| {
        let dir = place.path("d");
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o777);
        // user::rwx, user:7:rwx, group::r-x, mask::rwx, other::---
        let value = acl(&[(1, 7, NOBODY), (2, 7, 7), (4, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 0, NOBODY)]);
        let set = rustix::fs::setxattr(&dir, c"system.posix_acl_default", &value, XattrFlags::empty());
        notes.done("set", set);
        as_user(1000, 1000, || {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
            fs::write(dir.join("f"), b"x").unwrap();
            fs::create_dir(dir.join("sub")).unwrap();
            fs::write(dir.join("sub/g"), b"x").unwrap();
            std::os::unix::fs::symlink("f", dir.join("s")).unwrap();
        });
        for name in ["f", "sub", "sub/g", "s"] {
            notes.stat(dir.join(name));
            for xattr in [c"system.posix_acl_access", c"system.posix_acl_default"] {
                let mut buffer = [0; 200];
                let got = rustix::fs::lgetxattr(dir.join(name), xattr, &mut buffer);
                notes.call("acl", got.map(|size| buffer[..size].to_vec()));
            }
        }
        as_user(7, 7, || tried(notes, &dir.join("f")));
        as_user(8, 8, || tried(notes, &dir.join("f")));
    });
}
