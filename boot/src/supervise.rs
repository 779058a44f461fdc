//! Keeps holder and presto, and Lento where there is no disk, running for as long as the machine does, out of reach of what runs in the volume: its root stays the
//! initramfs, and the names begin with `@`, so that an init system that ends all processes leaves these alone.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;
use rustix::thread::CapabilitySet;

use crate::console;
use crate::diskless::{IDENTITY, PROGRESS};
use crate::network::dhcp::{self, Lease};
use crate::network::{self, Card};

/// Before another try.
const AGAIN: Duration = Duration::from_secs(1);

/// In the place of a router.
const NO_GATEWAY: &str = "-";

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
    /// Without a disk.
    pub far: Option<Far>,
}

/// What is known of a volume that comes from its server.
#[derive(Clone, Debug)]
pub struct Far {
    /// This node.
    pub node: String,
    /// The server's node, and where it listens.
    pub server: (String, SocketAddr),
    /// What Lento is to do.
    pub manifests: PathBuf,
    /// The address of this machine, where it has one for a time.
    pub lease: Option<(Card, Lease)>,
}

/// Starts it; the caller may turn into any other program.
///
/// # Errors
/// No process.
pub fn start(plan: &Plan) -> Result<Child> {
    let mut command = Command::new("/init");
    command.arg0(NAME).arg(&plan.disk).arg(&plan.at).arg(&plan.run);
    command.arg(plan.volume.as_deref().unwrap_or_default());
    if let Some(Far { node, server: (server, address), manifests, lease }) = &plan.far {
        command.arg(node).arg(format!("{server}={address}")).arg(manifests);
        if let Some((card, Lease { address, prefix, gateway, server, seconds, .. })) = lease {
            let gateway = gateway.map_or_else(|| NO_GATEWAY.to_owned(), |gateway| gateway.to_string());
            command.args([&card.name, &address.to_string(), &prefix.to_string(), &gateway]);
            command.args([server.to_string(), seconds.to_string()]);
        }
    }
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
    let [disk, at, run, volume, far @ ..] = words else { bail!("it is started by init") };
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
    if !volume.is_empty() {
        presto.arg("--root-volume").arg(volume);
    }
    let lento = match far {
        [node, server, manifests, lease @ ..] => {
            presto.arg("--root-from-lento");
            keep(node, lease)?;
            Some(lento(Path::new(disk), &run, node, server, manifests))
        }
        _ => None,
    };
    // Without a disk Lento must come before there is a root file system.
    let ready = run.join(if lento.is_some() { "presto.sock" } else { "root.sock" });
    let mut programs = vec![Kept::start("presto-holder", holder, Rights::All, None)?];
    wait_for(Path::new(HOLDER));
    programs.push(Kept::start("presto", presto, Rights::All, Some(ready))?);
    if let Some(lento) = lento {
        programs.push(Kept::start("lento", lento, Rights::Read, Some(run.join(PROGRESS)))?);
    }
    loop {
        let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::empty()) else {
            std::thread::sleep(AGAIN);
            continue;
        };
        let ended = pid.as_raw_nonzero().get();
        if let Some(program) = programs.iter_mut().find(|program| program.is(ended)) {
            program.again(&format!("{status:?}"))?;
        }
    }
}

/// Its files are all in memory, and in an initramfs that the kernel never takes out of it: it brings contents of the volume, so
/// it must need none of them.
fn lento(disk: &Path, run: &Path, node: &OsString, server: &OsString, manifests: &OsString) -> Command {
    let own = |name: &str| Path::new(IDENTITY).join(name);
    let mut lento = Command::new("/bin/lento");
    lento.arg0("@lento").arg("--node").arg(node).arg("--manifests").arg(manifests).arg("--peer").arg(server);
    // Nobody asks a machine without a disk for anything.
    lento.args(["--listen", "127.0.0.1:0", "--mounts", "/run/intermezzo/mounts"]);
    for (option, path) in [
        ("--presto-socket", run.join("presto.sock")),
        ("--state", disk.join("lento")),
        ("--cache", disk.join("cache")),
        ("--tls-cert", own("node.crt")),
        ("--tls-key", own("node.key")),
        ("--tls-ca", own("ca.crt")),
        ("--admin-socket", run.join("lento.sock")),
        ("--progress", run.join(PROGRESS)),
    ] {
        lento.arg(option).arg(path);
    }
    lento
}

/// Keeps the address of this machine, in a thread.
fn keep(node: &OsString, words: &[OsString]) -> Result<()> {
    let [card, address, prefix, gateway, server, seconds] = words else { return Ok(()) };
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let lease = Lease {
        address: text(address).parse()?,
        prefix: text(prefix).parse()?,
        gateway: Some(text(gateway))
            .filter(|word| word != NO_GATEWAY)
            .map(|word| word.parse())
            .transpose()?,
        dns: Vec::new(),
        server: text(server).parse()?,
        seconds: text(seconds).parse()?,
    };
    let card = network::card(&text(card))?;
    let host = text(node);
    std::thread::spawn(move || {
        dhcp::keep(&card, &lease, &host, &|text| console::say(format_args!(" WARN {text}")));
    });
    Ok(())
}

/// A program that is started again when it ends.
struct Kept {
    name: &'static str,
    command: Command,
    child: Child,
    started: Instant,
    rights: Rights,
    /// Is there as soon as it works: if it ends before that, another try would be no better.
    ready: Option<PathBuf>,
}

/// What a program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// Everything.
    All,
    /// What anybody may, and read every file.
    Read,
}

impl Rights {
    /// Rights are a thread's own, so a thread that ends at once gives them up, and the program gets what it has left.
    fn spawn(self, command: &mut Command) -> std::io::Result<Child> {
        if self == Rights::All {
            return command.spawn();
        }
        std::thread::scope(|scope| {
            let spawned = scope.spawn(|| {
                for right in CapabilitySet::all().difference(CapabilitySet::DAC_READ_SEARCH).iter() {
                    // Those that this kernel does not know it does not give either.
                    let _ = rustix::thread::remove_capability_from_bounding_set(right);
                }
                rustix::thread::set_no_new_privs(true)?;
                command.spawn()
            });
            spawned.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that starts it ended")))
        })
    }
}

impl Kept {
    fn start(
        name: &'static str,
        mut command: Command,
        rights: Rights,
        ready: Option<PathBuf>,
    ) -> Result<Kept> {
        command.stdin(Stdio::null());
        let child = rights.spawn(&mut command).with_context(|| format!("{name} does not start"))?;
        Ok(Kept { name, command, child, started: Instant::now(), rights, ready })
    }

    fn is(&self, pid: i32) -> bool {
        i32::try_from(self.child.id()).is_ok_and(|own| own == pid)
    }

    /// Whatever it takes: when memory is short it may not start at once, and nobody else would do it.
    fn again(&mut self, how: &str) -> Result<()> {
        if self.ready.as_ref().is_some_and(|ready| !ready.exists()) {
            bail!("{} ended before it worked ({how})", self.name);
        }
        console::say(format_args!("{} has ended ({how}) and is started again", self.name));
        if self.started.elapsed() < SHORT {
            std::thread::sleep(SHORT);
        }
        loop {
            match self.rights.spawn(&mut self.command) {
                Ok(child) => self.child = child,
                Err(error) => {
                    console::say(format_args!("{} does not start again: {error}", self.name));
                    std::thread::sleep(AGAIN);
                    continue;
                }
            }
            self.started = Instant::now();
            return Ok(());
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
