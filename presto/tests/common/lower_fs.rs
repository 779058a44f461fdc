//! A file system of its own for a test, of each kind that a volume may lie on.

#![allow(dead_code)] // Each test file uses its part.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// What volumes are tried on; where that takes too long, `INTERMEZZO_TEST_FILE_SYSTEMS` names some of them.
pub fn kinds() -> Vec<&'static str> {
    let wanted = std::env::var("INTERMEZZO_TEST_FILE_SYSTEMS").ok();
    let is_wanted =
        |kind: &&str| wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|one| one == *kind));
    let kinds: Vec<_> = ["ext4", "xfs", "btrfs", "tmpfs"].into_iter().filter(is_wanted).collect();
    assert!(!kinds.is_empty(), "{wanted:?} names no file system");
    kinds
}

/// A file system of some 500 MB, unmounted at the end. Takes root, and the programs that make it (`.ci/run` installs them).
pub struct LowerFs {
    pub kind: &'static str,
    pub at: PathBuf,
    dir: tempfile::TempDir,
}

impl LowerFs {
    pub fn mount(kind: &'static str) -> LowerFs {
        // ext4 has as many inodes as are asked for; the others make them as they need them.
        LowerFs::mount_with(kind, if kind == "ext4" { &["-N", "170000"] } else { &[] })
    }

    /// The same, made with these options.
    pub fn mount_with(kind: &'static str, options: &[&str]) -> LowerFs {
        assert!(rustix::process::geteuid().is_root(), "this test mounts file systems: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("lower");
        std::fs::create_dir(&at).unwrap();
        if kind == "tmpfs" {
            rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=512m").unwrap();
        } else {
            let image = dir.path().join("image");
            File::create(&image).unwrap().set_len(512 << 20).unwrap();
            run(Command::new(format!("mkfs.{kind}")).arg("-q").args(options).arg(&image));
            let errors = if kind == "ext4" { "loop,errors=remount-ro" } else { "loop" };
            run(Command::new("mount").args(["-o", errors]).args([&image, &at]));
        }
        LowerFs { kind, at, dir }
    }

    /// What is mounted there already, with the directory that holds its image; unmounted at the end.
    pub fn mounted(at: PathBuf, dir: tempfile::TempDir) -> LowerFs {
        LowerFs { kind: "copy", at, dir }
    }

    /// The file that is its device.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn device(&self) -> String {
        let found = Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at).output().unwrap();
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    }

    /// From now on the device answers with I/O errors, but for its first 64 KiB. What is in memory stays readable, except
    /// this file.
    pub fn die(&self, forgotten: &Path) {
        let file = File::open(forgotten).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        File::options().write(true).open(self.image()).unwrap().set_len(64 << 10).unwrap();
        run(Command::new("losetup").args(["-c", &self.device()]));
    }

    /// Unmounts it and mounts it anew: what was not written is gone.
    pub fn mount_again(&self) {
        // Threads of who used it may still be closing their files.
        let since = Instant::now();
        while let Err(errno) = rustix::mount::unmount(&self.at, UnmountFlags::empty()) {
            assert!(errno == Errno::BUSY && since.elapsed() < Duration::from_secs(20), "{errno}");
            std::thread::sleep(Duration::from_millis(20));
        }
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image(), &self.at]));
    }

    /// Has ext4 find an error, as on a bad disk: from now on it is read-only.
    pub fn break_off(&self) {
        let device = self.device();
        let name = device.rsplit('/').next().unwrap();
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "a test").unwrap();
    }
}

impl Drop for LowerFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

pub fn run(command: &mut Command) {
    let done = command.status();
    assert!(done.as_ref().is_ok_and(|status| status.success()), "{command:?}: {done:?}");
}

/// Takes all space of the file system of this directory but so much, in bytes.
pub fn fill(dir: &Path, but: u64) -> PathBuf {
    let filler = dir.join("filler");
    let file = File::create(&filler).unwrap();
    let (mut size, mut step) = (0, 8 << 20);
    while step >= 4096 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), size, step) {
            Ok(()) => size += step,
            Err(Errno::NOSPC) => step /= 2,
            Err(errno) => panic!("{errno}"),
        }
    }
    file.set_len(size - but).unwrap();
    file.sync_all().unwrap();
    filler
}
