//! rename(2) in all its forms.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{CWD, RenameFlags};

use crate::places::{Notes, Place, same};

fn rename(place: &Place, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, place.path(from), CWD, place.path(to), flags)
}

/// Something of each kind: a file, a directory, one with something in it, a symlink.
fn things(place: &Place) {
    fs::write(place.path("file"), b"file").unwrap();
    fs::write(place.path("other"), b"other").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    fs::create_dir_all(place.path("full/inner")).unwrap();
    fs::write(place.path("full/inner/x"), b"x").unwrap();
    symlink("file", place.path("link")).unwrap();
}

fn each_on_each(notes: &mut Notes, place: &Place, flags: RenameFlags) {
    let names = ["file", "other", "empty", "full", "link", "absent"];
    for from in names {
        for to in names {
            let result = rename(place, from, to, flags);
            let done = result.is_ok();
            notes.done(&format!("{from} to {to}, {flags:?}"), result);
            if done {
                notes.list(&place.dir);
                for name in fs::read_dir(&place.dir).unwrap() {
                    let path = name.unwrap().path();
                    let _ = fs::remove_file(&path);
                    if let Ok(entries) = fs::read_dir(path.join("inner")) {
                        entries.for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
                    }
                    let _ = fs::remove_dir(path.join("inner"));
                    let _ = fs::remove_dir(&path);
                }
                things(place);
            }
        }
    }
}

#[test]
fn rename_replaces_what_it_may() {
    same(|place, notes| {
        things(place);
        each_on_each(notes, place, RenameFlags::empty());
    });
}

#[test]
fn rename_with_noreplace_replaces_nothing() {
    same(|place, notes| {
        things(place);
        each_on_each(notes, place, RenameFlags::NOREPLACE);
    });
}

#[test]
fn rename_with_exchange_changes_places() {
    same(|place, notes| {
        things(place);
        each_on_each(notes, place, RenameFlags::EXCHANGE);
    });
}

#[test]
fn rename_with_whiteout_leaves_a_device_0_0() {
    same(|place, notes| {
        things(place);
        notes.done("whiteout", rename(place, "file", "moved", RenameFlags::WHITEOUT));
        notes.stat(place.path("file"));
        notes.done("whiteout over a file", rename(place, "other", "moved", RenameFlags::WHITEOUT));
        notes.stat(place.path("other"));
        notes.content(place.path("moved"));
        let flags = RenameFlags::WHITEOUT | RenameFlags::NOREPLACE;
        notes.done("whiteout, but replace nothing", rename(place, "moved", "empty", flags));
        let flags = RenameFlags::WHITEOUT | RenameFlags::EXCHANGE;
        notes.done("whiteout and exchange", rename(place, "moved", "empty", flags));
        let flags = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        notes.done("noreplace and exchange", rename(place, "moved", "empty", flags));
        notes.done("unknown", rename(place, "moved", "empty", RenameFlags::from_bits_retain(1 << 8)));
        notes.list(&place.dir);
    });
}

#[test]
fn a_directory_is_not_moved_into_itself() {
    same(|place, notes| {
        things(place);
        notes.done("into itself", rename(place, "full", "full/in", RenameFlags::empty()));
        notes.done("deeper", rename(place, "full", "full/inner/in", RenameFlags::empty()));
        notes.done("over what holds it", rename(place, "full/inner", "full", RenameFlags::empty()));
        notes.done("exchange with it", rename(place, "full/inner", "full", RenameFlags::EXCHANGE));
        notes.done("of .", rename(place, "full/.", "x", RenameFlags::empty()));
        notes.done("to ..", rename(place, "empty", "full/..", RenameFlags::empty()));
        notes.done("to another directory", rename(place, "full/inner", "empty/inner", RenameFlags::empty()));
        notes.content(place.path("empty/inner/x"));
        let up = fs::metadata(place.path("empty/inner/..")).unwrap();
        notes.note("its parent", up.ino() == fs::metadata(place.path("empty")).unwrap().ino());
    });
}

#[test]
fn two_names_of_one_file_stay_when_one_is_renamed_to_the_other() {
    same(|place, notes| {
        things(place);
        fs::hard_link(place.path("file"), place.path("twin")).unwrap();
        notes.done("rename", rename(place, "file", "twin", RenameFlags::empty()));
        notes.done("exchange", rename(place, "file", "twin", RenameFlags::EXCHANGE));
        notes.done("noreplace", rename(place, "file", "twin", RenameFlags::NOREPLACE));
        notes.done("to itself", rename(place, "file", "file", RenameFlags::empty()));
        notes.stat(place.path("file"));
        notes.list(&place.dir);
    });
}

#[test]
fn what_is_open_stays_open_through_renames() {
    same(|place, notes| {
        things(place);
        let mut file = File::options().read(true).write(true).open(place.path("full/inner/x")).unwrap();
        notes.done("the file", rename(place, "full/inner/x", "full/y", RenameFlags::empty()));
        notes.done("its directory", rename(place, "full", "moved", RenameFlags::empty()));
        file.write_all(b"written after").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        notes.call("read", file.read_to_string(&mut text));
        notes.note("text", &text);
        notes.content(place.path("moved/y"));
        let mut over = File::open(place.path("file")).unwrap();
        notes.done("replaced", rename(place, "other", "file", RenameFlags::empty()));
        text.clear();
        notes.call("the old one", over.read_to_string(&mut text));
        notes.note("text", &text);
        notes.note("links", over.metadata().unwrap().nlink());
        notes.content(place.path("file"));
    });
}
