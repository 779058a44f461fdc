//! Keeps holder and presto running for as long as the machine does, out of reach of what runs in the volume: its root stays the
//! initramfs, and the names begin with `@`, so that an init system that ends all processes leaves these alone.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;

use crate::console;

/// Before another try.
const AGAIN: Duration = Duration::from_secs(1);

/// Its own name.
pub const NAME: &str = "@intermezzo";
/// The holder's socket; nobody else has business there.
const HOLDER: &str = "/holder.sock";
/// A program that ends sooner than this after its start waits before the next one.
const SHORT: Duration = Duration::from_secs(5);

/// What presto is told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the disk is mounted.
    pub disk: PathBuf,
    /// Where the root file system is to be mounted.
    pub at: PathBuf,
    /// Directory for sockets that the volume's programs use.
    pub run: PathBuf,
    /// Which volume.
    pub volume: Option<String>,
}

/// Starts it; the caller may turn into any other program.
///
/// # Errors
/// No process.
pub fn start(plan: &Plan) -> Result<Child> {
    let mut command = Command::new("/init");
    command.arg0(NAME).arg(&plan.disk).arg(&plan.at).arg(&plan.run).args(&plan.volume);
    let log = || console::log().map(Stdio::from).unwrap_or_else(|_| Stdio::null());
    command.stdin(Stdio::null()).stdout(log()).stderr(log());
    command.spawn().context("the supervisor of presto does not start")
}

/// The process.
pub fn run(words: &[OsString]) -> ExitCode {
    match supervise(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!(" ERROR {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn supervise(words: &[OsString]) -> Result<()> {
    let [disk, at, run, volume @ ..] = words else { bail!("it is started by init") };
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    // When memory is short, everything else goes first: nothing works without the root file system.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    // A descriptor that children inherit, because the directory moves.
    let kept: OwnedFd = rustix::fs::open(Path::new(run), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        .with_context(|| format!("{}", Path::new(run).display()))?;
    let run = PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd()));
    let mut holder = Command::new("/bin/presto-holder");
    holder.arg0("@presto-holder").args(["--socket", HOLDER]);
    let mut presto = Command::new("/bin/presto");
    presto.arg0("@presto").arg("--state").arg(Path::new(disk).join("presto"));
    presto.arg("--socket").arg(run.join("presto.sock")).args(["--holder", HOLDER]);
    presto.arg("--root").arg(at).arg("--root-disk").arg(disk).arg("--root-socket").arg(run.join("root.sock"));
    if let [volume] = volume {
        presto.arg("--root-volume").arg(volume);
    }
    let mut holder = Kept::start("presto-holder", holder)?;
    wait_for(Path::new(HOLDER));
    let mut presto = Kept::start("presto", presto)?;
    loop {
        let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::empty()) else {
            std::thread::sleep(AGAIN);
            continue;
        };
        let ended = pid.as_raw_nonzero().get();
        if holder.is(ended) {
            holder.again(&format!("{status:?}"));
        } else if presto.is(ended) {
            if !run.join("root.sock").exists() {
                bail!("presto ended before it served the root file system");
            }
            presto.again(&format!("{status:?}"));
        }
    }
}

/// A program that is started again when it ends.
struct Kept {
    name: &'static str,
    command: Command,
    child: Child,
    started: Instant,
}

impl Kept {
    fn start(name: &'static str, mut command: Command) -> Result<Kept> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Kept { name, command, child, started: Instant::now() })
    }

    fn is(&self, pid: i32) -> bool {
        i32::try_from(self.child.id()).is_ok_and(|own| own == pid)
    }

    /// Whatever it takes: when memory is short it may not start at once, and nobody else would do it.
    fn again(&mut self, how: &str) {
        console::say(format_args!("{} has ended ({how}) and is started again", self.name));
        if self.started.elapsed() < SHORT {
            std::thread::sleep(SHORT);
        }
        loop {
            match self.command.spawn() {
                Ok(child) => self.child = child,
                Err(error) => {
                    console::say(format_args!("{} does not start again: {error}", self.name));
                    std::thread::sleep(AGAIN);
                    continue;
                }
            }
            self.started = Instant::now();
            return;
        }
    }
}

/// A holder that comes late is found later, so this only saves presto a second look.
fn wait_for(socket: &Path) {
    let begun = Instant::now();
    while !socket.exists() && begun.elapsed() < SHORT {
        std::thread::sleep(Duration::from_millis(5));
    }
}
