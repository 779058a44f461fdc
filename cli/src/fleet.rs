//! A local fleet: a few nodes on this machine, each with its own presto and lento, everything under one directory.
//!
//! Owns the life of those processes (started in sessions of their own, recorded with their start time, never signalled by a
//! number alone) and what is under the directory but data: `down` ends and unmounts, it removes nothing.

pub mod layout;
pub mod mounts;
pub mod process;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use intermezzo_api::manifest::Manifests;
pub use intermezzo_api::volume::Durability;
use intermezzo_api::volume::VolumeSpec;
pub use intermezzo_api::volume::WhenAlone;
use intermezzo_api::volume::Writes;
use intermezzo_api::{Mode, Replicator};
use intermezzo_proto::v1::{ConflictRecord, StatusReply};

pub use intermezzo_api::volume::HistorySpec;

use crate::admin::{self, Admin, AdminError, Scope};
use crate::pki::{self, PkiError};
pub use layout::{Config, Daemon, Layout, Mounts, Node};
use process::Recorded;

/// How long a daemon may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(20);
/// Validity of a fleet's certificates: it is for trying out.
const VALID: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What can go wrong with a fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A file or directory.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no fleet.
    #[error("{0} holds no fleet; `intermezzo dev up --dir {0}` makes one")]
    None(String),
    /// The fleet's own file cannot be understood.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A request that contradicts the fleet that is there, or makes no sense.
    #[error("{0}")]
    Request(String),
    /// Mounting takes root.
    #[error("a fleet mounts file systems, which takes root; run this with sudo")]
    Root,
    /// A daemon's binary is not there.
    #[error(
        "cannot find the program {name}: looked in {looked}; set INTERMEZZO_BIN_DIR or run `cargo build -p {name}`"
    )]
    Binary {
        /// Its name.
        name: String,
        /// Where it was looked for.
        looked: String,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A daemon ended when it should run.
    #[error("{daemon} of node {node} ended; the end of {log}:\n{tail}")]
    Ended {
        /// Which program.
        daemon: Daemon,
        /// Which node.
        node: String,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The fleet is not there in time.
    #[error("not ready after {seconds} s: {waiting}")]
    NotReady {
        /// How long it was given.
        seconds: u64,
        /// What is missing.
        waiting: String,
    },
    /// An agent.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> FleetError + '_ {
    move |source| FleetError::File { path: path.to_owned(), source }
}

/// A fleet on disk; its processes may run or not.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Where everything is.
    pub layout: Layout,
    /// What it consists of.
    pub config: Config,
}

/// What a new fleet is to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of nodes, or as many as there are.
    pub nodes: Option<usize>,
    /// Volume (`namespace/name` or `name`), or the one there is.
    pub volume: Option<String>,
    /// Directories that hold the nodes' caches, one after the other; empty: under the fleet's directory.
    pub lower: Vec<PathBuf>,
    /// An existing directory that is the volume's tree on the first node.
    pub adopt: Option<PathBuf>,
    /// Whether mounts outlive presto.
    pub mounts: Mounts,
}

impl Fleet {
    /// Opens the fleet in `dir`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Fleet, FleetError> {
        let layout = Layout::new(dir)?;
        let config = Config::read(&layout)?.ok_or_else(|| FleetError::None(dir.display().to_string()))?;
        Ok(Fleet { layout, config })
    }

    /// Makes the fleet in `dir`, or opens the one that is there if the request does not contradict it.
    ///
    /// # Errors
    /// A contradiction; a directory that cannot be written.
    pub fn make(dir: &Path, request: &Request) -> Result<Fleet, FleetError> {
        fs::create_dir_all(dir).map_err(file(dir))?;
        let layout = Layout::new(dir)?;
        let config = match Config::read(&layout)? {
            Some(config) => config.agrees(request)?,
            None => Config::new(request)?,
        };
        let fleet = Fleet { layout, config };
        fleet.lay_out()?;
        Ok(fleet)
    }

    fn lay_out(&self) -> Result<(), FleetError> {
        for node in &self.config.nodes {
            for dir in self.layout.directories(node) {
                fs::create_dir_all(&dir).map_err(file(&dir))?;
            }
        }
        let pki_dir = self.layout.pki();
        if !pki::Files::ca(&pki_dir).exist() {
            pki::make_ca(&pki_dir, "InterMezzo development fleet", VALID)?;
        }
        for node in &self.config.nodes {
            if !pki::Files::node(&pki_dir, &node.name).exist() {
                pki::make_node(&pki_dir, &pki_dir, &node.name, VALID)?;
            }
        }
        let path = self.layout.manifest();
        if !path.exists() {
            layout::write(&path, &self.config.manifest()?)?;
        }
        self.config.write(&self.layout)
    }

    /// Starts what does not run and waits until every volume is mounted and every Replicator connected.
    /// `told` hears what it waits for.
    ///
    /// # Errors
    /// No root, no binaries, a daemon that ends, or not ready in time.
    pub fn up(&mut self, timeout: Duration, told: &mut dyn FnMut(&str)) -> Result<(), FleetError> {
        if !rustix::process::geteuid().is_root() {
            return Err(FleetError::Root);
        }
        let down = |fleet: &Fleet| fleet.each().all(|(node, daemon)| !fleet.is_running(node, daemon));
        if down(self) {
            self.take_ports()?;
        }
        for (node, daemon) in self.each().map(|(n, d)| (n.clone(), d)).collect::<Vec<_>>() {
            if !self.is_running(&node, daemon) {
                self.start(&node, daemon)?;
            }
        }
        self.wait_ready(timeout, told)
    }

    /// Every daemon of every node, in the order of starting.
    pub fn each(&self) -> impl DoubleEndedIterator<Item = (&Node, Daemon)> {
        let daemons = self.config.daemons();
        self.config.nodes.iter().flat_map(move |node| daemons.iter().map(move |daemon| (node, *daemon)))
    }

    /// Gives each node ports that are free: another program may have taken one while the fleet was down.
    ///
    /// # Errors
    /// There are none, or the fleet's own file cannot be written.
    pub fn take_ports(&mut self) -> Result<(), FleetError> {
        let mut held = Vec::new();
        let ports = self.config.nodes.iter_mut().flat_map(|node| [&mut node.port, &mut node.metrics_port]);
        for wanted in ports {
            let (port, listener) = std::iter::once(*wanted)
                .filter(|port| *port != 0)
                .chain(quiet_ports())
                .chain([0])
                .find_map(|port| {
                    let listener = TcpListener::bind(("127.0.0.1", port)).ok()?;
                    Some((listener.local_addr().ok()?.port(), listener))
                })
                .ok_or_else(|| FleetError::Request("no free port on 127.0.0.1".to_owned()))?;
            *wanted = port;
            held.push(listener); // All at once, so that nobody gets another's.
        }
        self.config.write(&self.layout)
    }

    /// Starts one daemon and records it.
    ///
    /// # Errors
    /// Its binary is not there or does not start.
    pub fn start(&self, node: &Node, daemon: Daemon) -> Result<Recorded, FleetError> {
        let binary = process::binary(daemon.name())?;
        let arguments = self.layout.arguments(&self.config, node, daemon);
        let log = self.layout.log(node, daemon);
        let recorded = process::start(&binary, &arguments, &log).map_err(file(&binary))?;
        recorded.write(&self.layout.pid(node, daemon)).map_err(file(&log))?;
        Ok(recorded)
    }

    /// The recorded process of a daemon, if it still is that process.
    #[must_use]
    pub fn running(&self, node: &Node, daemon: Daemon) -> Option<Recorded> {
        Recorded::read(&self.layout.pid(node, daemon)).filter(Recorded::is_alive)
    }

    /// Whether a daemon runs.
    #[must_use]
    pub fn is_running(&self, node: &Node, daemon: Daemon) -> bool {
        self.running(node, daemon).is_some()
    }

    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node, FleetError> {
        self.config.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.config.nodes.iter().map(|node| node.name.as_str()).collect();
            FleetError::Request(format!("there is no node {name}; the fleet has {}", names.join(", ")))
        })
    }

    /// What a node's agent says.
    ///
    /// # Errors
    /// It does not run or answer.
    pub fn status(&self, node: &Node) -> Result<StatusReply, AdminError> {
        admin::status(&self.layout.admin_socket(node))
    }

    /// Waits until what was written on a node so far is where `scope` says. An agent that is not there yet is asked again.
    ///
    /// # Errors
    /// Not in time (the last thing it waited for is named), or the agent refuses.
    pub fn wait(&self, node: &Node, scope: Scope, timeout: Duration) -> Result<(), FleetError> {
        let socket = self.layout.admin_socket(node);
        let begin = Instant::now();
        let mut waiting = String::from("no answer yet");
        loop {
            let once = admin::block_on(async {
                let asked = async {
                    let mut answers = Admin::connect(&socket).await?.wait(&self.config.volume, scope).await?;
                    while let Some(answer) = answers.next().await? {
                        if answer.done {
                            return Ok(true);
                        }
                        waiting = format!("{} records pending, {}", answer.pending, answer.waiting);
                    }
                    Ok(false)
                };
                tokio::time::timeout(timeout.saturating_sub(begin.elapsed()), asked)
                    .await
                    .unwrap_or(Ok(false))
            });
            match once {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.is_unreachable() => waiting = error.to_string(),
                Err(error) => return Err(error.into()),
            }
            if begin.elapsed() >= timeout {
                let waiting = format!("node {}: {waiting}", node.name);
                return Err(FleetError::NotReady { seconds: timeout.as_secs(), waiting });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every node has its volume mounted and the server all Replicators connected.
    /// `told` hears what it waits for.
    ///
    /// # Errors
    /// A daemon ended, or not in time.
    pub fn wait_ready(&self, timeout: Duration, told: &mut dyn FnMut(&str)) -> Result<(), FleetError> {
        let all: Vec<&Node> = self.config.nodes.iter().collect();
        self.wait_ready_of(&all, timeout, told)
    }

    /// The same for these nodes, where others run elsewhere.
    ///
    /// # Errors
    /// A daemon of theirs ended, or not in time.
    pub fn wait_ready_of(
        &self,
        nodes: &[&Node],
        timeout: Duration,
        told: &mut dyn FnMut(&str),
    ) -> Result<(), FleetError> {
        let begin = Instant::now();
        loop {
            let Some(waiting) = self.missing(nodes)? else { return Ok(()) };
            told(&waiting);
            if begin.elapsed() > timeout {
                return Err(FleetError::NotReady { seconds: timeout.as_secs(), waiting });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What these nodes still lack.
    fn missing(&self, nodes: &[&Node]) -> Result<Option<String>, FleetError> {
        for (node, daemon) in self.each().filter(|(node, _)| nodes.contains(node)) {
            if !self.is_running(node, daemon) {
                let log = self.layout.log(node, daemon);
                let tail = process::tail(&log, 15);
                return Err(FleetError::Ended { daemon, node: node.name.clone(), log, tail });
            }
        }
        for node in nodes {
            if let Some(waiting) = self.node_lacks(node) {
                return Ok(Some(format!("node {}: {waiting}", node.name)));
            }
        }
        Ok(None)
    }

    fn node_lacks(&self, node: &Node) -> Option<String> {
        let status = match self.status(node) {
            Ok(status) => status,
            Err(error) => return Some(error.to_string()),
        };
        if !status.presto_connected {
            return Some("lento has no channel to presto".into());
        }
        let name = &self.config.volume;
        let Some(volume) = status.volumes.iter().find(|volume| volume.name == *name) else {
            return Some(format!("volume {name} is not set up yet"));
        };
        if !volume.fault.is_empty() {
            return Some(format!("volume {name} has a fault: {}", volume.fault));
        }
        if !mounts::is_mounted(Path::new(&volume.mountpoint)) {
            return Some(format!("volume {name} is not mounted at {}", volume.mountpoint));
        }
        let manifests = match self.manifests() {
            Ok(manifests) => manifests,
            Err(error) => return Some(error.to_string()),
        };
        let paused: Vec<_> = manifests.replicators_of(name).filter(|one| one.spec.paused).collect();
        if self.config.is_server(node) {
            let connected = volume.replicators.iter().filter(|replicator| replicator.connected).count();
            let expected = self.config.nodes.len().saturating_sub(1 + paused.len());
            (connected < expected).then(|| format!("{connected} of {expected} Replicators are connected"))
        } else {
            let expected = paused.iter().all(|one| one.spec.node_name != node.name);
            (expected && !volume.connected).then(|| "not connected to the server".into())
        }
    }

    /// Conflicts that the server keeps.
    ///
    /// # Errors
    /// Its agent does not answer.
    pub fn conflicts(&self) -> Result<Vec<ConflictRecord>, FleetError> {
        let Some(server) = self.config.nodes.iter().find(|node| self.config.is_server(node)) else {
            return Ok(Vec::new());
        };
        Ok(admin::conflicts(&self.layout.admin_socket(server), &self.config.volume)?)
    }

    fn manifests(&self) -> Result<Manifests, FleetError> {
        let path = self.layout.manifest();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| FleetError::File { path: path.clone(), source })?;
        Manifests::read_text(&path, &text).map_err(|problems| FleetError::Request(problems.to_string()))
    }

    /// Pauses a node's Replicator, or lets it go on, by writing that into the fleet's manifest: what users do with
    /// `kubectl` or an editor. The nodes see it within a moment.
    ///
    /// # Errors
    /// The node is the server, the manifest is wrong or cannot be written.
    pub fn set_paused(&self, node: &Node, paused: bool) -> Result<(), FleetError> {
        if self.config.is_server(node) {
            let text =
                format!("node {} is the server of the volume; only a Replicator can be paused", node.name);
            return Err(FleetError::Request(text));
        }
        let mut manifests = self.manifests()?;
        let mine = |one: &&mut Replicator| one.spec.node_name == node.name;
        for replicator in manifests.replicators.values_mut().filter(mine) {
            replicator.spec.paused = paused;
        }
        layout::write(&self.layout.manifest(), &layout::yaml(&manifests)?)
    }

    /// Says how much a node keeps, and what of it in any case.
    ///
    /// # Errors
    /// The manifest is wrong or cannot be written.
    pub fn set_mode(&self, node: &Node, mode: Mode, pins: &[&str]) -> Result<(), FleetError> {
        let mut manifests = self.manifests()?;
        let mine = |one: &&mut Replicator| one.spec.node_name == node.name;
        for replicator in manifests.replicators.values_mut().filter(mine) {
            replicator.spec.mode = Some(mode);
            replicator.spec.pins = pins.iter().map(|pin| (*pin).to_owned()).collect();
        }
        layout::write(&self.layout.manifest(), &layout::yaml(&manifests)?)
    }

    /// Says which names stay on the node where they are made, as somebody does with an editor.
    ///
    /// # Errors
    /// The manifest is wrong or cannot be written.
    pub fn set_exclude(&self, patterns: &[&str]) -> Result<(), FleetError> {
        self.edit(|spec| spec.exclude = patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    /// One node writes at a time from now on, as somebody wants it with an editor.
    ///
    /// # Errors
    /// The manifest is wrong or cannot be written.
    pub fn set_permits(&self, when_alone: WhenAlone) -> Result<(), FleetError> {
        self.edit(|spec| {
            spec.writes = Writes::Permits;
            spec.when_alone = when_alone;
        })
    }

    /// Changes what the manifests say of each volume.
    fn edit(&self, mut edit: impl FnMut(&mut VolumeSpec)) -> Result<(), FleetError> {
        let mut manifests = self.manifests()?;
        manifests.volumes.values_mut().for_each(|volume| edit(&mut volume.spec));
        layout::write(&self.layout.manifest(), &layout::yaml(&manifests)?)
    }

    /// What fsync promises from now on.
    ///
    /// # Errors
    /// The manifest is wrong or cannot be written.
    pub fn set_durability(&self, durability: Durability) -> Result<(), FleetError> {
        self.edit(|spec| spec.durability = durability)
    }

    /// From now on the volume's server keeps what was. The agents read their manifests when these change.
    ///
    /// # Errors
    /// The manifest is wrong or cannot be written.
    pub fn set_history(&self, history: Option<HistorySpec>) -> Result<(), FleetError> {
        self.edit(|spec| spec.history = history)
    }

    /// Where a node's volume is mounted.
    #[must_use]
    pub fn mountpoint(&self, node: &Node) -> PathBuf {
        self.layout.mounts(node).join(&self.config.volume)
    }

    /// Ends every daemon (SIGTERM, then after a grace SIGKILL) and unmounts what is left. Removes no data.
    ///
    /// # Errors
    /// A process that does not end even by SIGKILL, or a mount that stays.
    pub fn down(&self, told: &mut dyn FnMut(&str)) -> Result<(), FleetError> {
        let mut left = Vec::new();
        // Lento first: presto then has nobody to tell, and nothing arrives any more. Then the holder: a presto whose mounts
        // are kept would leave them.
        for daemon in [Daemon::Lento, Daemon::Holder, Daemon::Presto] {
            let all: Vec<_> =
                self.config.nodes.iter().filter_map(|n| Some((n, self.running(n, daemon)?))).collect();
            for (node, process) in &all {
                told(&format!("ending {daemon} of node {}", node.name));
                process.signal(process::Signal::Term);
            }
            for (node, process) in all {
                if process.wait(GRACE) {
                    continue;
                }
                told(&format!(
                    "{daemon} of node {} did not end in {} s: killing it",
                    node.name,
                    GRACE.as_secs()
                ));
                // A killed presto leaves callers waiting; without the mount they get an error.
                if daemon == Daemon::Presto {
                    self.unmount(told);
                }
                process.signal(process::Signal::Kill);
                if !process.wait(GRACE) {
                    left.push(format!("{daemon} of node {} (process {})", node.name, process.pid));
                }
            }
        }
        self.unmount(told);
        left.extend(
            mounts::below(&self.layout.dir).into_iter().map(|path| format!("the mount {}", path.display())),
        );
        for (node, daemon) in self.each() {
            if !self.is_running(node, daemon) {
                let _ = fs::remove_file(self.layout.pid(node, daemon));
            }
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(FleetError::Request(format!("left behind: {}", left.join(", "))))
        }
    }

    fn unmount(&self, told: &mut dyn FnMut(&str)) {
        for path in mounts::below(&self.layout.dir) {
            told(&format!("unmounting {}", path.display()));
            if let Err(error) = mounts::detach(&path) {
                told(&format!("{}: {error}", path.display()));
            }
        }
    }
}

/// Ports that the kernel gives to nobody's outgoing connection, which could hold one while its daemon is down.
fn quiet_ports() -> impl Iterator<Item = u16> {
    const FIRST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(32_768_u16);
    let count = end.saturating_sub(FIRST).max(1);
    // Fleets that start at the same time begin at different places.
    let begin = u16::try_from(std::process::id() % u32::from(count)).unwrap_or(0);
    (0..count).map(move |step| FIRST + (begin.wrapping_add(step)) % count)
}
