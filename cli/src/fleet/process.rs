//! Processes of a fleet: started in sessions of their own, found again by pid, start time and boot.
//!
//! A signal goes through a pidfd that was checked after it was opened, so it never reaches a process that merely got the number.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use serde::{Deserialize, Serialize};

use super::FleetError;
use crate::replace::replace;

/// A process as it was recorded when it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since boot (proc(5), field 22).
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Please end.
    Term,
    /// End now.
    Kill,
    /// Stand still.
    Stop,
    /// Go on.
    Continue,
}

impl Recorded {
    /// The process with this number now.
    #[must_use]
    pub fn now(pid: i32) -> Option<Recorded> {
        Some(Recorded { pid, start: started(pid)?, boot: boot() })
    }

    /// Reads a record; `None` if there is none (or it is not one).
    #[must_use]
    pub fn read(path: &Path) -> Option<Recorded> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes the record.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self)?, 0o666)
    }

    /// Whether that very process still runs, any thread of it. One that has ended and that nobody has waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.handle().is_some_and(|handle| !self.has_ended(&handle, Duration::ZERO))
    }

    /// Sends a signal if that very process still runs.
    pub fn signal(&self, signal: Signal) {
        let Some(handle) = self.handle() else { return };
        let signal = match signal {
            Signal::Term => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
        };
        // It may end before the signal arrives, which is as good.
        let _ = pidfd_send_signal(handle, signal);
    }

    /// Waits until it has ended; false if it has not within `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        self.handle().is_none_or(|handle| self.has_ended(&handle, timeout))
    }

    /// A handle of that very process, running or not waited for.
    fn handle(&self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        (started(self.pid)? == self.start && self.boot == boot()).then_some(handle)
    }

    /// Waits for its last thread: the first one may end long before, and sockets and files stay open until then.
    fn has_ended(&self, handle: &OwnedFd, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
            match poll(&mut [PollFd::new(handle, PollFlags::IN)], left.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(_) => break,
            }
        }
        // If this process started it, its remains go (else whoever did takes care of them).
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        true
    }
}

/// Starts a daemon in a session of its own, its output appended to `log`.
///
/// # Errors
/// The program does not start, or is gone at once.
pub fn start(binary: &Path, arguments: &[OsString], log: &Path) -> io::Result<Recorded> {
    let out = File::options().create(true).append(true).open(log)?;
    // setsid(1) makes the session and becomes the program: the process number stays.
    let child = Command::new("setsid")
        .arg(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Recorded::now(pid).ok_or_else(|| io::Error::other("it ended at once; see its log"))
}

/// Finds a program of this project: beside this one, one directory up (tests run in `deps/`), or in INTERMEZZO_BIN_DIR.
///
/// # Errors
/// It is in none of these places.
pub fn binary(name: &str) -> Result<PathBuf, FleetError> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("INTERMEZZO_BIN_DIR") {
        places.push(PathBuf::from(dir));
    }
    if let Ok(me) = std::env::current_exe() {
        places.extend(me.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    if let Some(found) = places.iter().map(|place| place.join(name)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(FleetError::Binary { name: name.to_owned(), looked: looked.join(", ") })
}

/// The last lines of a log, for a message.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 << 10)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Start time of a process (proc(5), field 22; the name may hold anything, so count from its end).
fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Recorded {
        start(Path::new("/bin/sleep"), &["60".into()], &dir.join("log")).unwrap()
    }

    #[test]
    fn a_started_process_is_known_and_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        process.write(&dir.path().join("pid")).unwrap();
        let read = Recorded::read(&dir.path().join("pid")).unwrap();
        assert_eq!(read, process);
        assert!(read.is_alive());
        assert!(!read.wait(Duration::from_millis(20)));
        read.signal(Signal::Term);
        assert!(read.wait(Duration::from_secs(10)));
        assert!(!read.is_alive());
    }

    #[test]
    fn a_number_that_went_to_another_process_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let other_start = Recorded { start: process.start + 1, ..process.clone() };
        let other_boot = Recorded { boot: "another".into(), ..process.clone() };
        for stranger in [other_start, other_boot] {
            assert!(!stranger.is_alive());
            stranger.signal(Signal::Kill);
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(process.is_alive());
        process.signal(Signal::Kill);
        assert!(process.wait(Duration::from_secs(10)));
    }

    #[test]
    fn the_end_of_a_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(tail(&path, 2), "2\n3");
        assert_eq!(tail(&path, 9), "1\n2\n3");
        assert_eq!(tail(&dir.path().join("away"), 9), "");
    }
}
