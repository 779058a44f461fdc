//! The root file system between mount and end: who may write it, and since when.
//!
//! It is mounted for reading. A remount passes volume and mount point, through a mount helper that asks here (`control`), or, where
//! mount(8) calls none, by what /etc/fstab says (`fstab`): then this presto sees in mountinfo that the kernel takes updates. An
//! update that comes before it has looked finds out by itself, so none is refused that may be.

mod control;
mod fstab;
mod opened;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::filter::Volume;
use crate::lower;

pub use control::{Control, Rested};

/// Without an event mountinfo is looked at this often.
const LOOK: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// Between two looks at most so often.
const BREATH: Duration = Duration::from_millis(20);
/// Beside the socket: the root file system has been named since this boot, for a presto that goes on after another one.
const NAMED: &str = "root.named";

/// Who says what the root file system is.
#[derive(Debug)]
pub struct Root {
    volume: Arc<Volume>,
    /// The last complaint about fstab, told once.
    complaint: Mutex<String>,
    named: PathBuf,
}

impl Root {
    /// Takes the volume, which is mounted at `place`, for the root file system. `run`: a directory for the time until the machine
    /// goes.
    ///
    /// # Errors
    /// No thread.
    pub fn start(volume: Arc<Volume>, place: &Path, run: &Path) -> std::io::Result<Arc<Root>> {
        let root = Arc::new(Root { volume, complaint: Mutex::default(), named: run.join(NAMED) });
        let asked = Arc::downgrade(&root);
        let named = std::fs::read_to_string(&root.named).is_ok_and(|name| name == root.volume.name);
        root.volume.is_root(named, Box::new(move || asked.upgrade().is_some_and(|root| root.by_fstab())));
        if named {
            tracing::info!(target: "root", volume = root.volume.name, "read-write, as an earlier presto was told");
        }
        let Some(top) = lower::top(place) else {
            return Err(std::io::Error::other(format!("nothing is mounted at {}", place.display())));
        };
        let watching = Arc::clone(&root);
        std::thread::Builder::new().name("remounts".to_owned()).spawn(move || watching.watch(top.device))?;
        Ok(root)
    }

    /// Keeps a list of the contents that somebody waits for, in `run`.
    ///
    /// # Errors
    /// No file.
    pub fn list_opened(&self, run: &Path) -> std::io::Result<()> {
        let (list, volume) = (opened::Opened::open(run)?, Arc::downgrade(&self.volume));
        self.volume.on_fetched(Box::new(move |id| {
            if let Some(volume) = volume.upgrade() {
                list.note(&volume, id);
            }
        }));
        Ok(())
    }

    /// namespace/name of the volume.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.volume.name
    }

    /// A mount helper passes the options of a remount.
    ///
    /// # Errors
    /// They do not name this volume; for people.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        // As mount(8) has it, the last one counts.
        let is_ro = options.split(',').rfind(|word| matches!(*word, "ro" | "rw")) == Some("ro");
        if is_ro {
            rustix::fs::syncfs(self.volume.lower.stage()).map_err(|errno| {
                format!("volume {}: the disk cannot be synced: {errno}", self.volume.name)
            })?;
            return self.volume.journal.sync().map(drop).map_err(|error| error.to_string());
        }
        fstab::names(options, &self.volume.name).map_err(|why| format!("the remount {why}"))?;
        self.allow("a mount helper");
        Ok(())
    }

    /// The kernel takes updates already, and no helper has told why: what does fstab say?
    fn by_fstab(&self) -> bool {
        let mut complaint = self.complaint.lock();
        if !self.volume.marks.unnamed.is_on() {
            return true;
        }
        let said = fstab::options(&self.volume).and_then(|options| {
            fstab::names(&options, &self.volume.name).map_err(|why| format!("/etc/fstab {why}"))
        });
        match said {
            Ok(()) => {
                self.allow("fstab");
                true
            }
            Err(why) => {
                if *complaint != why {
                    announce(&format!("The root file system stays read-only: {why}"));
                    *complaint = why;
                }
                false
            }
        }
    }

    fn allow(&self, by: &str) {
        if !self.volume.marks.unnamed.set(false) {
            return;
        }
        if let Err(error) = std::fs::write(&self.named, &self.volume.name) {
            tracing::warn!(target: "root", path = %self.named.display(), %error,
                "a later presto will have to be told again what the root file system is");
        }
        tracing::info!(target: "root", volume = self.volume.name, by, "the root file system is read-write; updates are journaled");
    }

    fn watch(&self, device: u64) {
        let Ok(mounts) = File::open("/proc/self/mountinfo") else {
            tracing::warn!(target: "root", "no mountinfo: remounts are seen at the next update only");
            return;
        };
        let mut before = None;
        loop {
            let now = lower::is_writable(device);
            if now != before {
                match now {
                    Some(true) => {
                        // Nobody else waits for it: an update that comes before is refused, and not kept waiting for Lento.
                        if let Err(error) = fstab::bring(&self.volume) {
                            tracing::warn!(target: "root", volume = self.volume.name, %error, "/etc/fstab is not here");
                        }
                        self.by_fstab();
                    }
                    Some(false) => {
                        tracing::info!(target: "root", volume = self.volume.name, "the root file system is read-only");
                    }
                    None => {}
                }
                before = now;
            }
            let mut fds = [PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI | PollFlags::ERR)];
            let _ = poll(&mut fds, Some(&LOOK));
            std::thread::sleep(BREATH);
        }
    }
}

/// Tells it to the log, and to who sits before the console.
fn announce(text: &str) {
    tracing::error!(target: "root", "{text}");
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(console) = rustix::fs::open("/dev/console", flags, Mode::empty()) {
        let _ = File::from(console).write_all(format!("\r\nintermezzo: {text}\r\n").as_bytes());
    }
}
