//! Random operations on a mounted volume, on the lower file system itself, and on a tree in memory: all three must answer the
//! same, each time. A million operations in all. `SEED=n` replays a failed run; the sequence that is shown is a short one that
//! still fails. Needs root and /dev/fuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "../common/calls.rs"]
mod calls;
mod disk;
#[path = "../common/lower_fs.rs"]
mod lower_fs;
#[path = "../common/mounted.rs"]
mod mounted;
mod operation;
mod reference;

use std::cell::Cell;

use presto::fuse::MountOptions;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use disk::Disk;
use lower_fs::LowerFs;
use operation::{Answer, Op, operations};
use reference::Reference;

/// Operations in one sequence, which begins in an empty directory.
const LENGTH: usize = 400;

fn run(kind: &'static str, passthrough: bool, operations_in_all: usize) {
    let seed: u64 = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    let fs = LowerFs::mount(kind);
    let options = MountOptions { passthrough, ..MountOptions::default() };
    let volume = mounted::mounted_in(tempfile::tempdir_in(&fs.at).unwrap(), &options);
    assert_eq!(volume.mount.as_ref().unwrap().has_passthrough(), passthrough);
    let native = tempfile::tempdir_in(&fs.at).unwrap();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(operations_in_all.div_ceil(LENGTH)).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let (number, well) = (Cell::new(0u32), Cell::new(0usize));
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result = runner.run(&operations(LENGTH), |sequence| {
        number.set(number.get() + 1);
        let name = number.get().to_string();
        let [mounted, native] = [&volume.mnt, native.path()].map(|dir| Disk::new(dir.join(&name)));
        well.set(well.get() + compare(mounted, native, Reference::new(kind), &sequence)?);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{kind}, passthrough {passthrough}, SEED={seed}: {failure}");
    }
    println!("{kind}: {} of {operations_in_all} operations did something", well.get());
    assert!(well.get() > operations_in_all / 4, "most operations were refused: this proves little");
}

/// Gives how many operations did something.
fn compare(
    mut mounted: Disk,
    mut native: Disk,
    mut reference: Reference,
    sequence: &[Op],
) -> Result<usize, TestCaseError> {
    let mut well = 0;
    for (step, op) in sequence.iter().enumerate() {
        let (found, wanted, known) = (mounted.run(op), native.run(op), reference.run(op));
        if found != wanted || wanted.clone().map(Answer::timeless) != known {
            return Err(TestCaseError::fail(format!(
                "step {step}, {op:?}: the volume says {found:?}, the lower file system {wanted:?}, the reference {known:?}"
            )));
        }
        well += usize::from(found.is_ok_and(|answer| answer != Answer::Nothing));
    }
    let (found, mut wanted, known) = (mounted.tree(), native.tree(), reference.tree());
    let differs = found != wanted;
    wanted.values_mut().for_each(|(shown, _)| shown.mtime = None);
    if differs || wanted != known {
        return Err(TestCaseError::fail(format!("trees: {found:#?}, {wanted:#?}, {known:#?}")));
    }
    Ok(well)
}

#[test]
fn on_ext4() {
    run("ext4", true, 300_000);
}

#[test]
fn on_ext4_with_data_through_presto() {
    run("ext4", false, 250_000);
}

#[test]
fn on_xfs() {
    run("xfs", true, 150_000);
}

#[test]
fn on_btrfs() {
    run("btrfs", true, 150_000);
}

#[test]
fn on_tmpfs() {
    run("tmpfs", true, 150_000);
}
