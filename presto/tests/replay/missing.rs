//! Contents that are not here: made without, filled in place, never shown, and what a kill leaves.

use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Flags, Opcode};
use presto::filter::{Access, Changes};
use rustix::fs::{RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::world::*;

const MARK: &str = "trusted.intermezzo.lacks";
const HASH: [u8; 32] = [7; 32];

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
