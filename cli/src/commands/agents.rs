//! Which agents a command talks to: one socket, or those of a local fleet.

use std::path::PathBuf;

use anyhow::Result;

use crate::args::AgentArgs;
use crate::fleet::Fleet;

/// One agent's socket.
pub(super) struct Agent {
    /// Its node, where that is known beforehand.
    pub node: Option<String>,
    /// Its socket.
    pub socket: PathBuf,
}

/// The agents meant, and the fleet they belong to.
pub(super) fn find(args: &AgentArgs) -> Result<Vec<Agent>> {
    let Some(dir) = &args.dir else {
        return Ok(vec![Agent { node: None, socket: args.admin_socket.clone() }]);
    };
    let fleet = Fleet::open(dir)?;
    let nodes = match &args.node {
        Some(name) => vec![fleet.node(name)?.clone()],
        None => fleet.config.nodes.clone(),
    };
    let agent = |node: &crate::fleet::Node| Agent {
        node: Some(node.name.clone()),
        socket: fleet.layout.admin_socket(node),
    };
    Ok(nodes.iter().map(agent).collect())
}
