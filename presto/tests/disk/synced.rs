//! What sync(2) leaves on the device, read from the device while everything still runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use presto::fuse::MountOptions;

use crate::limits::alone;
use crate::lower_fs::{LowerFs, run};
use crate::mounted::{mounted_in, records};

/// Mounts a copy of what the device of this file system holds, as after a power cut now.
fn as_on_the_device(lower: &LowerFs, look: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (copy, at) = (dir.path().join("copy"), dir.path().join("at"));
    run(Command::new("cp").arg("--sparse=always").args([lower.image(), copy.clone()]));
    fs::create_dir(&at).unwrap();
    run(Command::new("mount").args(["-o", "loop"]).args([&copy, &at]));
    let there = LowerFs::mounted(at, dir);
    look(&there.at);
}

#[test]
fn sync_makes_closed_and_open_files_and_the_journal_durable() {
    let _alone = alone();
    let lower = LowerFs::mount("ext4");
    for passthrough in [true, false] {
        let m = mounted_in(
            tempfile::tempdir_in(&lower.at).unwrap(),
            &MountOptions { passthrough, ..MountOptions::default() },
        );
        fs::write(m.path("closed"), "closed").unwrap();
        let mut open = fs::File::create(m.path("open")).unwrap();
        std::io::Write::write_all(&mut open, b"open").unwrap();
        let cache = m.cache.strip_prefix(&lower.at).unwrap().to_owned();
        let before = m.opcodes();
        rustix::fs::sync();
        as_on_the_device(&lower, |at| {
            let there = at.join(&cache);
            assert_eq!(fs::read_to_string(there.join("tree/closed")).unwrap(), "closed");
            assert_eq!(fs::read_to_string(there.join("tree/open")).unwrap(), "open");
            let told: Vec<_> = records(&there).iter().map(|record| record.opcode).collect();
            assert!(told.starts_with(&before), "passthrough: {passthrough}, {told:?}, before: {before:?}");
        });
    }
}
