//! Core types to the channel's messages and back.

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as ResultCode;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_channel::v1::scrub_outcome::Result as ScrubCode;
use lento_core::io::Busy;
use lento_core::io::Listed;
use lento_core::io::Listing;
use lento_core::io::Ref;
use lento_core::io::ReplayContent;
use lento_core::io::ReplayItem;
use lento_core::io::ReplayOp;
use lento_core::io::ReplayOutcome;
use lento_core::io::ScrubItem;
use lento_core::io::ScrubOutcome;
use lento_core::types::Attributes;
use lento_core::types::FileId;
use lento_core::types::Name;
use lento_core::types::Recno;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::Version;
use rustix::io::Errno;

/// A lower identity.
#[must_use]
pub fn file_id(file: FileId) -> v1::FileId {
    v1::FileId { ino: file.ino, generation: file.generation }
}

/// A lower identity from Presto.
#[must_use]
pub fn file_id_back(file: &v1::FileId) -> FileId {
    FileId { ino: file.ino, generation: file.generation }
}

fn tag(tag: Tag) -> v1::Tag {
    v1::Tag { replica: tag.replica, incarnation: tag.incarnation, number: tag.number }
}

fn time(time: Time) -> v1::Time {
    v1::Time { sec: time.sec, nsec: time.nsec }
}

fn version(version: Version) -> v1::Version {
    v1::Version { mtime: Some(time(version.mtime)), ctime: Some(time(version.ctime)), size: version.size }
}

fn attributes(attributes: &Attributes) -> v1::Attributes {
    v1::Attributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: Some(time(attributes.mtime)),
        rdev: attributes.rdev,
    }
}

fn reference(by: Ref) -> v1::Ref {
    let by = match by {
        Ref::File(file) => v1::r#ref::By::File(file_id(file)),
        Ref::Object(object) => v1::r#ref::By::Object(tag(object.0)),
    };
    v1::Ref { by: Some(by) }
}

fn busy(busy: Busy) -> i32 {
    match busy {
        Busy::Wait => v1::Busy::Wait as i32,
        Busy::Decide => v1::Busy::Decide as i32,
    }
}

fn content(content: ReplayContent) -> v1::Content {
    let (from, size) = match content {
        ReplayContent::Inline(bytes) => {
            let size = bytes.len() as u64;
            (v1::content::From::Inline(bytes.into()), size)
        }
        ReplayContent::Staged(name, size) => (v1::content::From::Staged(name), size),
        ReplayContent::Missing(size) => (v1::content::From::Missing(v1::Missing {}), size),
    };
    v1::Content { from: Some(from), size }
}

fn xattrs(list: Vec<(Name, Vec<u8>)>) -> Vec<v1::Xattr> {
    list.into_iter().map(|(name, value)| v1::Xattr { name: name.into(), value: value.into() }).collect()
}

/// One replay.
#[must_use]
pub fn replay_item(item: ReplayItem) -> v1::ReplayItem {
    v1::ReplayItem {
        record: Some(tag(item.record.0)),
        object: Some(tag(item.object.0)),
        hash: item.hash.map(|hash| hash.0.to_vec()).unwrap_or_default().into(),
        verdict: u32::from(item.verdict),
        parent_mtime: item.parent_mtime.map(time),
        target_parent_mtime: item.target_parent_mtime.map(time),
        op: Some(replay_op(item.op)),
    }
}

fn replay_op(op: ReplayOp) -> Op {
    match op {
        ReplayOp::Make { dir, name, attributes: a, symlink, content: c, xattrs: x } => Op::Make(v1::Make {
            dir: Some(reference(dir)),
            name: name.into(),
            attributes: Some(attributes(&a)),
            symlink: symlink.into(),
            content: c.map(content),
            xattrs: xattrs(x),
        }),
        ReplayOp::Link { file, dir, name } => {
            Op::Link(v1::Link { file: Some(reference(file)), dir: Some(reference(dir)), name: name.into() })
        }
        ReplayOp::Remove { dir, name, expect, expect_version, busy: b } => Op::Unlink(v1::Unlink {
            dir: Some(reference(dir)),
            name: name.into(),
            expect: Some(reference(expect)),
            expect_version: expect_version.map(version),
            busy: busy(b),
        }),
        ReplayOp::Rename {
            from,
            from_name,
            expect,
            to,
            to_name,
            replaced,
            replaced_version,
            exchange,
            busy: b,
        } => Op::Rename(v1::Rename {
            from: Some(reference(from)),
            from_name: from_name.into(),
            expect: Some(reference(expect)),
            to: Some(reference(to)),
            to_name: to_name.into(),
            replaced: replaced.map(reference),
            exchange,
            replaced_version: replaced_version.map(version),
            busy: busy(b),
        }),
        ReplayOp::SetAttr { file, mask, attributes: a } => Op::SetAttr(v1::SetAttr {
            file: Some(reference(file)),
            mask: mask.0,
            attributes: Some(attributes(&a)),
        }),
        ReplayOp::Install {
            file,
            expect_version,
            content: c,
            attributes: a,
            xattrs: x,
            dir,
            name,
            busy: b,
        } => Op::Install(v1::Install {
            file: Some(reference(file)),
            expect_version: expect_version.map(version),
            content: Some(content(c)),
            attributes: Some(attributes(&a)),
            xattrs: xattrs(x),
            dir: Some(reference(dir)),
            name: name.into(),
            busy: busy(b),
        }),
        ReplayOp::Fill { file, content: c } => {
            Op::Fill(v1::Fill { file: Some(reference(file)), content: Some(content(c)) })
        }
        ReplayOp::SetXattr { file, name, value } => {
            Op::SetXattr(v1::SetXattr { file: Some(reference(file)), name: name.into(), value: value.into() })
        }
        ReplayOp::DelXattr { file, name } => {
            Op::DelXattr(v1::DelXattr { file: Some(reference(file)), name: name.into() })
        }
        ReplayOp::Noop => Op::Noop(v1::Noop {}),
    }
}

/// One outcome. What this lento cannot read is a refusal, so that the core asks again and nothing is believed.
#[must_use]
pub fn outcome(outcome: v1::Outcome) -> ReplayOutcome {
    let recno = Recno(outcome.recno);
    match (outcome.result(), outcome.file) {
        (ResultCode::Applied | ResultCode::Already, file) => {
            ReplayOutcome::Applied { file: file.as_ref().map(file_id_back).unwrap_or_default(), recno }
        }
        (ResultCode::Stale, _) => ReplayOutcome::Stale { recno: (recno.0 != 0).then_some(recno) },
        (ResultCode::Busy, _) => ReplayOutcome::Busy,
        (ResultCode::Refused, _) => ReplayOutcome::Refused { errno: outcome.errno, message: outcome.message },
        (ResultCode::Unspecified, _) => {
            let (errno, message) = unknown();
            ReplayOutcome::Refused { errno, message }
        }
    }
}

/// The refusal that stands for an outcome which this lento cannot read.
fn unknown() -> (i32, String) {
    (Errno::PROTO.raw_os_error(), "presto gave an outcome that this lento does not know".to_owned())
}

/// A page of a directory; `None` if it cannot be read.
#[must_use]
pub fn listing(listed: v1::Listed) -> Option<Listing> {
    let entries = listed.entries.into_iter().map(listed_entry).collect::<Option<Vec<_>>>()?;
    Some(Listing::Page { entries, next: listed.next })
}

fn listed_entry(entry: v1::ListedEntry) -> Option<Listed> {
    let (a, v) = (entry.attributes?, entry.version?);
    Some(Listed {
        name: entry.name.to_vec(),
        file: file_id_back(&entry.file?),
        attributes: Attributes {
            mode: a.mode,
            uid: a.uid,
            gid: a.gid,
            mtime: time_back(a.mtime?)?,
            rdev: a.rdev,
        },
        version: Version { mtime: time_back(v.mtime?)?, ctime: time_back(v.ctime?)?, size: v.size },
    })
}

fn time_back(time: v1::Time) -> Option<Time> {
    (time.nsec < 1_000_000_000).then_some(Time { sec: time.sec, nsec: time.nsec })
}

/// One question of a scrub.
#[must_use]
pub fn scrub_item(item: ScrubItem) -> v1::ScrubItem {
    let what = match item {
        ScrubItem::Entry {
            dir,
            name,
            expect,
            expect_dir,
            expect_file,
            expect_last,
            listed,
            known,
            left,
            may_exchange,
            given_up,
        } => {
            let (known_dir, known_name) = known.unzip();
            What::Entry(v1::ScrubEntry {
                dir: Some(file_id(dir)),
                name: name.into(),
                expect: expect.map(file_id),
                expect_dir,
                expect_file,
                expect_last,
                listed: listed.map(file_id),
                known_dir: known_dir.map(file_id),
                known_name: known_name.unwrap_or_default().into(),
                left,
                may_exchange,
                given_up,
            })
        }
        ScrubItem::Object { file, expect, size, xattrs: x, missing } => What::Object(v1::ScrubObject {
            file: Some(file_id(file)),
            expect: Some(attributes(&expect)),
            size,
            xattrs: xattrs(x),
            missing: missing.map(|hash| bytes::Bytes::copy_from_slice(&hash.0)).unwrap_or_default(),
        }),
    };
    v1::ScrubItem { what: Some(what) }
}

/// Its answer.
#[must_use]
pub fn scrub_outcome(outcome: v1::ScrubOutcome) -> ScrubOutcome {
    let recno = Recno(outcome.recno);
    match outcome.result() {
        ScrubCode::Same => ScrubOutcome::Same,
        ScrubCode::Found => {
            ScrubOutcome::Found { recno: (recno.0 != 0).then_some(recno), what: outcome.what }
        }
        ScrubCode::Stale => ScrubOutcome::Stale { recno },
        ScrubCode::Busy => ScrubOutcome::Busy,
        ScrubCode::Refused => ScrubOutcome::Refused { errno: outcome.errno, message: outcome.message },
        ScrubCode::Unspecified => {
            let (errno, message) = unknown();
            ScrubOutcome::Refused { errno, message }
        }
    }
}
