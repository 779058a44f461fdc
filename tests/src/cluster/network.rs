//! Addresses and links: a bridge inside the control plane's machine, a pair of virtual links to each node, and one to this
//! machine, so that kubectl works from here. All of them go with the namespaces.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::command::{DEADLINE, output};
use super::machine::Machine;

/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The API server's own.
pub const API_SERVICE: &str = "10.96.0.1";
/// Where names are asked for.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// Addresses of pods, all nodes.
pub const PODS: &str = "10.244.0.0/16";

/// What a link should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It carries.
    Up,
    /// It is cut.
    Down,
}

/// One of 256 networks of a range that is set aside for trials (RFC 2544), so that it is nobody's.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Network {
    number: u8,
}

impl Network {
    /// Takes a network that no other cluster of this machine has, by making this machine's link to it.
    ///
    /// # Errors
    /// All are taken, or links cannot be made.
    pub fn choose(cluster: &Path) -> Result<Network> {
        let mut last = None;
        for number in 0..=u8::MAX {
            let network = Network { number };
            // The link's name is the lock: making a second one of a name fails.
            let link = network.host_link();
            match ip(&["link", "add", &link, "type", "veth", "peer", "name", &format!("{link}c")]) {
                Ok(_) => {
                    // Says whose it is: names are used again.
                    ip(&["link", "set", &link, "alias", &cluster.to_string_lossy()])?;
                    return Ok(network);
                }
                Err(error) if format!("{error:#}").contains("File exists") => last = Some(error),
                Err(error) => return Err(error.context("cannot make a network link")),
            }
        }
        Err(last.context("no network is left")?)
    }

    /// Where the API server is.
    #[must_use]
    pub fn control(&self) -> String {
        format!("198.18.{}.1", self.number)
    }

    /// Address of the nth node.
    #[must_use]
    pub fn node(&self, number: usize) -> String {
        format!("198.18.{}.{}", self.number, number + 11)
    }

    /// Addresses of the pods of the nth node.
    #[must_use]
    pub fn pods(&self, number: usize) -> String {
        format!("10.244.{}.0/24", number + 1)
    }

    /// This machine's end of its link.
    #[must_use]
    pub fn host_link(&self) -> String {
        format!("imz{}", self.number)
    }

    /// Makes all links, addresses and routes.
    ///
    /// # Errors
    /// A machine does not run, or `ip` refuses.
    pub fn connect(&self, control: &Machine, nodes: &[Machine]) -> Result<()> {
        let (link, prefix) = (self.host_link(), 24);
        let far = format!("{link}c");
        let inside = control.pid()?.to_string();
        ip(&["link", "set", &far, "netns", &inside])?;
        ip(&["address", "add", &format!("198.18.{}.254/{prefix}", self.number), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        control.run("ip", &["link", "add", "cluster", "type", "bridge"])?;
        control.run("ip", &["address", "add", &format!("{}/{prefix}", self.control()), "dev", "cluster"])?;
        control.run("ip", &["link", "set", "cluster", "up"])?;
        control.run("ip", &["link", "set", &far, "master", "cluster", "up"])?;
        for (number, node) in nodes.iter().enumerate() {
            let pid = node.pid()?.to_string();
            let name = node.name.as_str();
            ip(&[
                "link", "add", name, "netns", &inside, "type", "veth", "peer", "name", "eth0", "netns", &pid,
            ])?;
            control.run("ip", &["link", "set", name, "master", "cluster", "up"])?;
            node.run("ip", &["address", "add", &format!("{}/{prefix}", self.node(number)), "dev", "eth0"])?;
            node.run("ip", &["link", "set", "eth0", "up"])?;
            // It leads nowhere; but without one the address of a Service has no route, and is refused before it is translated.
            node.run("ip", &["route", "add", "default", "via", &self.control()])?;
        }
        for number in 0..nodes.len() {
            let (pods, via) = (self.pods(number), self.node(number));
            let others = nodes.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, node)| node);
            for machine in others.chain([control]) {
                machine.run("ip", &["route", "add", &pods, "via", &via])?;
            }
        }
        Ok(())
    }

    /// Changes the link of a node, at the bridge's end: the node keeps its addresses and routes, as with a pulled cable.
    ///
    /// # Errors
    /// A machine does not run.
    #[allow(clippy::unused_self, reason = "links belong to the network")]
    pub fn link(&self, control: &Machine, node: &Machine, wanted: Link) -> Result<()> {
        let state = match wanted {
            Link::Up => "up",
            Link::Down => "down",
        };
        control.run("ip", &["link", "set", &node.name, state]).map(|_| ())
    }

    /// Takes away this machine's link, if it is still there.
    ///
    /// # Errors
    /// It is there and stays.
    pub fn disconnect(&self, cluster: &Path) -> Result<()> {
        let link = self.host_link();
        let alias = Path::new("/sys/class/net").join(&link).join("ifalias");
        let is_there =
            || fs::read_to_string(&alias).is_ok_and(|alias| Path::new(alias.trim_end()) == cluster);
        if !is_there() {
            return Ok(());
        }
        // The kernel may be taking it away at this moment, with the namespace of its far end.
        if let Err(error) = ip(&["link", "delete", &link])
            && is_there()
        {
            bail!("the link {link} stays: {error:#}");
        }
        Ok(())
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    output(Command::new("ip").args(arguments), DEADLINE)
}
