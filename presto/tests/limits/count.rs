//! The count is that of the tree, whatever is done while it is taken and afterwards.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use presto::filter::Limits;
use presto::fuse::MountOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mounted::mounted;
use crate::{counted, inodes, walked};

const ROOMY: u64 = 1 << 40;

/// One program among several, in names that they share.
struct Program {
    rng: StdRng,
    mnt: PathBuf,
    open: Vec<File>,
}

impl Program {
    fn new(seed: u64, mnt: &Path) -> Program {
        Program { rng: StdRng::seed_from_u64(seed), mnt: mnt.to_owned(), open: Vec::new() }
    }

    fn name(&mut self) -> PathBuf {
        let depth = self.rng.random_range(1..4);
        let mut path = self.mnt.clone();
        for _ in 0..depth {
            path.push(format!("{}", self.rng.random_range(0..4)));
        }
        path
    }

    /// Any of them may fail: names are of another kind, or gone.
    fn step(&mut self) {
        let (name, other) = (self.name(), self.name());
        let size = self.rng.random_range(0..20_000);
        match self.rng.random_range(0..14) {
            0..3 => drop(fs::write(name, vec![1; size])),
            3 => drop(fs::create_dir(name)),
            4 => drop(fs::remove_file(name)),
            5 => drop(fs::remove_dir(name)),
            6..8 => drop(fs::rename(name, other)),
            8 => drop(fs::hard_link(name, other)),
            9 => drop(std::os::unix::fs::symlink("x", name)),
            10 => drop(OpenOptions::new().write(true).open(name).map(|file| file.set_len(size as u64))),
            11 => self.open.extend(OpenOptions::new().read(true).write(true).open(name)),
            12 if !self.open.is_empty() => {
                let at = self.rng.random_range(0..self.open.len());
                let _ = self.open[at].write_all_at(&vec![2; size], self.rng.random_range(0..20_000));
            }
            _ if self.open.len() > 3 => drop(self.open.remove(0)),
            _ => {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(rustix::fs::CWD, name, rustix::fs::CWD, other, flags);
            }
        }
    }
}

fn histories(limits: Limits) {
    let seed = std::env::var("SEED").map_or_else(|_| std::process::id().into(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let m = mounted(&MountOptions::default());
    let mut first = Program::new(seed, &m.mnt);
    (0..300).for_each(|_| first.step());
    drop(first);
    for round in 0..8 {
        m.volume.set_limits(Limits::default());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for program in 0..3 {
                let (done, mnt) = (&done, &m.mnt);
                scope.spawn(move || {
                    let mut program = Program::new(seed * 1000 + round * 10 + program, mnt);
                    while !done.load(Ordering::Relaxed) {
                        program.step();
                    }
                });
            }
            // The count is taken and ends in the middle of it.
            std::thread::sleep(Duration::from_millis(20));
            m.volume.set_limits(limits);
            counted(&m.volume);
            std::thread::sleep(Duration::from_millis(60));
            done.store(true, Ordering::Relaxed);
        });
        // A release comes after close(2) has returned.
        let mut equal = false;
        for _ in 0..100 {
            equal = m.volume.writers.is_empty() && counted(&m.volume) == walked(&m.cache.join("tree"));
            if equal {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let (counted, walked) = (counted(&m.volume), walked(&m.cache.join("tree")));
        assert!(equal, "round {round}, SEED={seed}: counted {counted:?}, there is {walked:?}");
    }
}

#[test]
fn the_count_is_that_of_the_tree_where_bytes_are_limited() {
    histories(Limits { bytes: Some(ROOMY), inodes: Some(ROOMY) });
}

#[test]
fn the_count_is_that_of_the_tree_where_contents_go_past_presto() {
    histories(inodes(ROOMY));
}
