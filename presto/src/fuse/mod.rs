//! The mount: fuser's requests turned into the filter's operations. The only room that names fuser.
//!
//! `Mount` owns the mount and its threads. Dropping it unmounts without waiting for anybody. `takeover.rs` goes on with a
//! mount that an earlier presto left.

mod abort;
mod adapter;
mod backing;
mod convert;
mod kernel;
mod nodes;
mod notify;
mod places;
mod probe;
mod resent;
mod serving;
mod takeover;
mod waits;

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::Session;
use fuser::SessionACL;
use parking_lot::Mutex;
use presto_holder::Kept;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;

use crate::filter::Background;
use crate::filter::Volume;
use crate::holding::Held;
use crate::holding::Holding;
use crate::session::Identity;
use crate::session::Memory;
use adapter::Adapter;
use kernel::Kernel;
use nodes::Nodes;
use notify::Corrections;
use notify::Device;
use serving::Serving;

pub use probe::offered;
pub use takeover::TakeoverError;

/// Why a volume is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// /dev/fuse.
    #[error("volume {volume}: cannot open /dev/fuse: {errno}; is the fuse module loaded?")]
    Device {
        /// Volume.
        volume: String,
        /// Reason.
        errno: Errno,
    },
    /// mount(2).
    #[error("volume {volume}: cannot mount on {mountpoint}: {errno}")]
    Mount {
        /// Volume.
        volume: String,
        /// Where.
        mountpoint: PathBuf,
        /// Reason.
        errno: Errno,
    },
    /// The cover of the adopted directory.
    #[error("volume {volume}: cannot cover the adopted directory {path}: {errno}")]
    Cover {
        /// Volume.
        volume: String,
        /// Which.
        path: PathBuf,
        /// Reason.
        errno: Errno,
    },
    /// The session with the kernel, or its threads.
    #[error("volume {volume}: no session with the kernel: {source}")]
    Session {
        /// Volume.
        volume: String,
        /// Reason.
        source: std::io::Error,
    },
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Honour set-user-id programs.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Refuse writing in the kernel already.
    pub read_only: bool,
    /// Let data pass in the kernel where it can.
    pub passthrough: bool,
    /// Threads that serve requests.
    pub threads: usize,
    /// How long the kernel may believe what it was told, where it can be told of every change.
    pub believed: Duration,
}

impl MountOptions {
    /// Of a root file system. When a machine goes down, its first process stops all others for a moment and looks at the root
    /// meanwhile: what it knows already must never have to be asked again.
    #[must_use]
    pub fn root() -> MountOptions {
        let believed = Duration::from_secs(10 * 365 * 86_400);
        MountOptions { suid: true, dev: true, read_only: true, believed, ..MountOptions::default() }
    }
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            suid: false,
            dev: false,
            read_only: false,
            passthrough: true,
            threads: 8,
            believed: Duration::from_secs(86_400),
        }
    }
}

/// A mounted volume.
#[derive(Debug)]
pub struct Mount {
    volume: Arc<Volume>,
    mountpoint: PathBuf,
    /// Number of the mount's device, by which the kernel knows the connection.
    number: Option<u64>,
    /// The adopted directory, while the mount covers it. What is mounted there before stays: it is uncovered once.
    cover: Mutex<Option<PathBuf>>,
    kernel: Arc<Kernel>,
    /// Keeps it beyond this presto.
    holding: Option<Arc<Holding>>,
    session: Mutex<Option<JoinHandle<()>>>,
    background: Mutex<Option<Background>>,
}

impl Mount {
    /// Mounts the volume and starts to serve it. `holding` has the mount kept beyond this presto, where the kernel can.
    pub fn start(
        volume: Arc<Volume>,
        mountpoint: &Path,
        options: &MountOptions,
        holding: Option<&Arc<Holding>>,
    ) -> Result<Mount, MountError> {
        allow_many_files();
        let name = volume.name.clone();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = match rustix::fs::open("/dev/fuse", flags, Mode::empty()) {
            Ok(device) => device,
            Err(errno) => return Err(MountError::Device { volume: name, errno }),
        };
        if let Err(errno) = mount(&device, &name, mountpoint, options) {
            return Err(MountError::Mount { volume: name, mountpoint: mountpoint.to_owned(), errno });
        }
        let mount = Mount::serve(volume, device, mountpoint, options, holding).map_err(|source| {
            if let Err(errno) = detach(mountpoint) {
                tracing::warn!(target: "fuse", volume = name, ?mountpoint, %errno, "not unmounted");
            }
            MountError::Session { volume: name.clone(), source }
        })?;
        mount.cover().map_err(|(path, errno)| MountError::Cover { volume: name, path, errno })?;
        Ok(mount)
    }

    /// Shows the volume in the place of its adopted directory as well, so that nobody comes to the files past it.
    fn cover(&self) -> Result<(), (PathBuf, Errno)> {
        let Some(source) = self.volume.lower.source.clone() else { return Ok(()) };
        // A mount that was taken over brings its cover along.
        let is_there = crate::lower::top(&source).is_some_and(|top| Some(top.device) == self.number);
        let covered = if is_there { Ok(()) } else { rustix::mount::mount_bind(&self.mountpoint, &source) };
        match covered {
            Ok(()) => {
                *self.cover.lock() = Some(source);
                Ok(())
            }
            Err(errno) => Err((source, errno)), // Dropped, the mount goes.
        }
    }

    fn serve(
        volume: Arc<Volume>,
        device: OwnedFd,
        mountpoint: &Path,
        options: &MountOptions,
        holding: Option<&Arc<Holding>>,
    ) -> std::io::Result<Mount> {
        let parts = Parts::new(volume, &device, mountpoint)?;
        // Reads the kernel's INIT, which mount(2) has queued, and answers it: `kernel` is filled in.
        let session = Session::from_fd(parts.adapter(options), device, SessionACL::All, config(options))?;
        let held = holding.and_then(|holding| parts.keep(holding));
        parts.run(session, holding.filter(|_| held.is_some()), held)
    }

    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What is served.
    #[must_use]
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Whether data passes in the kernel.
    #[must_use]
    pub fn has_passthrough(&self) -> bool {
        self.kernel.has_passthrough()
    }

    /// Whether it outlives this presto.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.holding.is_some()
    }

    /// Whether requests are still served.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.session.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Takes the mount away at once; programs that have files open keep them until they close them.
    pub fn unmount(&self) -> Result<(), Errno> {
        if let Some(holding) = &self.holding {
            holding.forget(&self.volume.name);
        }
        let uncovered = self.cover.lock().take().map_or(Ok(()), |cover| detach(&cover));
        detach(&self.mountpoint).and(uncovered)
    }

    /// Ends the connection of a mount that was taken away: whoever still uses it gets errors from now on (ENOTCONN), and
    /// keeps only what the kernel does without presto: reads and writes of files that it has open.
    pub fn abort(&self) -> Result<(), Errno> {
        self.number.map_or(Err(Errno::NOENT), abort::abort)
    }

    /// Waits until the last user of the detached mount is gone, at most this long. Says whether it is so.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let end = std::time::Instant::now() + limit;
        while self.is_alive() {
            if std::time::Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(background) = self.background.lock().take() {
            background.stop();
        }
        true
    }
}

/// What serves a mount, before it does.
struct Parts {
    volume: Arc<Volume>,
    mountpoint: PathBuf,
    number: Option<u64>,
    nodes: Arc<Nodes>,
    kernel: Arc<Kernel>,
    device: Arc<OwnedFd>,
}

impl Parts {
    fn new(volume: Arc<Volume>, device: &OwnedFd, mountpoint: &Path) -> std::io::Result<Parts> {
        Ok(Parts {
            nodes: Arc::new(Nodes::new(volume.lower.root())),
            volume,
            mountpoint: mountpoint.to_owned(),
            number: crate::lower::top(mountpoint).map(|top| top.device),
            kernel: Arc::new(Kernel::default()),
            device: Arc::new(rustix::io::fcntl_dupfd_cloexec(device, 3)?),
        })
    }

    fn adapter(&self, options: &MountOptions) -> Adapter {
        Adapter(Arc::new(Serving::new(
            Arc::clone(&self.volume),
            Arc::clone(&self.nodes),
            Arc::clone(&self.kernel),
            Arc::clone(&self.device),
            options,
        )))
    }

    /// Whose memory it is.
    fn identity(&self) -> Result<Identity, Errno> {
        let root = self.volume.lower.root();
        let lower = rustix::fs::fstat(&*self.volume.lower.dir(root)?)?.st_dev;
        let mount = self.number.ok_or(Errno::NOENT)?;
        Ok(Identity { root, lower, mount })
    }

    /// Has the new mount kept, if it can be taken over later.
    fn keep(&self, holding: &Arc<Holding>) -> Option<Arc<Held>> {
        let name = &self.volume.name;
        if !self.kernel.resends() {
            tracing::info!(target: "fuse", volume = name, "on this kernel a mount does not outlive presto");
            return None;
        }
        let made = self.identity().and_then(|identity| {
            let memory = Memory::create(&identity, self.kernel.agreed())?;
            let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
            let lower = &self.volume.lower;
            // The next presto finds no other way to a directory that is covered.
            let tree = lower.source.as_ref().map(|_| copy(lower.dir(lower.root())?.as_fd())).transpose()?;
            let session = Kept { device: copy(self.device.as_fd())?, memory: copy(memory.as_fd())?, tree };
            Ok((Arc::new(memory), session))
        });
        match made {
            Ok((memory, session)) => {
                self.nodes.keep_in(&memory);
                self.kernel.backings.keep_in(&memory);
                self.volume.keep_in(&memory);
                let held = holding.keep(name, session);
                if held.is_none() {
                    tracing::warn!(target: "fuse", volume = name,
                        "the holder does not keep this mount, which ends with presto: is the holder older than presto?");
                }
                held
            }
            Err(errno) => {
                tracing::warn!(target: "fuse", volume = name, %errno, "this mount does not outlive presto");
                None
            }
        }
    }

    fn run(
        self,
        session: Session<Adapter>,
        holding: Option<&Arc<Holding>>,
        held: Option<Arc<Held>>,
    ) -> std::io::Result<Mount> {
        let Parts { volume, mountpoint, number, nodes, kernel, device } = self;
        let notify = Device::new(rustix::io::fcntl_dupfd_cloexec(&device, 3)?, kernel.expires());
        volume.notifier.attach(true);
        let notified = Arc::clone(&volume);
        std::thread::Builder::new().name("invalidate".to_owned()).spawn(move || {
            let held = held.as_deref();
            Corrections { volume: &notified, nodes: &nodes, device: &notify, held }.run();
        })?;
        let served = Arc::clone(&volume);
        let ended = holding.cloned();
        let thread = std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(target: "fuse", volume = served.name, %error, "session ended");
            } else {
                tracing::info!(target: "fuse", volume = served.name, "unmounted");
            }
            served.notifier.attach(false);
            if let Some(holding) = ended {
                holding.forget(&served.name);
            }
        })?;
        let background = Background::start(Arc::clone(&volume))?;
        tracing::info!(target: "fuse", volume = volume.name, ?mountpoint, passthrough = kernel.has_passthrough(),
            expire = kernel.expires(), held = holding.is_some(), "mounted");
        Ok(Mount {
            volume,
            mountpoint,
            number,
            cover: Mutex::new(None),
            kernel,
            holding: holding.cloned(),
            session: Mutex::new(Some(thread)),
            background: Mutex::new(Some(background)),
        })
    }
}

fn config(options: &MountOptions) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads.max(2));
    // A request read through a clone of the device ends with the clone: it could not be sent again.
    config.clone_fd = false;
    config
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_alive()
            && let Err(errno) = self.unmount()
            && errno != Errno::INVAL
        {
            tracing::warn!(target: "fuse", volume = self.volume.name, mountpoint = ?self.mountpoint, %errno,
                "not unmounted");
        }
    }
}

/// Each file that users have open takes one of our descriptors.
fn allow_many_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(errno) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
            tracing::warn!(target: "fuse", %errno, "limit of open files stays low");
        }
    }
}

fn mount(device: &OwnedFd, volume: &str, mountpoint: &Path, options: &MountOptions) -> Result<(), Errno> {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::RDONLY, options.read_only);
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(volume, mountpoint, "fuse.intermezzo", flags, &*data)
}

fn detach(mountpoint: &Path) -> Result<(), Errno> {
    rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}
