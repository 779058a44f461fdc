//! containerd with its root on a volume: an image is unpacked there, and a container runs on an overlay of it. Needs root,
//! /dev/fuse, and Debian's containerd, runc, buildah and busybox-static.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "common/mounted.rs"]
mod mounted;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use presto::fuse::MountOptions;

const IMAGE: &str = "localhost/box:1";

/// Runs it to its end, for a minute at most; what it says.
#[track_caller]
fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", program]).args(arguments.iter().map(|argument| argument.as_ref()));
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// An archive with an image of busybox.
fn image(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let (store, runroot) = (dir.join("store"), dir.join("runroot"));
    let buildah = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        let own: [&dyn AsRef<std::ffi::OsStr>; 6] =
            [&"--root", &store, &"--runroot", &runroot, &"--storage-driver", &"vfs"];
        run("buildah", &[&own[..], arguments].concat())
    };
    let container = buildah(&[&"from", &"scratch"]);
    let container = container.trim();
    buildah(&[&"copy", &"--quiet", &container, &root, &"/"]);
    let archive = dir.join("image.tar");
    let target = format!("oci-archive:{}:{IMAGE}", archive.display());
    buildah(&[&"commit", &"--quiet", &"--format", &"oci", &container, &target]);
    archive
}

struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(dir: &Path, root: &Path) -> Containerd {
        let config = dir.join("config.toml");
        fs::write(&config, "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
        let socket = dir.join("containerd.sock");
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(root)
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--address")
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd (Debian: containerd)");
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = || fs::read_to_string(dir.join("log")).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(60), "containerd does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Containerd { child, socket }
    }

    fn ctr(&self, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
        let own: [&dyn AsRef<std::ffi::OsStr>; 2] = [&"--address", &self.socket];
        run("ctr", &[&own[..], arguments].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begin = Instant::now();
        while !matches!(self.child.try_wait(), Ok(Some(_))) && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_container_runs_whose_image_and_layers_lie_on_a_volume() {
    let m = mounted::mounted(&MountOptions { suid: true, dev: true, ..MountOptions::default() });
    let dir = tempfile::tempdir().unwrap();
    let archive = image(dir.path());
    let root = m.path("containerd");
    let containerd = Containerd::start(dir.path(), &root);
    let snapshotter = "--snapshotter=overlayfs";
    containerd.ctr(&[&"images", &"import", &snapshotter, &archive]);
    let script = "echo written > /file; busybox cat /file; busybox head -1 /proc/mounts";
    let said = containerd.ctr(&[&"run", &"--rm", &snapshotter, &IMAGE, &"test", &"/bin/sh", &"-c", &script]);
    let (file, mount) = said.split_once('\n').unwrap();
    assert_eq!(file, "written");
    let upper = format!("upperdir={}", root.display());
    assert!(mount.starts_with("overlay / overlay ") && mount.contains(&upper), "{mount}");
    // It was all made through presto, so other nodes would have it.
    let names: Vec<_> = m.records().iter().map(|record| record.intent.name.clone()).collect();
    assert!(names.iter().any(|name| name == b"busybox") && names.iter().any(|name| name == b"file"));
}
