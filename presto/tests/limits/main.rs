//! Limits of bytes and inodes: who meets EDQUOT, what is counted, and that the count is that of the tree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod count;
#[path = "../common/mounted.rs"]
mod mounted;
mod replays;
mod users;
#[path = "../replay/world.rs"]
#[allow(dead_code)]
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use presto::filter::{Limits, Usage, Volume};

/// The tree as it lies there.
fn walked(dir: &Path) -> Usage {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    let mut usage = Usage::default();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            if stat.is_dir() {
                dirs.push(path);
            }
            if seen.insert(stat.ino()) {
                usage.inodes += 1;
                usage.bytes += if stat.is_file() { stat.len() } else { 0 };
            }
        }
    }
    usage
}

/// Waits until the tree is counted.
#[track_caller]
fn counted(volume: &Volume) -> Usage {
    let begin = Instant::now();
    loop {
        if let (_, Some(usage)) = volume.quota.report() {
            return usage;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "never counted");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn bytes(most: u64) -> Limits {
    Limits { bytes: Some(most), inodes: None }
}

fn inodes(most: u64) -> Limits {
    Limits { bytes: None, inodes: Some(most) }
}
