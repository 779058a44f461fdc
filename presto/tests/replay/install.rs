//! Install: over one link, in place over several, versions.

use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Opcode, OriginKind};

use crate::world::*;

#[test]
fn one_link_gets_a_new_inode_whole() {
    let w = world();
    let old = w.save("f", "old");
    let xattrs = vec![v1::Xattr { name: name("user.a"), value: name("b") }];
    let outcome = w.one(item(Op::Install(v1::Install { xattrs, ..install(&w, "f", inline("new content")) })));
    applied(&outcome);
    let new = id(&outcome);
    assert_ne!(new, old);
    assert_eq!((w.id("f"), w.read("f")), (new, "new content".into()));
    let stat = w.stat("f");
    assert_eq!((stat.mode(), stat.uid(), stat.mtime()), (0o100_640, 12, 1000));
    assert!(rustix::fs::getxattr(w.path("f"), "user.a", &mut [0; 8][..]).is_ok());
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.intent.object, record.outcome.object), (Opcode::Close, old, new));
    assert_eq!((record.intent.parent, record.intent.name.as_slice()), (w.root(), &b"f"[..]));
    assert_eq!(record.intent.origin.kind, OriginKind::Replay);
}

#[test]
fn a_tag_follows_the_object_to_its_new_inode() {
    let w = world();
    applied(&w.one(tagged(1, Op::Make(make(by(w.root()), "f", FILE, "one")))));
    applied(
        &w.one(tagged(1, Op::Install(v1::Install { file: by_tag(1), ..install(&w, "f", inline("two")) }))),
    );
    applied(
        &w.one(tagged(1, Op::Install(v1::Install { file: by_tag(1), ..install(&w, "f", inline("three")) }))),
    );
    assert_eq!(w.read("f"), "three");
}

#[test]
fn several_links_are_overwritten_in_place_with_holes() {
    let w = world();
    let file = w.save("f", &"x".repeat(300_000));
    std::fs::hard_link(w.path("f"), w.path("g")).unwrap();
    let mut content = w.stage("aa", "");
    let staged = std::fs::OpenOptions::new().write(true).open(w.cache.join("stage/aa")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&staged, b"end", 1 << 20).unwrap();
    content.size = (1 << 20) + 3;
    let outcome = w.one(item(Op::Install(install(&w, "f", Some(content)))));
    applied(&outcome);
    assert_eq!((id(&outcome), w.id("f"), w.id("g")), (file, file, file));
    let bytes = std::fs::read(w.path("g")).unwrap();
    assert_eq!(bytes.len(), (1 << 20) + 3);
    assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0) && bytes.ends_with(b"end"));
    assert!(w.stat("f").blocks() * 512 < 300_000, "holes stay holes");
    assert_eq!((w.stat("g").mtime(), w.stat("g").mode() & 0o7777), (1000, 0o640));
    assert!(std::fs::read_dir(w.cache.join("lml")).unwrap().next().is_none());
    assert!(std::fs::read_dir(w.cache.join("stage")).unwrap().next().is_none());
}

#[test]
fn another_version_that_a_record_tells_is_stale_without_a_new_record() {
    let w = world();
    w.save("f", "old");
    let asked = install(&w, "f", inline("new"));
    let read = w.last();
    w.save("f", "newer than what Lento knows");
    let before = w.last();
    let outcome = w.replay_since(read, vec![item(Op::Install(asked))]).remove(0);
    stale(&outcome);
    assert_eq!((outcome.recno, w.last()), (before, before));
}

#[test]
fn a_missed_store_is_journaled_first_and_then_stale() {
    let w = world();
    let file = w.save("f", "old");
    let asked = install(&w, "f", inline("new"));
    // Nobody tells presto: as a store through a mapping.
    std::fs::write(w.path("f"), "stored unseen").unwrap();
    let outcome = w.one(item(Op::Install(asked)));
    stale(&outcome);
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.intent.object), (Opcode::Close, file));
    assert_eq!(record.intent.origin.kind, OriginKind::User);
    assert_eq!(record.outcome.after.size, 13);
    assert_eq!(w.read("f"), "stored unseen");
    // Asked again by somebody who has not read it: stale by that record, and no second one.
    let again =
        w.replay_since(outcome.recno - 1, vec![item(Op::Install(install(&w, "f", inline("new"))))]).remove(0);
    stale(&again);
    assert_eq!((again.recno, w.last()), (outcome.recno, outcome.recno));
    applied(&w.one(item(Op::Install(install(&w, "f", inline("new"))))));
}

#[test]
fn a_version_from_before_another_file_took_a_name_stands_for_the_same_content() {
    for exchange in [false, true] {
        let w = world();
        let file = w.save("f", "old");
        std::fs::hard_link(w.path("f"), w.path("g")).unwrap();
        let other = w.save("h", "other");
        let asked = install(&w, "g", inline("new"));
        // A name's change moves ctime, and that comes in ticks.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let rename = v1::Rename {
            from: by(w.root()),
            from_name: name("h"),
            expect: by(other),
            to: by(w.root()),
            to_name: name("f"),
            replaced: by(file),
            exchange,
            ..Default::default()
        };
        let outcomes = w.replay_since(NOW, vec![item(Op::Rename(rename)), item(Op::Install(asked))]);
        outcomes.iter().for_each(applied);
        assert_eq!((w.read("f"), w.read("g")), ("other".into(), "new".into()), "exchange: {exchange}");
    }
}

#[test]
fn a_version_from_before_replayed_attributes_stands_for_the_same_content() {
    let w = world();
    let file = w.save("f", "old");
    let asked = install(&w, "f", inline("new"));
    let outcomes = w.replay_since(
        NOW,
        vec![
            item(Op::SetAttr(v1::SetAttr { file: by(file), mask: 1, attributes: give(0o600) })),
            item(Op::SetXattr(v1::SetXattr { file: by(file), name: name("user.a"), value: name("b") })),
            item(Op::Install(asked)),
        ],
    );
    outcomes.iter().for_each(applied);
    assert_eq!((outcomes.len(), w.read("f")), (3, "new".into()));
}

#[test]
fn an_entry_that_is_another_object_is_stale_and_a_directory_refused() {
    let w = world();
    w.save("f", "f");
    w.save("g", "g");
    stale(&w.one(item(Op::Install(v1::Install { name: name("g"), ..install(&w, "f", inline("x")) }))));
    w.user_mkdir("d");
    let outcome = w.one(item(Op::Install(install(&w, "d", inline("x")))));
    assert_eq!(outcome.result(), Kind::Refused);
}
