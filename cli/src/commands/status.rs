//! `intermezzo status`: what agents say, one line for each volume and one for each Replicator.

use anyhow::Result;
use indicatif::BinaryBytes;
use intermezzo_proto::v1::{Permit, Position, ReplicatorStatus, StatusReply, VolumeStatus};
use serde::Serialize;

use super::agents;
use crate::Exit;
use crate::admin;
use crate::args::StatusArgs;
use crate::output::{Format, Table, print_text, print_value, say};

pub(super) fn run(args: &StatusArgs) -> Result<Exit> {
    let mut exit = Exit::Done;
    let mut nodes = Vec::new();
    let mut last = None;
    for agent in agents::find(&args.agents)? {
        match admin::status(&agent.socket) {
            Ok(reply) => nodes.push(NodeView::from(reply)),
            Err(error) => {
                let node = agent.node.as_deref().unwrap_or("?");
                say(format_args!("node {node}: {error}"));
                exit = Exit::Unreachable;
                last = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (nodes.is_empty(), last) {
        return Ok(if error.is_unreachable() { Exit::Unreachable } else { Exit::Failed });
    }
    match args.print.output {
        Format::Table | Format::Wide => print_text(&table(&nodes, args.print.output))?,
        Format::Json | Format::Yaml => print_value(args.print.output, &nodes)?,
    }
    Ok(exit)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    node: String,
    version: String,
    presto_connected: bool,
    kernel: Vec<String>,
    volumes: Vec<VolumeView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeView {
    name: String,
    role: String,
    server: String,
    connected: bool,
    position: PositionView,
    applied: PositionView,
    pending: u64,
    pending_bytes: u64,
    pending_seconds: f64,
    dirty: u64,
    conflicts: u64,
    mountpoint: String,
    cache: String,
    kml: KmlView,
    #[serde(skip_serializing_if = "Option::is_none")]
    permit: Option<PermitView>,
    waiting: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    replicators: Vec<ReplicatorView>,
}

/// How a node stands towards the permit of a volume that needs one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PermitView {
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    holder: String,
    waiting: u64,
}

#[derive(Serialize)]
struct KmlView {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplicatorView {
    node: String,
    connected: bool,
    syncing: bool,
    must_resync: bool,
    other_history: bool,
    applied: PositionView,
    durable: PositionView,
    lag_records: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
}

#[derive(Clone, Copy, Serialize)]
struct PositionView {
    epoch: u64,
    number: u64,
}

impl From<Option<Position>> for PositionView {
    fn from(position: Option<Position>) -> PositionView {
        let Position { epoch, number } = position.unwrap_or_default();
        PositionView { epoch, number }
    }
}

impl std::fmt::Display for PositionView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

impl From<StatusReply> for NodeView {
    fn from(reply: StatusReply) -> NodeView {
        NodeView {
            node: reply.node,
            version: reply.version,
            presto_connected: reply.presto_connected,
            kernel: reply.kernel,
            volumes: reply.volumes.into_iter().map(VolumeView::from).collect(),
        }
    }
}

impl From<VolumeStatus> for VolumeView {
    fn from(volume: VolumeStatus) -> VolumeView {
        let permit = permit(&volume);
        VolumeView {
            permit,
            name: volume.name,
            role: volume.role,
            server: volume.server,
            connected: volume.connected,
            position: volume.position.into(),
            applied: volume.applied.into(),
            pending: volume.pending,
            pending_bytes: volume.pending_bytes,
            pending_seconds: volume.pending_seconds,
            dirty: volume.dirty,
            conflicts: volume.conflicts,
            mountpoint: volume.mountpoint,
            cache: volume.cache,
            kml: KmlView { first: volume.kml_first, last: volume.kml_last },
            waiting: volume.waiting,
            fault: volume.fault,
            replicators: volume.replicators.into_iter().map(ReplicatorView::from).collect(),
        }
    }
}

impl From<ReplicatorStatus> for ReplicatorView {
    fn from(replicator: ReplicatorStatus) -> ReplicatorView {
        ReplicatorView {
            node: replicator.node,
            connected: replicator.connected,
            syncing: replicator.syncing,
            must_resync: replicator.must_resync,
            other_history: replicator.other_history,
            applied: replicator.applied.into(),
            durable: replicator.durable.into(),
            lag_records: replicator.lag_records,
            lag_bytes: replicator.lag_bytes,
            lag_seconds: replicator.lag_seconds,
        }
    }
}

fn table(nodes: &[NodeView], format: Format) -> String {
    let wide = format == Format::Wide;
    let mut header = vec!["VOLUME", "NODE", "ROLE", "CONNECTED", "POSITION", "PENDING", "LAG", "CONFLICTS"];
    if wide {
        header.extend(["APPLIED", "DIRTY", "KML", "MOUNTED AT"]);
    }
    let mut table = Table::new(&header);
    for node in nodes {
        for volume in &node.volumes {
            table.row(volume_row(node, volume, wide));
            for replicator in &volume.replicators {
                table.row(replicator_row(volume, replicator));
            }
        }
    }
    let mut text = table.render();
    for (node, volume) in nodes.iter().flat_map(|node| node.volumes.iter().map(move |volume| (node, volume)))
    {
        let place = format!("{} on {}", volume.name, node.node);
        if !volume.fault.is_empty() {
            text.push_str(&format!("{place} has stopped: {}\n", volume.fault));
        }
        if let Some(permit) = &volume.permit {
            text.push_str(&permit_line(volume, &place, permit));
        }
        for reason in &volume.waiting {
            text.push_str(&format!("{place} waits: {reason}\n"));
        }
    }
    for node in nodes.iter().filter(|node| !node.presto_connected) {
        text.push_str(&format!("{}: lento has no channel to presto\n", node.node));
    }
    text
}

fn permit(volume: &VolumeStatus) -> Option<PermitView> {
    let state = match volume.permit() {
        Permit::NotNeeded => return None,
        Permit::Without => "Without",
        Permit::Asked => "Asked",
        Permit::Held => "Held",
        Permit::Leaving => "Leaving",
        Permit::Stolen => "Stolen",
        Permit::ReadOnly => "ReadOnly",
    };
    Some(PermitView { state, holder: volume.permit_holder.clone(), waiting: volume.permit_waiting })
}

/// One line of the server about who writes, and one of each node that is on its own.
fn permit_line(volume: &VolumeView, place: &str, permit: &PermitView) -> String {
    match permit.state {
        "Stolen" => format!("{place} writes without the permit: server {} is away\n", volume.server),
        "ReadOnly" => format!("{place} is read-only: server {} is away\n", volume.server),
        state if volume.role == "Server" => {
            let holder = match (permit.holder.as_str(), state) {
                ("", "Held" | "Leaving") => volume.server.as_str(),
                ("", _) => "nobody",
                (node, _) => node,
            };
            let name = &volume.name;
            format!("{name}: the permit is held by {holder}, nodes that wait for it: {}\n", permit.waiting)
        }
        _ => String::new(),
    }
}

fn volume_row(node: &NodeView, volume: &VolumeView, wide: bool) -> Vec<String> {
    let server = volume.role == "Server";
    let connected = volume.replicators.iter().filter(|replicator| replicator.connected).count();
    let connected = match server {
        true => format!("{connected}/{}", volume.replicators.len()),
        false => yes(volume.connected),
    };
    let mut row = vec![
        volume.name.clone(),
        node.node.clone(),
        volume.role.clone(),
        connected,
        volume.position.to_string(),
        amount(volume.pending, volume.pending_bytes, volume.pending_seconds),
        String::new(),
        volume.conflicts.to_string(),
    ];
    if wide {
        let kml = format!("{}..{}", volume.kml.first, volume.kml.last);
        row.extend([volume.applied.to_string(), volume.dirty.to_string(), kml, volume.mountpoint.clone()]);
    }
    row
}

fn replicator_row(volume: &VolumeView, replicator: &ReplicatorView) -> Vec<String> {
    let lag = if replicator.syncing {
        "syncing".to_owned()
    } else {
        match (replicator.lag_bytes, replicator.lag_seconds) {
            (Some(bytes), Some(seconds)) => amount(replicator.lag_records, bytes, seconds),
            // It never followed the log and will get the whole tree.
            _ => replicator.lag_records.to_string(),
        }
    };
    vec![
        volume.name.clone(),
        format!("└ {}", replicator.node),
        "Replicator".into(),
        standing(replicator),
        replicator.durable.to_string(),
        String::new(),
        lag,
        String::new(),
    ]
}

fn standing(replicator: &ReplicatorView) -> String {
    match (replicator.other_history, replicator.must_resync) {
        (true, _) => "other history".to_owned(),
        (_, true) => "must resync".to_owned(),
        _ => yes(replicator.connected),
    }
}

/// Records, and what they bring: `20 (1.5 MiB, 2.0 s)`.
fn amount(records: u64, bytes: u64, seconds: f64) -> String {
    match records {
        0 => "0".to_owned(),
        records => format!("{records} ({}, {seconds:.1} s)", BinaryBytes(bytes)),
    }
}

fn yes(fact: bool) -> String {
    if fact { "yes".into() } else { "no".into() }
}
