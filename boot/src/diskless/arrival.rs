//! Waits for what must have come from the server before init can start: the tree, then the contents without which nothing begins.
//! Each wait says on the console what it waits for, and ends when nothing has come for as long as `rootwait=` says.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use intermezzo_channel::ROOT_DISK;
use rustix::fs::{Mode, OFlags, StatVfs, statvfs};
use rustix::io::Errno;

use super::{OWN, PROGRESS};
use crate::cmdline::{Request, Server};
use crate::console::{complaints, say};
use crate::profile;
use crate::progress::{Lento, Still};
use crate::switch::INITS;

/// So little left is nothing: whoever writes next gets ENOSPC.
const FULL: u64 = 256 << 10;
/// How often it is looked how far Lento is.
const BREATH: Duration = Duration::from_millis(20);
/// A changed reason is said no more often than this, and an old one again after so long.
const NEWS: Duration = Duration::from_secs(2);
const WORD: Duration = Duration::from_secs(15);

/// Waits until the tree is here.
///
/// # Errors
/// It does not come, or there is no room for it; with what to change.
pub fn wait_for_tree(request: &Request, server: &Server, run: &Path, supervisor: &mut Child) -> Result<()> {
    let begun = Instant::now();
    // Time runs while nothing comes: no name, no byte of a content.
    let mut still = Still::new(begun);
    let mut said = (None::<Instant>, String::new());
    let mut why = String::from("lento begins");
    loop {
        let mut moved = 0;
        if let Ok(text) = std::fs::read_to_string(run.join(PROGRESS)) {
            moved = Lento::parse(&text).moved;
            match state(&text, &server.volume) {
                Some(State::Whole) => {
                    let seconds = begun.elapsed().as_secs_f64();
                    say(format_args!("the tree of volume {} is here ({seconds:.1} s)", server.volume));
                    return Ok(());
                }
                Some(State::Waiting(reason)) => why = reason,
                None => {}
            }
        }
        if supervisor.try_wait()?.is_some() {
            bail!("the root file system is not brought here: {}", last_words());
        }
        let (room, own) = (statvfs(ROOT_DISK)?, statvfs(OWN)?);
        if full(&own).is_some() {
            bail!(
                "too little memory: the journal and the state of volume {} need more than {} MiB, which is what they may take of it; \
                 give the machine more memory",
                server.volume,
                own.f_blocks.saturating_mul(own.f_frsize) >> 20
            );
        }
        if let Some(lacks) = full(&room) {
            bail!(
                "too little memory: volume {} needs more {lacks} than the cache may take ({} MiB of memory); give the machine more \
                 memory, or the cache a larger part: rootflags=size=80%{}",
                server.volume,
                room.f_blocks.saturating_mul(room.f_frsize) >> 20,
                if lacks == "names" { ",nr_inodes=0" } else { "" }
            );
        }
        let names = room.f_files.saturating_sub(room.f_ffree);
        if still.hear(Instant::now(), (names, moved)) >= request.patience {
            let last = complaints().pop().map(|last| format!(" ({last})")).unwrap_or_default();
            bail!(
                "volume {} is not here after {} s: {why}{last}. rootwait=SECONDS on the kernel's command line waits longer, rootwait \
                 alone for ever",
                server.volume,
                begun.elapsed().as_secs()
            );
        }
        let pause = if said.1 == why { WORD } else { NEWS };
        if said.0.unwrap_or(begun).elapsed() >= pause {
            let seconds = begun.elapsed().as_secs();
            say(format_args!(
                "waiting for volume {} of {}: {why} ({seconds} s)",
                server.volume, server.address
            ));
            said = (Some(Instant::now()), why.clone());
        }
        std::thread::sleep(BREATH);
    }
}

/// Brings the contents without which nothing begins: fstab, into which presto looks when the root file system is remounted, and
/// init itself. What init opens then it waits for as anybody does.
///
/// # Errors
/// The server is away for too long.
pub fn bring_first(request: &Request, server: &Server, root: &Path, run: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = || rustix::fs::open(root, flags, Mode::empty()).context("the root file system");
    let wait = Wait { patience: request.patience, server, progress: &run.join(PROGRESS) };
    // Without a fstab a mount helper may name the volume.
    if let Err(errno) = wait.bring("etc/fstab", opening(root()?, "etc/fstab"))?
        && errno != Errno::NOENT
    {
        say(format_args!("/etc/fstab of the volume is not here: {errno}"));
    }
    // What is missing or no program is told when it is to start.
    let inits = request.init.as_deref().map_or(&INITS[..], |_| &[]);
    for init in request.init.as_deref().into_iter().chain(inits.iter().copied()) {
        let init = init.trim_start_matches('/');
        if wait.bring(init, opening(root()?, init))?.is_ok() {
            break;
        }
    }
    Ok(())
}

fn opening(root: OwnedFd, name: &str) -> impl Fn() -> Result<OwnedFd, Errno> + Send + 'static {
    let name = name.to_owned();
    move || profile::open(&root, &name)
}

/// How a content is waited for.
struct Wait<'a> {
    patience: Duration,
    server: &'a Server,
    progress: &'a Path,
}

impl Wait<'_> {
    /// Opens a file, which brings its content, again and again while the server is away.
    fn bring<T: Send + 'static>(
        &self,
        name: &str,
        open: impl Fn() -> Result<T, Errno> + Send + 'static,
    ) -> Result<Result<T, Errno>> {
        let begun = Instant::now();
        let mut still = Still::new(begun);
        still.hear(begun, Lento::read(self.progress).moved);
        let mut said = begun;
        let (sender, opened) = channel();
        // It waits in the kernel: in a thread, so that somebody can say so meanwhile.
        std::thread::spawn(move || {
            loop {
                let opened = open();
                let again = matches!(opened, Err(Errno::HOSTUNREACH));
                if sender.send(opened).is_err() || !again {
                    return;
                }
                std::thread::sleep(BREATH);
            }
        });
        loop {
            match opened.recv_timeout(NEWS) {
                Ok(Err(Errno::HOSTUNREACH)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(opened) => return Ok(opened),
                Err(RecvTimeoutError::Disconnected) => return Ok(Err(Errno::IO)),
            }
            let lento = Lento::read(self.progress);
            let idle = still.hear(Instant::now(), lento.moved);
            if idle >= self.patience {
                bail!(
                    "/{name} of volume {} does not come: nothing has come from {} for {} s{}. rootwait=SECONDS on the kernel's command \
                     line waits longer, rootwait alone for ever",
                    self.server.volume,
                    self.server.address,
                    idle.as_secs(),
                    lento.why(": ")
                );
            }
            if said.elapsed() >= WORD || said == begun && begun.elapsed() >= NEWS {
                said = Instant::now();
                say(format_args!(
                    "waiting for /{name} of volume {} of {}{} ({} s)",
                    self.server.volume,
                    self.server.address,
                    lento.why(": "),
                    begun.elapsed().as_secs()
                ));
            }
        }
    }
}

fn last_words() -> String {
    let complaints = complaints();
    if complaints.is_empty() {
        return "what should bring it ended and said nothing; look at the kernel's log (dmesg)".to_owned();
    }
    complaints.join("; ")
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Whole,
    Waiting(String),
}

/// What Lento says of the volume.
fn state(text: &str, volume: &str) -> Option<State> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(volume)?.strip_prefix(' '));
    let said = lines.next()?;
    match said.strip_prefix("waiting ") {
        Some(why) => Some(State::Waiting(why.to_owned())),
        None => (said == "whole").then_some(State::Whole),
    }
}

/// What is used up.
fn full(room: &StatVfs) -> Option<&'static str> {
    if room.f_bavail.saturating_mul(room.f_frsize) < FULL {
        return Some("room");
    }
    // 0 of 0: as many as there is memory for.
    (room.f_files > 0 && room.f_ffree < 16).then_some("names")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::cmdline::{Source, parse};

    #[test]
    fn a_server_that_is_away_when_init_is_to_start_is_waited_for_and_then_it_is_said() {
        let Source::Server(server) = parse("root=intermezzo:site/root@a=10.0.0.1").unwrap().source else {
            panic!("no server")
        };
        let dir = tempfile::tempdir().unwrap();
        let progress = dir.path().join(PROGRESS);
        std::fs::write(&progress, "site/root whole\nsite/root waits not connected to a\n").unwrap();
        let wait =
            |seconds| Wait { patience: Duration::from_secs(seconds), server: &server, progress: &progress };
        let asked = AtomicU32::new(0);
        let comes_back = move || match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(Errno::HOSTUNREACH),
            nth => Ok(nth),
        };
        assert_eq!(wait(60).bring("sbin/init", comes_back).unwrap(), Ok(3));
        assert_eq!(wait(60).bring("sbin/init", || Err::<(), _>(Errno::NOENT)).unwrap(), Err(Errno::NOENT));
        let begun = Instant::now();
        let away = wait(1).bring("sbin/init", || {
            std::thread::sleep(Duration::from_millis(100));
            Err::<(), _>(Errno::HOSTUNREACH)
        });
        let error = away.unwrap_err().to_string();
        assert!(error.contains("/sbin/init of volume site/root does not come"), "{error}");
        assert!(error.contains("10.0.0.1:7430") && error.contains("not connected to a"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_lento_says_of_the_volume_is_found() {
        let text = "site/rooted whole\nsite/root waiting not connected to a; no route\n";
        let waiting = State::Waiting("not connected to a; no route".to_owned());
        assert_eq!(state(text, "site/root"), Some(waiting));
        assert_eq!(state(text, "site/rooted"), Some(State::Whole));
        assert_eq!(state("", "site/root"), None);
    }
}
