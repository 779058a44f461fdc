//! After a power cut: what is in the tree and in no record.

use std::fs;

use intermezzo_channel::v1;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::{Flags, Opcode, State};
use presto::filter::Place;

use crate::ask::*;
use crate::world::*;

/// A world in which this was done to the tree, and nobody tells.
fn ahead(between: impl FnOnce(&std::path::Path)) -> World {
    let w = world();
    w.save("f", "good");
    let last = w.last();
    let w = w.restart(|cache| {
        cut_power(cache, last);
        between(&cache.join("tree"));
    });
    assert!(w.volume.journal.unclean_boot());
    w
}

#[test]
fn a_content_that_differs_is_vouched_for_by_nobody() {
    let w = ahead(|_| ());
    let believed = object(&w, "f");
    fs::write(w.path("f"), "what may be torn").unwrap();
    let (outcome, records) = mend(&w, What::Object(believed));
    assert_eq!(outcome.result(), Kind::Found);
    assert_eq!((records.len(), records[0].opcode), (1, Opcode::Close));
    assert!(records[0].outcome.flags.contains(Flags::FOUND | Flags::UNVOUCHED));
}

#[test]
fn an_empty_file_of_which_nobody_knows_goes_and_a_full_one_is_taken() {
    let w = ahead(|tree| {
        fs::write(tree.join("empty"), "").unwrap();
        fs::write(tree.join("full"), "text").unwrap();
    });
    let time = w.version("").mtime;
    let (outcome, records) = mend(&w, What::Entry(entry(&w, "empty")));
    assert_eq!((outcome.result(), outcome.recno, records.len()), (Kind::Found, 0, 0));
    assert!(!w.there("empty"));
    assert_eq!(w.version("").mtime, time, "as if it had never been");
    let (_, records) = mend(&w, What::Entry(entry(&w, "full")));
    assert_eq!(
        records.iter().map(|record| record.opcode).collect::<Vec<_>>(),
        [Opcode::Create, Opcode::Close]
    );
    assert_eq!(w.read("full"), "text");
}

#[test]
fn an_empty_file_that_somebody_has_made_since_stays() {
    let w = ahead(|_| ());
    let handle = w.open_new("new");
    w.close(&handle);
    let (outcome, records) = mend(&w, What::Entry(entry(&w, "new")));
    assert_eq!((outcome.result(), records.len()), (Kind::Found, 1));
    assert!(w.there("new"));
}

#[test]
fn without_a_power_cut_an_empty_file_stays() {
    let w = world();
    fs::write(w.path("empty"), "").unwrap();
    let (_, records) = mend(&w, What::Entry(entry(&w, "empty")));
    assert!(w.there("empty") && records.len() == 1);
}

#[test]
fn a_file_in_the_place_of_another_is_its_content_and_may_be_torn() {
    let mut before = None;
    let w = ahead(|tree| {
        before = Some(fs::metadata(tree.join("f")).unwrap());
        fs::write(tree.join("f~"), "saved").unwrap();
        fs::rename(tree.join("f~"), tree.join("f")).unwrap();
    });
    let now = w.id("f");
    let old = w.record(1).outcome.object;
    assert_ne!(now, old);
    let item = v1::ScrubEntry { expect_file: true, ..expect(&w, "f", old) };
    let (outcome, records) = mend(&w, What::Entry(item));
    assert_eq!((outcome.result(), records.len()), (Kind::Found, 1));
    let close = &records[0];
    assert_eq!((close.opcode, close.intent.object, close.outcome.object), (Opcode::Close, old, now));
    assert!(close.outcome.flags.contains(Flags::UNVOUCHED));
    assert_eq!(w.read("f"), "saved");
}

#[test]
fn a_file_in_the_place_of_another_is_whole_if_an_fsync_has_promised_it() {
    for (is_synced, is_stored_over) in [(true, false), (true, true), (false, false)] {
        let w = world();
        w.save("f", "old");
        let old = w.id("f");
        let last = w.last();
        w.user_mkdir("lost");
        let handle = w.open_new("f~");
        w.write(&handle, "saved");
        if is_synced {
            w.volume.fsync(user(), handle.number, false).unwrap();
        }
        w.close(&handle);
        let [from, to] = [&b"f~"[..], b"f"].map(|name| Place { dir: w.root(), name });
        w.volume.rename(user(), from, to, rustix::fs::RenameFlags::empty()).unwrap();
        let w = w.restart(|cache| {
            cut_power(cache, last);
            fs::remove_dir(cache.join("tree/lost")).unwrap();
            for old in fs::read_dir(cache.join("limbo")).unwrap() {
                fs::remove_file(old.unwrap().path()).unwrap();
            }
            if is_stored_over {
                fs::write(cache.join("tree/f"), "torn").unwrap();
            }
        });
        let made = w.records().into_iter().find(|record| record.recno.0 == last + 1).unwrap();
        assert_eq!(made.state, State::Failed, "what is behind something lost is taken back");
        let item = v1::ScrubEntry { expect_file: true, ..expect(&w, "f", old) };
        let (outcome, records) = mend(&w, What::Entry(item));
        assert_eq!((outcome.result(), records.len()), (Kind::Found, 1));
        let close = &records[0];
        assert_eq!(
            (close.opcode, close.intent.object, close.outcome.object),
            (Opcode::Close, old, w.id("f"))
        );
        assert_eq!(close.outcome.flags.contains(Flags::UNVOUCHED), is_stored_over || !is_synced);
    }
}
