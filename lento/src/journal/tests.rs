//! Unpacking: each opcode's record becomes what the core expects.

use super::unpack;
use intermezzo_kml::record as kml;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use lento_core::record::KmlOrigin;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;

fn id(ino: u64) -> kml::FileId {
    kml::FileId { ino, generation: ino + 100 }
}

fn core_id(ino: u64) -> FileId {
    FileId { ino, generation: ino + 100 }
}

fn record(opcode: Opcode) -> kml::Record {
    let attributes = kml::Attributes { mode: 0o100_644, nlink: 2, size: 9, ..Default::default() };
    kml::Record {
        recno: kml::Recno(5),
        state: kml::State::Done,
        opcode,
        intent: kml::Intent {
            opcode: Some(opcode),
            object: id(1),
            parent: id(2),
            name: b"name".to_vec(),
            ..Default::default()
        },
        outcome: kml::Outcome { object: id(1), after: attributes, ..Default::default() },
    }
}

#[test]
fn a_failed_record_is_a_users_nothing_even_if_a_replay_asked() {
    let mut failed = record(Opcode::Unlink);
    failed.state = kml::State::Failed;
    failed.intent.origin.kind = kml::OriginKind::Replay;
    let unpacked = unpack(&failed).unwrap();
    assert_eq!(unpacked.update, Update::Nothing);
    assert_eq!(unpacked.origin, KmlOrigin::User);
    assert_eq!(unpacked.recno.0, 5);
}

#[test]
fn a_create_takes_its_identity_from_the_outcome_and_its_xattrs_from_the_value() {
    let mut create = record(Opcode::Create);
    create.intent.object = kml::FileId::NONE;
    create.outcome.object = id(7);
    create.outcome.flags = Flags::XATTRS;
    create.intent.value = kml::xattr::encode(&[(b"user.a".to_vec(), b"1".to_vec())]);
    let Update::Make { file, dir, xattrs, symlink, .. } = unpack(&create).unwrap().update else { panic!() };
    assert_eq!((file, dir), (core_id(7), core_id(2)));
    assert_eq!(xattrs, [(b"user.a".to_vec(), b"1".to_vec())]);
    assert!(symlink.is_empty());
    create.intent.value = vec![9];
    assert!(unpack(&create).is_err());
}

#[test]
fn a_symlink_has_its_target() {
    let mut symlink = record(Opcode::Symlink);
    symlink.intent.value = b"to".to_vec();
    let Update::Make { symlink, xattrs, .. } = unpack(&symlink).unwrap().update else { panic!() };
    assert_eq!(symlink, b"to");
    assert!(xattrs.is_empty());
}

#[test]
fn removals_say_whether_it_was_the_last_name() {
    let mut unlink = record(Opcode::Unlink);
    let Update::Remove { last, limbo, .. } = unpack(&unlink).unwrap().update else { panic!() };
    assert!(!last && !limbo);
    unlink.outcome.flags = Flags::LAST_LINK | Flags::LIMBO;
    let Update::Remove { last, limbo, file, .. } = unpack(&unlink).unwrap().update else { panic!() };
    assert!(last && limbo);
    assert_eq!(file, core_id(1));
    let Update::Remove { last, .. } = unpack(&record(Opcode::Rmdir)).unwrap().update else { panic!() };
    assert!(last);
}

#[test]
fn a_rename_keeps_both_ends_and_what_it_replaced() {
    let mut rename = record(Opcode::Rename);
    rename.intent.target_parent = id(3);
    rename.intent.target_name = b"new".to_vec();
    let Update::Rename { replaced, .. } = unpack(&rename).unwrap().update else { panic!() };
    assert_eq!(replaced, None);
    rename.intent.replaced = id(4);
    rename.outcome.flags = Flags::EXCHANGE | Flags::REPLACED_LIMBO;
    let unpacked = unpack(&rename).unwrap().update;
    let Update::Rename { to, to_name, replaced, exchange, replaced_limbo, replaced_last, .. } = unpacked
    else {
        panic!()
    };
    assert_eq!((to, to_name.as_slice(), replaced), (core_id(3), &b"new"[..], Some(core_id(4))));
    assert!(exchange && replaced_limbo && !replaced_last);
}

#[test]
fn a_setattr_separates_size_and_drops_what_never_travels() {
    let mut set = record(Opcode::Setattr);
    set.intent.mask = kml::Mask::SIZE | kml::Mask::ATIME | kml::Mask::MODE;
    let Update::SetAttr { mask, truncated, after, .. } = unpack(&set).unwrap().update else { panic!() };
    assert_eq!(mask, Mask::MODE);
    assert!(truncated);
    assert_eq!((after.nlink, after.version.size), (2, 9));
}

#[test]
fn a_replayed_close_tells_the_new_identity_and_its_hash() {
    let mut close = record(Opcode::Close);
    let Update::Close { replaces, left, .. } = unpack(&close).unwrap().update else { panic!() };
    assert_eq!((replaces, left), (None, Left::Whole));
    close.outcome.object = id(8);
    close.outcome.flags = Flags::HASHED;
    close.intent.origin = kml::Origin { kind: kml::OriginKind::Replay, hash: [3; 32], ..Default::default() };
    let unpacked = unpack(&close).unwrap();
    let Update::Close { file, replaces, .. } = unpacked.update else { panic!() };
    assert_eq!((file, replaces), (core_id(8), Some(core_id(1))));
    let KmlOrigin::Replay { hash, .. } = unpacked.origin else { panic!() };
    assert_eq!(hash, Some(Hash([3; 32])));
}

#[test]
fn what_stays_here_is_no_more_than_a_directorys_time() {
    let mut make = record(Opcode::Create);
    make.intent.flags = Flags::LOCAL;
    make.outcome.parent_mtime = kml::Time { sec: 7, nsec: 1 };
    let Update::Touch { dir, mtime } = unpack(&make).unwrap().update else { panic!() };
    assert_eq!((dir, mtime.sec), (core_id(2), 7));
    let mut rename = record(Opcode::Rename);
    rename.intent.flags = Flags::LOCAL;
    rename.intent.target_parent = id(3);
    rename.intent.target_name = b"new".to_vec();
    rename.outcome.target_parent_mtime = kml::Time { sec: 8, nsec: 1 };
    let Update::Touch { dir, mtime } = unpack(&rename).unwrap().update else { panic!() };
    assert_eq!((dir, mtime.sec), (core_id(3), 8));
}

#[test]
fn a_rename_out_of_what_is_replicated_is_a_removal_and_one_into_it_comes_from_where_its_making_was_told() {
    let mut rename = record(Opcode::Rename);
    rename.intent.target_parent = id(3);
    rename.intent.target_name = b"new".to_vec();
    rename.intent.flags = Flags::LEFT;
    let Update::Remove { dir, name, file, last, limbo, .. } = unpack(&rename).unwrap().update else {
        panic!()
    };
    assert_eq!(
        (dir, name.as_slice(), file, last, limbo),
        (core_id(2), &b"name"[..], core_id(1), true, false)
    );
    rename.intent.flags = Flags::JOINED;
    let Update::Rename { from, from_name, to, to_name, .. } = unpack(&rename).unwrap().update else {
        panic!()
    };
    assert_eq!((from, from_name), (core_id(3), id(1).joining_name()));
    assert_eq!((to, to_name.as_slice()), (core_id(3), &b"new"[..]));
}
