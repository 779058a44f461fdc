//! The real program: socket, FUSE mount, kill -9 in the middle of everything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod fleet;
mod model;
mod work;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleet::Fleet;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use model::Model;
use work::Random;

fn is_mounted(fleet: &Fleet) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(&format!(" {} ", fleet.mnt.display()))
}

#[test]
fn a_volume_is_mounted_over_the_channel_and_again_at_the_next_start_without_lento() {
    let mut fleet = Fleet::new();
    fleet.start();
    let (mut lento, attached) = fleet.lento();
    assert!(attached.volumes.is_empty());
    let info = fleet.set_volume(&mut lento);
    assert_eq!((info.fault.as_str(), info.loss), ("", 0));
    std::fs::write(fleet.mnt.join("f"), "hello").unwrap();
    assert_eq!(std::fs::read(fleet.cache.join("tree/f")).unwrap(), b"hello");
    drop(lento);
    assert!(fleet.terminate(Duration::from_secs(20)), "{}", fleet.log());
    assert!(!is_mounted(&fleet));
    assert!(!fleet.mnt.exists(), "nobody writes under a missing mount");
    fleet.start();
    let (mut lento, attached) = fleet.lento();
    assert_eq!(attached.volumes.len(), 1);
    assert_eq!(attached.volumes[0].fault, "");
    assert_eq!(std::fs::read(fleet.mnt.join("f")).unwrap(), b"hello");
    let cleared = lento.ask(fleet::NAME, Body::ClearVolume(v1::ClearVolume::default())).unwrap();
    assert!(matches!(cleared, Body::Done(_)), "{cleared:?}");
    assert!(!is_mounted(&fleet));
    assert_eq!(fleet.set_volume(&mut lento).fault, "", "and once more in the same process");
}

/// As a pod has it: a way in that no unmount takes away, and a file open for writing.
#[test]
fn whoever_still_uses_a_cleared_volume_gets_errors_and_it_can_be_set_again() {
    let mut fleet = Fleet::new();
    fleet.start();
    let (mut lento, _) = fleet.lento();
    fleet.set_volume(&mut lento);
    std::fs::write(fleet.mnt.join("f"), "hello").unwrap();
    let dir = std::fs::File::open(&fleet.mnt).unwrap();
    let inside = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)));
    let open = std::fs::OpenOptions::new().append(true).open(inside.join("f")).unwrap();
    let cleared = lento.ask(fleet::NAME, Body::ClearVolume(v1::ClearVolume::default())).unwrap();
    assert!(matches!(cleared, Body::Done(_)), "{cleared:?}");
    for tried in [
        std::fs::write(inside.join("f"), "too late"),
        std::fs::write(inside.join("new"), ""),
        std::fs::create_dir(inside.join("d")),
        std::fs::remove_file(inside.join("f")),
        std::fs::read(inside.join("f")).map(|_| ()),
    ] {
        assert_eq!(tried.unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    }
    assert_eq!(std::fs::read(fleet.cache.join("tree/f")).unwrap(), b"hello");
    assert_eq!(fleet.set_volume(&mut lento).fault, "", "{}", fleet.log());
    assert_eq!(std::fs::read(fleet.mnt.join("f")).unwrap(), b"hello");
    std::fs::write(fleet.mnt.join("f"), "again").unwrap();
    drop(open);
}

#[test]
fn a_replay_is_seen_through_the_mount() {
    let mut fleet = Fleet::new();
    fleet.start();
    let (mut lento, _) = fleet.lento();
    let info = fleet.set_volume(&mut lento);
    let path = fleet.mnt.join("f");
    assert!(std::fs::read(&path).is_err()); // The kernel remembers that it is not there.
    let root = info.root.map(|root| v1::Ref { by: Some(v1::r#ref::By::File(root)) });
    let content = |text: &'static str| {
        Some(v1::Content { from: Some(v1::content::From::Inline(text.into())), size: text.len() as u64 })
    };
    let attributes = Some(v1::Attributes { mode: 0o100_644, ..Default::default() });
    let make =
        v1::Make { dir: root, name: "f".into(), attributes, content: content("one"), ..Default::default() };
    let mut replay = |op| {
        let item = v1::ReplayItem { op: Some(op), ..Default::default() };
        let batch = v1::Replay { items: vec![item], untouched_since: u64::MAX };
        match lento.ask(fleet::NAME, Body::Replay(batch)).unwrap() {
            Body::Replayed(replayed) => replayed.outcomes[0].clone(),
            other => panic!("{other:?}"),
        }
    };
    let seen = |text: &str| {
        let since = std::time::Instant::now();
        while std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
            assert!(since.elapsed() < fleet::PATIENCE, "{text} not seen");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let made = replay(v1::replay_item::Op::Make(make));
    seen("one");
    let file = made.file.map(|file| v1::Ref { by: Some(v1::r#ref::By::File(file)) });
    let reader = std::fs::File::open(&path).unwrap();
    replay(v1::replay_item::Op::Install(v1::Install {
        file,
        content: content("two, and longer"),
        attributes,
        dir: root,
        name: "f".into(),
        ..Default::default()
    }));
    seen("two, and longer");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "one", "who had it open keeps it");
}

/// A directory's time says nothing about its names: others' updates come with the time that the directory has at the end.
#[test]
fn a_replay_is_in_a_listing_that_the_kernel_has_kept_though_the_directory_keeps_its_time() {
    let mut fleet = Fleet::new();
    fleet.start();
    let (mut lento, _) = fleet.lento();
    let info = fleet.set_volume(&mut lento);
    let names = || {
        let entries = std::fs::read_dir(&fleet.mnt).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    std::fs::write(fleet.mnt.join("old"), "").unwrap();
    let modified = std::fs::metadata(&fleet.mnt).unwrap().modified().unwrap();
    let time = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = v1::Time { sec: time.as_secs().cast_signed(), nsec: time.subsec_nanos() };
    // One that has begun to read when the change comes, and one that the kernel has whole.
    let mut reading = std::fs::read_dir(&fleet.mnt).unwrap();
    reading.next().unwrap().unwrap();
    for number in 0..20 {
        assert_eq!(names().len(), 1 + number);
        let name = format!("new-{number}");
        let make = v1::Make {
            dir: info.root.map(|root| v1::Ref { by: Some(v1::r#ref::By::File(root)) }),
            name: name.clone().into(),
            attributes: Some(v1::Attributes { mode: 0o100_644, ..Default::default() }),
            ..Default::default()
        };
        let item = v1::ReplayItem {
            op: Some(v1::replay_item::Op::Make(make)),
            parent_mtime: Some(time),
            ..Default::default()
        };
        let batch = v1::Replay { items: vec![item], untouched_since: u64::MAX };
        let Body::Replayed(replayed) = lento.ask(fleet::NAME, Body::Replay(batch)).unwrap() else { panic!() };
        assert_eq!(replayed.outcomes[0].result, v1::outcome::Result::Applied as i32);
        let since = std::time::Instant::now();
        while !names().contains(&name) {
            assert!(since.elapsed() < Duration::from_secs(5), "{name} is not listed");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(std::fs::metadata(&fleet.mnt).unwrap().modified().unwrap(), modified);
    }
}

/// After kill -9 at a random point: replaying the journal from its beginning gives the tree, exactly.
#[test]
fn journal_and_tree_agree_exactly_after_every_kill() {
    let mut fleet = Fleet::new();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("PRESTO_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(clock.subsec_nanos().into());
    let rounds = std::env::var("PRESTO_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10);
    println!("PRESTO_SEED={seed}");
    let mut random = Random::new(seed);
    let mut replays = 0;
    for round in 0..rounds {
        fleet.start();
        let (mut lento, attached) = fleet.lento();
        if round == 0 {
            fleet.set_volume(&mut lento);
        } else {
            assert_eq!(attached.volumes[0].fault, "", "round {round}");
            let model = Model::replay(&fleet.cache.join("kml"));
            let differences = model.differences(&fleet.cache);
            assert!(
                differences.is_empty(),
                "round {round}, {} records:\n{}",
                model.records,
                differences.join("\n")
            );
        }
        let (mnt, cache) = (fleet.mnt.clone(), fleet.cache.clone());
        let seeds: Vec<u64> = (0..4).map(|_| random.below(1 << 30)).collect();
        let work = Duration::from_micros(20_000 + random.below(150_000));
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in &seeds[1..] {
                scope.spawn(|| work::users(&mnt, *seed, &killed));
            }
            let replayer = scope.spawn(|| work::lento(lento, &cache, seeds[0]));
            std::thread::sleep(work);
            fleet.kill();
            killed.store(true, Ordering::Relaxed);
            replays += replayer.join().unwrap();
        });
    }
    let model = Model::replay(&fleet.cache.join("kml"));
    println!("{} records, {} failed, {replays} replays answered", model.records, model.failed);
    assert!(model.records > 100 && replays > 0, "the work was real");
}
