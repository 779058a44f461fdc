//! An adopted directory under a mount: covered while it is served, whole before and after.

use std::fs;
use std::path::Path;
use std::time::Duration;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_kml::Reader;
use intermezzo_kml::record::{Opcode, Record};
use rustix::io::Errno;

use crate::fleet::{Fleet, Lento, NAME};

fn adopting() -> Fleet {
    let mut fleet = Fleet::new();
    let source = fleet.dir().join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d/f"), "was here").unwrap();
    fleet.sources.push(source);
    fleet
}

fn set(fleet: &Fleet, lento: &mut Lento) -> v1::VolumeInfo {
    set_by(fleet, lento, &fleet.sources[0])
}

fn set_by(fleet: &Fleet, lento: &mut Lento, source: &Path) -> v1::VolumeInfo {
    let set = v1::SetVolume { source: source.display().to_string(), ..fleet.set() };
    match lento.ask(NAME, Body::SetVolume(set)).unwrap() {
        Body::VolumeInfo(info) => info,
        other => panic!("{other:?}"),
    }
}

fn adopted(lento: &mut Lento) {
    let mark = v1::Mark { adopted: true, ..Default::default() };
    assert!(matches!(lento.ask(NAME, Body::Mark(mark)).unwrap(), Body::Done(_)));
}

fn records(fleet: &Fleet) -> Vec<Record> {
    let mut reader = Reader::open(&fleet.cache.join("kml")).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn is_covered(path: &Path) -> bool {
    let path = path.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.contains(&format!(" {path} ")) && line.contains(" - fuse.intermezzo "))
}

#[test]
fn what_is_done_at_the_directory_goes_through_presto() {
    let mut fleet = adopting();
    let source = fleet.sources[0].clone();
    fleet.start();
    let (mut lento, _) = fleet.lento();
    let info = set(&fleet, &mut lento);
    assert_eq!((info.fault.as_str(), info.source.as_str()), ("", source.to_str().unwrap()));
    assert!(is_covered(&source) && is_covered(&fleet.mnt));
    assert_eq!(fs::read_to_string(source.join("d/f")).unwrap(), "was here");
    let error = fs::write(source.join("new"), "text").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    assert!(records(&fleet).is_empty());

    adopted(&mut lento);
    fs::write(source.join("new"), "text").unwrap();
    assert_eq!(fs::read_to_string(fleet.mnt.join("new")).unwrap(), "text");
    let opcodes: Vec<_> = records(&fleet).iter().map(|record| record.opcode).collect();
    assert_eq!(opcodes, [Opcode::Create, Opcode::Close]);
    for at in [&source, &fleet.mnt] {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["d", "new"]);
        assert_eq!(fs::metadata(at.join(".intermezzo")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        let made = fs::create_dir(at.join(".intermezzo")).unwrap_err();
        assert_eq!(made.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    }

    assert!(matches!(lento.ask(NAME, Body::ClearVolume(v1::ClearVolume::default())).unwrap(), Body::Done(_)));
    assert!(!is_covered(&source) && !is_covered(&fleet.mnt));
    assert_eq!(fs::read_to_string(source.join("d/f")).unwrap(), "was here");
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "text");
    assert!(fleet.terminate(Duration::from_secs(20)));
}

#[test]
fn a_killed_prestos_mounts_are_both_taken_away_and_made_again() {
    let mut fleet = adopting();
    let source = fleet.sources[0].clone();
    let link = fleet.dir().join("link");
    std::os::unix::fs::symlink("source", &link).unwrap();
    fleet.start();
    let (mut lento, _) = fleet.lento();
    set_by(&fleet, &mut lento, &link);
    adopted(&mut lento);
    for round in 0..3 {
        fs::write(source.join(format!("before-{round}")), "text").unwrap();
        fleet.kill();
        assert!(fs::read_dir(&source).is_err(), "nobody comes to the files past a dead presto");
        fleet.start();
        let (_, attached) = fleet.lento();
        assert_eq!(attached.volumes[0].fault, "", "served without Lento");
        assert!(is_covered(&source) && is_covered(&fleet.mnt));
        assert_eq!(fs::read_to_string(source.join(format!("before-{round}"))).unwrap(), "text");
        fs::write(fleet.mnt.join(format!("after-{round}")), "text").unwrap();
        assert_eq!(fs::read_to_string(source.join(format!("after-{round}"))).unwrap(), "text");
    }
    let made = records(&fleet).iter().filter(|record| record.opcode == Opcode::Create).count();
    assert_eq!(made, 6);
    assert!(fleet.terminate(Duration::from_secs(20)));
    assert!(!is_covered(&source) && !is_covered(&fleet.mnt));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(fleet.dir().to_str().unwrap()), "none is left below another");
    assert_eq!(fs::read_to_string(source.join("after-2")).unwrap(), "text");
}

#[test]
fn a_disk_of_its_own_stays_mounted_under_its_cover() {
    let mut fleet = adopting();
    let source = fleet.dir().join("disk");
    fs::create_dir(&source).unwrap();
    let _gone = Disk(source.clone());
    rustix::mount::mount("disk", &source, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(source.join("f"), "on the disk").unwrap();
    fleet.sources = vec![source.clone()];
    fleet.start();
    let (mut lento, _) = fleet.lento();
    assert_eq!(set(&fleet, &mut lento).fault, "");
    assert!(is_covered(&source));
    fleet.kill();
    fleet.start();
    assert_eq!(fleet.lento().1.volumes[0].fault, "");
    assert!(fleet.terminate(Duration::from_secs(20)));
    assert!(!is_covered(&source));
    assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "on the disk");
    fleet.sources.clear();
}

struct Disk(std::path::PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
