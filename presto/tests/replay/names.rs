//! Make, link, unlink, rename.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Flags, Opcode, OriginKind, State};
use rustix::io::Errno;

use crate::world::*;

fn unlink(dir: Option<v1::Ref>, at: &str, expect: Option<v1::Ref>) -> v1::ReplayItem {
    item(Op::Unlink(v1::Unlink { dir, name: name(at), expect, ..Default::default() }))
}

fn rename(w: &World, from: &str, to: &str) -> v1::Rename {
    v1::Rename {
        from: by(w.root()),
        from_name: name(from),
        expect: by(w.id(from)),
        to: by(w.root()),
        to_name: name(to),
        replaced: w.there(to).then(|| by(w.id(to))).flatten(),
        ..Default::default()
    }
}

#[test]
fn a_batch_makes_a_tree_by_tags_and_the_journal_says_the_same() {
    let w = world();
    let outcomes = w.replay_since(
        NOW,
        vec![
            tagged(1, Op::Make(make(by(w.root()), "d", DIR, ""))),
            v1::ReplayItem {
                hash: vec![3; 32].into(),
                parent_mtime: Some(v1::Time { sec: 77, nsec: 1 }),
                ..tagged(2, Op::Make(make(by_tag(1), "f", FILE, "hello")))
            },
            tagged(
                3,
                Op::Make(v1::Make { symlink: name("to/there"), ..make(by_tag(1), "s", 0o120_777, "") }),
            ),
            tagged(4, Op::Make(make(by_tag(1), "p", 0o010_600, ""))),
        ],
    );
    outcomes.iter().for_each(applied);
    assert_eq!(outcomes.len(), 4);
    assert_eq!(w.read("d/f"), "hello");
    let stat = w.stat("d/f");
    assert_eq!(
        (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.mtime_nsec()),
        (FILE, 12, 34, 1000, 5)
    );
    assert_eq!(std::fs::read_link(w.path("d/s")).unwrap().to_str(), Some("to/there"));
    assert_eq!(w.stat("d/s").mtime(), 1000);
    assert!(w.stat("d/p").file_type().is_fifo());
    // The time of a directory is the one asked for, and kept by what follows.
    assert_eq!((w.stat("d").mtime(), w.stat("d").mtime_nsec()), (77, 1));
    let record = w.record(outcomes[1].recno);
    assert_eq!(record.opcode, Opcode::Create);
    assert_eq!(record.intent.origin.kind, OriginKind::Replay);
    assert_eq!(record.intent.origin.object.number, 2);
    assert!(record.outcome.flags.contains(Flags::HASHED));
    assert_eq!(record.intent.origin.hash, [3; 32]);
    assert_eq!(record.outcome.object, id(&outcomes[1]));
    assert_eq!(record.outcome.parent_mtime.sec, 77);
    assert_eq!(record.outcome.after.size, 5);
    assert!(std::fs::read_dir(w.cache.join("stage")).unwrap().next().is_none(), "nothing left in stage/");
}

#[test]
fn a_parents_time_stays_as_it_was_unless_told() {
    let w = world();
    let before = w.stat("").mtime_nsec();
    applied(&w.one(item(Op::Make(make(by(w.root()), "f", FILE, "x")))));
    assert_eq!(w.stat("").mtime_nsec(), before);
}

#[test]
fn a_staged_file_becomes_the_object_and_its_size_must_be_right() {
    let w = world();
    let content = w.stage("ab-1", "staged");
    let wrong = v1::Content { size: 3, ..content.clone() };
    let make = |content| v1::Make { content: Some(content), ..make(by(w.root()), "f", FILE, "") };
    let refused = w.one(item(Op::Make(make(wrong))));
    assert_eq!(refused.result(), Kind::Refused);
    assert!(refused.message.contains("ab-1"), "{}", refused.message);
    assert!(w.staged("ab-1") && !w.there("f"));
    applied(&w.one(item(Op::Make(make(content)))));
    assert!(!w.staged("ab-1"));
    assert_eq!(w.read("f"), "staged");
    assert_eq!(w.stat("f").mtime(), 1000);
}

#[test]
fn make_again_is_already_by_its_tag_and_stale_for_another() {
    let w = world();
    let again = || tagged(1, Op::Make(make(by(w.root()), "f", FILE, "x")));
    let first = w.one(again());
    let second = w.one(again());
    already(&second);
    assert_eq!(id(&first), id(&second));
    assert!(second.recno > first.recno, "journaled all the same");
    stale(&w.one(tagged(2, Op::Make(make(by(w.root()), "f", FILE, "x")))));
}

#[test]
fn the_first_item_that_fails_ends_the_batch() {
    let w = world();
    let outcomes = w.replay_since(
        NOW,
        vec![
            tagged(1, Op::Make(make(by(w.root()), "a", FILE, ""))),
            tagged(2, Op::Make(make(by_tag(99), "b", FILE, ""))),
            tagged(3, Op::Make(make(by(w.root()), "c", FILE, ""))),
        ],
    );
    assert_eq!(outcomes.len(), 2);
    applied(&outcomes[0]);
    stale(&outcomes[1]);
    assert!(!w.there("c"));
}

#[test]
fn malformed_items_are_refused_in_words() {
    let w = world();
    for (op, word) in [
        (Op::Make(make(by(w.root()), "a/b", FILE, "")), "entry name"),
        (Op::Make(make(None, "a", FILE, "")), "not named"),
        (Op::Make(v1::Make { attributes: None, ..make(by(w.root()), "a", FILE, "") }), "attributes"),
        (Op::SetAttr(v1::SetAttr { file: by(w.root()), mask: 8, attributes: give(0) }), "mask"),
    ] {
        let outcome = w.one(item(op));
        assert_eq!(outcome.result(), Kind::Refused);
        assert!(outcome.message.contains(word), "{}", outcome.message);
    }
}

/// Rule 13: absent, made by a replay, renamed away by a user, absent. By values alone it would be made twice.
#[test]
fn aba_absent_made_renamed_away_absent_is_stale() {
    let w = world();
    let read = w.last();
    applied(&w.one(tagged(1, Op::Make(make(by(w.root()), "f", FILE, "x")))));
    let (from, to) = (
        presto::filter::Place { dir: w.root(), name: b"f" },
        presto::filter::Place { dir: w.root(), name: b"g" },
    );
    w.volume.rename(user(), from, to, rustix::fs::RenameFlags::empty()).unwrap();
    let renamed = w.last();
    let outcome =
        w.replay_since(read, vec![tagged(1, Op::Make(make(by(w.root()), "f", FILE, "x")))]).remove(0);
    stale(&outcome);
    assert_eq!(outcome.recno, renamed, "the record that broke it");
    assert!(!w.there("f"));
    // Once Lento has read the rename, it may.
    applied(&w.replay_since(renamed, vec![tagged(2, Op::Make(make(by(w.root()), "f", FILE, "y")))])[0]);
}

/// The same after presto was killed in between: what users touched is read back from the journal.
#[test]
fn aba_is_stale_after_a_restart_too() {
    let w = world();
    w.save("f", "x");
    let read = w.last();
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    let removed = w.last();
    let w = w.restart(|_| {});
    let outcome = w.replay_since(read, vec![item(Op::Make(make(by(w.root()), "f", FILE, "x")))]).remove(0);
    stale(&outcome);
    assert_eq!(outcome.recno, removed);
}

#[test]
fn link_gives_another_name_and_knows_its_own() {
    let w = world();
    let file = w.save("f", "x");
    let link = |at: &str| item(Op::Link(v1::Link { file: by(file), dir: by(w.root()), name: name(at) }));
    let outcome = w.one(link("g"));
    applied(&outcome);
    assert_eq!((w.stat("g").ino(), w.stat("g").nlink()), (w.stat("f").ino(), 2));
    assert_eq!(w.record(outcome.recno).outcome.after.nlink, 2);
    already(&w.one(link("g")));
    w.save("h", "y");
    stale(&w.one(link("h")));
}

#[test]
fn unlink_wants_the_expected_object() {
    let w = world();
    let file = w.save("f", "x");
    let other = w.save("g", "y");
    stale(&w.one(unlink(by(w.root()), "f", by(other))));
    let outcome = w.one(unlink(by(w.root()), "f", by(file)));
    applied(&outcome);
    assert!(!w.there("f"));
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.outcome.after.mode), (Opcode::Unlink, 0));
    assert!(record.outcome.flags.contains(Flags::LAST_LINK));
    already(&w.one(unlink(by(w.root()), "f", by(file))));
}

#[test]
fn unlink_of_one_of_two_names_is_not_the_last() {
    let w = world();
    let file = w.save("f", "x");
    std::fs::hard_link(w.path("f"), w.path("g")).unwrap();
    let record = w.record(w.one(unlink(by(w.root()), "f", by(file))).recno);
    assert!(!record.outcome.flags.contains(Flags::LAST_LINK));
    assert_eq!(record.outcome.after.nlink, 1);
}

#[test]
fn a_removal_that_a_user_touched_since_is_stale() {
    let w = world();
    let file = w.save("f", "x");
    let read = w.last();
    w.save("f", "longer");
    let outcome = w.replay_since(read, vec![unlink(by(w.root()), "f", by(file))]).remove(0);
    stale(&outcome);
    assert_eq!(outcome.recno, w.last());
    assert_eq!(w.read("f"), "longer");
}

#[test]
fn a_directory_goes_only_when_it_is_empty() {
    let w = world();
    let dir = w.user_mkdir("d");
    std::fs::write(w.path("d/x"), "").unwrap();
    let outcome = w.one(unlink(by(w.root()), "d", by(dir)));
    stale(&outcome);
    assert_eq!(outcome.errno, Errno::NOTEMPTY.raw_os_error());
    assert_eq!(w.records().last().unwrap().state, State::Failed);
    std::fs::remove_file(w.path("d/x")).unwrap();
    let outcome = w.one(unlink(by(w.root()), "d", by(dir)));
    applied(&outcome);
    assert_eq!(w.record(outcome.recno).opcode, Opcode::Rmdir);
    stale(&w.one(item(Op::Make(make(by(dir), "late", FILE, "")))));
}

#[test]
fn rename_to_an_absent_name_over_another_and_in_exchange() {
    let w = world();
    let (f, g) = (w.save("f", "f"), w.save("g", "g"));
    let outcome = w.one(item(Op::Rename(rename(&w, "f", "h"))));
    applied(&outcome);
    let record = w.record(outcome.recno);
    assert_eq!((record.intent.object, record.intent.target_name.as_slice()), (f, &b"h"[..]));
    let exchange = v1::Rename { exchange: true, ..rename(&w, "h", "g") };
    let outcome = w.one(item(Op::Rename(exchange.clone())));
    applied(&outcome);
    assert_eq!((w.id("h"), w.id("g")), (g, f));
    assert!(w.record(outcome.recno).outcome.flags.contains(Flags::EXCHANGE));
    already(&w.one(item(Op::Rename(exchange))));
    let over = rename(&w, "h", "g");
    let outcome = w.one(item(Op::Rename(over.clone())));
    applied(&outcome);
    let record = w.record(outcome.recno);
    assert_eq!(record.intent.replaced, f);
    assert!(record.outcome.flags.contains(Flags::REPLACED_LAST_LINK));
    assert!(!w.there("h"));
    assert_eq!(w.read("g"), "g");
    already(&w.one(item(Op::Rename(over))));
}

#[test]
fn rename_refuses_what_is_not_as_expected() {
    let w = world();
    w.save("f", "f");
    let lone = rename(&w, "f", "g");
    w.save("g", "g");
    let over = rename(&w, "f", "g");
    stale(&w.one(item(Op::Rename(lone)))); // The target is taken.
    w.save("x", "x");
    stale(&w.one(item(Op::Rename(v1::Rename { expect: by(w.id("x")), ..over.clone() }))));
    stale(&w.one(item(Op::Rename(v1::Rename { replaced: by(w.id("x")), ..over.clone() }))));
    let wrong = v1::Version { size: 99, ..w.version("g") };
    stale(&w.one(item(Op::Rename(v1::Rename { replaced_version: Some(wrong), ..over.clone() }))));
    assert_eq!((w.read("f"), w.read("g")), ("f".into(), "g".into()));
    let right = Some(w.version("g"));
    applied(&w.one(item(Op::Rename(v1::Rename { replaced_version: right, ..over }))));
}

#[test]
fn objects_pass_through_the_hidden_staging_directory() {
    let w = world();
    let file = w.save("f", "x");
    let staging = w.volume.lower.staging();
    let out = v1::Rename { to: by(staging), to_name: name("o1"), ..rename(&w, "f", "f2") };
    applied(&w.one(item(Op::Rename(out))));
    assert!(!w.there("f") && w.cache.join("staging/o1").exists());
    let back = v1::Rename {
        from: by(staging),
        from_name: name("o1"),
        expect: by(file),
        to: by(w.root()),
        to_name: name("g"),
        ..Default::default()
    };
    applied(&w.one(item(Op::Rename(back))));
    assert_eq!(w.id("g"), file);
}

#[test]
fn a_directory_does_not_move_into_itself() {
    let w = world();
    let dir = w.user_mkdir("d");
    let into = v1::Rename { to: by(dir), to_name: name("d"), ..rename(&w, "d", "e") };
    let outcome = w.one(item(Op::Rename(into)));
    assert_eq!((outcome.result(), outcome.errno), (Kind::Refused, Errno::INVAL.raw_os_error()));
}

#[test]
fn a_verdict_takes_a_position() {
    let w = world();
    let before = w.last();
    let outcome = w.one(v1::ReplayItem { verdict: 3, ..item(Op::Noop(v1::Noop {})) });
    applied(&outcome);
    assert_eq!(outcome.recno, before + 1);
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.intent.origin.verdict), (Opcode::Noop, 3));
}
