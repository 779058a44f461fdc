//! Adoption without a mount: where things lie, who may do what, and which directories are refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::Opcode;
use presto::channel::Service;
use presto::filter::{NewMode, Place};
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::ask::*;
use crate::world::*;

const NEW: NewMode = NewMode { mode: 0o755, umask: 0 };

/// A volume that adopts a directory with a file and a directory in it.
fn adopting() -> World {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("f"), "was here").unwrap();
    world_with(dir, |set| set.source = source.display().to_string())
}

fn adopted(w: &World) {
    let reply = w.call(Body::Mark(v1::Mark { adopted: true, ..Default::default() }));
    assert!(matches!(reply.body, Body::Done(_)), "{:?}", reply.body);
}

fn refused(dir: &Path, name: &str, set: &v1::SetVolume) -> String {
    match open(dir).call(name, Body::SetVolume(set.clone())).body {
        Body::Failure(failure) => {
            assert_eq!(failure.errno, Errno::INVAL.raw_os_error());
            failure.message
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_journal_lies_in_the_cache() {
    let w = adopting();
    let names = |at: &Path| {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&w.cache), ["kml", "root"]);
    assert_eq!(names(&w.home), ["history", "limbo", "lml", "stage", "staging", "volume", "writers"]);
    assert_eq!(fs::metadata(&w.home).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_to_string(w.home.join("volume")).unwrap(), "0000000000000007\n");
    let Body::Attached(attached) = w.volumes.call("", Body::Attach(v1::Attach::default())).body else {
        panic!("not attached")
    };
    assert_eq!(attached.volumes[0].source, w.tree.display().to_string());
    assert_eq!(w.read("f"), "was here");
}

#[test]
fn what_presto_keeps_there_is_nobodys() {
    let w = adopting();
    adopted(&w);
    let (volume, root, hidden) = (&w.volume, w.root(), &b".intermezzo"[..]);
    let mut listed: Vec<_> = list(&w, root, 0).entries.into_iter().map(|entry| entry.name).collect();
    listed.sort();
    assert_eq!(listed, ["d", "f"]);
    let stream = volume.opendir(root).unwrap();
    let mut names = Vec::new();
    volume
        .readdir(stream, 0, |_, name| {
            names.push(name.name.clone());
            true
        })
        .unwrap();
    assert!(names.len() == 4 && !names.iter().any(|name| name == hidden));
    assert_eq!(volume.lookup(root, hidden), Ok(None));
    assert_eq!(volume.getattr(root).unwrap().attributes.nlink, 3);
    assert_eq!(volume.mkdir(user(), root, hidden, NEW), Err(Errno::PERM));
    assert_eq!(volume.link(user(), w.id("f"), root, hidden).unwrap_err(), Errno::PERM);
    let at = |name| Place { dir: root, name };
    assert_eq!(volume.rename(user(), at(b"f"), at(hidden), RenameFlags::empty()), Err(Errno::PERM));
    assert_eq!(volume.rename(user(), at(hidden), at(b"x"), RenameFlags::empty()), Err(Errno::NOENT));
    assert_eq!(volume.rmdir(user(), root, hidden), Err(Errno::NOENT));
    let replayed = w.one(item(Op::Make(make(by(root), ".intermezzo", DIR, ""))));
    assert_eq!(replayed.errno, Errno::PERM.raw_os_error(), "{replayed:?}");
    is(&w, Kind::Refused, What::Entry(entry(&w, ".intermezzo")));
    // Elsewhere it is a name like any other.
    volume.mkdir(user(), w.id("d"), hidden, NEW).unwrap();
    assert!(volume.lookup(w.id("d"), hidden).unwrap().is_some());
}

#[test]
fn users_read_until_lento_knows_all_of_it_and_that_is_remembered() {
    let w = adopting();
    assert_eq!(w.volume.mkdir(user(), w.root(), b"x", NEW).unwrap_err(), Errno::ROFS);
    let open = |w: &World, access| w.volume.open_file(user(), w.id("f"), access, false).map(|_| ());
    assert_eq!(open(&w, presto::filter::Access::Read), Ok(()));
    assert_eq!(open(&w, presto::filter::Access::Write), Err(Errno::ROFS));
    // Lento works meanwhile.
    applied(&w.one(item(Op::Make(make(by(w.root()), "replayed", FILE, "text")))));
    found(&w, "new", What::Entry(entry(&w, "f")));
    let w = w.restart(|_| {});
    assert_eq!(w.volume.mkdir(user(), w.root(), b"x", NEW).unwrap_err(), Errno::ROFS);
    adopted(&w);
    w.user_mkdir("x");
    let w = w.restart(|_| {});
    w.user_mkdir("y");
    // Lento sets its volumes whenever it comes.
    let set = v1::SetVolume {
        uid: 7,
        cache: w.cache.display().to_string(),
        mountpoint: w.cache.with_file_name("mnt").display().to_string(),
        source: w.tree.display().to_string(),
        log_max_bytes: 64 << 20,
        ..Default::default()
    };
    assert!(matches!(w.call(Body::SetVolume(set.clone())).body, Body::VolumeInfo(_)));
    w.user_mkdir("z");
    let elsewhere = v1::SetVolume { source: String::new(), ..set };
    assert!(matches!(w.call(Body::SetVolume(elsewhere)).body, Body::Failure(_)));
}

#[test]
fn replays_limbo_and_recovery_work_beside_an_adopted_tree() {
    let w = adopting();
    adopted(&w);
    // A staged content, installed over a file with two names: in place, by the LML.
    fs::hard_link(w.path("f"), w.path("d/g")).unwrap();
    let content = Some(w.stage("aa", "staged"));
    assert!(w.staged("aa"));
    let install = v1::Install {
        file: by(w.id("f")),
        content,
        attributes: give(FILE),
        dir: by(w.root()),
        name: name("f"),
        ..Default::default()
    };
    applied(&w.one(item(Op::Install(install))));
    assert_eq!((w.read("d/g").as_str(), w.stat("f").mtime()), ("staged", 1000));
    let id = w.save("limbo", "text");
    w.volume.unlink(user(), w.root(), b"limbo").unwrap();
    let kept = w.home.join("limbo").join(format!("{}-{}", id.ino, id.generation));
    assert_eq!(fs::read_to_string(&kept).unwrap(), "text");
    let handle = w.open("f");
    w.write(&handle, "cut short");
    let before = w.last();
    std::mem::forget(handle);
    let w = w.restart(|_| {});
    let records: Vec<_> = w.records().into_iter().filter(|record| record.recno.0 > before).collect();
    assert!(!records.is_empty() && records.iter().all(|record| record.opcode == Opcode::Close));
    assert!(kept.exists() && w.volume.limbo.contains(id));
}

#[test]
fn a_directory_that_presto_was_not_told_of_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(other.path(), &link).unwrap();
    let set = |source: &Path| v1::SetVolume {
        uid: 7,
        cache: dir.path().join("cache").display().to_string(),
        mountpoint: dir.path().join("mnt").display().to_string(),
        source: source.display().to_string(),
        ..Default::default()
    };
    for source in [other.path(), &link] {
        let message = refused(dir.path(), NAME, &set(source));
        assert!(message.contains(&format!("--allow-source {}", other.path().display())), "{message}");
    }
    assert!(!other.path().join(".intermezzo").exists() && !dir.path().join("cache").exists());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (source, reason) in [
        (file.as_path(), "Not a directory"),
        (&dir.path().join("none"), "No such file"),
        (&dir.path().join("cache/in"), "within each other"),
        (&dir.path().join("mnt"), "within each other"),
    ] {
        let message = refused(dir.path(), NAME, &set(source));
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn the_marker_tells_whose_directory_it_is() {
    let w = adopting();
    let source = w.tree.clone();
    let set = |uid: u64, cache: &str| v1::SetVolume {
        uid,
        cache: source.with_file_name(cache).display().to_string(),
        mountpoint: source.with_file_name(format!("mnt-{cache}")).display().to_string(),
        source: source.display().to_string(),
        log_max_bytes: 64 << 20,
        ..Default::default()
    };
    // While it is served, and when it is not any more.
    let Body::Failure(failure) = w.volumes.call("test/other", Body::SetVolume(set(8, "c2"))).body else {
        panic!("served twice")
    };
    assert!(failure.message.contains("of volume test/replay"), "{}", failure.message);
    assert!(matches!(w.call(Body::ClearVolume(v1::ClearVolume::default())).body, Body::Done(_)));
    let Body::Failure(failure) = w.volumes.call("test/other", Body::SetVolume(set(8, "c2"))).body else {
        panic!("adopted twice")
    };
    assert!(failure.message.contains("is adopted by another volume (uid 0x7)"), "{}", failure.message);
    assert!(matches!(w.call(Body::SetVolume(set(7, "cache"))).body, Body::VolumeInfo(_)));
    assert!(matches!(w.call(Body::ClearVolume(v1::ClearVolume::default())).body, Body::Done(_)));

    // The disk is not there: its mount point is an empty directory.
    fs::rename(&source, source.with_file_name("disk")).unwrap();
    fs::create_dir(&source).unwrap();
    let Body::Failure(failure) = w.call(Body::SetVolume(set(7, "cache"))).body else { panic!("adopted") };
    assert!(failure.message.contains("is its disk mounted?"), "{}", failure.message);
    assert_eq!(fs::read_dir(&source).unwrap().count(), 0, "nothing is made there");
    fs::remove_dir(&source).unwrap();
    fs::rename(source.with_file_name("disk"), &source).unwrap();
    assert!(matches!(w.call(Body::SetVolume(set(7, "cache"))).body, Body::VolumeInfo(_)));
}
