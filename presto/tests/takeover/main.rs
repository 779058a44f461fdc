//! Presto is killed while programs have things open, and a holder keeps the mount: one case after the other.
//!
//! The holder is a thread of the test. Presto is started again by a shell: this process has files open on the mount, and
//! what it would start while presto is away would wait for presto before it begins.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "../common/mounted.rs"]
mod common;
mod faults;

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Opcode;
use presto_holder::Keeper;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;
use rustix::process::Signal;

const TAKEN_OVER: &str = "taken over from an earlier presto";
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    shell: Child,
    _watchdog: mpsc::Sender<()>,
    /// The holder ends with it.
    _stop: UnixStream,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::write(self.path("stop"), b"");
        for at in [self.path("mnt"), self.path("adopted")] {
            let _ = rustix::mount::unmount(&at, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
            let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        self.signal(Signal::KILL);
        let _ = self.shell.wait();
    }
}

impl World {
    fn start() -> World {
        World::start_with(|_| {})
    }

    /// A volume whose tree is a directory that was there before: `adopted`, with what this puts there.
    fn adopting(fill: impl FnOnce(&Path)) -> World {
        World::start_with(|dir| {
            let adopted = dir.join("adopted");
            fs::create_dir(&adopted).unwrap();
            fill(&adopted);
        })
    }

    fn start_with(prepare: impl FnOnce(&Path)) -> World {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a volume: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test mounts a volume: /dev/fuse is missing");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("state")).unwrap();
        fs::create_dir(path("cache")).unwrap();
        prepare(dir.path());
        let mut volume = serde_json::json!({
            "name": "test/takeover", "uid": 7, "cache": path("cache"), "mountpoint": path("mnt"),
        });
        if path("adopted").exists() {
            volume["source"] = serde_json::json!(path("adopted"));
            volume["adopted"] = serde_json::json!(true);
        }
        let table = serde_json::json!({"version": 1, "volumes": [volume]});
        fs::write(path("state/volumes.json"), table.to_string()).unwrap();
        let mut keeper = Keeper::bind(&path("holder.sock")).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        std::thread::spawn(move || keeper.run(stopped));
        let shell = Command::new("sh")
            .args([
                "-c",
                r#"while [ ! -e stop ]; do
                    fault=; [ ! -e fault ] || { fault="--fail-at $(cat fault)"; rm fault; }
                    "$0" --state state --socket s --holder holder.sock --allow-source "$PWD" $fault 2>>log
                done"#,
            ])
            .arg(env!("CARGO_BIN_EXE_presto"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (alive, watch) = mpsc::channel::<()>();
        let at = path("mnt");
        std::thread::spawn(move || {
            if watch.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("test took too long: aborting its mount");
                let _ = rustix::mount::unmount(&at, UnmountFlags::FORCE);
            }
        });
        let world = World { dir, shell, _watchdog: alive, _stop: stop };
        world.wait_for("presto serves", 1);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path("mnt").join(name)
    }

    fn count(&self, word: &str) -> usize {
        fs::read_to_string(self.path("log")).unwrap_or_default().matches(word).count()
    }

    fn wait_for(&self, word: &str, times: usize) {
        let begun = Instant::now();
        while self.count(word) < times {
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(begun.elapsed() < LIMIT, "{word} is not in the log:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = fs::read_to_string(self.path("state/lock")).unwrap_or_default();
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn takeover(&self, signal: Signal) {
        let before = self.takeovers();
        self.signal(signal);
        self.wait_for(TAKEN_OVER, before + 1);
    }

    fn takeovers(&self) -> usize {
        self.count(TAKEN_OVER)
    }

    fn open(&self, name: &str) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(self.at(name)).unwrap()
    }

    fn wait_for_close(&self, size: u64) {
        let begun = Instant::now();
        loop {
            let records = common::records(&self.path("cache"));
            let last = records.iter().rfind(|record| record.opcode == Opcode::Close);
            if last.is_some_and(|record| record.outcome.after.size == size) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "no close with {size} bytes: {last:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn an_open_file_goes_on_and_what_is_written_later_is_journaled() {
    let world = World::start();
    let file = world.open("file");
    file.write_all_at(b"before", 0).unwrap();
    world.takeover(Signal::KILL);
    let mut read = [0; 6];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"before");
    file.write_all_at(b"and after", 6).unwrap();
    file.sync_all().unwrap();
    world.wait_for_close(15);
    world.takeover(Signal::KILL);
    file.write_all_at(b"more", 15).unwrap();
    drop(file);
    world.wait_for_close(19);
    assert_eq!(fs::read(world.at("file")).unwrap(), b"beforeand aftermore");
}

#[test]
fn a_file_that_is_open_in_passthrough_can_be_opened_again() {
    let world = World::start();
    let first = world.open("file");
    first.write_all_at(b"x", 0).unwrap();
    world.takeover(Signal::KILL);
    let second = world.open("file");
    second.write_all_at(b"y", 1).unwrap();
    world.takeover(Signal::KILL);
    drop(first);
    let third = File::open(world.at("file")).unwrap();
    let mut read = [0; 2];
    third.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"xy");
}

#[test]
fn a_file_without_a_name_goes_on() {
    let world = World::start();
    let file = world.open("file");
    fs::remove_file(world.at("file")).unwrap();
    world.takeover(Signal::KILL);
    file.write_all_at(b"still here", 0).unwrap();
    file.set_len(5).unwrap();
    file.sync_all().unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!((meta.len(), meta.nlink()), (5, 0));
}

#[test]
fn a_directory_is_read_to_its_end() {
    let world = World::start();
    fs::create_dir(world.at("dir")).unwrap();
    for number in 0..1000 {
        fs::write(world.at(&format!("dir/{number}")), b"").unwrap();
    }
    let mut names = fs::read_dir(world.at("dir")).unwrap();
    let mut seen: Vec<_> = names.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
    world.takeover(Signal::KILL);
    seen.extend(names.map(|entry| entry.unwrap().file_name()));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 1000);
}

#[test]
fn a_mapping_goes_on_and_its_stores_are_journaled() {
    let world = World::start();
    let file = world.open("file");
    file.write_all_at(&[0; 4096], 0).unwrap();
    let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
    let flags = rustix::mm::MapFlags::SHARED;
    // SAFETY: a new mapping at a place of the kernel's choice, as long as the file, which nobody shortens.
    let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, access, flags, &file, 0).unwrap() };
    drop(file);
    world.wait_for_close(4096);
    world.takeover(Signal::KILL);
    let closes = || {
        let records = common::records(&world.path("cache"));
        records.iter().filter(|record| record.opcode == Opcode::Close).count()
    };
    std::thread::sleep(Duration::from_millis(600));
    let before = closes();
    // SAFETY: within the mapping.
    unsafe { map.cast::<u8>().write_volatile(b'm') };
    let begun = Instant::now();
    while closes() == before {
        assert!(begun.elapsed() < LIMIT, "the store was not journaled");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: mapped above with this length, not used any more.
    unsafe { rustix::mm::munmap(map, 4096).unwrap() };
}

#[test]
fn sigterm_leaves_the_mount_to_the_next() {
    let world = World::start();
    let file = world.open("file");
    world.takeover(Signal::TERM);
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(fs::read(world.at("file")).unwrap(), b"x");
}

#[test]
fn nothing_that_was_closed_stays_on_record() {
    let world = World::start();
    let files: Vec<File> = (0..20).map(|number| world.open(&format!("file{number}"))).collect();
    world.takeover(Signal::KILL);
    drop(files);
    std::thread::sleep(Duration::from_secs(1));
    world.takeover(Signal::KILL);
    let log = fs::read_to_string(world.path("log")).unwrap();
    let last = log.lines().rfind(|line| line.contains(TAKEN_OVER)).unwrap();
    assert!(last.contains("handles=0 lost=0"), "{last}");
}

#[test]
fn an_adopted_directory_stays_covered_and_its_files_go_on() {
    let world = World::adopting(|adopted| fs::write(adopted.join("old"), b"was here").unwrap());
    let adopted = |name: &str| world.path("adopted").join(name);
    let by_mount = world.open("old");
    let by_cover = File::options().append(true).open(adopted("old")).unwrap();
    for round in 0..2 {
        world.takeover(if round == 0 { Signal::KILL } else { Signal::TERM });
        std::io::Write::write_all(&mut &by_cover, b"+").unwrap();
        let mut read = [0; 8];
        by_mount.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"was here");
        // Who comes by the old path still comes through presto, by one cover and not by two.
        fs::write(adopted(&format!("new{round}")), b"new").unwrap();
        assert!(!adopted(".intermezzo").exists());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = format!(" {} ", world.path("adopted").display());
        assert_eq!(table.matches(&place).count(), 1, "{table}");
    }
    drop(by_cover);
    world.wait_for_close(10);
    let records = common::records(&world.path("cache"));
    assert_eq!(records.iter().filter(|record| record.opcode == Opcode::Create).count(), 2);
}
