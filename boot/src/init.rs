//! From the kernel to the volume's own init, step by step. What fails is told in a sentence on the console.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use intermezzo_channel::ROOT_DISK;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::cmdline::{self, Source};
use crate::console::{self, say};
use crate::diskless::arrival;
use crate::supervise::{self, Plan};
use crate::{device, diskless, modules, profile, switch};

/// Where the volume is mounted until it becomes `/`.
pub const NEW: &str = "/newroot";
/// What becomes /run.
pub const RUN: &str = "/newrun";
/// For presto to bring journal and tree into agreement, which after a power cut looks at the whole end of the journal.
const PATIENCE: Duration = Duration::from_secs(600);
const WORD: Duration = Duration::from_secs(10);

/// Never comes back but with an error: the process becomes the volume's init.
pub fn run(words: &[OsString]) -> ExitCode {
    if std::process::id() != 1 {
        say("this is the first program of an initramfs and does nothing elsewhere");
        return ExitCode::from(2);
    }
    let line = match begin() {
        Ok(line) => line,
        Err(error) => return fail(&error, true),
    };
    let shell = cmdline::wants_shell(&line);
    match boot(&line, words) {
        Ok(()) => ExitCode::FAILURE, // Not reached.
        Err(error) => fail(&error, shell),
    }
}

/// The kernel's own file systems, which stay those of presto.
fn begin() -> Result<String> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        virtual_fs(kind, Path::new(at), "")?;
    }
    Ok(std::fs::read_to_string("/proc/cmdline")?)
}

fn boot(line: &str, words: &[OsString]) -> Result<()> {
    let request = cmdline::parse(line)?;
    modules::load()?;
    let plan = match &request.source {
        Source::Disk(disk) => from_disk(disk, request.patience)?,
        Source::Server(server) => diskless::prepare(&request, server)?,
    };
    let mut supervisor = supervise::start(&plan)?;
    if let Source::Server(server) = &request.source {
        arrival::wait_for_tree(&request, server, &plan.run, &mut supervisor)?;
    }
    wait_for_presto(&mut supervisor, &plan.run.join("root.sock"))?;
    if let Source::Server(server) = &request.source {
        arrival::bring_first(&request, server, &plan.at, &plan.run)?;
        if let Err(error) = profile::begin(&plan.at, &plan.run) {
            say(format_args!("the boot profile is of no use: {error:#}"));
        }
    }
    switch::switch(&request, words)
}

fn from_disk(wanted: &cmdline::Disk, patience: Duration) -> Result<Plan> {
    let found = device::find(&wanted.place, patience)?;
    let disk = Path::new(ROOT_DISK);
    mount_disk(wanted, &found, disk)?;
    let (run, volume) = (prepare_run(disk)?, wanted.volume.clone());
    Ok(Plan { disk: disk.to_owned(), at: directory(NEW)?, run, volume, far: None })
}

fn mount_disk(wanted: &cmdline::Disk, found: &device::Found, disk: &Path) -> Result<()> {
    let kind = wanted.lower.as_deref().unwrap_or(found.kind);
    let options = std::ffi::CString::new(wanted.options.join(","))?;
    std::fs::create_dir_all(disk)?;
    // For writing: presto brings its journal in order before anybody reads, and a power cut leaves the same to ext4.
    let flags = MountFlags::NOATIME;
    match rustix::mount::mount(&found.device, disk, kind, flags, &*options) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => bail!(
            "this kernel cannot mount {kind}, which is on {}: pack its module (intermezzo initramfs --module {kind})",
            found.device.display()
        ),
        Err(Errno::INVAL) => bail!(
            "{} is not mounted: the kernel refuses {kind} or one of the options \"{}\" (rootflags=)",
            found.device.display(),
            wanted.options.join(",")
        ),
        Err(errno) => bail!(
            "{} is not mounted as {kind}: {errno}. Look at it with fsck.{kind} from another system",
            found.device.display()
        ),
    }
}

/// The new /run, where the volume's programs find sockets and the disk under the same path as presto does.
pub fn prepare_run(disk: &Path) -> Result<PathBuf> {
    let new = directory(RUN)?;
    virtual_fs("tmpfs", &new, "mode=755,size=20%")?;
    let below = |path: &Path| new.join(path.strip_prefix("/run").unwrap_or(path));
    let shown = below(disk);
    std::fs::create_dir_all(&shown)?;
    rustix::mount::mount_bind(disk, &shown)
        .with_context(|| format!("{} is not shown to programs", disk.display()))?;
    Ok(new.join("intermezzo"))
}

fn wait_for_presto(supervisor: &mut Child, socket: &Path) -> Result<()> {
    let begun = Instant::now();
    let mut said = Duration::ZERO;
    while !socket.exists() {
        if supervisor.try_wait()?.is_some() {
            let complaints = console::complaints();
            if complaints.is_empty() {
                bail!("presto ended and said nothing; look at the kernel's log (dmesg)");
            }
            bail!("presto does not serve the root file system: {}", complaints.join("; "));
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "presto does not come up within {} s; look at the kernel's log (dmesg)",
                PATIENCE.as_secs()
            );
        }
        if begun.elapsed() > said + WORD {
            said = begun.elapsed();
            say(format_args!("presto brings journal and tree into agreement ({} s)", said.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Mounts one of the kernel's own file systems; one that is there already is as good.
pub fn virtual_fs(kind: &str, at: &Path, options: &str) -> Result<()> {
    std::fs::create_dir_all(at).with_context(|| format!("{}", at.display()))?;
    let flags = if kind == "devtmpfs" || kind == "tmpfs" {
        MountFlags::NOSUID
    } else {
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
    };
    let data = std::ffi::CString::new(options)?;
    match rustix::mount::mount(kind, at, kind, flags, &*data) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(errno) => bail!("{kind} is not mounted at {}: {errno}", at.display()),
    }
}

/// A directory of the initramfs, made if it is not there.
pub fn directory(path: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| path.to_owned())?;
    Ok(path.into())
}

/// Says it, and becomes a shell where that is wanted. Else the kernel stops: `panic=` says whether it boots again.
fn fail(error: &anyhow::Error, shell: bool) -> ExitCode {
    say(format_args!("cannot boot: {error:#}"));
    if shell {
        say("a shell, because of intermezzo.shell; the machine stops when you leave it");
        let error = Command::new("/bin/sh").arg0("sh").exec();
        say(format_args!(
            "there is no shell ({error}): pack one (intermezzo initramfs --shell /bin/busybox)"
        ));
    } else {
        say("intermezzo.shell on the kernel's command line gives a shell here");
    }
    // What is on the console must be out before the kernel says that its first program has ended.
    std::thread::sleep(Duration::from_secs(1));
    ExitCode::FAILURE
}
