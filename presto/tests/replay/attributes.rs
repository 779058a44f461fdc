//! SetAttr, SetXattr, DelXattr.

use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Mask, Opcode};

use crate::world::*;

fn set_attr(w: &World, at: &str, mask: u32, mode: u32) -> v1::ReplayItem {
    item(Op::SetAttr(v1::SetAttr { file: by(w.id(at)), mask, attributes: give(mode) }))
}

#[test]
fn each_attribute_alone_and_all_together() {
    let w = world();
    w.save("f", "x");
    let outcome = w.one(set_attr(&w, "f", 1, 0o600));
    applied(&outcome);
    assert_eq!((w.stat("f").mode() & 0o7777, w.stat("f").uid()), (0o600, 0));
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.intent.mask), (Opcode::Setattr, Mask::MODE));
    assert_eq!(record.intent.before.mode & 0o7777, 0o644);
    applied(&w.one(set_attr(&w, "f", 16, 0)));
    assert_eq!((w.stat("f").mtime(), w.stat("f").mtime_nsec()), (1000, 5));
    applied(&w.one(set_attr(&w, "f", 1 | 2 | 4 | 16, 0o4711)));
    let stat = w.stat("f");
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o4711, 12, 34));
    already(&w.one(set_attr(&w, "f", 1 | 2 | 4 | 16, 0o4711)));
}

#[test]
fn a_new_owner_alone_leaves_set_user_id() {
    let w = world();
    w.save("f", "x");
    applied(&w.one(set_attr(&w, "f", 1, 0o4755)));
    applied(&w.one(set_attr(&w, "f", 2, 0)));
    assert_eq!((w.stat("f").mode() & 0o7777, w.stat("f").uid()), (0o4755, 12));
}

#[test]
fn a_link_has_owner_and_time_but_no_mode() {
    let w = world();
    w.volume.symlink(user(), w.root(), b"s", b"nowhere").unwrap();
    applied(&w.one(set_attr(&w, "s", 1 | 2 | 4 | 16, 0o644)));
    assert_eq!((w.stat("s").uid(), w.stat("s").mtime()), (12, 1000));
}

#[test]
fn attributes_touched_by_a_user_since_are_stale() {
    let w = world();
    w.save("f", "x");
    let read = w.last();
    let changes = presto::filter::Changes { mode: Some(0o640), ..Default::default() };
    w.volume.setattr(user(), w.id("f"), &changes).unwrap();
    stale(&w.replay_since(read, vec![set_attr(&w, "f", 1, 0o600)])[0]);
    assert_eq!(w.stat("f").mode() & 0o7777, 0o640);
}

#[test]
fn extended_attributes_come_and_go() {
    let w = world();
    w.save("f", "x");
    let file = by(w.id("f"));
    let set = || item(Op::SetXattr(v1::SetXattr { file, name: name("user.colour"), value: name("red") }));
    let del = || item(Op::DelXattr(v1::DelXattr { file, name: name("user.colour") }));
    let outcome = w.one(set());
    applied(&outcome);
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.intent.value.as_slice()), (Opcode::Setxattr, &b"red"[..]));
    already(&w.one(set()));
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(w.path("f"), "user.colour", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"red");
    applied(&w.one(del()));
    already(&w.one(del()));
}

#[test]
fn attributes_of_what_is_gone_are_stale() {
    let w = world();
    w.save("f", "x");
    let late = set_attr(&w, "f", 1, 0o600);
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    stale(&w.one(late));
}
