//! `DiscardVolume`: the cache of a deleted volume goes, and nothing else does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says where"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use presto::channel::{Link, Service};
use presto::volumes::{NoMount, Volumes};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

const NAME: &str = "team/home";
const UID: u64 = 7;

struct World {
    dir: tempfile::TempDir,
    volumes: Arc<Volumes>,
}

fn open(dir: &Path) -> Arc<Volumes> {
    Volumes::open(&dir.join("state"), Link::new(), Arc::new(NoMount), vec![dir.join("srv")]).unwrap()
}

/// A volume that has been served, with a tree in it, and is no longer.
fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let world = World { volumes: open(dir.path()), dir };
    world.serve(|_| {});
    fs::create_dir_all(world.cache().join("tree/a/b/c")).unwrap();
    fs::write(world.cache().join("tree/a/b/c/f"), "content").unwrap();
    world.clear();
    world
}

impl World {
    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache").join(NAME)
    }

    fn aside(&self) -> PathBuf {
        self.dir.path().join(format!("cache/team/.discard-{UID:016x}"))
    }

    fn call(&self, body: Body) -> Body {
        self.volumes.call(NAME, body).body
    }

    fn serve(&self, change: impl FnOnce(&mut v1::SetVolume)) {
        let mut set = v1::SetVolume {
            uid: UID,
            cache: self.cache().display().to_string(),
            mountpoint: self.dir.path().join("mounts").join(NAME).display().to_string(),
            ..v1::SetVolume::default()
        };
        change(&mut set);
        let Body::VolumeInfo(info) = self.call(Body::SetVolume(set)) else { panic!("not served") };
        assert_eq!(info.fault, "");
    }

    fn clear(&self) {
        assert!(matches!(self.call(Body::ClearVolume(v1::ClearVolume::default())), Body::Done(_)));
    }

    fn discard_as(&self, uid: u64, begun: bool) -> Result<v1::Discarded, v1::Failure> {
        let cache = self.cache().display().to_string();
        match self.call(Body::DiscardVolume(v1::DiscardVolume { uid, cache, begun })) {
            Body::Discarded(done) => Ok(done),
            Body::Failure(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    fn discard(&self) -> Result<v1::Discarded, v1::Failure> {
        self.discard_as(UID, false)
    }

    /// As often as it takes; how often that was.
    fn to_the_end(&self) -> usize {
        for calls in 1..1000 {
            if self.discard().unwrap().finished {
                assert!(!self.cache().exists() && !self.aside().exists());
                return calls;
            }
        }
        panic!("it never ends");
    }

    fn refusal(&self) -> String {
        let failure = self.discard().unwrap_err();
        assert_eq!(failure.errno, Errno::PERM.raw_os_error());
        assert!(self.cache().join("tree/a/b/c/f").exists(), "nothing is touched");
        failure.message
    }
}

#[test]
fn all_of_the_cache_goes_and_asking_again_does_no_harm() {
    let w = world();
    w.to_the_end();
    assert!(w.discard().unwrap().finished);
    assert!(w.discard_as(UID, true).unwrap().finished);
}

#[test]
fn a_volume_that_is_served_is_not_removed() {
    let w = world();
    w.serve(|_| {});
    assert!(w.refusal().contains("volume team/home is served and uses it"));
    // Nor is a directory that another volume lies in.
    w.clear();
    w.serve(|set| {
        set.uid = 8;
        set.cache = w.cache().join("tree/inner").display().to_string();
    });
    assert!(w.refusal().contains("is served and uses it"));
}

#[test]
fn only_the_cache_of_this_uid_is_removed() {
    let w = world();
    let failure = w.discard_as(8, false).unwrap_err();
    assert!(failure.message.contains("uid 0x7, not 0x8"), "{}", failure.message);
    fs::rename(w.cache().join("kml"), w.dir.path().join("kml")).unwrap();
    assert!(w.refusal().contains("no journal in it that says whose it is"));
    // A journal that is not really in it is none.
    symlink(w.dir.path().join("kml"), w.cache().join("kml")).unwrap();
    assert!(w.discard().is_err() && w.cache().join("tree/a/b/c/f").exists());
}

#[test]
fn a_path_that_is_none_is_refused() {
    let w = world();
    for cache in ["", "/", "cache/team/home", "/a/../b"] {
        let body = Body::DiscardVolume(v1::DiscardVolume { uid: UID, cache: cache.to_owned(), begun: false });
        assert!(matches!(w.call(body), Body::Failure(_)), "{cache}");
    }
}

#[test]
fn symbolic_links_are_removed_and_never_followed() {
    let w = world();
    let outside = w.dir.path().join("outside");
    fs::create_dir_all(outside.join("d")).unwrap();
    fs::write(outside.join("d/f"), "mine").unwrap();
    symlink(&outside, w.cache().join("tree/link")).unwrap();
    symlink(&outside, w.cache().join("tree/a/b/link")).unwrap();
    symlink(outside.join("d/f"), w.cache().join("limbo/link")).unwrap();
    symlink("..", w.cache().join("tree/a/up")).unwrap();
    w.to_the_end();
    assert_eq!(fs::read_to_string(outside.join("d/f")).unwrap(), "mine");
    // One in the place of the cache is nobody's cache.
    symlink(&outside, w.cache()).unwrap();
    assert!(w.discard().unwrap_err().message.contains("is no directory"));
    assert!(outside.join("d/f").exists());
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn what_is_mounted_inside_stays_and_is_named() {
    let w = world();
    let inside = w.cache().join("tree/a/b/m");
    fs::create_dir_all(&inside).unwrap();
    // Of the same file system: only the mount tells them apart.
    let other = w.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("f"), "other").unwrap();
    rustix::mount::mount_bind(&other, &inside).unwrap();
    let mut guard = Unmount(inside);
    let mut said = Err(String::new());
    for _ in 0..10 {
        said = w.discard().map_err(|failure| failure.message);
        if said.is_err() {
            break;
        }
    }
    let message = said.unwrap_err();
    assert!(message.contains("a mount") && message.ends_with("then it goes on"), "{message}");
    assert_eq!(fs::read_to_string(other.join("f")).unwrap(), "other");
    // It is somewhere in what is left, as the message says.
    guard.0 = mounted_below(&w.aside());
    assert!(message.contains(&guard.0.display().to_string()), "{message}");
    drop(guard);
    w.to_the_end();
    assert_eq!(fs::read_to_string(other.join("f")).unwrap(), "other");
}

fn mounted_below(dir: &Path) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    PathBuf::from(paths.into_iter().find(|path| path.starts_with(dir.to_str().unwrap())).unwrap())
}

#[test]
fn another_file_system_on_the_cache_is_not_entered() {
    let w = world();
    rustix::mount::mount("none", w.cache(), "tmpfs", MountFlags::empty(), None).unwrap();
    let _guard = Unmount(w.cache());
    fs::write(w.cache().join("f"), "").unwrap();
    assert!(w.discard().unwrap_err().message.contains("mount point"));
    assert!(w.cache().join("f").exists());
}

#[test]
fn a_source_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("srv/data");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("f"), "mine").unwrap();
    let w = World { volumes: open(dir.path()), dir };
    w.serve(|set| set.source = source.display().to_string());
    w.clear();
    w.to_the_end();
    assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "mine");
    assert!(source.join(".intermezzo/volume").exists());
}

#[test]
fn a_call_does_a_bounded_part_and_a_kill_in_between_changes_nothing() {
    let mut w = world();
    for n in 0..6000 {
        fs::write(w.cache().join(format!("tree/a/{n}")), "").unwrap();
    }
    // Deeper than any path that could be opened in one go.
    let mut at = rustix::fs::open(w.cache().join("tree"), rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", 0o700.into()).unwrap();
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    }
    drop(at);
    let first = w.discard().unwrap();
    assert!(!first.finished && first.removed <= 4096, "{first:?}");
    assert!(!w.cache().exists() && w.aside().join("kml").exists(), "set aside, and still known");
    // As if presto had been killed here and somebody else took over.
    let World { dir, volumes } = w;
    drop(volumes);
    w = World { volumes: open(dir.path()), dir };
    assert!(w.to_the_end() > 1);
}

#[test]
fn another_volume_of_the_same_name_may_begin_meanwhile() {
    let w = world();
    for n in 0..6000 {
        fs::write(w.cache().join(format!("tree/{n}")), "").unwrap();
    }
    assert!(!w.discard().unwrap().finished);
    w.serve(|set| set.uid = 9);
    fs::write(w.cache().join("tree/new"), "new").unwrap();
    let mut calls = 0;
    while !w.discard_as(UID, true).unwrap().finished {
        calls += 1;
        assert!(calls < 100);
    }
    assert_eq!(fs::read_to_string(w.cache().join("tree/new")).unwrap(), "new");
    assert!(!w.aside().exists());
    assert!(w.discard_as(UID, false).is_err(), "the name is another's");
}
