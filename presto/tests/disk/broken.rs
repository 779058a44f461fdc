//! A disk that is worse than full: no inodes, read-only, the tree gone or another, a damaged journal. Programs get the errno,
//! people a sentence with volume and path, and other volumes go on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_kml::record::{Opcode, State};
use presto::channel::Service;
use presto::filter::{Access, NewMode};
use rustix::io::Errno;

use crate::limits::until;
use crate::lower_fs::LowerFs;
use crate::world::*;

const NEW: NewMode = NewMode { mode: 0o755, umask: 0 };

/// What presto says of the volume when it starts; empty if it is served.
fn fault_at_start(dir: &Path) -> String {
    let mut fault = None;
    // The last presto may still be closing its files.
    until("presto does not start", || {
        let volumes = open(dir);
        let Body::Attached(attached) = volumes.call("", Body::Attach(v1::Attach::default())).body else {
            panic!("not attached")
        };
        fault = attached.volumes.into_iter().find(|info| info.name == NAME).map(|info| info.fault);
        fault.as_ref().is_some_and(|fault| !fault.contains("in use"))
    });
    fault.unwrap()
}

#[test]
fn without_inodes_making_is_refused_and_removing_makes_room() {
    let small = LowerFs::mount_with("ext4", &["-N", "256"]);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    let made: Vec<String> = (0..1000)
        .map(|number| format!("d{number}"))
        .take_while(|name| match w.volume.mkdir(user(), w.root(), name.as_bytes(), NEW) {
            Ok(_) => true,
            Err(errno) => {
                assert_eq!(errno, Errno::NOSPC);
                false
            }
        })
        .collect();
    assert!(made.len() > 50 && made.len() < 256, "{}", made.len());
    let access = Access::ReadWrite;
    let refused = w.volume.create(user(), w.root(), b"f", NEW, access).map(drop);
    assert_eq!(refused, Err(Errno::NOSPC));
    let records = w.records();
    assert_eq!(records.iter().filter(|record| record.state == State::Done).count(), made.len());
    assert_eq!(records.iter().filter(|record| record.state == State::Failed).count(), 2);
    w.volume.rmdir(user(), w.root(), made[0].as_bytes()).unwrap();
    w.save("f", "there is room again");
}

#[test]
fn on_a_disk_that_has_become_read_only_reading_goes_on() {
    let small = LowerFs::mount_with("ext4", &[]);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    w.save("f", "text");
    small.break_off();
    assert_eq!(w.volume.mkdir(user(), w.root(), b"d", NEW).map(drop), Err(Errno::ROFS));
    assert_eq!(w.volume.unlink(user(), w.root(), b"f"), Err(Errno::ROFS));
    let handle = w.volume.open_file(user(), w.id("f"), Access::Read, false).unwrap();
    assert_eq!(w.volume.read(handle.number, 0, 10).unwrap(), b"text");
    let Body::Failure(failure) = w.call(Body::Sync(v1::Sync {})).body else {
        panic!("it says that all is durable")
    };
    assert!(failure.message.contains(NAME), "{}", failure.message);
}

#[test]
fn a_disk_that_answers_with_errors_is_told_and_others_go_on() {
    let small = LowerFs::mount_with("ext4", &[]);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    let other = world();
    w.save("f", &"text".repeat(100_000));
    small.die(&w.path("f"));
    let handle = w.volume.open_file(user(), w.id("f"), Access::Read, false).unwrap();
    assert_eq!(w.volume.read(handle.number, 0, 10), Err(Errno::IO));
    let refused = |result: Result<(), Errno>| {
        assert!(matches!(result, Err(Errno::IO | Errno::ROFS)), "{result:?}");
    };
    // The journal is in memory and takes the intent; what the disk does not take has not happened.
    let Body::Failure(failure) = w.call(Body::Sync(v1::Sync {})).body else {
        panic!("it says that all is durable")
    };
    assert!(failure.message.contains(NAME), "{}", failure.message);
    refused(w.volume.mkdir(user(), w.root(), b"d", NEW).map(drop));
    refused(w.volume.unlink(user(), w.root(), b"f"));
    assert_eq!(
        w.records()
            .iter()
            .filter(|record| record.opcode == Opcode::Mkdir && record.state == State::Done)
            .count(),
        0
    );
    other.save("f", "the other volume goes on");
    assert!(matches!(other.call(Body::Sync(v1::Sync {})).body, Body::Synced(_)));
}

#[test]
fn a_tree_that_is_not_the_one_of_before_is_not_served_until_it_is_back() {
    let w = world();
    w.save("f", "text");
    let w = w.restart(|cache| {
        let (dir, tree, away) = (cache.parent().unwrap(), cache.join("tree"), cache.join("away"));
        fs::rename(&tree, &away).unwrap();
        let gone = fault_at_start(dir);
        assert!(gone.contains(NAME) && gone.contains(&tree.display().to_string()), "{gone}");
        assert!(!tree.exists(), "nothing is made in its place");
        // A disk that is not mounted leaves the empty directory.
        fs::create_dir(&tree).unwrap();
        let empty = fault_at_start(dir);
        let named = [NAME, &cache.display().to_string(), "disk missing"];
        assert!(named.iter().all(|word| empty.contains(word)), "{empty}");
        fs::remove_dir(&tree).unwrap();
        fs::rename(&away, &tree).unwrap();
    });
    assert_eq!(w.read("f"), "text");
}

#[test]
fn a_damaged_journal_is_told_and_nothing_is_changed() {
    let w = world();
    for number in 0..100 {
        w.save(&format!("f{number}"), "text");
    }
    // As the background sync does; the bound of what is durable lags behind by one.
    for number in 0..2 {
        w.volume.journal.sync().unwrap();
        w.save(&format!("later{number}"), "text");
    }
    w.volume.journal.sync().unwrap();
    let w = w.restart(|cache| {
        let first = fs::read_dir(cache.join("kml"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.metadata().unwrap().len() > 1 << 16)
            .min()
            .unwrap();
        let file = fs::File::options().read(true).write(true).open(&first).unwrap();
        // More than what may mean nothing between two records.
        let mut good = [0; 64];
        file.read_exact_at(&mut good, 12_000).unwrap();
        file.write_all_at(&good.map(|byte| !byte), 12_000).unwrap();
        let whole = fs::read(&first).unwrap();
        let fault = fault_at_start(cache.parent().unwrap());
        let named = [NAME, &first.display().to_string()];
        assert!(named.iter().all(|word| fault.contains(word)), "{fault}");
        assert!(fs::read(&first).unwrap() == whole);
        file.write_all_at(&good, 12_000).unwrap();
    });
    assert_eq!(w.read("f99"), "text");
}
