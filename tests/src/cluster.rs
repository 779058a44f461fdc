//! A real Kubernetes of two or three nodes on this machine, without a container engine: `docs/technical/test-cluster.md`.
//!
//! Owns everything below one directory: the machines (process 1 of namespaces of their own), their programs, their disks.
//! Nothing outside of it is changed but one network link, which goes with the machines.

pub mod certificates;
pub mod command;
pub mod control_plane;
pub mod images;
pub mod kubectl;
pub mod logs;
pub mod machine;
pub mod network;
pub mod node;
pub mod parts;
pub mod pod;
pub mod teardown;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use kubectl::Kubectl;
use machine::Machine;
use network::Network;
use parts::Parts;

/// Until the API server answers, on a busy machine.
const API: Duration = Duration::from_secs(120);
/// Until every node is ready.
const NODES: Duration = Duration::from_secs(180);
/// Until names resolve.
const NAMES: Duration = Duration::from_secs(180);

/// What kind of cluster is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Everything of the cluster is made below it; must not exist, or be empty.
    pub dir: PathBuf,
    /// How many nodes, besides the machine of the control plane.
    pub nodes: usize,
    /// Image archives that every node shall have.
    pub images: Vec<PathBuf>,
}

/// A cluster: what `cluster.json` in its directory says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its directory.
    pub dir: PathBuf,
    network: Network,
    /// Where the control plane runs; not a node.
    pub control: Machine,
    /// The nodes: node1, node2, ...
    pub nodes: Vec<Machine>,
    parts: Parts,
}

impl Cluster {
    /// Brings a cluster up: all nodes ready, names of Services resolve. `step` hears what is going on. What was begun is taken
    /// down again if that fails.
    ///
    /// # Errors
    /// The directory is in use, a program is missing, or something does not come up in time; says why.
    pub fn up(wanted: &Wanted, step: &mut dyn FnMut(&str)) -> Result<Cluster> {
        ensure!((1..=9).contains(&wanted.nodes), "a cluster of {} nodes: take 1 to 9", wanted.nodes);
        ensure!(rustix::process::geteuid().is_root(), "a cluster takes root: it makes namespaces and mounts");
        let parts = Parts::ready(step)?;
        let archives = images::for_cluster(&parts)?;
        let dir = empty(&wanted.dir)?;
        let mut cluster = Cluster::machines(dir, wanted.nodes, parts)?;
        let images: Vec<&Path> = archives.iter().chain(&wanted.images).map(PathBuf::as_path).collect();
        if let Err(error) = cluster.start(&images, step) {
            let collected = logs::explain(&cluster);
            if let Err(left) = teardown::down(&cluster.dir) {
                step(&format!("{left:#}"));
            }
            return Err(error.context(collected));
        }
        Ok(cluster)
    }

    /// The cluster that was brought up in a directory.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Cluster> {
        let path = dir.join("cluster.json");
        let text = fs::read(&path).with_context(|| format!("there is no cluster in {}", dir.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} cannot be understood", path.display()))
    }

    /// A node by its name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<&Machine> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
    }

    /// kubectl, of the cluster's version, as its administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.parts.program("kubectl"), self.kubeconfig())
    }

    /// helm with the cluster's administrator.
    #[must_use]
    pub fn helm(&self) -> Kubectl {
        Kubectl::new(self.parts.program("helm"), self.kubeconfig())
    }

    /// What `KUBECONFIG` is set to.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// Where kubectl and helm are.
    #[must_use]
    pub fn programs(&self) -> &Path {
        self.parts.dir()
    }

    /// Cuts a node off from everybody, control plane included: its link goes down.
    ///
    /// # Errors
    /// No such node, or the link cannot be changed.
    pub fn partition(&self, node: &str) -> Result<()> {
        self.network.link(&self.control, self.node(node)?, network::Link::Down)
    }

    /// Undoes [`Cluster::partition`].
    ///
    /// # Errors
    /// No such node, or the link cannot be changed.
    pub fn heal(&self, node: &str) -> Result<()> {
        self.network.link(&self.control, self.node(node)?, network::Link::Up)
    }

    /// Ends a program of the control plane at once, for example `kube-apiserver`.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&mut self, program: &str) -> Result<()> {
        self.control.stop(program)?;
        self.record()
    }

    /// Starts a program of the control plane again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, program: &str) -> Result<()> {
        let Some(run) = control_plane::program(&self.dir, &self.network, &self.parts, program) else {
            bail!("{program} is no program of the control plane")
        };
        self.control.start(&run)?;
        self.record()
    }

    /// Ends a program of a node (`kubelet`, `containerd`, `kube-proxy`) at once.
    ///
    /// # Errors
    /// It does not run there, or does not end.
    pub fn stop_on(&mut self, node: &str, program: &str) -> Result<()> {
        let index = self.index(node)?;
        self.nodes.get_mut(index).context("no such node")?.stop(program)?;
        self.record()
    }

    /// Starts a program of a node again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_on(&mut self, node: &str, program: &str) -> Result<()> {
        let index = self.index(node)?;
        let machine = self.nodes.get_mut(index).context("no such node")?;
        let all = node::programs(machine, index, &self.network, &self.parts);
        let Some(run) = all.into_iter().find(|run| run.name == program) else {
            bail!("{program} is no program of a node")
        };
        machine.start(&run)?;
        self.record()
    }

    /// Loads an image archive on every node.
    ///
    /// # Errors
    /// A node does not take it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| images::load(node, archive))
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// What is left, and why.
    pub fn down(self) -> Result<()> {
        teardown::down(&self.dir)
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.nodes
            .iter()
            .position(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }

    fn machines(dir: PathBuf, nodes: usize, parts: Parts) -> Result<Cluster> {
        let network = Network::choose(&dir)?;
        let control = Machine::new(&dir, "control");
        let nodes = (1..=nodes).map(|number| Machine::new(&dir, &format!("node{number}"))).collect();
        let cluster = Cluster { dir, network, control, nodes, parts };
        cluster.record()?;
        Ok(cluster)
    }

    fn start(&mut self, images: &[&Path], step: &mut dyn FnMut(&str)) -> Result<()> {
        step(&format!("Starting the control plane and {} nodes", self.nodes.len()));
        for machine in std::iter::once(&mut self.control).chain(&mut self.nodes) {
            machine.boot()?;
        }
        self.record()?;
        self.network.connect(&self.control, &self.nodes)?;
        let authority = certificates::write(&self.dir, &self.network, &self.nodes)?;
        control_plane::configure(&self.dir)?;
        for (number, node) in self.nodes.iter().enumerate() {
            node::configure(node, number, &self.network, &authority)?;
        }
        for run in control_plane::programs(&self.dir, &self.network, &self.parts) {
            self.control.start(&run)?;
        }
        let mut waiting = Vec::new();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let mut programs = node::programs(node, number, &self.network, &self.parts).into_iter();
            if let Some(containerd) = programs.next() {
                node.start(&containerd)?;
            }
            waiting.push(programs);
        }
        for (node, programs) in self.nodes.iter_mut().zip(waiting) {
            // Without it the kubelet ends at once.
            command::until(&format!("containerd of {} to answer", node.name), command::DEADLINE, || {
                node.run("ctr", &["version"])
            })?;
            for run in programs {
                node.start(&run)?;
            }
        }
        self.record()?;
        step("Loading images");
        std::thread::scope(|scope| {
            let loading: Vec<_> = self
                .nodes
                .iter()
                .map(|node| {
                    scope.spawn(move || images.iter().try_for_each(|image| images::load(node, image)))
                })
                .collect();
            loading.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| bail!("loading panicked")))
        })?;
        self.settle(step)
    }

    fn settle(&self, step: &mut dyn FnMut(&str)) -> Result<()> {
        let kubectl = self.kubectl();
        step("Waiting for the API server");
        command::until("the API server to answer", API, || {
            kubectl.run(&["get", "--raw", "/readyz"]).map(|_| ())
        })?;
        kubectl.apply(include_str!("../cluster/manifests/dns.yaml"))?;
        step("Waiting for the nodes");
        command::until("the nodes to be ready", NODES, || self.all_ready())?;
        step("Waiting for the names of Services");
        kubectl.rolled_out("kube-system", "deployment/coredns", NAMES)
    }

    fn all_ready(&self) -> Result<()> {
        let ready = self.kubectl().ready_nodes()?;
        let missing: Vec<&str> =
            self.nodes.iter().map(|node| node.name.as_str()).filter(|name| !ready.contains(*name)).collect();
        ensure!(missing.is_empty(), "not ready: {}", missing.join(", "));
        Ok(())
    }

    /// Writes down what runs, so that `down` finds it whoever calls it.
    fn record(&self) -> Result<()> {
        let path = self.dir.join("cluster.json");
        let next = self.dir.join("cluster.json.next");
        fs::write(&next, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&next, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Makes the directory, or takes one that is empty.
fn empty(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    ensure!(
        fs::read_dir(&dir)?.next().is_none(),
        "{} is not empty: a cluster may run there (`make cluster-down` takes it away)",
        dir.display()
    );
    for hidden in ["/var/lib", "/var/log", "/run", "/proc", "/sys", "/dev"] {
        ensure!(
            !dir.starts_with(hidden),
            "{} lies below {hidden}, of which each node has its own: choose another directory",
            dir.display()
        );
    }
    Ok(dir)
}
