//! Mode, owner, times, and what a change of one does to the others.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};

use crate::calls::{as_user, as_user_in, chmod};
use crate::places::{Notes, same};

fn times(path: &Path) -> ((i64, i64), (i64, i64)) {
    let stat = fs::symlink_metadata(path).unwrap();
    ((stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec()))
}

fn set_times(path: &Path, access: (i64, i64), modification: (i64, i64)) -> rustix::io::Result<()> {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(access), last_modification: time(modification) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[test]
fn times_have_nanoseconds_from_before_1970_to_far_ahead() {
    same(|place, notes| {
        let path = place.path("f");
        File::create(&path).unwrap();
        std::os::unix::fs::symlink("f", place.path("s")).unwrap();
        fs::create_dir(place.path("d")).unwrap();
        for name in ["f", "s", "d"] {
            for second in
                [-2_000_000_000, -1, 0, 1, 2_147_483_647, 2_147_483_648, 4_294_967_296, 9_000_000_000]
            {
                notes.done("set", set_times(&place.path(name), (second, 1), (second, 999_999_999)));
                notes.note(name, times(&place.path(name)));
            }
        }
        notes.done("omit", set_times(&path, (0, UTIME_OMIT), (5, 6)));
        notes.note("f", times(&path));
        notes.done("omit both", set_times(&path, (0, UTIME_OMIT), (0, UTIME_OMIT)));
        notes.note("f", times(&path));
        notes.done("too many nanoseconds", set_times(&path, (0, 1_000_000_000), (0, 0)));
        notes.done("now", set_times(&path, (0, UTIME_NOW), (0, UTIME_NOW)));
        let now = std::time::SystemTime::now();
        let age = now.duration_since(fs::metadata(&path).unwrap().modified().unwrap());
        notes.note("a moment ago", age.unwrap_or_default().as_secs() < 5);
    });
}

#[test]
fn times_move_with_what_is_done() {
    same(|place, notes| {
        let old = (1_000_000, 0);
        let dir = place.path("d");
        fs::create_dir(&dir).unwrap();
        let file = dir.join("f");
        fs::write(&file, b"x").unwrap();
        let mut moved = |what: &str, path: &Path, done: &dyn Fn()| {
            set_times(path, old, old).unwrap();
            let ctime =
                |path: &Path| fs::symlink_metadata(path).map(|stat| (stat.ctime(), stat.ctime_nsec())).ok();
            let before = ctime(path);
            // The clock of the file system ticks every few milliseconds, on a busy machine later.
            let clock = place.path("clock");
            while ctime(&clock) <= before {
                std::thread::sleep(std::time::Duration::from_millis(12));
                fs::write(&clock, b"tick").unwrap();
            }
            done();
            let after = ctime(path);
            let (atime, mtime) = if after.is_some() { times(path) } else { (old, old) };
            notes.note(what, (atime != old, mtime != old, after > before));
        };
        moved("write", &file, &|| {
            OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"y", 0).unwrap()
        });
        moved("truncate", &file, &|| File::create(&file).map(drop).unwrap());
        moved("chmod", &file, &|| chmod(&file, 0o600));
        moved("chown", &file, &|| chown(&file, Some(9), Some(9)).unwrap());
        moved("link", &file, &|| fs::hard_link(&file, dir.join("g")).unwrap());
        moved("unlink of the other name", &file, &|| fs::remove_file(dir.join("g")).unwrap());
        moved("rename", &file, &|| {
            fs::rename(&file, dir.join("h")).unwrap();
            fs::rename(dir.join("h"), &file).unwrap();
        });
        moved("setxattr", &file, &|| {
            rustix::fs::setxattr(&file, c"trusted.a", b"1", XattrFlags::empty()).unwrap()
        });
        moved("create in a directory", &dir, &|| File::create(dir.join("new")).map(drop).unwrap());
        moved("unlink in it", &dir, &|| fs::remove_file(dir.join("new")).unwrap());
        moved("mkdir in it", &dir, &|| fs::create_dir(dir.join("new")).unwrap());
        moved("rename in it", &dir, &|| fs::rename(dir.join("new"), dir.join("newer")).unwrap());
        moved("rmdir in it", &dir, &|| fs::remove_dir(dir.join("newer")).unwrap());
        moved("write to what is in it", &dir, &|| fs::write(&file, b"z").unwrap());
    });
}

#[test]
fn only_owners_change_attributes() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"x").unwrap();
        chmod(&path, 0o666);
        as_user(1234, 1234, || {
            notes.done("chmod", fs::set_permissions(&path, fs::Permissions::from_mode(0o777)));
            notes.done("chown", chown(&path, Some(1234), None));
            notes.done("times", set_times(&path, (1, 1), (1, 1)));
            notes.done("times of now", set_times(&path, (0, UTIME_NOW), (0, UTIME_NOW)));
            notes.done(
                "setxattr trusted",
                rustix::fs::setxattr(&path, c"trusted.a", b"1", XattrFlags::empty()),
            );
            notes.done("truncate", OpenOptions::new().write(true).open(&path).unwrap().set_len(0));
        });
        chown(&path, Some(1234), Some(1234)).unwrap();
        as_user(1234, 1234, || {
            notes.done("chmod by the owner", fs::set_permissions(&path, fs::Permissions::from_mode(0o640)));
            notes.done("to another group", chown(&path, None, Some(55)));
            notes.done("to another user", chown(&path, Some(55), None));
            notes.done("to himself", chown(&path, Some(1234), Some(1234)));
        });
        as_user_in(1234, &[1234, 55], || {
            notes.done("to a group of his", chown(&path, None, Some(55)));
        });
        notes.stat(&path);
    });
}

fn modes(notes: &mut Notes, path: &Path, after: &str) {
    notes.note(after, format!("{:o}", fs::metadata(path).unwrap().mode() & 0o7777));
}

#[test]
fn set_id_bits_fall_when_a_user_writes_truncates_or_chowns() {
    same(|place, notes| {
        for mode in [0o6755, 0o4755, 0o2755, 0o7777] {
            let path = place.path(format!("{mode:o}"));
            fs::write(&path, b"program").unwrap();
            let mut tried = |what: &str, done: &(dyn Fn() + Sync)| {
                chown(&path, Some(1234), Some(1234)).unwrap();
                chmod(&path, mode);
                as_user(1234, 1234, done);
                modes(notes, &path, what);
            };
            tried("nothing", &|| ());
            tried("write", &|| {
                OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"P", 0).unwrap();
            });
            tried("write of nothing", &|| {
                OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"", 0).unwrap();
            });
            tried("ftruncate", &|| OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap());
            tried("O_TRUNC", &|| File::create(&path).map(drop).unwrap());
            tried("fallocate", &|| {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10).unwrap();
            });
            tried("chown to himself", &|| chown(&path, Some(1234), Some(1234)).unwrap());
            tried("rename", &|| fs::rename(&path, &path).unwrap());
        }
    });
}

#[test]
fn set_id_bits_fall_when_root_gives_a_file_away() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"program").unwrap();
        chmod(&path, 0o6755);
        chown(&path, Some(7), None).unwrap();
        modes(notes, &path, "chown");
        chmod(&path, 0o2745);
        chown(&path, None, Some(8)).unwrap();
        modes(notes, &path, "chgrp without the group's x");
        fs::create_dir(place.path("d")).unwrap();
        chmod(place.path("d"), 0o6755);
        chown(place.path("d"), Some(7), Some(7)).unwrap();
        modes(notes, &place.path("d"), "a directory keeps them");
    });
}

#[test]
fn setgid_needs_the_group() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, b"x").unwrap();
        chown(&path, Some(1234), Some(77)).unwrap();
        as_user(1234, 1234, || {
            notes.done("by no member", fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)));
        });
        modes(notes, &path, "mode");
        as_user_in(1234, &[1234, 77], || {
            notes.done("by a member", fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)));
        });
        modes(notes, &path, "mode");
    });
}

#[test]
fn capabilities_of_a_file_fall_when_it_is_written() {
    same(|place, notes| {
        // Version 2, effective, cap_net_bind_service permitted.
        let mut value = vec![1, 0, 0, 2];
        value.extend([0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let path = place.path("f");
        let set = |notes: &mut Notes| {
            fs::write(&path, b"program").unwrap();
            chown(&path, Some(1234), Some(1234)).unwrap();
            notes.done(
                "set",
                rustix::fs::setxattr(&path, c"security.capability", &value, XattrFlags::empty()),
            );
        };
        let has = |notes: &mut Notes, what: &str| {
            let mut buffer = [0; 64];
            notes.call(what, rustix::fs::getxattr(&path, c"security.capability", &mut buffer));
        };
        set(notes);
        has(notes, "there");
        as_user(1234, 1234, || {
            OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"P", 0).unwrap()
        });
        has(notes, "after a write of its owner");
        set(notes);
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"P", 0).unwrap();
        has(notes, "after a write of root");
        set(notes);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
        has(notes, "after a truncation");
        set(notes);
        chown(&path, Some(1), None).unwrap();
        has(notes, "after a chown");
        set(notes);
        fs::rename(&path, place.path("g")).unwrap();
        fs::rename(place.path("g"), &path).unwrap();
        chmod(&path, 0o755);
        has(notes, "after rename and chmod");
    });
}
