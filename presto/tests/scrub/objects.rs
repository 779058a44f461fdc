//! Objects: content, attributes, extended attributes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use intermezzo_channel::v1;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::{Mask, Opcode, Record};

use crate::ask::*;
use crate::world::*;

fn said(records: &[Record]) -> Vec<(Opcode, Mask, &str)> {
    records
        .iter()
        .map(|record| (record.opcode, record.intent.mask, std::str::from_utf8(&record.intent.name).unwrap()))
        .collect()
}

const NO: Mask = Mask::empty();

#[test]
fn what_is_as_believed_is_the_same_and_what_is_gone_is_told_by_its_entry() {
    let w = world();
    w.save("f", "text");
    w.user_mkdir("d");
    symlink("x", w.path("s")).unwrap();
    for name in ["f", "d", "s", ""] {
        let file = if name.is_empty() { wire(w.root()) } else { wire(w.id(name)) };
        let mut believed = if name.is_empty() { root(&w) } else { object(&w, name) };
        believed.file = file;
        same(&w, What::Object(believed));
    }
    let believed = object(&w, "f");
    fs::remove_file(w.path("f")).unwrap();
    same(&w, What::Object(believed));
    let no_file = v1::ScrubObject { expect: None, ..object(&w, "d") };
    is(&w, Kind::Refused, What::Object(no_file));
}

fn root(w: &World) -> v1::ScrubObject {
    let stat = w.stat("");
    v1::ScrubObject {
        expect: Some(v1::Attributes {
            mode: stat.mode(),
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: w.version("").mtime,
            rdev: 0,
        }),
        ..Default::default()
    }
}

#[test]
fn a_changed_content_is_a_close() {
    let w = world();
    let id = w.save("f", "text");
    let believed = object(&w, "f");
    fs::write(w.path("f"), "longer text").unwrap();
    let records = found(&w, "content", What::Object(believed));
    assert_eq!(said(&records), [(Opcode::Close, NO, "")]);
    assert_eq!((records[0].intent.object, records[0].outcome.object), (id, id));
    assert_eq!(records[0].outcome.after.size, 11);
    assert_eq!(records[0].outcome.after.ctime.sec, w.stat("f").ctime());
    same(&w, What::Object(object(&w, "f")));
}

#[test]
fn changed_attributes_are_a_setattr_with_their_mask() {
    let w = world();
    w.save("f", "text");
    let believed = object(&w, "f");
    fs::set_permissions(w.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let records = found(&w, "attributes", What::Object(believed.clone()));
    assert_eq!(said(&records), [(Opcode::Setattr, Mask::MODE, "")]);
    assert_eq!(records[0].outcome.after.mode, 0o100_600);
    chown(w.path("f"), Some(12), Some(34)).unwrap();
    let records = found(&w, "attributes", What::Object(believed));
    assert_eq!(said(&records), [(Opcode::Setattr, Mask::MODE | Mask::UID | Mask::GID, "")]);

    w.user_mkdir("d");
    let believed = object(&w, "d");
    fs::write(w.path("d/x"), "").unwrap();
    let records = found(&w, "attributes", What::Object(believed));
    assert_eq!(said(&records), [(Opcode::Setattr, Mask::MTIME, "")]);
    assert_eq!(records[0].outcome.after.mtime.nsec, u32::try_from(w.stat("d").mtime_nsec()).unwrap());
}

#[test]
fn content_comes_first_and_what_it_takes_away_comes_again() {
    let w = world();
    w.save("f", "text");
    fs::set_permissions(w.path("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    set_xattr(&w, "f", "security.capability", &capability());
    let believed = object(&w, "f");
    fs::write(w.path("f"), "other text").unwrap();
    fs::set_permissions(w.path("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    set_xattr(&w, "f", "security.capability", &capability());
    set_xattr(&w, "f", "user.a", b"1");
    let records = found(&w, "content", What::Object(believed));
    assert_eq!(
        said(&records),
        [
            (Opcode::Close, NO, ""),
            (Opcode::Setxattr, NO, "user.a"),
            (Opcode::Setattr, Mask::MODE, ""),
            (Opcode::Setxattr, NO, "security.capability"),
        ]
    );
}

#[test]
fn extended_attributes_are_set_and_removed_one_by_one_before_the_mode() {
    let w = world();
    w.save("f", "text");
    for (key, value) in [("user.gone", "1"), ("user.other", "1"), ("user.same", "1")] {
        set_xattr(&w, "f", key, value.as_bytes());
    }
    let believed = object(&w, "f");
    rustix::fs::removexattr(w.path("f"), "user.gone").unwrap();
    set_xattr(&w, "f", "user.other", b"2");
    set_xattr(&w, "f", "user.new", b"3");
    set_xattr(&w, "f", "trusted.intermezzo.own", b"4");
    let records = found(&w, "extended attributes", What::Object(believed));
    assert_eq!(
        said(&records),
        [
            (Opcode::Setxattr, NO, "user.new"),
            (Opcode::Setxattr, NO, "user.other"),
            (Opcode::Delxattr, NO, "user.gone"),
        ]
    );
    assert_eq!(records[1].intent.value, b"2");

    let believed = object(&w, "f");
    set_xattr(&w, "f", "system.posix_acl_access", &acl());
    let records = found(&w, "attributes", What::Object(believed));
    assert_eq!(
        said(&records),
        [(Opcode::Setxattr, NO, "system.posix_acl_access"), (Opcode::Setattr, Mask::MODE, "")]
    );
    assert_eq!((records[0].intent.value.as_slice(), records[1].outcome.after.mode), (&acl()[..], 0o100_664));
}

#[test]
fn a_default_acl_that_was_found_counts_for_new_files() {
    let w = world();
    let dir = w.user_mkdir("d");
    let mode = presto::filter::NewMode { mode: 0o644, umask: 0 };
    // Presto knows by now that there is none.
    w.volume.mknod(user(), dir, b"before", mode, 0).unwrap();
    let believed = object(&w, "d");
    set_xattr(&w, "d", "system.posix_acl_default", &acl());
    let records = found(&w, "extended attributes", What::Object(believed));
    assert_eq!(said(&records), [(Opcode::Setxattr, NO, "system.posix_acl_default")]);
    w.volume.mknod(user(), dir, b"after", mode, 0).unwrap();
    let created = w.record(w.last());
    assert!(created.intent.flags.contains(intermezzo_kml::record::Flags::XATTRS), "{created}");
}

#[test]
fn the_content_of_a_file_that_is_being_written_is_its_writers_business_and_nothing_else_is() {
    let w = world();
    w.save("f", "text");
    let believed = object(&w, "f");
    let handle = w.open("f");
    same(&w, What::Object(believed.clone()));
    fs::set_permissions(w.path("f"), fs::Permissions::from_mode(0o640)).unwrap();
    found(&w, "attributes", What::Object(believed.clone()));
    w.write(&handle, "more text");
    let records = found(&w, "attributes", What::Object(believed));
    assert_eq!(said(&records), [(Opcode::Setattr, Mask::MODE, "")]);
    let written = v1::ScrubObject { size: 4, ..object(&w, "f") };
    is(&w, Kind::Busy, What::Object(written));
    w.close(&handle);
    same(&w, What::Object(object(&w, "f")));
}
