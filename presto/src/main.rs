//! presto: serves the volumes of one node.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use intermezzo_channel::v1::Rest;
use parking_lot::Mutex;
use presto::channel::{Link, Server, Service};
use presto::check;
use presto::filter::{Fault, Volume};
use presto::fuse::MountOptions;
use presto::holding::Holding;
use presto::lower::{SIGTERM, Termination};
use presto::root::{Control, Rested, Root};
use presto::volumes::{self, Filled, Fuse, Volumes};
use rustix::process::{Resource, Rlimit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// From the signal to the end.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// Who asks again for the end of a machine gets an answer at least so often.
const TURN: Duration = Duration::from_secs(1);
/// For the last updates of a machine to be on the server, where nobody asks again.
const SENDING: Duration = Duration::from_secs(60);
/// How often it is looked whether Lento has named the root file system.
const BREATH: Duration = Duration::from_millis(20);
/// Between the ends of two programs that somebody ends together.
const TOGETHER: Duration = Duration::from_secs(3);

/// The file system filter of InterMezzo: mounts volumes, journals every update, applies others' updates for Lento.
///
/// Needs root: it mounts FUSE file systems and acts with its callers' rights.
#[derive(Debug, Parser)]
#[command(name = "presto", version)]
struct Arguments {
    /// Directory of the mount table; volumes known there are mounted at once.
    #[arg(long, env = "PRESTO_STATE", value_name = "DIR")]
    state: PathBuf,
    /// Socket on which Lento connects.
    #[arg(long, env = "PRESTO_SOCKET", value_name = "PATH", required_unless_present = "check")]
    socket: Option<PathBuf>,
    /// Directory that a volume may adopt as its tree, with all below it; may be given several times (in the environment
    /// separated by `:`). None is allowed unless it is named here.
    #[arg(long, env = "PRESTO_ALLOW_SOURCE", value_name = "PATH", value_delimiter = ':')]
    allow_source: Vec<PathBuf>,
    /// Socket of the holder, which keeps the mounts while presto is killed, replaced or upgraded. Without one, mounts end
    /// with presto.
    #[arg(long, env = "PRESTO_HOLDER", value_name = "PATH")]
    holder: Option<PathBuf>,
    /// What to log, for example `info` or `replay=debug,info`.
    #[arg(long, env = "PRESTO_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Name of this node or fleet in the log lines, where several prestos share a terminal.
    #[arg(long, env = "PRESTO_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Log as JSON, one object a line.
    #[arg(long, env = "PRESTO_LOG_JSON")]
    log_json: bool,
    /// End, as kill -9 would, when the first operation of this kind comes to this point, for example `rename@record`. For
    /// tests.
    #[arg(long, value_name = "OPERATION@POINT", hide = true)]
    fail_at: Option<Fault>,
    /// Serve one volume of the mount table as this machine's root file system, mounted here for reading until it is remounted.
    /// For an initramfs; `intermezzo initramfs` makes one.
    #[arg(long, value_name = "DIR", requires_all = ["root_disk", "root_socket"], help_heading = "Root file system")]
    root: Option<PathBuf>,
    /// Where the disk is mounted that holds its cache, as cache/NAMESPACE/NAME.
    #[arg(long, value_name = "DIR", requires = "root", help_heading = "Root file system")]
    root_disk: Option<PathBuf>,
    /// Which volume, where the mount table has several.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "root", help_heading = "Root file system")]
    root_volume: Option<String>,
    /// Socket at which mount helpers tell of remounts. It is made when the root file system is served.
    #[arg(long, value_name = "PATH", requires = "root", help_heading = "Root file system")]
    root_socket: Option<PathBuf>,
    /// There is nothing yet: wait until a Lento that runs since the initramfs asks for the volume. At the end of the machine its
    /// updates are waited for, since they are nowhere else.
    #[arg(long, requires_all = ["root", "root_volume"], help_heading = "Root file system")]
    root_from_lento: bool,
    /// Say whether this machine and the volumes of the mount table can be served, and end: status 0 if all of it can. Changes
    /// nothing, and may be asked while presto serves.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check {
        return check(&arguments);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: "main", "presto ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &Arguments) -> ExitCode {
    let findings = check::check(&arguments.state, arguments.holder.as_deref(), &arguments.allow_source);
    let text: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    let told = std::io::stdout().write_all(text.as_bytes());
    let good = told.is_ok() && findings.iter().all(|finding| finding.is.is_ok());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(&arguments.log);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.log_json {
        logs.json().init();
    } else {
        logs.with_ansi(false).init();
    }
    let span = arguments.name.as_ref().map(|name| tracing::info_span!("presto", name));
    let _entered = span.as_ref().map(tracing::Span::enter);
    if let Some(fault) = arguments.fail_at {
        fault.arm();
    }
    // Before any other thread, so that all of them leave the signals to this one.
    let termination = Termination::block().context("cannot wait for signals")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    raise_descriptors();

    let link = Link::new();
    let holding = arguments.holder.as_deref().map(Holding::start).transpose().context("no thread")?;
    if holding.is_none() {
        tracing::info!(target: "main", "no holder: mounts do not outlive presto (--holder)");
    }
    if let Some((disk, at)) = arguments.root_disk.zip(arguments.root.as_ref()) {
        let filled = if arguments.root_from_lento { Filled::ByLento } else { Filled::Before };
        let which = volumes::Root { disk, at: at.clone(), volume: arguments.root_volume, filled };
        let (socket, own) = (arguments.socket, arguments.root_socket);
        let sockets =
            socket.as_deref().zip(own.as_deref()).context("--socket and --root-socket are needed")?;
        return serve_root(&arguments.state, &which, sockets, link, holding, &termination);
    }
    let fuse = Arc::new(Fuse { holding: holding.clone(), ..Fuse::default() });
    let volumes = Volumes::open(&arguments.state, Arc::clone(&link), fuse, arguments.allow_source)?;
    let service: Arc<dyn Service> = Arc::clone(&volumes) as Arc<dyn Service>;
    let socket = arguments.socket.context("--socket is missing")?;
    let mut server = Server::start(&socket, link, service)?;
    tracing::info!(target: "main", socket = %socket.display(), state = %arguments.state.display(), "presto serves");

    let signal = termination.wait().context("cannot wait for signals")?;
    tracing::info!(target: "main", signal, "presto ends");
    let deadline = Instant::now() + SHUTDOWN;
    end_by(deadline + Duration::from_secs(5));
    server.stop();
    if signal == SIGTERM && holding.is_some_and(|holding| stays(&holding)) {
        volumes.leave(deadline);
        tracing::info!(target: "main", "the holder keeps the mounts for the next presto");
        // As after a kill, which is exact: unwinding would unmount.
        std::process::exit(0);
    }
    volumes.close(deadline);
    Ok(())
}

/// Serves the root file system until the machine goes: whatever asks this process to end, everything runs from it.
fn serve_root(
    state: &Path,
    which: &volumes::Root,
    (socket, own): (&Path, &Path),
    link: Arc<Link>,
    holding: Option<Arc<Holding>>,
    termination: &Termination,
) -> anyhow::Result<()> {
    let fuse = Arc::new(Fuse { options: MountOptions::root(), holding, ..Fuse::default() });
    let volumes = Volumes::open_root(state, Arc::clone(&link), fuse, which)?;
    let service: Arc<dyn Service> = Arc::clone(&volumes) as Arc<dyn Service>;
    let run = own.parent().unwrap_or(own);
    // Where it is here already, it is known what it is before anybody changes it.
    let known = volumes.root().map(|volume| root_of(volume, &volumes, run)).transpose()?;
    let server = Mutex::new(Server::start(socket, link, service)?);
    let root = match known {
        Some(root) => root,
        None => root_of(named_by_lento(&volumes), &volumes, run)?,
    };
    if which.filled == Filled::ByLento
        && let Err(error) = root.list_opened(run)
    {
        tracing::warn!(target: "main", %error, "it is not noted what is opened while the machine boots");
    }
    let name = root.name().to_owned();
    let sent = (which.filled == Filled::ByLento).then(|| Arc::clone(&volumes));
    let volume = name.clone();
    let rest = move |wish: Rest| {
        let limit = match wish {
            Rest { now: true, .. } => Duration::ZERO,
            Rest { again: true, .. } => TURN,
            Rest { .. } => SENDING,
        };
        let left = sent.as_ref().map_or(Ok(0), |volumes| volumes.send_last(limit));
        match left {
            Ok(left) if left > 0 && wish.again && !wish.now => return Ok(Rested::Waiting(left)),
            _ => {}
        }
        // Nobody applies others' updates from now on.
        server.lock().stop();
        volumes.rest()?;
        match left? {
            0 => Ok(Rested::Done),
            left => Err(format!(
                "volume {volume}: the server does not have the last {left} records of this machine"
            )),
        }
    };
    let _control = Control::start(own, root, Box::new(rest))?;
    tracing::info!(target: "main", volume = name, "presto serves the root file system");
    loop {
        let signal = termination.wait().context("cannot wait for signals")?;
        tracing::info!(target: "main", signal, "presto stays: it serves the root file system");
    }
}

fn root_of(volume: Arc<Volume>, volumes: &Volumes, run: &Path) -> anyhow::Result<Arc<Root>> {
    let place = volumes.root_place().context("the root file system is not served")?;
    Root::start(volume, &place, run).context("no root file system")
}

/// Waits for Lento to ask for the volume. Whoever has started this presto knows how long that may take.
fn named_by_lento(volumes: &Volumes) -> Arc<Volume> {
    tracing::info!(target: "main", "waiting for lento to name the root file system");
    loop {
        if let Some(volume) = volumes.root() {
            return volume;
        }
        std::thread::sleep(BREATH);
    }
}

/// Whether the holder stays. Where all of InterMezzo is being taken away, it goes at the same time, and mounts must not be left
/// to nobody. Users are served meanwhile.
fn stays(holding: &Holding) -> bool {
    let end = Instant::now() + TOGETHER;
    while holding.is_connected() {
        if Instant::now() >= end {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Every file that is open through a mount costs a descriptor here.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(target: "main", %errno, "the limit of open files stays low");
    }
}

/// Whatever hangs: the process ends, and the next start recovers.
fn end_by(deadline: Instant) {
    let _ = std::thread::Builder::new().name("deadline".to_owned()).spawn(move || {
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        tracing::error!(target: "main", "presto did not end in time and stops where it is");
        std::process::exit(1);
    });
}
