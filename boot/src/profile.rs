//! The boot profile: contents that an earlier boot had to wait for are fetched before somebody asks for them.
//!
//! `/etc/intermezzo/boot-profile` in the volume, a path on each line; what presto lists at `/run/intermezzo/opened` is one. What
//! is fetched here is in the list of this boot as well, so that one is whole again.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::console;

/// Name of the process.
pub const NAME: &str = "@intermezzo-fetch";
/// In the volume.
const PROFILE: &str = "etc/intermezzo/boot-profile";
/// In the new /run: what is fetched.
const COPY: &str = "boot-profile";
/// Longer ones are none.
const LIMIT: u64 = 4 << 20;
/// At once: they wait for the network, and not for the processor.
const THREADS: usize = 4;

/// Begins to fetch, in a process of its own that goes on when the volume has become `/`; nothing where there is no profile.
///
/// # Errors
/// The profile cannot be read, or no process.
pub fn begin(root: &Path, run: &Path) -> Result<()> {
    // Inherited: by this, and by no path, the volume is found later.
    let root: OwnedFd = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let list = match open(&root, PROFILE) {
        Ok(list) => list,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).with_context(|| format!("/{PROFILE}")),
    };
    let mut text = Vec::new();
    File::from(list).take(LIMIT).read_to_end(&mut text).with_context(|| format!("/{PROFILE}"))?;
    let copy = run.join(COPY);
    std::fs::write(&copy, &text)?;
    let log = || console::log().map(Stdio::from).unwrap_or_else(|_| Stdio::null());
    let mut fetch = Command::new("/init");
    fetch.arg0(NAME).arg(root.as_raw_fd().to_string());
    fetch.stdin(File::open(&copy)?).stdout(log()).stderr(log());
    fetch.spawn().context("what fetches the contents of the boot profile does not start")?;
    Ok(())
}

/// The process.
pub fn run(words: &[OsString]) -> ExitCode {
    let root = words.first().and_then(|word| File::open(Path::new("/proc/self/fd").join(word)).ok());
    let (mut text, Some(root)) = (String::new(), root) else { return ExitCode::from(2) };
    if std::io::stdin().read_to_string(&mut text).is_err() {
        return ExitCode::FAILURE;
    }
    let names: Vec<&str> = text.lines().map(|line| line.trim_start_matches('/')).collect();
    let (next, fetched, away) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The server is away: who needs one of them waits for it, and nobody else.
                    if away.load(Ordering::Relaxed) {
                        return;
                    }
                    match open(&root, name) {
                        Ok(_) => drop(fetched.fetch_add(1, Ordering::Relaxed)),
                        Err(errno) => away.store(errno == Errno::HOSTUNREACH, Ordering::Relaxed),
                    }
                }
            });
        }
    });
    let (fetched, all) = (fetched.load(Ordering::Relaxed), names.len());
    console::say(format_args!("{fetched} of {all} contents of the boot profile are here"));
    ExitCode::SUCCESS
}

/// Opens a file as a program in the volume would see it, which brings its content.
pub fn open(root: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat2(root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_XDEV)
}
