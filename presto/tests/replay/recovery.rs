//! Restarts: options, other calls, and what stage/, limbo/ and lml/ keep.

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::{FileId, Flags, Intent, Opcode, Origin, OriginKind, State, Time};
use intermezzo_kml::{Class, Config, Journal};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::world::*;

#[test]
fn sync_answers_up_to_where_everything_is_durable() {
    let w = world();
    w.save("f", "x");
    let Body::Synced(synced) = w.call(Body::Sync(v1::Sync {})).body else { panic!("no answer") };
    assert_eq!(synced.recno, w.last());
}

#[test]
fn lentos_staged_files_stay_and_prestos_own_go() {
    let w = world();
    w.stage("ab", "kept");
    let w = w.restart(|cache| {
        std::fs::write(cache.join("stage/make.1"), "half").unwrap();
        std::fs::create_dir(cache.join("stage/make.2")).unwrap();
        std::fs::write(cache.join("staging/o1"), "dirty, not garbage").unwrap();
    });
    assert!(w.staged("ab") && !w.staged("make.1") && !w.staged("make.2"));
    assert!(w.cache.join("staging/o1").exists());
    w.call(Body::DropStage(v1::DropStage { names: vec!["ab".into(), "cd".into()] }));
    assert!(!w.staged("ab"));
    let reply = w.call(Body::DropStage(v1::DropStage { names: vec!["../tree".into()] }));
    assert!(matches!(reply.body, Body::Failure(_)));
}

#[test]
fn what_was_written_when_presto_died_gets_its_close() {
    let w = world();
    let file = w.save("f", "closed");
    let before = w.last();
    let w = w.restart(|cache| std::fs::write(cache.join("tree/f"), "went on writing").unwrap());
    let record = w.record(before + 1);
    assert_eq!((record.opcode, record.intent.object), (intermezzo_kml::Opcode::Close, file));
    assert_eq!(record.outcome.after.size, 15);
    assert_eq!(w.last(), before + 1);
}

#[test]
fn after_a_power_cut_a_file_that_is_open_and_as_its_record_says_is_not_torn() {
    for later in [false, true] {
        let w = world();
        let handle = w.open_new("f");
        w.write(&handle, "synced");
        w.volume.fsync(user(), handle.number, false).unwrap();
        let before = w.last();
        let w = w.restart(|cache| {
            torn_tail(cache);
            if later {
                std::fs::write(cache.join("tree/f"), "later").unwrap();
            }
        });
        assert!(w.volume.journal.unclean_boot());
        // A record in any case: stores may have reached the disk without their time.
        assert_eq!(w.record(w.last()).opcode, Opcode::Close);
        assert!(w.last() > before);
        assert_eq!(w.record(w.last()).outcome.flags.contains(Flags::UNVOUCHED), later);
    }
}

/// Leaves everything as a presto does that is killed while it overwrites `f` by `new`. Entry and new content may be spoilt.
fn interrupted(w: World, object: FileId, spoil: impl FnOnce(&Path, &Path)) -> World {
    w.stage("ab", "new");
    let stage = std::fs::File::open(w.cache.join("stage")).unwrap();
    let staged = w.volume.lower.child(&stage, b"ab").unwrap();
    let entry = serde_json::json!({
        "object": [object.ino, object.generation],
        "path": "f",
        "staged_file": [staged.ino, staged.generation],
        "size": 3,
        "checksum": crc32c::crc32c_append(crc32c::crc32c(&0u64.to_le_bytes()), b"new"),
        "mode": 0o100_640, "uid": 0, "gid": 0, "mtime": [1000, 5],
    })
    .to_string();
    let text = format!("{entry}\n{:08x}\n", crc32c::crc32c(entry.as_bytes()));
    w.restart(|cache| {
        let name = format!("{}-{}", object.ino, object.generation);
        let (entry, held) = (cache.join("lml").join(&name), cache.join(format!("stage/lml.{name}")));
        std::fs::write(cache.join("tree/f"), "neand long").unwrap();
        std::fs::rename(cache.join("stage/ab"), &held).unwrap();
        std::fs::write(&entry, text).unwrap();
        spoil(&entry, &held);
    })
}

fn lml_is_empty(w: &World) -> bool {
    std::fs::read_dir(w.cache.join("lml")).unwrap().next().is_none()
}

#[test]
fn an_overwriting_in_place_that_a_kill_interrupted_is_finished() {
    let w = world();
    let file = w.save("f", "old and long");
    let before = w.last();
    let w = interrupted(w, file, |_, _| {});
    assert_eq!(w.read("f"), "new");
    assert_eq!((w.stat("f").mtime(), w.stat("f").mode() & 0o777), (1000, 0o640));
    let record = w.record(before + 1);
    assert_eq!((record.opcode, record.intent.object, w.last()), (Opcode::Close, file, before + 1));
    assert!(!record.outcome.flags.contains(Flags::UNVOUCHED));
    assert!(lml_is_empty(&w) && std::fs::read_dir(w.cache.join("stage")).unwrap().next().is_none());
}

/// What is in `f` is journaled once, as vouched for by nobody.
fn is_torn(w: World, file: FileId, before: u64) -> World {
    assert_eq!(w.read("f"), "neand long");
    let record = w.record(before + 1);
    assert_eq!((record.opcode, record.intent.object, w.last()), (Opcode::Close, file, before + 1));
    assert!(record.outcome.flags.contains(Flags::UNVOUCHED));
    assert!(std::fs::read_dir(w.cache.join("stage")).unwrap().next().is_none());
    // The next start has nothing to say.
    let w = w.restart(|_| {});
    assert_eq!(w.last(), before + 1);
    w
}

#[test]
fn what_is_left_of_an_overwriting_that_cannot_be_finished_is_vouched_for_by_nobody() {
    let w = world();
    let file = w.save("f", "old and long");
    let before = w.last();
    let w = interrupted(w, file, |_, held| std::fs::remove_file(held).unwrap());
    let w = is_torn(w, file, before);
    assert!(lml_is_empty(&w));
}

#[test]
fn another_content_than_the_one_that_an_entry_means_is_never_installed() {
    let spoilers: [fn(&Path); 3] = [
        // As many bytes, in the same file.
        |held| std::fs::write(held, "bad").unwrap(),
        |held| std::fs::write(held, "new and more").unwrap(),
        |held| {
            std::fs::write(held.with_extension("x"), "new").unwrap();
            std::fs::rename(held.with_extension("x"), held).unwrap();
        },
    ];
    for spoil in spoilers {
        let w = world();
        let file = w.save("f", "old and long");
        let before = w.last();
        let w = interrupted(w, file, |_, held| spoil(held));
        let w = is_torn(w, file, before);
        assert!(lml_is_empty(&w));
    }
}

#[test]
fn a_damaged_entry_makes_its_file_a_torn_one_and_is_kept_for_people() {
    let w = world();
    let file = w.save("f", "old and long");
    let before = w.last();
    let w = interrupted(w, file, |entry, _| {
        // A mode that everybody may write, in an entry that can be read as well as before.
        let text = std::fs::read_to_string(entry).unwrap();
        std::fs::write(entry, text.replace(&0o100_640.to_string(), &0o100_666.to_string())).unwrap();
    });
    let w = is_torn(w, file, before);
    assert!(w.cache.join(format!("lml/{}-{}.damaged", file.ino, file.generation)).exists());
    w.save("f", "a user goes on");
    let w = w.restart(|_| {});
    assert_eq!(w.read("f"), "a user goes on");
}

#[test]
fn an_entry_of_which_nobody_knows_what_it_is_about_is_named_and_stops_the_volume() {
    use presto::channel::Service;
    let w = world();
    w.save("f", "x");
    w.restart(|cache| {
        std::fs::write(cache.join("lml/some-file"), "{\"object\": [1").unwrap();
        let fault = || {
            let volumes = open(cache.parent().unwrap());
            let Body::Attached(attached) = volumes.call("", Body::Attach(v1::Attach::default())).body else {
                panic!("not attached")
            };
            attached.volumes[0].fault.clone()
        };
        // The last holder of the volume may still be closing it.
        let since = std::time::Instant::now();
        while !fault().contains("lml/some-file") {
            assert!(since.elapsed() < std::time::Duration::from_secs(10), "{}", fault());
        }
        let fault = fault();
        for part in
            [&format!("volume {NAME}: "), "byte 13", "move it out of lml/", &cache.display().to_string()]
        {
            assert!(fault.contains(part), "{part}: {fault}");
        }
        std::fs::rename(cache.join("lml/some-file"), cache.join("some-file")).unwrap();
    });
}

#[test]
fn another_uid_or_place_is_refused_and_options_change_on_the_fly() {
    let w = world();
    let set = |uid, access: v1::Access, mountpoint: &str| {
        Body::SetVolume(v1::SetVolume {
            uid,
            cache: w.cache.display().to_string(),
            mountpoint: w.cache.parent().unwrap().join(mountpoint).display().to_string(),
            access: access.into(),
            log_max_bytes: 64 << 20,
            ..Default::default()
        })
    };
    let Body::Failure(failure) = w.call(set(8, v1::Access::ReadWrite, "mnt")).body else { panic!("taken") };
    assert!(failure.message.contains("clear it first"), "{}", failure.message);
    assert!(matches!(w.call(set(7, v1::Access::ReadWrite, "elsewhere")).body, Body::Failure(_)));
    let same = w.call(set(7, v1::Access::ReadOnly, "mnt")).body;
    assert!(matches!(same, Body::VolumeInfo(_)), "{same:?}");
    let mode = presto::filter::NewMode { mode: 0o755, umask: 0 };
    assert_eq!(w.volume.mkdir(user(), w.root(), b"d", mode).unwrap_err(), rustix::io::Errno::ROFS);
    applied(&w.one(item(Op::Make(make(by(w.root()), "by-replay", DIR, "")))));
    w.call(set(7, v1::Access::ReadWrite, "mnt"));
    w.user_mkdir("d");
    w.call(Body::Mark(v1::Mark { read_only: Some(true), ..Default::default() }));
    assert!(w.volume.mkdir(user(), w.root(), b"e", mode).is_err());
}

#[test]
fn lento_may_be_kept_from_changing_a_volume_while_its_users_go_on() {
    let w = world();
    let set = |lento_access: v1::Access| {
        let set = v1::SetVolume {
            uid: 7,
            cache: w.cache.display().to_string(),
            mountpoint: w.cache.parent().unwrap().join("mnt").display().to_string(),
            lento_access: lento_access.into(),
            log_max_bytes: 64 << 20,
            ..Default::default()
        };
        let answer = w.call(Body::SetVolume(set)).body;
        assert!(matches!(answer, Body::VolumeInfo(_)), "{answer:?}");
    };
    w.save("f", "a user's");
    set(v1::Access::ReadOnly);
    let remove = Op::Unlink(v1::Unlink {
        dir: by(w.root()),
        name: name("f"),
        expect: by(w.id("f")),
        ..Default::default()
    });
    for op in [Op::Make(make(by(w.root()), "by-replay", DIR, "")), remove.clone()] {
        let refused = w.one(item(op));
        let why = (refused.result(), refused.errno);
        assert_eq!(why, (v1::outcome::Result::Refused, rustix::io::Errno::ROFS.raw_os_error()));
        assert!(refused.message.contains("lentoAccess"), "{}", refused.message);
    }
    assert!(w.there("f") && !w.there("by-replay"));
    w.save("g", "users go on");
    set(v1::Access::ReadWrite);
    applied(&w.one(item(remove)));
    assert!(!w.there("f"));
}

#[test]
fn a_cache_of_another_uid_is_never_adopted() {
    let w = world();
    let set = v1::SetVolume {
        uid: 99,
        cache: w.cache.display().to_string(),
        mountpoint: w.cache.parent().unwrap().join("m2").display().to_string(),
        log_max_bytes: 64 << 20,
        ..Default::default()
    };
    let (volumes, volume) = (w.volumes, w.volume);
    let weak = std::sync::Arc::downgrade(&volume);
    volumes.close(std::time::Instant::now() + std::time::Duration::from_secs(5));
    drop((volumes, volume));
    while weak.strong_count() > 0 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    use presto::channel::Service;
    let state = tempfile::tempdir().unwrap();
    let volumes = presto::volumes::Volumes::open(
        state.path(),
        presto::channel::Link::new(),
        std::sync::Arc::new(presto::volumes::NoMount),
        Vec::new(),
    )
    .unwrap();
    let Body::Failure(failure) = volumes.call("test/other", Body::SetVolume(set)).body else {
        panic!("adopted")
    };
    assert!(failure.message.contains("belongs to volume"), "{}", failure.message);
    assert!(volumes.volume("test/other").is_none());
}

#[test]
fn a_stuck_volume_has_a_fault_and_harms_no_other() {
    use presto::channel::Service;
    let w = world();
    w.save("f", "x");
    let mut set = v1::SetVolume {
        uid: 5,
        cache: w.cache.parent().unwrap().join("blocked/cache").display().to_string(),
        mountpoint: w.cache.parent().unwrap().join("m2").display().to_string(),
        ..Default::default()
    };
    std::fs::write(w.cache.parent().unwrap().join("blocked"), "a file where a directory should be").unwrap();
    let Body::VolumeInfo(info) = w.volumes.call("test/stuck", Body::SetVolume(set.clone())).body else {
        panic!("no info")
    };
    assert!(info.fault.contains("blocked"), "{}", info.fault);
    let stuck = w.volumes.call("test/stuck", Body::Sync(v1::Sync {}));
    assert!(matches!(stuck.body, Body::Failure(_)));
    let Body::Attached(attached) = w.volumes.call("", Body::Attach(v1::Attach::default())).body else {
        panic!("not attached")
    };
    let faults: Vec<bool> = attached.volumes.iter().map(|info| info.fault.is_empty()).collect();
    assert_eq!(faults, [true, false]);
    applied(&w.one(item(Op::Make(make(by(w.root()), "g", FILE, "x")))));
    // Put right, asked again: it serves.
    std::fs::remove_file(w.cache.parent().unwrap().join("blocked")).unwrap();
    set.log_max_bytes = 64 << 20;
    let Body::VolumeInfo(info) = w.volumes.call("test/stuck", Body::SetVolume(set)).body else {
        panic!("no info")
    };
    assert_eq!(info.fault, "");
    w.volumes.call("test/stuck", Body::ClearVolume(v1::ClearVolume::default()));
    assert!(w.volumes.volume("test/stuck").is_none());
}

#[test]
fn truncate_forgets_what_lento_has() {
    let w = world();
    w.save("f", "x");
    let reply = w.call(Body::Truncate(v1::Truncate { upto: w.last() }));
    assert!(matches!(reply.body, Body::Done(_)), "{:?}", reply.body);
    let Body::Stats(stats) = w.call(Body::Stat(v1::Stat {})).body else { panic!("no stats") };
    assert_eq!((stats.last_recno, stats.log_max_bytes, stats.fault.as_str()), (w.last(), 64 << 20, ""));
}

#[test]
fn a_revoked_permit_is_asked_for_again_and_stolen_without_lento() {
    let w = world();
    w.volume.permit.set_needed(true);
    let admitted = w.call(Body::AdmitWriters(v1::AdmitWriters { serial: 1, until_ms: u64::MAX }));
    assert!(matches!(admitted.body, Body::Done(_)), "{:?}", admitted.body);
    w.user_mkdir("c");
    let last = w.last();
    let reply = w.call(Body::RevokePermit(v1::RevokePermit { serial: 1, deadline_ms: 1000 }));
    assert!(matches!(&reply.body, Body::PermitRevoked(revoked) if revoked.upto == last), "{:?}", reply.body);
    assert!(!w.volume.permit.is_held());
    w.user_mkdir("d");
    assert_eq!(w.volume.permit.stolen(), 1);
}

#[test]
fn a_replay_that_was_cut_short_leaves_its_directory_the_time_that_was_asked_for() {
    let w = world();
    let object = w.save("f", "x");
    let (dir, last) = (w.root(), w.last());
    let w = w.restart(|cache| {
        let config = Config { volume: 7, ..Config::default() };
        let open = || Journal::open(Arc::new(intermezzo_kml::fs::Os), &cache.join("kml"), config.clone());
        // The last holder of the volume may still be closing it.
        let since = std::time::Instant::now();
        let (journal, unresolved) = loop {
            match open() {
                Ok(opened) => break opened,
                Err(error) => assert!(since.elapsed() < std::time::Duration::from_secs(10), "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        assert!(unresolved.is_empty());
        let intent = Intent {
            opcode: Some(Opcode::Unlink),
            object,
            parent: dir,
            name: b"f".to_vec(),
            origin: Origin { kind: OriginKind::Replay, ..Origin::default() },
            parent_times: Some([Time { sec: 1000, nsec: 5 }, Time { sec: 1000, nsec: 5 }]),
            ..Intent::default()
        };
        std::mem::forget(journal.begin(Class::Replay, &intent).unwrap());
        // Killed after the removal, before the directory got its time.
        std::fs::remove_file(cache.join("tree/f")).unwrap();
    });
    let record = w.record(last + 1);
    assert_eq!(record.state, State::Done);
    assert_eq!(record.outcome.parent_mtime, Time { sec: 1000, nsec: 5 });
    assert_eq!((w.stat("").mtime(), w.stat("").mtime_nsec()), (1000, 5));
}
