//! A disk that is worse than full: no inodes, read-only, the tree gone or another, a damaged journal. Programs get the errno,
//! people a sentence with volume and path, and other volumes go on.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{Intent, Opcode, Outcome, Recno, State};
use intermezzo_kml::{Class, Config, Journal, KmlError, Reader};
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

/// The file system stops, as it does when its disk is gone: every store into a page that was clean is refused.
fn shut_down(lower: &LowerFs) {
    const GOING_DOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
    static WITHOUT_LOG: u32 = 2;
    let root = fs::File::open(&lower.at).unwrap();
    // SAFETY: reads one number, which outlives the call.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), GOING_DOWN, &raw const WITHOUT_LOG) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn a_page_that_is_refused(kind: &'static str) {
    let small = LowerFs::mount(kind);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    let other = world();
    w.save("f", "text");
    let kept = w.last();
    w.volume.journal.sync().unwrap();
    w.volume.journal.sync().unwrap();
    let mut reader = Reader::open(&w.cache.join("kml")).unwrap();
    reader.seek(Recno(kept + 1)).unwrap();
    shut_down(&small);
    let refused = w.volume.mkdir(user(), w.root(), b"d", NEW).map(drop);
    assert!(matches!(refused, Err(Errno::IO | Errno::ROFS)), "{refused:?}");
    let Body::Failure(failure) = w.call(Body::Sync(v1::Sync {})).body else {
        panic!("it says that all is durable")
    };
    assert!(failure.message.contains(NAME), "{}", failure.message);
    // Still so, for users and for Lento; and nothing is told that is not on record.
    assert!(w.volume.unlink(user(), w.root(), b"f").is_err());
    let made = w.one(item(Op::Make(make(by(w.root()), "m", FILE, "x"))));
    assert_eq!(made.result(), Kind::Refused, "{made:?}");
    if kind == "ext4" {
        // Its journal goes on: what is mapped can be written.
        let told: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        assert!(told.iter().all(|record| record.state == State::Failed), "{told:?}");
    } else {
        assert_eq!(w.last(), kept);
        let Body::Stats(stats) = w.call(Body::Stat(v1::Stat {})).body else { panic!("no word") };
        let kml = w.cache.join("kml").display().to_string();
        let named = [NAME, &*kml, "refuses a page"];
        assert!(named.iter().all(|word| stats.fault.contains(word)), "{}", stats.fault);
    }
    other.save("f", "the other volume goes on");
    assert!(matches!(other.call(Body::Sync(v1::Sync {})).body, Body::Synced(_)));
}

#[test]
fn a_file_system_that_stops_ends_its_volume_and_not_presto_on_xfs() {
    a_page_that_is_refused("xfs");
}

#[test]
fn a_file_system_that_stops_ends_its_volume_and_not_presto_on_ext4() {
    a_page_that_is_refused("ext4");
}

#[test]
fn a_file_system_that_stopped_and_is_mounted_again_is_looked_through() {
    for kind in ["ext4", "xfs"] {
        let small = LowerFs::mount(kind);
        let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
        w.save("f", "text");
        let w = w.restart(|_| ());
        assert!(!w.volume.journal.unclean_boot(), "{kind}: killed while its file system stays");
        w.call(Body::Sync(v1::Sync {}));
        w.save("lost", "text");
        shut_down(&small);
        let w = w.restart(|_| small.mount_again());
        assert!(w.volume.journal.unclean_boot(), "{kind}: taken for a mere kill");
        assert_eq!(w.read("f"), "text");
        let w = w.restart(|_| ());
        assert!(!w.volume.journal.unclean_boot(), "{kind}: once is enough");
    }
}

#[test]
fn a_journal_that_is_seen_through_another_mount_after_a_kill_is_exact() {
    let small = LowerFs::mount("ext4");
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    w.save("f", "text");
    // As in a container that starts again: the same files, in a mount of its own.
    let dir = w.cache.parent().unwrap().to_owned();
    let w = w.restart(|_| rustix::mount::mount_bind(&dir, &dir).unwrap());
    assert!(!w.volume.journal.unclean_boot());
    drop(w);
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_journal_that_cannot_be_read_back_is_told_and_is_nobodys_end() {
    let small = LowerFs::mount("ext4");
    let dir = small.at.join("kml");
    fs::create_dir(&dir).unwrap();
    let open = || Journal::open(Arc::new(intermezzo_kml::fs::Os), &dir, Config::default());
    let (journal, _) = open().unwrap();
    let intent = Intent { opcode: Some(Opcode::Noop), ..Intent::default() };
    for _ in 0..1000 {
        journal.append(Class::User, &intent, &Outcome::default()).unwrap();
    }
    journal.mark_clean().unwrap();
    drop(journal);
    let segment = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|ext| ext == "kml")).min().unwrap();
    small.die(&segment);
    for refused in [open().map(drop), Reader::open(&dir).map(drop)] {
        let Err(error @ KmlError::Broken { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains(&segment.display().to_string()), "{error}");
    }
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
