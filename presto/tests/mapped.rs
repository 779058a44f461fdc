//! Stores into shared mappings on tmpfs, which stamps a file at few of them: each is journaled, and nothing else is. Needs
//! root and /dev/fuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "common/lower_fs.rs"]
mod lower_fs;
#[path = "common/mounted.rs"]
mod mounted;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use intermezzo_kml::record::{Flags, Opcode, Record};
use lower_fs::LowerFs;
use memmap2::MmapMut;
use mounted::{Mounted, mounted_in};
use presto::fuse::MountOptions;

/// A volume in memory. `None`: this kernel has data through presto, which sees stores as writes.
fn in_memory() -> Option<(Mounted, LowerFs)> {
    let lower = LowerFs::mount("tmpfs");
    let volume = mounted_in(tempfile::tempdir_in(&lower.at).unwrap(), &MountOptions::default());
    volume.mount.as_ref().unwrap().has_passthrough().then_some((volume, lower))
}

fn open(volume: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).open(volume.path("f")).unwrap()
}

/// A file that is there, and mapped by somebody who has read it through the mapping.
fn mapped(volume: &Mounted) -> (File, MmapMut) {
    fs::write(volume.path("f"), vec![1; 8192]).unwrap();
    let file = open(volume);
    // SAFETY: nobody cuts the file.
    let map = unsafe { MmapMut::map_mut(&file) }.unwrap();
    assert_eq!((map[0], map[5000]), (1, 1));
    (file, map)
}

fn closes(volume: &Mounted) -> Vec<Record> {
    volume.records().into_iter().filter(|record| record.opcode == Opcode::Close).collect()
}

/// Stores into the mapping; the file's stamps, before and after, are as on the lower file system.
fn store(volume: &Mounted, map: &mut MmapMut, value: u8) {
    let stamp = || fs::metadata(volume.lower("f")).unwrap().ctime_nsec();
    let before = stamp();
    map[0] = value;
    assert_eq!(stamp(), before, "this kernel tells of the store: the test shows nothing");
    assert_eq!(fs::read(volume.lower("f")).unwrap()[0], value);
}

fn nobody_writes(volume: &Mounted) {
    for _ in 0..250 {
        if volume.volume.writers.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("somebody still writes");
}

#[test]
fn each_store_into_a_file_that_stays_open_is_journaled() {
    let Some((volume, _lower)) = in_memory() else { return };
    let (file, mut map) = mapped(&volume);
    for value in 10..13 {
        let before = closes(&volume).len();
        store(&volume, &mut map, value);
        volume.wait_for(Opcode::Close, before + 1);
    }
    // And nothing more than was stored.
    let before = closes(&volume).len();
    std::thread::sleep(Duration::from_secs(5));
    drop((file, map));
    nobody_writes(&volume);
    assert_eq!(closes(&volume).len(), before);
}

#[test]
fn each_store_into_a_mapping_that_outlives_its_descriptor_is_journaled() {
    let Some((volume, _lower)) = in_memory() else { return };
    let (file, mut map) = mapped(&volume);
    drop(file);
    for value in 10..12 {
        let before = closes(&volume).len();
        store(&volume, &mut map, value);
        volume.wait_for(Opcode::Close, before + 1);
    }
    let before = closes(&volume).len();
    store(&volume, &mut map, 20);
    drop(map);
    nobody_writes(&volume);
    assert_eq!(closes(&volume).len(), before + 1, "what was stored last");
}

#[test]
fn what_was_stored_and_unmapped_is_journaled_at_the_close() {
    let Some((volume, _lower)) = in_memory() else { return };
    let (file, mut map) = mapped(&volume);
    let before = closes(&volume).len();
    store(&volume, &mut map, 10);
    drop(map);
    drop(file);
    assert_eq!(closes(&volume).len(), before + 1, "it precedes what the program does next");
}

#[test]
fn fsync_promises_what_was_stored() {
    let Some((volume, _lower)) = in_memory() else { return };
    let (file, mut map) = mapped(&volume);
    store(&volume, &mut map, 10);
    file.sync_all().unwrap();
    assert!(closes(&volume).last().unwrap().intent.flags.contains(Flags::SYNCED));
    let before = closes(&volume).len();
    store(&volume, &mut map, 11);
    file.sync_all().unwrap();
    assert_eq!(closes(&volume).len(), before + 1);
}

#[test]
fn a_file_that_is_opened_for_both_and_left_as_it_was_is_no_news() {
    let Some((volume, _lower)) = in_memory() else { return };
    fs::write(volume.path("f"), vec![1; 8192]).unwrap();
    let before = closes(&volume).len();
    for _ in 0..3 {
        let file = open(&volume);
        let mut byte = [0];
        file.read_at(&mut byte, 5000).unwrap();
        drop(file);
        nobody_writes(&volume);
    }
    assert_eq!(closes(&volume).len(), before);
    // What is written tells of itself, once.
    let file = open(&volume);
    file.write_all_at(b"new", 100).unwrap();
    drop(file);
    nobody_writes(&volume);
    assert_eq!(closes(&volume).len(), before + 1);
}

#[test]
fn a_long_file_that_was_stored_into_is_journaled_when_it_is_closed() {
    let Some((volume, _lower)) = in_memory() else { return };
    fs::write(volume.path("f"), vec![1; 20 << 20]).unwrap();
    let file = open(&volume);
    // SAFETY: nobody cuts the file.
    let mut map = unsafe { MmapMut::map_mut(&file) }.unwrap();
    assert_eq!(map[0], 1);
    let before = closes(&volume).len();
    store(&volume, &mut map, 2);
    drop((map, file));
    assert!(closes(&volume).len() > before, "it precedes what the program does next");
}
