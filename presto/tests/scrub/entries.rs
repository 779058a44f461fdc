//! Entries: each way in which a name can lead elsewhere than Lento believes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::{FileId, Flags, Mask, Opcode, Recno, State, Time, xattr};
use rustix::io::Errno;

use crate::ask::*;
use crate::world::*;

fn mtime(w: &World, at: &str) -> Time {
    let stat = w.stat(at);
    Time { sec: stat.mtime(), nsec: u32::try_from(stat.mtime_nsec()).unwrap() }
}

fn opcodes(records: &[intermezzo_kml::record::Record]) -> Vec<Opcode> {
    records.iter().map(|record| record.opcode).collect()
}

fn known(w: &World, at: &str, id: FileId, dir: FileId, before: &str) -> v1::ScrubEntry {
    v1::ScrubEntry { listed: wire(id), known_dir: wire(dir), known_name: name(before), ..entry(w, at) }
}

#[test]
fn what_is_as_believed_is_the_same() {
    let w = world();
    let id = w.save("f", "text");
    same(&w, What::Entry(expect(&w, "f", id)));
    same(&w, What::Entry(entry(&w, "g")));
    let gone = v1::ScrubEntry { dir: Some(v1::FileId { ino: 1 << 20, generation: 9 }), ..entry(&w, "g") };
    is(&w, Kind::Stale, What::Entry(gone));
}

#[test]
fn what_is_gone_is_a_removal() {
    let w = world();
    let (file, dir) = (w.save("f", "text"), w.user_mkdir("d"));
    fs::hard_link(w.path("f"), w.path("g")).unwrap();
    fs::remove_file(w.path("f")).unwrap();
    fs::remove_dir(w.path("d")).unwrap();

    let one_of_two = v1::ScrubEntry { expect_last: false, ..expect(&w, "f", file) };
    let records = found(&w, "gone", What::Entry(one_of_two));
    assert_eq!(opcodes(&records), [Opcode::Unlink]);
    let (intent, outcome) = (&records[0].intent, &records[0].outcome);
    assert_eq!((intent.object, intent.parent, intent.name.as_slice()), (file, w.root(), b"f".as_slice()));
    assert_eq!((outcome.object, outcome.flags), (file, Flags::FOUND));
    assert_eq!(outcome.parent_mtime, mtime(&w, ""));
    assert_eq!(outcome.after.nlink, 1, "it has another name");

    let records = found(&w, "gone", What::Entry(v1::ScrubEntry { expect_dir: true, ..expect(&w, "d", dir) }));
    assert_eq!(opcodes(&records), [Opcode::Rmdir]);
    assert_eq!(records[0].outcome.flags, Flags::FOUND | Flags::LAST_LINK);
    assert_eq!(records[0].outcome.after.mode, 0);
    let Body::Failure(stale) = w.call(Body::List(v1::List { dir: wire(dir), after: 0 })).body else {
        panic!("a directory that is gone can be listed");
    };
    assert_eq!(stale.errno, Errno::STALE.raw_os_error(), "{}", stale.message);
}

#[test]
fn what_is_new_is_its_making_and_its_content() {
    let w = world();
    fs::write(w.path("f"), "text").unwrap();
    set_xattr(&w, "f", "user.colour", b"red");
    set_xattr(&w, "f", "trusted.intermezzo.own", b"x");
    let records = found(&w, "new", What::Entry(entry(&w, "f")));
    assert_eq!(opcodes(&records), [Opcode::Create, Opcode::Close]);
    let (intent, outcome) = (&records[0].intent, &records[0].outcome);
    assert_eq!((intent.parent, intent.name.as_slice()), (w.root(), b"f".as_slice()));
    assert_eq!(outcome.object, w.id("f"));
    assert_eq!(outcome.flags, Flags::FOUND | Flags::XATTRS);
    assert_eq!(xattr::decode(&intent.value).unwrap(), [(b"user.colour".to_vec(), b"red".to_vec())]);
    assert_eq!((outcome.parent_mtime, outcome.after.mtime), (mtime(&w, ""), mtime(&w, "f")));
    assert_eq!((records[1].intent.object, records[1].outcome.object), (w.id("f"), w.id("f")));
    assert_eq!(records[1].outcome.after, outcome.after);
    assert!(records[1].intent.parent.is_none());

    fs::write(w.path("empty"), "").unwrap();
    assert_eq!(opcodes(&found(&w, "new", What::Entry(entry(&w, "empty")))), [Opcode::Create]);

    fs::create_dir(w.path("d")).unwrap();
    let records = found(&w, "new", What::Entry(entry(&w, "d")));
    assert_eq!(opcodes(&records), [Opcode::Mkdir]);
    assert_eq!(records[0].outcome.object, w.id("d"));

    symlink("to/there", w.path("s")).unwrap();
    let records = found(&w, "new", What::Entry(entry(&w, "s")));
    assert_eq!(opcodes(&records), [Opcode::Symlink]);
    assert_eq!(
        (records[0].intent.value.as_slice(), records[0].outcome.flags),
        (&b"to/there"[..], Flags::FOUND)
    );

    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, w.path("p"), fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    assert_eq!(opcodes(&found(&w, "new", What::Entry(entry(&w, "p")))), [Opcode::Mknod]);
}

#[test]
fn what_a_close_takes_away_is_given_again() {
    let w = world();
    fs::write(w.path("tool"), "#!").unwrap();
    fs::set_permissions(w.path("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    set_xattr(&w, "tool", "security.capability", &capability());
    let records = found(&w, "new", What::Entry(entry(&w, "tool")));
    assert_eq!(opcodes(&records), [Opcode::Create, Opcode::Close, Opcode::Setattr, Opcode::Setxattr]);
    assert_eq!((records[2].intent.mask, records[2].outcome.after.mode & 0o7777), (Mask::MODE, 0o4755));
    assert_eq!(records[3].intent.name, b"security.capability");
}

#[test]
fn what_has_moved_is_a_rename_and_what_has_another_name_a_link() {
    let w = world();
    let (file, dir) = (w.save("f", "text"), w.user_mkdir("d"));
    let inner = w.user_mkdir("in");
    fs::rename(w.path("in"), w.path("d/in")).unwrap();
    let moved = v1::ScrubEntry { dir: wire(dir), ..known(&w, "in", inner, w.root(), "in") };
    let records = found(&w, "moved", What::Entry(moved));
    assert_eq!(opcodes(&records), [Opcode::Rename]);
    let (intent, outcome) = (&records[0].intent, &records[0].outcome);
    assert_eq!((intent.object, intent.replaced), (inner, FileId::NONE));
    assert_eq!((intent.parent, intent.name.as_slice()), (w.root(), b"in".as_slice()));
    assert_eq!((intent.target_parent, intent.target_name.as_slice()), (dir, b"in".as_slice()));
    assert_eq!((outcome.object, outcome.after.mode), (inner, w.stat("d/in").mode()));
    assert_eq!((outcome.parent_mtime, outcome.target_parent_mtime), (mtime(&w, ""), mtime(&w, "d")));

    fs::hard_link(w.path("f"), w.path("g")).unwrap();
    let records = found(&w, "new", What::Entry(known(&w, "g", file, w.root(), "f")));
    assert_eq!(opcodes(&records), [Opcode::Link]);
    let (intent, outcome) = (&records[0].intent, &records[0].outcome);
    assert_eq!((intent.object, intent.parent, intent.name.as_slice()), (file, w.root(), b"g".as_slice()));
    assert_eq!((outcome.object, outcome.after.nlink, outcome.parent_mtime), (file, 2, mtime(&w, "")));

    // Out of a directory that is gone as well.
    fs::rename(w.path("d/in"), w.path("out")).unwrap();
    fs::remove_dir(w.path("d")).unwrap();
    let records = found(&w, "moved", What::Entry(known(&w, "out", inner, dir, "in")));
    assert_eq!((opcodes(&records).as_slice(), records[0].intent.parent), (&[Opcode::Rename][..], dir));

    // Neither what was listed nor what was expected.
    is(&w, Kind::Stale, What::Entry(known(&w, "g", inner, w.root(), "in")));
}

#[test]
fn another_file_is_a_removal_and_a_making() {
    let w = world();
    let (old, other) = (w.save("f", "old"), w.save("other", "text"));
    fs::write(w.path("new"), "new").unwrap();
    fs::rename(w.path("new"), w.path("f")).unwrap();
    let records = found(&w, "another file", What::Entry(expect(&w, "f", old)));
    assert_eq!(opcodes(&records), [Opcode::Unlink, Opcode::Create, Opcode::Close]);
    assert_eq!((records[0].intent.object, records[1].outcome.object), (old, w.id("f")));
    assert!(records[0].outcome.flags.contains(Flags::LAST_LINK));

    let new = w.id("f");
    fs::rename(w.path("other"), w.path("f")).unwrap();
    let over = known(&w, "f", other, w.root(), "other");
    let over = v1::ScrubEntry { expect: wire(new), expect_last: true, ..over };
    let records = found(&w, "another file", What::Entry(over));
    assert_eq!(opcodes(&records), [Opcode::Unlink, Opcode::Rename]);
    assert_eq!((records[0].intent.object, records[1].intent.object), (new, other));

    let dir = w.user_mkdir("d");
    fs::remove_dir(w.path("d")).unwrap();
    fs::write(w.path("d"), "").unwrap();
    let entry = v1::ScrubEntry { expect_dir: true, ..expect(&w, "d", dir) };
    assert_eq!(opcodes(&found(&w, "another file", What::Entry(entry))), [Opcode::Rmdir, Opcode::Create]);
}

#[test]
fn what_lento_has_not_read_is_stale() {
    let w = world();
    let since = w.last();
    let file = w.save("f", "text");
    let stale = |w: &World, what: What, recno: u64| {
        let outcome = scrub_since(w, since, true, vec![what]).remove(0);
        assert_eq!((outcome.result(), outcome.recno), (Kind::Stale, recno), "{outcome:?}");
    };
    let last = w.last();
    stale(&w, What::Entry(entry(&w, "f")), last);
    stale(&w, What::Object(object(&w, "f")), last);
    same(&w, What::Entry(expect(&w, "f", file)));

    // A replay's record as well: Lento compares with what it has read.
    let made =
        w.one(tagged(1, intermezzo_channel::v1::replay_item::Op::Make(make(by(w.root()), "r", FILE, "x"))));
    applied(&made);
    let outcome = scrub_since(&w, last, true, vec![What::Entry(entry(&w, "r"))]).remove(0);
    assert_eq!((outcome.result(), outcome.recno), (Kind::Stale, made.recno));

    // And what this very batch found.
    let since = w.last();
    fs::write(w.path("new"), "text").unwrap();
    let items = vec![What::Entry(entry(&w, "new")), What::Object(object(&w, "new"))];
    let kinds: Vec<_> = scrub_since(&w, since, true, items).iter().map(|outcome| outcome.result()).collect();
    assert_eq!(kinds, [Kind::Found, Kind::Stale]);
    let w = w.restart(|_| {});
    let outcome = scrub_since(&w, since, true, vec![What::Entry(entry(&w, "new"))]).remove(0);
    assert_eq!(outcome.result(), Kind::Stale, "after a restart too");
    same(&w, What::Entry(expect(&w, "new", w.id("new"))));
}

#[test]
fn limbo_and_staging_are_no_part_of_the_tree() {
    let w = world();
    let staging = v1::ScrubEntry { dir: wire(w.volume.lower.staging()), ..entry(&w, "x") };
    same(&w, What::Entry(staging));
    let id = w.save("f", "text");
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    assert!(w.volume.limbo.contains(id));
    let object = v1::ScrubObject {
        file: wire(id),
        expect: Some(v1::Attributes { mode: FILE, mtime: Some(v1::Time::default()), ..Default::default() }),
        ..Default::default()
    };
    same(&w, What::Object(object));
    for bad in [
        v1::ScrubEntry { name: name("a/b"), ..entry(&w, "x") },
        v1::ScrubEntry { dir: None, ..entry(&w, "x") },
    ] {
        is(&w, Kind::Refused, What::Entry(bad));
    }
}

#[test]
fn a_full_journal_takes_all_records_of_an_item_or_none() {
    // With an even and an odd number of records before, so that the end comes once between the two of an item.
    for parity in 0..2 {
        let w = world_with(tempfile::tempdir().unwrap(), |set| set.log_max_bytes = 2 << 20);
        w.volume.set_when_full(presto::filter::WhenFull::ReadOnly);
        for number in 0..parity {
            w.user_mkdir(&format!("d{number}"));
        }
        let symlink =
            |number: u32| w.volume.symlink(user(), w.root(), format!("{number}").as_bytes(), &[b't'; 4000]);
        (0..).take_while(|number| symlink(*number).is_ok()).for_each(|_| {});
        let (last, outcome) = (0..)
            .find_map(|number| {
                let at = format!("new{number:08}");
                fs::write(w.path(&at), "text").unwrap();
                let outcome = scrub_since(&w, NOW, true, vec![What::Entry(entry(&w, &at))]).remove(0);
                (outcome.result() != Kind::Found).then_some((at, outcome))
            })
            .unwrap();
        assert_eq!(outcome.result(), Kind::Refused);
        assert_eq!((outcome.errno, outcome.recno), (Errno::NOSPC.raw_os_error(), 0), "{outcome:?}");
        let mut done = w.records().into_iter().filter(|record| record.state == State::Done);
        assert!(!done.any(|record| record.intent.name == last.as_bytes()));
        w.volume.journal.truncate(Recno(w.last())).unwrap();
        assert_eq!(
            opcodes(&found(&w, "new", What::Entry(entry(&w, &last)))),
            [Opcode::Create, Opcode::Close]
        );
    }
}

#[test]
fn what_is_below_a_directory_that_left_the_tree_is_gone_whatever_it_holds() {
    let w = world();
    let dir = w.user_mkdir("d");
    fs::write(w.path("d/f"), "text").unwrap();
    let inside = w.volume.lower.dir(dir).unwrap();
    let file = w.volume.lower.child(&*inside, b"f").unwrap();
    let outside = tempfile::tempdir_in(w.path("..")).unwrap();
    fs::rename(w.path("d"), outside.path().join("d")).unwrap();
    let below = v1::ScrubEntry { dir: wire(dir), left: true, given_up: true, ..expect(&w, "f", file) };
    let records = found(&w, "gone", What::Entry(below.clone()));
    assert_eq!(opcodes(&records), [Opcode::Unlink]);
    assert_eq!((records[0].intent.object, records[0].intent.parent), (file, dir));
    let nothing = v1::ScrubEntry { expect: None, ..below };
    same(&w, What::Entry(nothing));
}

#[test]
fn what_has_a_name_elsewhere_is_not_gone_until_it_is_given_up() {
    let w = world();
    let (file, dir) = (w.save("f", "text"), w.user_mkdir("d"));
    fs::rename(w.path("f"), w.path("g")).unwrap();
    fs::rename(w.path("d"), w.path("e")).unwrap();
    is(&w, Kind::Stale, What::Entry(expect(&w, "f", file)));
    let gone_dir = v1::ScrubEntry { expect_dir: true, ..expect(&w, "d", dir) };
    is(&w, Kind::Stale, What::Entry(gone_dir.clone()));
    is(&w, Kind::Stale, What::Entry(v1::ScrubEntry { left: true, ..gone_dir.clone() }));
    let given_up = v1::ScrubEntry { given_up: true, ..expect(&w, "f", file) };
    assert_eq!(opcodes(&found(&w, "gone", What::Entry(given_up))), [Opcode::Unlink]);
    let given_up = v1::ScrubEntry { given_up: true, ..gone_dir };
    assert_eq!(opcodes(&found(&w, "gone", What::Entry(given_up))), [Opcode::Rmdir]);
}

#[test]
fn what_has_changed_places_is_an_exchange() {
    let w = world();
    let (a, b) = (w.save("a", "of a"), w.save("b", "of b"));
    fs::rename(w.path("a"), w.path("tmp")).unwrap();
    fs::rename(w.path("b"), w.path("a")).unwrap();
    fs::rename(w.path("tmp"), w.path("b")).unwrap();
    let moved = v1::ScrubEntry { expect: wire(a), expect_last: true, ..known(&w, "a", b, w.root(), "b") };
    is(&w, Kind::Stale, What::Entry(moved.clone()));
    let records =
        found(&w, "another file", What::Entry(v1::ScrubEntry { may_exchange: true, ..moved.clone() }));
    assert_eq!(opcodes(&records), [Opcode::Rename]);
    let intent = &records[0].intent;
    assert_eq!((intent.object, intent.parent, intent.name.as_slice()), (b, w.root(), b"b".as_slice()));
    assert_eq!((intent.target_parent, intent.target_name.as_slice()), (w.root(), b"a".as_slice()));
    assert_eq!(intent.replaced, a);
    assert!(intent.flags.contains(Flags::EXCHANGE));
    same(&w, What::Entry(expect(&w, "a", b)));
    same(&w, What::Entry(expect(&w, "b", a)));
}

#[test]
fn what_lies_aside_is_told_only_if_it_was_listed() {
    let w = world();
    let staging = w.volume.lower.staging();
    let aside = w.volume.lower.path.join("staging");
    fs::write(aside.join("1-1-7"), "text").unwrap();
    let id = w.volume.lower.child(&*w.volume.lower.dir(staging).unwrap(), b"1-1-7").unwrap();
    let listed = list(&w, staging, 0);
    assert_eq!(listed.entries.iter().map(|entry| entry.file).collect::<Vec<_>>(), [wire(id)]);
    let new =
        v1::ScrubEntry { dir: wire(staging), name: name("1-1-7"), listed: wire(id), ..Default::default() };
    same(&w, What::Entry(v1::ScrubEntry { listed: None, ..new.clone() }));
    let (outcome, records) = mend(&w, What::Entry(new));
    assert_eq!(outcome.result(), Kind::Found, "{outcome:?}");
    assert_eq!(opcodes(&records), [Opcode::Create, Opcode::Close]);
    assert!(records[1].outcome.flags.contains(Flags::UNVOUCHED), "it may be torn");

    let file = w.save("f", "text");
    fs::rename(w.path("f"), aside.join("1-1-8")).unwrap();
    let moved = v1::ScrubEntry {
        dir: wire(staging),
        name: name("1-1-8"),
        listed: wire(file),
        known_dir: wire(w.root()),
        known_name: name("f"),
        ..Default::default()
    };
    let (outcome, records) = mend(&w, What::Entry(moved));
    assert_eq!(outcome.result(), Kind::Found, "{outcome:?}");
    assert_eq!(opcodes(&records), [Opcode::Rename]);
    assert_eq!(records[0].intent.target_parent, staging);
}
