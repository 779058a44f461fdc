//! An overwriting in place that the disk stops in the middle: nobody's content until it is finished.

use std::time::Duration;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{FileId, OriginKind};
use presto::filter::{Access, Changes};
use rustix::fs::{IFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::Resource;

use crate::limits::*;
use crate::world::*;

const MIB: usize = 1 << 20;

/// `f` (and `g`) after an install of which 1 of 2 MiB were written; and what had been asked.
fn torn(w: &World, limit: &Limit) -> (FileId, v1::Install) {
    let file = two_names(w, &"o".repeat(3 * MIB));
    let asked = install(w, "f", Some(w.stage("ab", &"n".repeat(2 * MIB))));
    limit.set(MIB as u64);
    let outcome = w.one(v1::ReplayItem { hash: vec![7; 32].into(), ..item(Op::Install(asked.clone())) });
    assert_eq!((outcome.result(), outcome.errno), (Kind::Refused, Errno::FBIG.raw_os_error()), "{outcome:?}");
    assert!(outcome.message.contains("f: "), "{}", outcome.message);
    assert!(is_torn(w));
    // Lento may drop what it staged: it is presto's now.
    w.call(Body::DropStage(v1::DropStage { names: vec!["ab".into()] }));
    (file, asked)
}

fn is_torn(w: &World) -> bool {
    w.read("g") == "n".repeat(MIB) + &"o".repeat(MIB)
}

fn nobody_changes(w: &World, file: FileId) {
    let cut = Changes { size: Some(0), ..Changes::default() };
    let mode = Changes { mode: Some(0o600), ..Changes::default() };
    for access in [Access::Write, Access::ReadWrite] {
        assert_eq!(w.volume.open_file(user(), file, access, false).unwrap_err(), Errno::IO);
    }
    assert_eq!(w.volume.open_file(user(), file, Access::Write, true).unwrap_err(), Errno::IO);
    assert_eq!(w.volume.setattr(user(), file, &cut).unwrap_err(), Errno::IO);
    assert_eq!(w.volume.setattr(user(), file, &mode).unwrap_err(), Errno::IO);
    assert_eq!(w.volume.setxattr(user(), file, b"user.a", b"b", XattrFlags::empty()).unwrap_err(), Errno::IO);
    let reading = w.volume.open_file(user(), file, Access::Read, false).unwrap();
    w.volume.release(user(), reading.number).unwrap();
}

fn finished(w: &World, file: FileId) {
    until("not finished", || nothing_in(w, "lml"));
    until("still refused", || !w.volume.unfinished.contains(file));
    assert!(w.read("g") == "n".repeat(2 * MIB) && nothing_in(w, "stage"));
    w.save("f", "a user goes on");
}

#[test]
fn what_stops_midway_is_nobodys_content_and_is_finished_when_the_disk_allows() {
    let limit = Limit::of(Resource::Fsize);
    let w = world();
    let (file, asked) = torn(&w, &limit);
    let users = closes(&w, file, OriginKind::User).len();
    nobody_changes(&w, file);
    // Asked again, or for something else: torn bytes are no store that somebody missed.
    for expect_version in [asked.expect_version, Some(w.version("f"))] {
        let ask = |busy: v1::Busy| {
            let again =
                v1::Install { expect_version, content: inline("x"), busy: busy.into(), ..asked.clone() };
            w.one(item(Op::Install(again)))
        };
        assert_eq!(ask(v1::Busy::Wait).result(), Kind::Busy);
        let refused = ask(v1::Busy::Decide);
        assert_eq!((refused.result(), refused.errno), (Kind::Refused, Errno::FBIG.raw_os_error()));
        assert!(refused.message.starts_with("f: "), "{}", refused.message);
    }
    let mode = v1::SetAttr { file: by(file), mask: 1, attributes: give(0o600) };
    assert_eq!(w.one(item(Op::SetAttr(mode))).result(), Kind::Refused);
    // Nor does a scrub make an update of them.
    let believed = v1::ScrubObject {
        file: Some(v1::FileId { ino: file.ino, generation: file.generation }),
        expect: give(0o100_644),
        ..Default::default()
    };
    let what = Some(v1::scrub_item::What::Object(believed));
    let scrub =
        v1::Scrub { items: vec![v1::ScrubItem { what }], untouched_since: NOW, take: true, unvouched: false };
    let Body::Scrubbed(scrubbed) = w.call(Body::Scrub(scrub)).body else { panic!("not scrubbed") };
    assert_eq!(scrubbed.outcomes[0].result(), v1::scrub_outcome::Result::Busy);
    // Other files notice nothing, also those with several names.
    let k = w.save("k", "other");
    w.volume.link(user(), k, w.root(), b"l").unwrap();
    applied(&w.one(item(Op::Install(install(&w, "k", inline("new"))))));
    assert_eq!((w.read("l"), closes(&w, file, OriginKind::User).len()), ("new".into(), users));
    assert!(is_torn(&w) && closes(&w, file, OriginKind::Replay).is_empty());

    limit.lift();
    until("no record", || !closes(&w, file, OriginKind::Replay).is_empty());
    let record = closes(&w, file, OriginKind::Replay).remove(0);
    assert_eq!((record.intent.origin.record.number, record.intent.origin.hash), (1, [7; 32]));
    assert_eq!(record.outcome.after.version().size, w.version("f").size);
    let stale = w.one(item(Op::Install(v1::Install { content: inline("x"), ..asked })));
    assert_eq!((stale.result(), stale.recno), (Kind::Stale, record.recno.0));
    assert_eq!(closes(&w, file, OriginKind::User).len(), users);
    finished(&w, file);
    assert_eq!(closes(&w, file, OriginKind::Replay).len(), 1);
}

#[test]
fn it_stays_so_when_presto_starts_again_and_the_volume_is_served() {
    let limit = Limit::of(Resource::Fsize);
    let w = world();
    let (file, _) = torn(&w, &limit);
    let users = closes(&w, file, OriginKind::User).len();
    let w = w.restart(|_| {});
    assert!(is_torn(&w));
    nobody_changes(&w, file);
    let w = w.restart(|_| {});
    nobody_changes(&w, file);
    assert_eq!(closes(&w, file, OriginKind::User).len(), users);
    limit.lift();
    until("no record", || closes(&w, file, OriginKind::User).len() > users);
    finished(&w, file);
    let w = w.restart(|_| {});
    assert!(w.read("g").starts_with("a user goes on"));
}

#[test]
fn a_start_finishes_it_where_the_disk_allows_by_then() {
    let limit = Limit::of(Resource::Fsize);
    let w = world();
    let (file, _) = torn(&w, &limit);
    let w = w.restart(|_| limit.lift());
    assert!(w.read("g") == "n".repeat(2 * MIB));
    finished(&w, file);
}

#[test]
fn a_file_that_is_removed_meanwhile_is_forgotten() {
    let limit = Limit::of(Resource::Fsize);
    let w = world();
    let (file, asked) = torn(&w, &limit);
    let users = closes(&w, file, OriginKind::User).len();
    // Another node removes one name, by the version that it knows; a user the other one.
    let unlink = v1::Unlink {
        dir: by(w.root()),
        name: name("g"),
        expect: by(file),
        expect_version: asked.expect_version,
        ..Default::default()
    };
    applied(&w.one(item(Op::Unlink(unlink))));
    w.volume.unlink(user(), w.root(), b"f").unwrap();
    until("not finished", || nothing_in(&w, "lml") && nothing_in(&w, "stage"));
    assert_eq!(closes(&w, file, OriginKind::User).len(), users);
    assert!(closes(&w, file, OriginKind::Replay).is_empty());
}

/// An entry that cannot be removed would, at the next start, undo what users write meanwhile.
#[test]
fn an_entry_that_cannot_go_keeps_users_out_until_it_can() {
    let _alone = alone();
    let w = world();
    let lml = std::fs::File::open(w.cache.join("lml")).unwrap();
    let flags = |flags| rustix::fs::ioctl_setflags(&lml, flags).is_ok();
    let before = rustix::fs::ioctl_getflags(&lml).unwrap_or(IFlags::empty());
    if !flags(before | IFlags::IMMUTABLE) || !flags(before) {
        eprintln!("skipped: no immutable directories here");
        return;
    }
    let file = two_names(&w, "old");
    let new = "n".repeat(64 * MIB);
    // As soon as the entry is there nothing can be removed any more. Copying takes longer than looking for it.
    let stuck = (0..20).any(|attempt| {
        let asked = install(&w, "f", Some(w.stage(&format!("a{attempt}"), &new)));
        let entry = w.cache.join(format!("lml/{}-{}", file.ino, file.generation));
        std::thread::scope(|scope| {
            let installed = scope.spawn(|| w.one(item(Op::Install(asked))));
            while !entry.exists() && !installed.is_finished() {
                std::thread::sleep(Duration::from_micros(50));
            }
            assert!(flags(before | IFlags::IMMUTABLE));
            applied(&installed.join().unwrap());
        });
        let stuck = !nothing_in(&w, "lml");
        if !stuck {
            flags(before);
        }
        stuck
    });
    assert!(stuck, "the entry went away each time");
    let tried = w.volume.open_file(user(), file, Access::Write, false);
    if let Ok(handle) = &tried {
        w.write(handle, "newer than what was installed");
        w.close(handle);
    }
    let saved = w.read("g");
    assert!(flags(before));
    let w = w.restart(|_| {});
    assert!(w.read("g") == saved, "a user's content is undone");
    assert_eq!(tried.unwrap_err(), Errno::IO);
    w.save("f", "a user goes on");
    let w = w.restart(|_| {});
    assert!(w.read("g").starts_with("a user goes on"));
}
