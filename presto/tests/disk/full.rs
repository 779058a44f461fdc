//! A disk without space: an overwriting in place is refused before it changes a byte.

use std::path::Path;

use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::OriginKind;
use presto::filter::Access;
use rustix::io::Errno;

use crate::limits::*;
use crate::lower_fs::{LowerFs, fill};
use crate::world::*;

fn without_space(kind: &'static str) {
    let _alone = alone();
    let small = LowerFs::mount(kind);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    let file = two_names(&w, "old");
    let new = "new ".repeat(1 << 20);
    let asked = install(&w, "f", Some(w.stage("ab", &new)));
    let filler = fill(&small.at, 1 << 20);
    let (version, users) = (w.version("f"), closes(&w, file, OriginKind::User).len());
    for _ in 0..2 {
        let outcome = w.one(item(Op::Install(asked.clone())));
        assert_eq!((outcome.result(), outcome.errno), (Kind::Refused, Errno::NOSPC.raw_os_error()));
        assert!(outcome.message.contains("f: ") && outcome.message.contains("nothing was changed"));
        assert_eq!((w.read("g"), w.version("f")), ("old".into(), version));
        assert!(nothing_in(&w, "lml") && w.staged("ab"));
    }
    // Users notice nothing.
    let handle = w.volume.open_file(user(), file, Access::Write, false).unwrap();
    w.close(&handle);
    std::fs::remove_file(filler).unwrap();
    applied(&w.one(item(Op::Install(asked))));
    assert!(w.read("g") == new && w.id("f") == file);
    assert!(nothing_in(&w, "lml") && nothing_in(&w, "stage"));
    assert_eq!(closes(&w, file, OriginKind::User).len(), users);
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_tmpfs() {
    without_space("tmpfs");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_ext4() {
    without_space("ext4");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_xfs() {
    without_space("xfs");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_btrfs() {
    without_space("btrfs");
}
