//! One presto process, its socket and its mount; whatever happens, both are gone at the end.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use intermezzo_channel::v1;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use presto::channel::transport::{Connection, TransportError};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

pub const NAME: &str = "test/kill";
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Fleet {
    pub mnt: PathBuf,
    pub cache: PathBuf,
    /// Directories that presto may adopt, and that a mount may cover.
    pub sources: Vec<PathBuf>,
    state: PathBuf,
    socket: PathBuf,
    presto: Option<Child>,
    dying: Vec<Child>,
    _dir: tempfile::TempDir,
}

impl Fleet {
    pub fn new() -> Fleet {
        assert!(rustix::process::geteuid().is_root(), "this test mounts volumes: run it as root");
        assert!(std::path::Path::new("/dev/fuse").exists(), "this test mounts volumes: /dev/fuse is missing");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        Fleet {
            mnt: at("mnt"),
            cache: at("cache"),
            sources: Vec::new(),
            state: at("state"),
            socket: at("sock"),
            presto: None,
            dying: Vec::new(),
            _dir: dir,
        }
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.state.with_extension("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_presto"))
            .args(["--log", "info", "--state"])
            .arg(&self.state)
            .arg("--socket")
            .arg(&self.socket)
            .args(self.sources.iter().flat_map(|source| [OsStr::new("--allow-source"), source.as_os_str()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.presto = Some(child);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.with_extension("log")).unwrap_or_default()
    }

    /// A Lento: connected and attached, as soon as presto listens.
    pub fn lento(&self) -> (Lento, v1::Attached) {
        let since = Instant::now();
        loop {
            if let Ok(connection) = Connection::connect(&self.socket) {
                let mut lento = Lento { connection, scratch: Vec::new(), id: 1 };
                if let Ok(Body::Attached(attached)) = lento.ask(
                    "",
                    Body::Attach(v1::Attach {
                        protocol: intermezzo_channel::PROTOCOL,
                        lento_version: "test".into(),
                    }),
                ) {
                    return (lento, attached);
                }
            }
            assert!(since.elapsed() < PATIENCE, "presto does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn set_volume(&self, lento: &mut Lento) -> v1::VolumeInfo {
        match lento.ask(NAME, Body::SetVolume(self.set())).unwrap() {
            Body::VolumeInfo(info) => info,
            other => panic!("{other:?}"),
        }
    }

    pub fn set(&self) -> v1::SetVolume {
        v1::SetVolume {
            uid: 0xab,
            cache: self.cache.display().to_string(),
            mountpoint: self.mnt.display().to_string(),
            log_max_bytes: 256 << 20,
            ..Default::default()
        }
    }

    #[allow(dead_code)] // Of interest where a directory is adopted.
    pub fn dir(&self) -> &std::path::Path {
        self._dir.path()
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(child) = &self.presto {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let mut child = self.presto.take().unwrap();
        // With a kernel invalidation under way it cannot end before its connection is aborted. Its successor does that
        // too, but here the users must be gone before anything is compared.
        for _ in 0..40 {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::FORCE);
        child.wait().unwrap();
    }

    /// Whether it ended well within the time.
    pub fn terminate(&mut self, limit: Duration) -> bool {
        self.signal(Signal::TERM);
        let since = Instant::now();
        let mut child = self.presto.take().unwrap();
        while since.elapsed() < limit {
            if let Some(status) = child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- presto's log\n{}", self.log());
        }
        if let Some(mut child) = self.presto.take() {
            let _ = child.kill();
            self.dying.push(child);
        }
        for at in self.sources.iter().chain([&self.mnt]) {
            for _ in 0..32 {
                let _ = rustix::mount::unmount(at, UnmountFlags::FORCE);
                if rustix::mount::unmount(at, UnmountFlags::DETACH).is_err() {
                    break;
                }
            }
        }
        for mut child in self.dying.drain(..) {
            let _ = child.wait();
        }
    }
}

pub struct Lento {
    connection: Connection,
    scratch: Vec<u8>,
    id: u64,
}

impl Lento {
    pub fn ask(&mut self, volume: &str, body: Body) -> Result<Body, TransportError> {
        self.id += 2;
        self.connection.send(&Packet { id: self.id, volume: volume.to_owned(), body: Some(body) }, &[])?;
        loop {
            let incoming =
                self.connection.receive_within(&mut self.scratch, PATIENCE)?.expect("an answer in time");
            if incoming.packet.id == self.id {
                return Ok(incoming.packet.body.unwrap());
            }
        }
    }
}
