//! A Lento that compares, and the changes that are made behind presto's back.

use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::scrub_item::What;
pub use intermezzo_channel::v1::scrub_outcome::Result as Kind;
use intermezzo_kml::record::{Caller, FileId, Flags, OriginKind, Record};

use crate::world::{NOW, World, name};

pub fn wire(id: FileId) -> Option<v1::FileId> {
    Some(v1::FileId { ino: id.ino, generation: id.generation })
}

/// An entry in the root that Lento believes to be absent.
pub fn entry(w: &World, at: &str) -> v1::ScrubEntry {
    let root = w.volume.lower.dir(w.root()).unwrap();
    let listed = w.volume.lower.child(&*root, at.as_bytes()).ok();
    v1::ScrubEntry {
        dir: wire(w.root()),
        name: name(at),
        listed: listed.and_then(wire),
        ..Default::default()
    }
}

/// One that Lento believes to be this file.
pub fn expect(w: &World, at: &str, id: FileId) -> v1::ScrubEntry {
    v1::ScrubEntry { expect: wire(id), expect_last: true, ..entry(w, at) }
}

/// What Lento believes of an object: just what it is now.
pub fn object(w: &World, at: &str) -> v1::ScrubObject {
    let stat = w.stat(at);
    v1::ScrubObject {
        file: wire(w.id(at)),
        expect: Some(v1::Attributes {
            mode: stat.mode(),
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: w.version(at).mtime,
            rdev: 0,
        }),
        size: if stat.is_file() { stat.size() } else { 0 },
        xattrs: xattrs(w, at),
        missing: Default::default(),
    }
}

fn xattrs(w: &World, at: &str) -> Vec<v1::Xattr> {
    let fd = w.volume.lower.path_fd(w.id(at)).unwrap();
    let all = presto::lower::xattr::all(&fd).unwrap();
    all.into_iter().map(|(name, value)| v1::Xattr { name: name.into(), value: value.into() }).collect()
}

/// Asks as after a power cut: what is found is taken, and contents are vouched for by nobody.
pub fn mend(w: &World, what: What) -> (v1::ScrubOutcome, Vec<Record>) {
    let before = w.last();
    let items = vec![v1::ScrubItem { what: Some(what) }];
    let reply = w.call(Body::Scrub(v1::Scrub { items, untouched_since: NOW, take: true, unvouched: true }));
    let Body::Scrubbed(mut scrubbed) = reply.body else { panic!("{:?}", reply.body) };
    let records = (before + 1..=w.last()).map(|recno| w.record(recno)).collect();
    (scrubbed.outcomes.remove(0), records)
}

pub fn scrub_since(w: &World, since: u64, take: bool, items: Vec<What>) -> Vec<v1::ScrubOutcome> {
    let items = items.into_iter().map(|what| v1::ScrubItem { what: Some(what) }).collect();
    let before = w.last();
    let reply = w.call(Body::Scrub(v1::Scrub { items, untouched_since: since, take, unvouched: false }));
    let Body::Scrubbed(scrubbed) = reply.body else { panic!("{:?}", reply.body) };
    assert_eq!(scrubbed.last_recno, w.last());
    assert!(take || w.last() == before, "a look journals nothing");
    scrubbed.outcomes
}

fn one(w: &World, take: bool, what: What) -> v1::ScrubOutcome {
    let outcomes = scrub_since(w, NOW, take, vec![what]);
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().next().unwrap()
}

#[track_caller]
pub fn same(w: &World, what: What) {
    let outcome = one(w, true, what);
    assert_eq!(outcome.result(), Kind::Same, "{outcome:?}");
}

#[track_caller]
pub fn is(w: &World, kind: Kind, what: What) -> v1::ScrubOutcome {
    let outcome = one(w, true, what);
    assert_eq!(outcome.result(), kind, "{outcome:?}");
    outcome
}

/// Looks, which journals nothing, then takes: the records made, oldest first.
#[track_caller]
pub fn found(w: &World, difference: &str, what: What) -> Vec<Record> {
    let looked = one(w, false, what.clone());
    assert_eq!((looked.result(), looked.what.as_str(), looked.recno), (Kind::Found, difference, 0));
    let before = w.last();
    let taken = one(w, true, what);
    assert_eq!((taken.result(), taken.what.as_str(), taken.recno), (Kind::Found, difference, w.last()));
    let records: Vec<_> = w.records().into_iter().filter(|record| record.recno.0 > before).collect();
    for record in &records {
        assert_eq!(record.intent.origin.kind, OriginKind::User);
        assert_eq!(record.intent.caller, Caller::default());
        assert!(record.intent.flags.contains(Flags::FOUND) && record.outcome.flags.contains(Flags::FOUND));
    }
    records
}

pub fn list(w: &World, dir: FileId, after: u64) -> v1::Listed {
    let reply = w.call(Body::List(v1::List { dir: wire(dir), after }));
    let Body::Listed(listed) = reply.body else { panic!("{:?}", reply.body) };
    listed
}

/// Sets an extended attribute behind presto's back.
pub fn set_xattr(w: &World, at: &str, key: &str, value: &[u8]) {
    rustix::fs::lsetxattr(w.path(at), key, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// An access ACL: owner rw, one more user rw, group r, mask rw, others r.
pub fn acl() -> Vec<u8> {
    crate::calls::acl(&[(1, 6, !0), (2, 6, 1234), (4, 4, !0), (16, 6, !0), (32, 4, !0)])
}

/// File capabilities: cap_net_raw, effective.
pub fn capability() -> Vec<u8> {
    let mut value = 0x0200_0001u32.to_le_bytes().to_vec();
    value.extend((1u32 << 13).to_le_bytes());
    value.extend([0; 12]);
    value
}
