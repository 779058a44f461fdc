//! Contents that are not here: made without, filled in place, never shown, and what a kill leaves.

use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Flags, Opcode};
use presto::filter::{Access, Changes};
use rustix::fs::{RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::world::*;

const MARK: &str = "trusted.intermezzo.lacks";
const HASH: [u8; 32] = [7; 32];
/// cap_net_raw, as setcap writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn hashed(item: v1::ReplayItem) -> v1::ReplayItem {
    v1::ReplayItem { hash: HASH.to_vec().into(), ..item }
}

fn missing(size: u64) -> Option<v1::Content> {
    Some(v1::Content { from: Some(v1::content::From::Missing(v1::Missing {})), size })
}

fn fill(w: &World, at: &str, text: &str) -> v1::ReplayItem {
    hashed(item(Op::Fill(v1::Fill { file: by(w.id(at)), content: inline(text) })))
}

/// A world with a file `f` that lacks its ten bytes.
fn lacking() -> World {
    let w = world();
    let make = v1::Make { content: missing(10), ..make(by(w.root()), "f", FILE, "") };
    let outcome = w.one(hashed(item(Op::Make(make))));
    applied(&outcome);
    let record = w.record(outcome.recno);
    assert!(record.outcome.flags.contains(Flags::MISSING | Flags::HASHED), "{record:?}");
    w
}

fn nothing_in(w: &World, dir: &str) -> bool {
    std::fs::read_dir(w.home.join(dir)).unwrap().next().is_none()
}

fn is_marked(w: &World, at: &str) -> bool {
    rustix::fs::getxattr(w.path(at), MARK, &mut [0; 64][..]).is_ok()
}

fn open(w: &World, access: Access) -> Result<(), Errno> {
    w.volume.open_file(user(), w.id("f"), access, false).map(|handle| {
        w.volume.release(user(), handle.number).unwrap();
    })
}

#[test]
fn it_is_a_file_with_everything_but_its_bytes_and_nobody_opens_it() {
    let w = lacking();
    let stat = w.stat("f");
    assert_eq!((stat.len(), stat.blocks(), stat.mtime(), stat.uid()), (10, 0, 1000, 12));
    let names = w.volume.listxattr(user(), w.id("f")).unwrap();
    assert!(!String::from_utf8_lossy(&names).contains("lacks"), "hidden");
    // Nobody answers for Lento here.
    let began = std::time::Instant::now();
    assert_eq!(open(&w, Access::Read), Err(Errno::HOSTUNREACH));
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
    let reply = w.call(Body::Resolve(v1::Resolve {
        files: vec![v1::FileId { ino: w.id("f").ino, generation: w.id("f").generation }],
    }));
    let Body::Resolved(resolved) = reply.body else { panic!("{:?}", reply.body) };
    assert_eq!(resolved.found, [false], "its holes are no content for Lento either");
    // Names and attributes are as anybody's.
    let at = |name: &'static str| presto::filter::Place { dir: w.root(), name: name.as_bytes() };
    w.volume.rename(user(), at("f"), at("g"), RenameFlags::empty()).unwrap();
    w.volume.link(user(), w.id("g"), w.root(), b"h").unwrap();
    w.volume.setattr(user(), w.id("g"), &Changes { mode: Some(0o600), ..Changes::default() }).unwrap();
    w.volume.setxattr(user(), w.id("g"), b"user.a", b"b", XattrFlags::empty()).unwrap();
    assert!(is_marked(&w, "g") && is_marked(&w, "h"));
    applied(&w.one(fill(&w, "g", "0123456789")));
    assert_eq!((w.read("g"), w.read("h")), ("0123456789".into(), "0123456789".into()));
}

#[test]
fn a_content_comes_into_the_very_file_and_its_times_stay() {
    let w = lacking();
    let before = w.stat("f");
    stale(&w.one(v1::ReplayItem { hash: vec![8; 32].into(), ..fill(&w, "f", "0123456789") }));
    stale(&w.one(fill(&w, "f", "too short")));
    let outcome = w.one(fill(&w, "f", "0123456789"));
    applied(&outcome);
    let after = w.stat("f");
    assert_eq!(
        (after.ino(), after.mtime(), after.mtime_nsec()),
        (before.ino(), before.mtime(), before.mtime_nsec())
    );
    assert_eq!(w.read("f"), "0123456789");
    assert!(!is_marked(&w, "f"));
    let record = w.record(outcome.recno);
    assert_eq!((record.opcode, record.outcome.flags.contains(Flags::MISSING)), (Opcode::Close, false));
    assert_eq!(open(&w, Access::ReadWrite), Ok(()));
    stale(&w.one(fill(&w, "f", "0123456789")));
}

#[test]
fn a_staged_content_comes_as_well_and_leaves_the_stage() {
    let w = lacking();
    let content = Some(w.stage("aa", "9876543210"));
    applied(&w.one(hashed(item(Op::Fill(v1::Fill { file: by(w.id("f")), content })))));
    assert_eq!(w.read("f"), "9876543210");
    assert!(!w.staged("aa"));
}

const LARGE: usize = 5 << 20;

/// A file `f` that lacks so much, and what asks for its content.
fn lacking_much() -> (World, v1::ReplayItem, String) {
    let w = world();
    let make = v1::Make { content: missing(LARGE as u64), ..make(by(w.root()), "f", FILE, "") };
    applied(&w.one(hashed(item(Op::Make(make)))));
    let text: String = (0..LARGE / 8).map(|at| format!("{at:07}\n")).collect();
    let content = Some(w.stage("aa", &text));
    let fill = hashed(item(Op::Fill(v1::Fill { file: by(w.id("f")), content })));
    (w, fill, text)
}

/// Asks until presto has copied it; what it says then.
fn filled(w: &World, fill: &v1::ReplayItem) -> v1::Outcome {
    let since = std::time::Instant::now();
    loop {
        let outcome = w.one(fill.clone());
        if outcome.result() != Kind::Busy {
            return outcome;
        }
        assert!(since.elapsed() < std::time::Duration::from_secs(60), "never whole");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_large_content_comes_before_its_record() {
    let (w, fill, text) = lacking_much();
    let before = w.stat("f");
    rustix::fs::setxattr(w.path("f"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    let last = w.last();
    assert_eq!(w.one(fill.clone()).result(), Kind::Busy);
    assert_eq!(w.last(), last, "nothing holds the journal up");
    let seen = w.volume.getattr(w.id("f")).unwrap().attributes;
    assert_eq!((seen.mtime.sec, w.volume.must_fetch(w.id("f"))), (1000, true), "nobody sees what is in it");
    w.user_mkdir("d");
    assert_eq!(w.records().len() as u64, w.last(), "and others' records are told");
    let outcome = filled(&w, &fill);
    applied(&outcome);
    let after = w.stat("f");
    assert_eq!((after.ino(), after.mtime(), after.mtime_nsec()), (before.ino(), 1000, 5));
    assert!(w.read("f") == text && !is_marked(&w, "f") && !w.staged("aa"));
    assert_eq!(w.record(outcome.recno).intent.before.mtime.sec, 1000);
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(w.path("f"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], CAPABILITY);
    assert!(nothing_in(&w, "lml"));
    assert_eq!(open(&w, Access::ReadWrite), Ok(()));
}

#[test]
fn who_changes_it_meanwhile_finds_it_as_it_was_and_nothing_comes_over_that() {
    let (w, fill, _) = lacking_much();
    assert_eq!(w.one(fill.clone()).result(), Kind::Busy);
    let at = presto::filter::SetTime::At(intermezzo_kml::record::Time { sec: 2000, nsec: 7 });
    let stat =
        w.volume.setattr(user(), w.id("f"), &Changes { mtime: Some(at), ..Changes::default() }).unwrap();
    assert_eq!(stat.attributes.mtime.sec, 2000);
    assert_eq!(w.record(w.last()).intent.before.mtime.sec, 1000, "what its record says was before");
    assert_eq!((w.stat("f").mtime(), w.stat("f").blocks(), is_marked(&w, "f")), (2000, 0, true));
    // Begun once more, and emptied.
    assert_eq!(w.one(fill.clone()).result(), Kind::Busy);
    let handle = w.volume.open_file(user(), w.id("f"), Access::ReadWrite, true).unwrap();
    w.write(&handle, "a user's");
    w.close(&handle);
    std::thread::sleep(std::time::Duration::from_millis(300));
    stale(&filled(&w, &fill));
    assert_eq!((w.read("f").as_str(), is_marked(&w, "f")), ("a user's", false));
}

#[test]
fn a_kill_leaves_nothing_of_a_content_that_was_on_its_way() {
    let (w, fill, text) = lacking_much();
    rustix::fs::setxattr(w.path("f"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    assert_eq!(w.one(fill.clone()).result(), Kind::Busy);
    assert!(!nothing_in(&w, "lml"));
    let w = w.restart(|_| {});
    let stat = w.stat("f");
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1000, 5));
    assert!(stat.blocks() <= 8, "at most its attributes take room");
    assert!(rustix::fs::getxattr(w.path("f"), "security.capability", &mut [0; 64][..]).is_ok());
    assert!(is_marked(&w, "f") && nothing_in(&w, "lml") && w.staged("aa"));
    applied(&filled(&w, &fill));
    assert!(w.read("f") == text);
}

#[test]
fn who_empties_it_needs_no_content() {
    let w = lacking();
    let handle = w.volume.open_file(user(), w.id("f"), Access::ReadWrite, true).unwrap();
    w.write(&handle, "0123456789");
    w.close(&handle);
    assert!(!is_marked(&w, "f"), "as long as before, and another content");
    assert_eq!((w.read("f"), open(&w, Access::Read)), ("0123456789".into(), Ok(())));
    stale(&w.one(fill(&w, "f", "abcdefghij")));
    assert_eq!(w.read("f"), "0123456789");
}

#[test]
fn others_change_it_without_its_content() {
    let w = lacking();
    let install = Op::Install(install(&w, "f", missing(20)));
    applied(&w.one(v1::ReplayItem { hash: vec![9; 32].into(), ..item(install) }));
    assert_eq!(w.stat("f").len(), 20);
    assert!(is_marked(&w, "f"));
    let full = Op::Install(crate::world::install(&w, "f", inline("here")));
    applied(&w.one(hashed(item(full))));
    assert!(!is_marked(&w, "f"));
    assert_eq!(w.read("f"), "here");
}

#[test]
fn a_start_knows_that_contents_lack_and_takes_no_leftover_for_one() {
    let w = lacking();
    let w = w.restart(|_| {});
    assert!(w.volume.must_fetch(w.id("f")));
    // Emptied, and killed before the mark was taken away.
    let w = w.restart(|cache| {
        let file = std::fs::OpenOptions::new().write(true).open(cache.join("tree/f")).unwrap();
        file.set_len(0).unwrap();
    });
    assert_eq!(open(&w, Access::ReadWrite), Ok(()));
    assert!(!is_marked(&w, "f"));
}

#[test]
fn it_does_not_leave_the_volume_without_its_content() {
    let w = world_with(tempfile::tempdir().unwrap(), |set| set.exclude = vec!["*.bak".to_owned()]);
    let make = v1::Make { content: missing(10), ..make(by(w.root()), "f", FILE, "") };
    applied(&w.one(hashed(item(Op::Make(make)))));
    let at = |name: &'static str| presto::filter::Place { dir: w.root(), name: name.as_bytes() };
    let renamed = w.volume.rename(user(), at("f"), at("f.bak"), RenameFlags::empty());
    assert_eq!(renamed.unwrap_err(), Errno::XDEV);
    applied(&w.one(fill(&w, "f", "0123456789")));
    w.volume.rename(user(), at("f"), at("f.bak"), RenameFlags::empty()).unwrap();
    assert_eq!(w.read("f.bak"), "0123456789");
}
