//! Where a fleet keeps what, and what it consists of (`fleet.json`).

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use intermezzo_api::manifest::{Manifests, Object};
use intermezzo_api::names;
use intermezzo_api::replicator::{Replicator, ReplicatorSpec};
use intermezzo_api::volume::{HostPath, ServerSpec, Source, Volume, VolumeSpec};
use serde::{Deserialize, Serialize};

use super::{FleetError, Request, file};
use crate::replace::replace;

/// Most nodes of a local fleet: they are named by single letters.
pub const MAX_NODES: usize = 26;
/// Name of the volume unless somebody says otherwise.
pub const DEFAULT_VOLUME: &str = "default/demo";
/// Longest path of a Unix socket, its final zero included (unix(7)).
const MAX_SOCKET: usize = 108;

/// One of a node's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// The filter.
    Presto,
    /// The agent.
    Lento,
    /// Keeps presto's mounts.
    Holder,
}

/// Whether mounts outlive presto.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mounts {
    /// They end with it.
    #[default]
    EndWithPresto,
    /// Each node has a holder.
    OutlivePresto,
}

impl Daemon {
    /// Name of the program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Daemon::Presto => "presto",
            Daemon::Lento => "lento",
            Daemon::Holder => "presto-holder",
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One node of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name: a, b, c...
    pub name: String,
    /// Where its lento listens on 127.0.0.1; 0 before the first start.
    pub port: u16,
    /// Where its lento serves metrics on 127.0.0.1; 0 before the first start, and in a fleet that an older version made.
    #[serde(default)]
    pub metrics_port: u16,
    /// Its cache; under the fleet's directory if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Node {
    /// Where its lento serves metrics, as HOST:PORT, once it has a port for that.
    #[must_use]
    pub fn metrics(&self) -> Option<String> {
        (self.metrics_port != 0).then(|| format!("127.0.0.1:{}", self.metrics_port))
    }
}

/// What a fleet consists of. The first node serves the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `namespace/name`.
    pub volume: String,
    /// In order of name.
    pub nodes: Vec<Node>,
    /// A directory that is the volume's tree on the first node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<PathBuf>,
    /// Whether mounts outlive presto.
    #[serde(default)]
    pub mounts: Mounts,
}

impl Config {
    pub(super) fn new(request: &Request) -> Result<Config, FleetError> {
        let volume = volume_id(request.volume.as_deref().unwrap_or(DEFAULT_VOLUME))?;
        let count = request.nodes.unwrap_or(2);
        if !(1..=MAX_NODES).contains(&count) {
            return Err(FleetError::Request(format!("a fleet has 1 to {MAX_NODES} nodes, not {count}")));
        }
        let lower = request.lower.iter().map(|dir| absolute(dir)).collect::<Result<Vec<_>, _>>()?;
        let mut lower = lower.iter().cycle();
        let nodes = ('a'..='z').take(count).map(|letter| {
            let name = letter.to_string();
            let cache = lower.next().map(|dir| dir.join(format!("node-{name}")).join("cache"));
            Node { name, port: 0, metrics_port: 0, cache }
        });
        let adopt = request.adopt.as_ref().map(|dir| dir.canonicalize().map_err(file(dir))).transpose()?;
        Ok(Config { volume, nodes: nodes.collect(), adopt, mounts: request.mounts })
    }

    /// The fleet that is there, unless the request wants another.
    pub(super) fn agrees(self, request: &Request) -> Result<Config, FleetError> {
        let conflict =
            |what: String| Err(FleetError::Request(format!("{what}; use another --dir for another fleet")));
        if let Some(volume) = &request.volume
            && volume_id(volume)? != self.volume
        {
            return conflict(format!("the fleet there has volume {}, not {volume}", self.volume));
        }
        if let Some(nodes) = request.nodes
            && nodes != self.nodes.len()
        {
            return conflict(format!("the fleet there has {} nodes, not {nodes}", self.nodes.len()));
        }
        if let Some(dir) = &request.adopt
            && Some(dir.canonicalize().map_err(file(dir))?) != self.adopt
        {
            return conflict(format!("the volume of the fleet there is not the directory {}", dir.display()));
        }
        if !request.lower.is_empty() {
            let wanted = Config::new(&Request { nodes: Some(self.nodes.len()), ..request.clone() })?;
            if wanted.nodes.iter().zip(&self.nodes).any(|(new, old)| new.cache != old.cache) {
                return conflict("the fleet there has its caches elsewhere".into());
            }
        }
        Ok(Config { mounts: request.mounts, ..self })
    }

    /// The programs of each node, in the order of starting.
    #[must_use]
    pub fn daemons(&self) -> &'static [Daemon] {
        match self.mounts {
            Mounts::EndWithPresto => &[Daemon::Presto, Daemon::Lento],
            Mounts::OutlivePresto => &[Daemon::Holder, Daemon::Presto, Daemon::Lento],
        }
    }

    pub(super) fn read(layout: &Layout) -> Result<Option<Config>, FleetError> {
        let path = layout.dir.join("fleet.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| FleetError::Config { path, reason: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FleetError::File { path, source }),
        }
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), FleetError> {
        let path = layout.dir.join("fleet.json");
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| FleetError::Config { path: path.clone(), reason: error.to_string() })?;
        write(&path, &text)
    }

    /// Whether the node serves the volume.
    #[must_use]
    pub fn is_server(&self, node: &Node) -> bool {
        self.nodes.first() == Some(node)
    }

    /// The Volume and a Replicator for each node but the server.
    pub(super) fn manifest(&self) -> Result<String, FleetError> {
        let (namespace, name) = self.volume.split_once('/').unwrap_or(("default", &self.volume));
        let mut all = Manifests::default();
        for node in &self.nodes {
            if self.is_server(node) {
                let server = ServerSpec { node_name: Some(node.name.clone()), node_selector: None };
                let path = |dir: &PathBuf| Source::HostPath(HostPath { path: dir.display().to_string() });
                let source = self.adopt.as_ref().map(path);
                let mut volume = Volume::new(name, VolumeSpec { server, source, ..VolumeSpec::default() });
                volume.metadata.namespace = Some(namespace.to_owned());
                all.insert(Object::Volume(Box::new(volume)));
            } else {
                let spec = ReplicatorSpec {
                    volume: name.to_owned(),
                    node_name: node.name.clone(),
                    ..ReplicatorSpec::default()
                };
                let mut replicator = Replicator::new(&format!("{name}-{}", node.name), spec);
                replicator.metadata.namespace = Some(namespace.to_owned());
                all.insert(Object::Replicator(Box::new(replicator)));
            }
        }
        yaml(&all)
    }
}

pub(super) fn yaml(manifests: &Manifests) -> Result<String, FleetError> {
    let fail = |error| FleetError::Request(format!("cannot write the manifest: {error}"));
    manifests.to_yaml().map_err(fail)
}

/// Where a fleet keeps what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Everything is below; absolute, no symbolic links.
    pub dir: PathBuf,
}

impl Layout {
    pub(super) fn new(dir: &Path) -> Result<Layout, FleetError> {
        let dir = if dir.exists() { dir.canonicalize().map_err(file(dir))? } else { absolute(dir)? };
        let layout = Layout { dir };
        let longest = layout.node_dir("x").join("holder.sock");
        if longest.as_os_str().len() >= MAX_SOCKET {
            let text = format!("{} is too long a path: sockets below it would not fit", layout.dir.display());
            return Err(FleetError::Request(text));
        }
        Ok(layout)
    }

    fn node_dir(&self, name: &str) -> PathBuf {
        self.dir.join(format!("node-{name}"))
    }

    /// Certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Volume and Replicators; every node reads them.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// The one that the fleet itself made.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.manifests().join("volume.yaml")
    }

    /// Lower trees and journals of a node.
    #[must_use]
    pub fn cache(&self, node: &Node) -> PathBuf {
        node.cache.clone().unwrap_or_else(|| self.node_dir(&node.name).join("cache"))
    }

    /// Where a node's volumes are mounted, as `namespace/name` below it.
    #[must_use]
    pub fn mounts(&self, node: &Node) -> PathBuf {
        self.node_dir(&node.name).join("mounts")
    }

    /// A node's admin socket.
    #[must_use]
    pub fn admin_socket(&self, node: &Node) -> PathBuf {
        self.node_dir(&node.name).join("admin.sock")
    }

    /// Socket of a node's holder.
    #[must_use]
    pub fn holder_socket(&self, node: &Node) -> PathBuf {
        self.node_dir(&node.name).join("holder.sock")
    }

    /// A daemon's log.
    #[must_use]
    pub fn log(&self, node: &Node, daemon: Daemon) -> PathBuf {
        self.node_dir(&node.name).join("log").join(format!("{daemon}.log"))
    }

    /// A daemon's record.
    #[must_use]
    pub fn pid(&self, node: &Node, daemon: Daemon) -> PathBuf {
        self.node_dir(&node.name).join(format!("{daemon}.pid"))
    }

    pub(super) fn directories(&self, node: &Node) -> Vec<PathBuf> {
        let own = self.node_dir(&node.name);
        let mut all: Vec<PathBuf> = ["presto", "lento", "log"].iter().map(|name| own.join(name)).collect();
        all.extend([self.mounts(node), self.cache(node), self.manifests(), self.pki()]);
        all
    }

    pub(super) fn arguments(&self, config: &Config, node: &Node, daemon: Daemon) -> Vec<OsString> {
        let own = self.node_dir(&node.name);
        let mut out: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| out.extend([OsString::from(name), value]);
        let socket = own.join("presto.sock");
        let holder = self.holder_socket(node);
        match daemon {
            Daemon::Presto => {
                option("--state", own.join("presto").into());
                option("--socket", socket.into());
                if config.mounts == Mounts::OutlivePresto {
                    option("--holder", holder.into());
                }
                if let Some(source) = config.adopt.as_ref().filter(|_| config.is_server(node)) {
                    option("--allow-source", source.into());
                }
            }
            Daemon::Holder => option("--socket", holder.into()),
            Daemon::Lento => {
                let pki = self.pki();
                let files = crate::pki::Files::node(&pki, &node.name);
                option("--node", node.name.clone().into());
                option("--manifests", self.manifests().into());
                option("--listen", format!("127.0.0.1:{}", node.port).into());
                if let Some(address) = node.metrics() {
                    option("--metrics", address.into());
                }
                option("--presto-socket", socket.into());
                option("--state", own.join("lento").into());
                option("--cache", self.cache(node).into());
                option("--mounts", self.mounts(node).into());
                option("--tls-cert", files.cert.into());
                option("--tls-key", files.key.into());
                option("--tls-ca", crate::pki::Files::ca(&pki).cert.into());
                option("--admin-socket", self.admin_socket(node).into());
                for peer in config.nodes.iter().filter(|peer| peer.name != node.name) {
                    option("--peer", format!("{}=127.0.0.1:{}", peer.name, peer.port).into());
                }
            }
        }
        out
    }
}

/// `namespace/name` of a volume named on the command line.
///
/// # Errors
/// Not a volume's name.
pub fn volume_id(text: &str) -> Result<String, FleetError> {
    let (namespace, name) =
        names::volume(text).map_err(|why| FleetError::Request(format!("volume {text}: {why}")))?;
    Ok(format!("{namespace}/{name}"))
}

fn absolute(path: &Path) -> Result<PathBuf, FleetError> {
    std::path::absolute(path).map_err(file(path))
}

/// Replaces a text file whole.
pub(super) fn write(path: &Path, text: &str) -> Result<(), FleetError> {
    replace(path, text.as_bytes(), 0o666).map_err(file(path))
}
