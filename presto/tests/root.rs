//! A volume as root file system, as far as it can be seen without a machine that boots from it (`make test-boot` has those): who
//! may write it, and since when. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use presto::channel::{Link, Service};
use presto::fuse::MountOptions;
use presto::root::Root;
use presto::volumes::{self, Filled, Fuse, NoMount, Volumes};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

const NAME: &str = "site/root";

struct Rooted {
    volumes: Arc<Volumes>,
    root: Arc<Root>,
    at: PathBuf,
    dir: tempfile::TempDir,
}

impl Drop for Rooted {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// A disk with one volume that holds these files, filled elsewhere and mounted here as root file system.
fn rooted(files: &[(&str, &str)]) -> Rooted {
    let dir = tempfile::tempdir().unwrap();
    let [disk, at, run] = ["disk", "newroot", "run"].map(|name| dir.path().join(name));
    for path in [&at, &run] {
        fs::create_dir(path).unwrap();
    }
    fill(&disk, files);
    let filled = Filled::Before;
    let which = volumes::Root { disk: disk.clone(), at: at.clone(), volume: None, filled };
    let fuse = Arc::new(Fuse { options: MountOptions::root(), ..Fuse::default() });
    let volumes = Volumes::open_root(&disk.join("presto"), Link::new(), fuse, &which).unwrap();
    let root = Root::start(volumes.root().unwrap(), &at, &run).unwrap();
    Rooted { volumes, root, at, dir }
}

fn fill(disk: &Path, files: &[(&str, &str)]) {
    let cache = disk.join("cache").join(NAME);
    fs::create_dir_all(&cache).unwrap();
    let volumes = Volumes::open(&disk.join("presto"), Link::new(), Arc::new(NoMount), Vec::new()).unwrap();
    assert!(matches!(volumes.call(NAME, set(&cache, disk)).body, Body::VolumeInfo(_)));
    volumes.close(Instant::now() + Duration::from_secs(10));
    for (name, content) in files {
        let path = cache.join("tree").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn set(cache: &Path, disk: &Path) -> Body {
    let mountpoint = disk.with_file_name("elsewhere").display().to_string();
    Body::SetVolume(v1::SetVolume {
        uid: 7,
        cache: cache.display().to_string(),
        mountpoint,
        ..Default::default()
    })
}

fn write(rooted: &Rooted) -> Result<(), Errno> {
    fs::write(rooted.at.join("file"), "content").map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn remount(rooted: &Rooted, flags: MountFlags) {
    mount_remount(&rooted.at, flags, c"").unwrap();
}

#[test]
fn it_is_read_without_lento_and_written_once_a_helper_has_named_it() {
    let rooted = rooted(&[("etc/hostname", "node-7\n")]);
    assert_eq!(fs::read_to_string(rooted.at.join("etc/hostname")).unwrap(), "node-7\n");
    assert_eq!(write(&rooted), Err(Errno::ROFS));
    // The kernel alone is not enough: nobody has said which volume this is.
    remount(&rooted, MountFlags::empty());
    assert_eq!(write(&rooted), Err(Errno::ROFS));
    for (options, why) in [
        ("rw", "needs volume=site/root,mtpt=/"),
        ("volume=site/other,mtpt=/", "names volume site/other"),
        ("volume=site/root,mtpt=/mnt", "mount point /mnt"),
    ] {
        assert!(rooted.root.remount(options).unwrap_err().contains(why), "{options}");
        assert_eq!(write(&rooted), Err(Errno::ROFS), "{options}");
    }
    rooted.root.remount("rw,remount,volume=site/root,mtpt=/").unwrap();
    assert_eq!(write(&rooted), Ok(()));
    let volume = rooted.volumes.root().unwrap();
    assert!(volume.journal.published().0 > 0, "what is written is journaled");
    remount(&rooted, MountFlags::RDONLY);
    rooted.root.remount("ro,remount").unwrap();
    assert_eq!(write(&rooted), Err(Errno::ROFS));
}

#[test]
fn where_no_helper_is_called_fstab_names_it_and_the_first_write_after_the_remount_finds_out() {
    let rooted = rooted(&[("etc/fstab", "a / intermezzo volume=site/other,mtpt=/ 0 0\n")]);
    remount(&rooted, MountFlags::empty());
    assert_eq!(write(&rooted), Err(Errno::ROFS));
    // As a replay would do it.
    let fstab = rooted.dir.path().join("disk/cache").join(NAME).join("tree/etc/fstab");
    fs::write(fstab, "a / intermezzo volume=site/root,mtpt=/ 0 0\n").unwrap();
    assert_eq!(write(&rooted), Ok(()));
}

#[test]
fn lento_changes_it_and_never_takes_it_away_and_gets_no_other_volume() {
    let rooted = rooted(&[]);
    let disk = rooted.dir.path().join("disk");
    let cache = disk.join("cache").join(NAME);
    let call = |name: &str, body| rooted.volumes.call(name, body).body;
    let Body::VolumeInfo(info) = call(NAME, set(&cache, &disk)) else { panic!("refused") };
    assert_eq!((info.mountpoint.as_str(), info.fault.as_str()), ("/", ""));
    for (name, body) in [
        (NAME, Body::ClearVolume(v1::ClearVolume { uid: 0 })),
        (NAME, set(&disk.join("cache/other"), &disk)),
        ("site/other", set(&disk.join("cache/site/other"), &disk)),
    ] {
        let Body::Failure(failure) = call(name, body) else { panic!("{name}: taken") };
        assert!(failure.message.contains(name), "{}", failure.message);
    }
    assert!(rooted.at.join(".").read_dir().is_ok(), "it is still there");
    let mark = v1::Mark { no_filter: Some(false), ..Default::default() };
    assert!(matches!(call(NAME, Body::Mark(mark)), Body::Done(_)));
    assert!(!rooted.volumes.root().unwrap().marks.no_filter.is_on());
}

#[test]
fn without_a_disk_lento_names_it_and_its_last_updates_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let [disk, at, run] = ["disk", "newroot", "run"].map(|name| dir.path().join(name));
    for path in [&disk, &at, &run] {
        fs::create_dir(path).unwrap();
    }
    let cache = disk.join("cache").join(NAME);
    let open = || {
        let which = volumes::Root {
            disk: disk.clone(),
            at: at.clone(),
            volume: Some(NAME.to_owned()),
            filled: Filled::ByLento,
        };
        let fuse = Arc::new(Fuse { options: MountOptions::root(), ..Fuse::default() });
        Volumes::open_root(&disk.join("presto"), Link::new(), fuse, &which).unwrap()
    };
    let volumes = open();
    assert!(volumes.root().is_none(), "nobody has named it yet");
    let Body::Failure(failure) = volumes.call("site/other", set(&disk.join("cache/site/other"), &disk)).body
    else {
        panic!("another volume is taken")
    };
    assert!(failure.message.contains("root file system is volume site/root"), "{}", failure.message);
    let Body::VolumeInfo(info) = volumes.call(NAME, set(&cache, &disk)).body else { panic!("refused") };
    assert_eq!((info.mountpoint.as_str(), info.fault.as_str()), ("/", ""));
    let root = Root::start(volumes.root().unwrap(), &at, &run).unwrap();
    let rooted = Rooted { volumes, root, at: at.clone(), dir };
    let volume = rooted.volumes.root().unwrap();
    assert!(!volume.marks.no_filter.is_on(), "lento is there: contents are asked for");
    remount(&rooted, MountFlags::empty());
    rooted.root.remount("rw,remount,volume=site/root,mtpt=/").unwrap();
    assert_eq!(write(&rooted), Ok(()));
    let mapped = fs::File::options().read(true).write(true).open(rooted.at.join("file")).unwrap();
    // SAFETY: nobody cuts the file.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&mapped) }.unwrap();
    // Nobody has told that the server has it; what is not sent is lost with the machine.
    let send_last = || rooted.volumes.send_last(Duration::from_millis(200)).unwrap();
    assert_eq!(send_last(), volume.journal.published().0);
    assert_eq!(write(&rooted), Err(Errno::ROFS), "nothing is added any more");
    let settle = || {
        let mark = v1::Mark { settled: Some(volume.journal.published().0), ..Default::default() };
        assert!(matches!(rooted.volumes.call(NAME, Body::Mark(mark)).body, Body::Done(_)));
    };
    settle();
    assert_eq!(write(&rooted), Err(Errno::ROFS), "also after a word of Lento");
    // Nobody else has looked yet at what a program has just stored and left.
    drop(mapped);
    std::thread::sleep(Duration::from_millis(600));
    settle();
    assert_eq!(send_last(), 0);
    map[0] = b'C';
    drop(map);
    assert!(send_last() > 0, "the server does not have what was stored last");
    settle();
    assert_eq!(send_last(), 0);
}

#[test]
fn another_presto_of_a_machine_without_a_disk_waits_for_lento_as_the_first_one_did() {
    for (filled, expected) in [(Filled::Before, true), (Filled::ByLento, false)] {
        let dir = tempfile::tempdir().unwrap();
        let [disk, at] = ["disk", "newroot"].map(|name| dir.path().join(name));
        fs::create_dir(&at).unwrap();
        fill(&disk, &[]);
        let which = volumes::Root { disk: disk.clone(), at, volume: Some(NAME.to_owned()), filled };
        let volumes =
            Volumes::open_root(&disk.join("presto"), Link::new(), Arc::new(NoMount), &which).unwrap();
        assert_eq!(volumes.root().unwrap().marks.no_filter.is_on(), expected, "{filled:?}");
    }
}
