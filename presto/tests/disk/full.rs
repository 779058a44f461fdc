//! A disk without space: an overwriting in place is refused before it changes a byte.

use std::path::{Path, PathBuf};
use std::process::Command;

use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::OriginKind;
use presto::filter::Access;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::limits::*;
use crate::world::*;

/// A small file system, unmounted at the end. Takes root, and the programs that make it (`.ci/run` installs them).
struct Small {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Small {
    fn mount(kind: &str) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("small");
        std::fs::create_dir(&at).unwrap();
        if kind == "tmpfs" {
            rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=96m").unwrap();
        } else {
            let image = dir.path().join("image");
            std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
            run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
        }
        Small { at, _dir: dir }
    }

    /// Takes all space but so much.
    fn fill(&self, but: u64) -> PathBuf {
        let filler = self.at.join("filler");
        let file = std::fs::File::create(&filler).unwrap();
        let (mut size, mut step) = (0, 8 << 20);
        while step >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), size, step) {
                Ok(()) => size += step,
                Err(Errno::NOSPC) => step /= 2,
                Err(errno) => panic!("{errno}"),
            }
        }
        file.set_len(size - but).unwrap();
        file.sync_all().unwrap();
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let done = command.status();
    assert!(done.as_ref().is_ok_and(|status| status.success()), "{command:?}: {done:?}");
}

fn without_space(kind: &str) {
    let _alone = alone();
    let small = Small::mount(kind);
    let w = world_with(tempfile::tempdir_in::<&Path>(&small.at).unwrap(), |_| {});
    let file = two_names(&w, "old");
    let new = "new ".repeat(1 << 20);
    let asked = install(&w, "f", Some(w.stage("ab", &new)));
    let filler = small.fill(1 << 20);
    let (version, users) = (w.version("f"), closes(&w, file, OriginKind::User).len());
    for _ in 0..2 {
        let outcome = w.one(item(Op::Install(asked.clone())));
        assert_eq!((outcome.result(), outcome.errno), (Kind::Refused, Errno::NOSPC.raw_os_error()));
        assert!(outcome.message.contains("f: ") && outcome.message.contains("nothing was changed"));
        assert_eq!((w.read("g"), w.version("f")), ("old".into(), version));
        assert!(nothing_in(&w, "lml") && w.staged("ab"));
    }
    // Users notice nothing.
    let handle = w.volume.open_file(user(), file, Access::Write, false).unwrap();
    w.close(&handle);
    std::fs::remove_file(filler).unwrap();
    applied(&w.one(item(Op::Install(asked))));
    assert!(w.read("g") == new && w.id("f") == file);
    assert!(nothing_in(&w, "lml") && nothing_in(&w, "stage"));
    assert_eq!(closes(&w, file, OriginKind::User).len(), users);
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_tmpfs() {
    without_space("tmpfs");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_ext4() {
    without_space("ext4");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_xfs() {
    without_space("xfs");
}

#[test]
fn without_space_nothing_is_changed_and_later_it_goes_through_on_btrfs() {
    without_space("btrfs");
}
