//! After a power cut: what the journal tells and the tree lacks, and what it still says.

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_kml::record::{Flags, Opcode, State};
use presto::filter::{Access, Changes, Place};

use crate::world::*;

/// The tree falls back by what `lose` does, the journal does not.
fn power_cut(w: World, synced: u64, lose: impl FnOnce(&std::path::Path)) -> World {
    let w = w.restart(|cache| {
        cut_power(cache, synced);
        lose(&cache.join("tree"));
    });
    assert!(w.volume.journal.unclean_boot());
    w
}

fn states(w: &World, from: u64) -> Vec<State> {
    w.records().into_iter().filter(|record| record.recno.0 >= from).map(|record| record.state).collect()
}

#[test]
fn records_whose_updates_are_not_in_the_tree_are_taken_back_with_all_behind_them() {
    let w = world();
    let file = w.save("f", "text");
    let kept = w.last();
    w.volume.link(user(), file, w.root(), b"g").unwrap();
    w.user_mkdir("d");
    let w = power_cut(w, kept, |tree| {
        std::fs::remove_file(tree.join("g")).unwrap();
        std::fs::remove_dir(tree.join("d")).unwrap();
    });
    assert!(states(&w, 1)[..kept as usize].iter().all(|state| *state == State::Done));
    assert_eq!(states(&w, kept + 1), [State::Failed; 2]);
    assert_eq!(w.read("f"), "text");
    // Once is enough.
    let last = w.last();
    let w = w.restart(|_| {});
    assert!(!w.volume.journal.unclean_boot());
    assert_eq!((states(&w, kept + 1), w.last()), (vec![State::Failed; 2], last));
}

#[test]
fn a_save_by_rename_that_is_not_in_the_tree_is_taken_back_as_a_whole() {
    let w = world();
    w.save("f", "old");
    let aside = w.cache.join("aside");
    std::fs::hard_link(w.path("f"), &aside).unwrap();
    let kept = w.last();
    w.save("f.tmp", "new");
    let [from, to] = [&b"f.tmp"[..], b"f"].map(|name| Place { dir: w.root(), name });
    w.volume.rename(user(), from, to, rustix::fs::RenameFlags::empty()).unwrap();
    let w = power_cut(w, kept, |tree| {
        std::fs::remove_file(tree.join("f")).unwrap();
        std::fs::hard_link(&aside, tree.join("f")).unwrap();
    });
    assert_eq!((w.read("f"), w.there("f.tmp")), ("old".into(), false));
    // The temporary name is absent, as after the rename; but the rename has not been.
    assert!(states(&w, kept + 1).iter().all(|state| *state == State::Failed), "{:?}", w.records());
}

#[test]
fn a_rename_or_a_mode_that_is_not_in_the_tree_is_taken_back() {
    use std::os::unix::fs::PermissionsExt;
    let w = world();
    w.save("f", "text");
    let kept = w.last();
    let [from, to] = [b"f", b"g"].map(|name| Place { dir: w.root(), name });
    w.volume.rename(user(), from, to, rustix::fs::RenameFlags::empty()).unwrap();
    let w = power_cut(w, kept, |tree| std::fs::rename(tree.join("g"), tree.join("f")).unwrap());
    assert_eq!(states(&w, kept + 1), [State::Failed]);

    let w = world();
    let file = w.save("f", "text");
    let kept = w.last();
    let mode = std::fs::metadata(w.path("f")).unwrap().permissions();
    w.volume.setattr(user(), file, &Changes { mode: Some(0o600), ..Changes::default() }).unwrap();
    let w = power_cut(w, kept, |tree| std::fs::set_permissions(tree.join("f"), mode).unwrap());
    assert_eq!(states(&w, kept + 1), [State::Failed]);
    assert_ne!(w.stat("f").permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_was_synced_is_out_of_question() {
    let w = world();
    let file = w.save("f", "text");
    w.volume.link(user(), file, w.root(), b"g").unwrap();
    let Body::Synced(synced) = w.call(Body::Sync(v1::Sync {})).body else { panic!("no answer") };
    assert_eq!(synced.recno, w.last());
    // Somebody removes it, and the record of that is lost.
    let w = power_cut(w, synced.recno, |tree| std::fs::remove_file(tree.join("g")).unwrap());
    assert!(states(&w, 1).iter().all(|state| *state == State::Done));
}

#[test]
fn a_tree_that_is_ahead_takes_no_record_back() {
    let w = world();
    let file = w.save("f", "text");
    w.volume.link(user(), file, w.root(), b"g").unwrap();
    let before = w.last();
    let w = power_cut(w, 0, |tree| {
        std::fs::rename(tree.join("g"), tree.join("h")).unwrap();
        std::fs::write(tree.join("g"), "later").unwrap();
    });
    assert!(states(&w, 1)[..before as usize].iter().all(|state| *state == State::Done));
}

/// A content whose record had to go is there all the same, and was whole.
#[test]
fn the_content_of_a_record_that_is_taken_back_is_told_again() {
    let w = world();
    let file = w.save("f", "old");
    let kept = w.last();
    w.user_mkdir("d");
    let handle = w.open("f");
    w.write(&handle, "new text");
    w.close(&handle);
    let w = power_cut(w, kept, |tree| std::fs::remove_dir(tree.join("d")).unwrap());
    let told = w.record(w.last());
    assert!(w.last() > kept + 2 && states(&w, kept + 1)[..2] == [State::Failed; 2]);
    assert_eq!((told.opcode, told.outcome.object), (Opcode::Close, file));
    assert!(!told.outcome.flags.contains(Flags::UNVOUCHED));
}

#[test]
fn a_power_cut_is_told_until_the_next_one() {
    let w = world();
    w.save("f", "text");
    assert_eq!(w.volume.lower.loss(), Ok(0));
    let w = power_cut(w, 0, |_| ());
    let loss = w.volume.lower.loss().unwrap();
    assert_ne!(loss, 0);
    let w = w.restart(|_| {});
    assert_eq!(w.volume.lower.loss(), Ok(loss), "lento may not have heard of it yet");
    let w = power_cut(w, 0, |_| ());
    assert_ne!(w.volume.lower.loss(), Ok(loss));
}

/// What a later store tears can then be told from what was never promised.
#[test]
fn an_fsync_is_on_record_once() {
    let w = world();
    w.save("f", "text");
    let handle = w.open("f");
    let sync = || w.volume.fsync(user(), handle.number, true).unwrap();
    let is_synced = || w.record(w.last()).outcome.flags.contains(Flags::SYNCED);
    assert!(!is_synced());
    sync();
    let first = w.last();
    assert!(is_synced() && w.record(first).opcode == Opcode::Close);
    sync();
    assert_eq!(w.last(), first);
    w.write(&handle, "more text");
    sync();
    assert!(w.last() == first + 1 && is_synced());
    w.close(&handle);

    // By a descriptor for reading too.
    let file = w.save("g", "text");
    let reader = w.volume.open_file(user(), file, Access::Read, false).unwrap();
    w.volume.fsync(user(), reader.number, false).unwrap();
    let last = w.record(w.last());
    assert!(last.outcome.flags.contains(Flags::SYNCED) && last.outcome.object == file);
    w.volume.fsync(user(), reader.number, false).unwrap();
    assert_eq!(w.last(), last.recno.0);
}
