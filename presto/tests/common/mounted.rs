//! A volume on a temporary directory, mounted for one test, taken away whatever happens.

#![allow(dead_code)] // Each test file uses its part.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use intermezzo_kml::Reader;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Record;
use intermezzo_kml::record::State;
use presto::filter::Alone;
use presto::filter::Options;
use presto::filter::Upcalls;
use presto::filter::Volume;
use presto::fuse::Mount;
use presto::fuse::MountOptions;
use rustix::mount::UnmountFlags;

/// No test takes longer; then the mount is aborted so that nothing hangs on it.
const LIMIT: Duration = Duration::from_secs(90);

pub struct Mounted {
    pub mnt: PathBuf,
    pub cache: PathBuf,
    pub mount: Option<Mount>,
    pub volume: Arc<Volume>,
    _watchdog: mpsc::Sender<()>,
    _dir: tempfile::TempDir,
}

pub fn options() -> Options {
    let mut options = Options::default();
    // Nobody takes records in, and some tests make hundreds of thousands.
    options.journal.max_bytes = 192 << 20;
    options.journal.segment_bytes = 4 << 20;
    options.journal.reserve_bytes = 8 << 20;
    options
}

/// A volume on a temporary directory.
pub fn mounted(mount: &MountOptions) -> Mounted {
    mounted_in(tempfile::tempdir().unwrap(), mount)
}

/// A volume whose cache lies in `dir`.
pub fn mounted_in(dir: tempfile::TempDir, mount: &MountOptions) -> Mounted {
    mounted_with(dir, options(), mount)
}

/// The same, served in this way.
pub fn mounted_with(dir: tempfile::TempDir, options: Options, mount: &MountOptions) -> Mounted {
    mounted_asking(dir, options, mount, Arc::new(Alone))
}

/// The same, with somebody who answers for Lento.
pub fn mounted_asking(
    dir: tempfile::TempDir,
    options: Options,
    mount: &MountOptions,
    lento: Arc<dyn Upcalls>,
) -> Mounted {
    assert!(rustix::process::geteuid().is_root(), "this test mounts a volume: run it as root");
    assert!(Path::new("/dev/fuse").exists(), "this test mounts a volume: /dev/fuse is missing");
    let cache = dir.path().join("cache");
    let mnt = dir.path().join("mnt");
    std::fs::create_dir(&cache).unwrap();
    std::fs::create_dir(&mnt).unwrap();
    let (volume, unresolved) = Volume::open("test/mounted", &cache, options, lento).unwrap();
    assert!(unresolved.is_empty());
    let volume = Arc::new(volume);
    let (alive, watch) = mpsc::channel::<()>();
    let at = mnt.clone();
    std::thread::spawn(move || {
        if watch.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("test took too long: aborting its mount");
            let _ = rustix::mount::unmount(&at, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
    });
    let mount = Mount::start(Arc::clone(&volume), &mnt, mount, None).unwrap();
    Mounted { mnt, cache, mount: Some(mount), volume, _watchdog: alive, _dir: dir }
}

impl Mounted {
    pub fn path(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// The file below, where presto does not see what is done.
    pub fn lower(&self, name: &str) -> PathBuf {
        self.cache.join("tree").join(name)
    }

    /// All records so far, failed ones left out.
    pub fn records(&self) -> Vec<Record> {
        records(&self.cache)
    }

    pub fn opcodes(&self) -> Vec<Opcode> {
        self.records().iter().map(|record| record.opcode).collect()
    }

    /// Waits until this many records with this opcode are there.
    pub fn wait_for(&self, opcode: Opcode, count: usize) -> Vec<Record> {
        for _ in 0..500 {
            let found: Vec<Record> =
                self.records().into_iter().filter(|record| record.opcode == opcode).collect();
            if found.len() >= count {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no {count} records of {opcode:?}: {:#?}", self.opcodes());
    }
}

pub fn records(cache: &Path) -> Vec<Record> {
    let mut reader = Reader::open(&cache.join("kml")).unwrap();
    let first = reader.first().unwrap();
    reader.seek(first).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        if record.state == State::Done {
            records.push(record);
        }
    }
    records
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            let _ = mount.unmount();
            if !mount.wait(Duration::from_secs(10)) {
                let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::FORCE | UnmountFlags::DETACH);
                eprintln!("the mount is still in use");
            }
        }
    }
}
