//! Files that somebody has open for writing: BUSY for clients, orphans for servers.

use intermezzo_channel::v1;
use intermezzo_channel::v1::Busy;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{FileId, Flags, Opcode};
use presto::filter::{Access, Changes};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::world::*;

fn resolve(w: &World, id: intermezzo_kml::FileId) -> Option<String> {
    use std::io::Read;
    let files = vec![v1::FileId { ino: id.ino, generation: id.generation }];
    let mut reply = w.call(Body::Resolve(v1::Resolve { files }));
    let Body::Resolved(resolved) = reply.body else { panic!("{:?}", reply.body) };
    if !resolved.found[0] {
        assert!(reply.fds.is_empty());
        return None;
    }
    let mut text = String::new();
    std::fs::File::from(reply.fds.remove(0)).read_to_string(&mut text).unwrap();
    Some(text)
}

fn orphan_close(w: &World, id: intermezzo_kml::FileId) -> bool {
    w.records().iter().any(|record| {
        record.opcode == Opcode::Close
            && record.intent.object == id
            && record.outcome.flags.contains(Flags::ORPHAN)
    })
}

#[test]
fn a_client_waits_for_the_writer() {
    let w = world();
    w.save("f", "old");
    let handle = w.open("f");
    let asked = v1::Install { busy: Busy::Wait.into(), ..install(&w, "f", inline("new")) };
    let before = w.last();
    assert_eq!(w.one(item(Op::Install(asked.clone()))).result(), Kind::Busy);
    let unlink = v1::Unlink {
        dir: by(w.root()),
        name: name("f"),
        expect: by(w.id("f")),
        busy: Busy::Wait.into(),
        ..Default::default()
    };
    assert_eq!(w.one(item(Op::Unlink(unlink))).result(), Kind::Busy);
    assert_eq!((w.read("f"), w.last()), ("old".into(), before), "nothing touched");
    w.volume.release(user(), handle.number).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    w.volume.writers.finished(w.id("f"));
    applied(&w.one(item(Op::Install(asked))));
}

#[test]
fn a_server_decides_and_what_the_writer_leaves_is_an_orphan() {
    let w = world();
    let old = w.save("f", "old");
    let handle = w.open("f");
    w.write(&handle, "half-written");
    let asked = v1::Install { busy: Busy::Decide.into(), ..install(&w, "f", inline("new")) };
    let outcome = w.one(item(Op::Install(asked)));
    applied(&outcome);
    assert!(w.record(outcome.recno).outcome.flags.contains(Flags::LIMBO));
    assert_eq!(w.read("f"), "new");
    w.write(&handle, "what the writer leaves");
    w.close(&handle);
    assert!(orphan_close(&w, old));
    assert_eq!(resolve(&w, old).as_deref(), Some("what the writer leaves"));
    assert_eq!(w.read("f"), "new");
    release(&w, old, w.volume.journal.published().0);
    empties(&w);
    drop(handle);
}

#[test]
fn an_orphan_stays_while_somebody_writes_to_it_or_a_later_record_tells_of_it() {
    let w = world();
    let old = w.save("f", "old");
    let (first, second) = (w.open("f"), w.open("f"));
    w.write(&first, "one");
    let asked = v1::Install { busy: Busy::Decide.into(), ..install(&w, "f", inline("new")) };
    applied(&w.one(item(Op::Install(asked))));
    w.close(&first);
    let told = w.volume.journal.published().0;
    release(&w, old, told);
    assert_eq!(resolve(&w, old).as_deref(), Some("one"), "released under a writer");
    w.write(&second, "two!");
    w.close(&second);
    release(&w, old, told);
    assert_eq!(resolve(&w, old).as_deref(), Some("two!"), "released before its last record was dealt with");
    release(&w, old, w.volume.journal.published().0);
    empties(&w);
}

#[test]
fn an_orphan_that_nobody_changed_goes_with_its_last_writer() {
    let w = world();
    w.save("f", "old");
    let handle = w.open("f");
    let asked = v1::Install { busy: Busy::Decide.into(), ..install(&w, "f", inline("new")) };
    applied(&w.one(item(Op::Install(asked))));
    assert_eq!(in_limbo(&w).len(), 1);
    w.close(&handle);
    empties(&w);
}

#[test]
fn what_a_writer_left_in_an_orphan_is_told_after_a_kill() {
    let w = world();
    let old = w.save("f", "old");
    let handle = w.open("f");
    let asked = v1::Install { busy: Busy::Decide.into(), ..install(&w, "f", inline("new")) };
    applied(&w.one(item(Op::Install(asked))));
    w.write(&handle, "synced, and never closed");
    let w = w.restart(|_| {});
    assert!(orphan_close(&w, old));
    retain(&w, &[old]);
    assert_eq!(resolve(&w, old).as_deref(), Some("synced, and never closed"));
    retain(&w, &[]);
    assert!(in_limbo(&w).is_empty());
}

fn release(w: &World, file: FileId, upto: u64) {
    let files = vec![v1::FileId { ino: file.ino, generation: file.generation }];
    let reply = w.call(Body::ReleaseLimbo(v1::ReleaseLimbo { files, upto, ..Default::default() }));
    assert!(matches!(reply.body, Body::Done(_)), "{:?}", reply.body);
}

fn retain(w: &World, files: &[FileId]) {
    let files = files.iter().map(|file| v1::FileId { ino: file.ino, generation: file.generation }).collect();
    let upto = w.volume.journal.published().0;
    let release = v1::ReleaseLimbo { files, upto, all_but: true, ..Default::default() };
    let reply = w.call(Body::ReleaseLimbo(release));
    assert!(matches!(reply.body, Body::Done(_)), "{:?}", reply.body);
}

/// After the last close presto looks for a while whether the file is still mapped.
fn empties(w: &World) {
    let begin = std::time::Instant::now();
    while !in_limbo(w).is_empty() {
        assert!(begin.elapsed().as_secs() < 20, "limbo keeps {:?}", in_limbo(w));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn in_limbo(w: &World) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(w.cache.join("limbo")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn removal_and_replacement_by_rename_make_orphans_too() {
    let w = world();
    let (f, g) = (w.save("f", "old f"), w.save("g", "old g"));
    w.save("new", "new");
    let (writes_f, writes_g) = (w.open("f"), w.open("g"));
    let unlink = v1::Unlink {
        dir: by(w.root()),
        name: name("f"),
        expect: by(f),
        busy: Busy::Decide.into(),
        ..Default::default()
    };
    let outcome = w.one(item(Op::Unlink(unlink)));
    applied(&outcome);
    assert!(w.record(outcome.recno).outcome.flags.contains(Flags::LAST_LINK | Flags::LIMBO));
    let rename = v1::Rename {
        from: by(w.root()),
        from_name: name("new"),
        expect: by(w.id("new")),
        to: by(w.root()),
        to_name: name("g"),
        replaced: by(g),
        busy: Busy::Decide.into(),
        ..Default::default()
    };
    let outcome = w.one(item(Op::Rename(rename)));
    applied(&outcome);
    assert!(w.record(outcome.recno).outcome.flags.contains(Flags::REPLACED_LIMBO));
    assert_eq!((w.there("f"), w.read("g")), (false, "new".into()));
    for (handle, id) in [(&writes_f, f), (&writes_g, g)] {
        w.write(handle, "left behind");
        w.close(handle);
        assert!(orphan_close(&w, id));
        assert!(resolve(&w, id).unwrap().starts_with("left behind"));
    }
}

#[test]
fn a_busy_file_with_several_names_is_never_overwritten_in_place() {
    let w = world();
    w.save("f", "old");
    std::fs::hard_link(w.path("f"), w.path("g")).unwrap();
    let handle = w.open("f");
    let asked = v1::Install { busy: Busy::Decide.into(), ..install(&w, "f", inline("new")) };
    assert_eq!(w.one(item(Op::Install(asked))).result(), Kind::Busy);
    assert_eq!(w.read("g"), "old");
    w.close(&handle);
}

#[test]
fn what_is_gone_is_not_found() {
    let w = world();
    let id = w.save("f", "x");
    assert_eq!(resolve(&w, id).as_deref(), Some("x"));
    w.call(Body::Mark(v1::Mark { settled: Some(u64::MAX), ..Default::default() }));
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    assert_eq!(resolve(&w, id), None);
}

#[test]
fn a_content_without_a_verdict_is_found_in_limbo_until_it_is_released() {
    let w = world();
    let id = w.save("f", "precious");
    // Also across a restart: the journal still says that it was closed.
    let w = w.restart(|_| {});
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    assert_eq!(resolve(&w, id).as_deref(), Some("precious"));
    let w = w.restart(|_| {});
    assert_eq!(resolve(&w, id).as_deref(), Some("precious"));
    release(&w, id, w.volume.journal.published().0);
    assert_eq!(resolve(&w, id), None);
}

#[test]
fn who_comes_by_an_old_name_to_a_file_that_was_replaced_or_removed_is_sent_to_look_again() {
    let w = world();
    let (f, g) = (w.save("f", "old f"), w.save("g", "old g"));
    // Whoever reads it keeps it alive, so that it could still be opened.
    let reading: Vec<_> =
        [f, g].map(|id| w.volume.open_file(user(), id, Access::Read, false).unwrap()).into();
    applied(&w.one(item(Op::Install(v1::Install {
        busy: Busy::Decide.into(),
        ..install(&w, "f", inline("new"))
    }))));
    let unlink = v1::Unlink {
        dir: by(w.root()),
        name: name("g"),
        expect: by(g),
        busy: Busy::Decide.into(),
        ..Default::default()
    };
    applied(&w.one(item(Op::Unlink(unlink))));
    let before = w.last();
    for id in [f, g] {
        assert_eq!(w.volume.open_file(user(), id, Access::Write, false).unwrap_err(), Errno::STALE);
        assert_eq!(w.volume.open_file(user(), id, Access::Write, true).unwrap_err(), Errno::STALE);
        let cut = Changes { size: Some(0), ..Changes::default() };
        assert_eq!(w.volume.setattr(user(), id, &cut).unwrap_err(), Errno::STALE);
        assert_eq!(
            w.volume.setxattr(user(), id, b"user.x", b"y", XattrFlags::empty()).unwrap_err(),
            Errno::STALE
        );
    }
    assert_eq!((w.last(), w.read("f"), w.there("g")), (before, "new".into(), false));
    let handle = w.open("f");
    w.write(&handle, "by the new name");
    w.close(&handle);
    assert_eq!(w.read("f"), "by the new name");
    // One of two names is not the last.
    let k = w.save("k", "twice");
    w.volume.link(user(), k, w.root(), b"l").unwrap();
    let unlink = v1::Unlink { name: name("k"), expect: by(k), dir: by(w.root()), ..Default::default() };
    applied(&w.one(item(Op::Unlink(unlink))));
    let handle = w.open("l");
    w.volume.unlink(user(), w.root(), b"l").unwrap();
    let cut = Changes { size: Some(0), ..Changes::default() };
    w.volume.setattr(user(), k, &cut).unwrap();
    w.volume.release(user(), handle.number).unwrap();
    // What its own user removes, he may still change by a descriptor that he has.
    let h = w.save("h", "mine");
    let mine = w.volume.open_file(user(), h, Access::Read, false).unwrap();
    w.volume.unlink(user(), w.root(), b"h").unwrap();
    let again = w.volume.open_file(user(), h, Access::Write, false).unwrap();
    for handle in reading.iter().chain([&mine, &again]) {
        w.volume.release(user(), handle.number).unwrap();
    }
}
