//! Whether a Volume can be carried out, on which server, and which nodes its selector asks for.
//!
//! A Volume that was carried out before goes on as it was, whatever is wrong with its new spec: a typing error must not take
//! files away from programs.

use std::collections::BTreeSet;
use std::path::Path;

use intermezzo_api::Volume;
use intermezzo_api::names::dns_label;
use intermezzo_api::volume::Source;
use kube_client::Resource;

use super::dereference::{Seen, server};
use crate::control::NodeName;
use crate::settings::Settings;
use crate::world::{age, selected};

/// Reason: the administrator has turned claims off.
pub const CLAIMS_DISABLED: &str = "ClaimsDisabled";

/// Something about an object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people, beginning with the field.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, field: &str, what: impl std::fmt::Display) -> Problem {
        Problem { reason, message: format!("{field}: {what}") }
    }
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Why it is not carried out as written; empty: it is.
    pub problems: Vec<Problem>,
    /// What works worse than asked.
    pub warnings: Vec<Problem>,
    /// Its server: as it was, else chosen now, else none.
    pub server: Option<NodeName>,
    /// Nodes that the selector gives a Replicator.
    pub wanted: BTreeSet<NodeName>,
}

/// Judges.
#[must_use]
pub fn validate(seen: &Seen<'_>, settings: &Settings) -> Judged {
    let mut judged = Judged::default();
    if seen.volume.spec.claim.is_some() && !settings.claims {
        let what =
            "this installation makes no claims; ask an administrator to set the chart's value claims.enabled";
        judged.problems.push(Problem::new(CLAIMS_DISABLED, "spec.claim", what));
    }
    choose_server(seen, &mut judged);
    check_source(seen, settings, &mut judged);
    if !judged.problems.is_empty() && seen.server().is_none() {
        judged.server = None;
    }
    choose_nodes(seen, &mut judged);
    judged
}

fn choose_server(seen: &Seen<'_>, judged: &mut Judged) {
    let spec = &seen.volume.spec.server;
    let matching = spec.node_selector.as_ref().map(|selector| selected(seen.nodes, selector));
    if let Some(Err(why)) = &matching {
        judged.problems.push(Problem::new("SelectorInvalid", "spec.server.nodeSelector", why));
    }
    if let Some(server) = seen.server() {
        judged.server = Some(server.clone());
        if let Some(other) = spec.node_name.as_ref().filter(|name| *name != server) {
            let what =
                format!("{other}: node {server} serves this volume and it cannot be moved; write {server}");
            judged.problems.push(Problem::new("ServerCannotMove", "spec.server.nodeName", what));
        }
        if matching.as_ref().is_some_and(|m| m.as_ref().is_ok_and(|nodes| !nodes.contains(server))) {
            let what =
                format!("it no longer selects {server}, which goes on serving: the volume's tree is there");
            judged.warnings.push(Problem::new("SelectorChanged", "spec.server.nodeSelector", what));
        }
        return;
    }
    match (&spec.node_name, matching) {
        (Some(name), _) => {
            if let Err(why) = dns_label(name) {
                judged.problems.push(Problem::new("NameInvalid", "spec.server.nodeName", why));
            } else if !seen.nodes.contains_key(name) {
                let what = format!("there is no node {name}; `kubectl get nodes` lists them");
                judged.problems.push(Problem::new("NodeNotFound", "spec.server.nodeName", what));
            } else {
                judged.server = Some(name.clone());
            }
        }
        (None, Some(Ok(nodes))) => match best(seen, &nodes) {
            Some(name) => judged.server = Some(name),
            None => {
                let what = "no ready node matches; label one, or wait until it is ready";
                judged.problems.push(Problem::new("NodeNotFound", "spec.server.nodeSelector", what));
            }
        },
        (None, Some(Err(_))) => {}
        (None, None) => {
            let what = "name one node (nodeName) or a selector (nodeSelector)";
            judged.problems.push(Problem::new("ServerMissing", "spec.server", what));
        }
    }
}

/// Of the nodes that match: one that says it serves the volume already (the object was restored, its status was not), else
/// the one that serves the fewest.
fn best(seen: &Seen<'_>, nodes: &[NodeName]) -> Option<NodeName> {
    let serves = |node: &NodeName| {
        let said = seen.reports.get(node).and_then(|report| report.volume(&seen.id));
        said.is_some_and(|volume| volume.role == "Server")
    };
    if let Some(node) = nodes.iter().find(|node| serves(node)) {
        return Some(node.clone());
    }
    let usable = |node: &&NodeName| {
        dns_label(node).is_ok() && seen.nodes.get(*node).is_some_and(|facts| facts.ready && facts.schedulable)
    };
    let load = |node: &NodeName| seen.volumes.values().filter(|volume| server(volume) == Some(node)).count();
    nodes.iter().filter(usable).min_by_key(|node| (load(node), (*node).clone())).cloned()
}

fn check_source(seen: &Seen<'_>, settings: &Settings, judged: &mut Judged) {
    let Some(Source::HostPath(at)) = &seen.volume.spec.source else { return };
    let field = "spec.source.hostPath.path";
    let path = Path::new(&at.path);
    if !settings.allowed_sources.iter().any(|allowed| path.starts_with(allowed)) {
        let what = format!(
            "{}: no directory above it may be adopted; ask an administrator to add one to the chart's value allowedSources",
            at.path
        );
        judged.problems.push(Problem::new("SourceNotAllowed", field, what));
        return;
    }
    let Some(node) = &judged.server else { return };
    let before = |other: &&Volume| match (server(other), seen.server()) {
        (Some(_), None) => true,
        (None, Some(_)) => false,
        _ => age(*other) < age(seen.volume),
    };
    let others = seen.volumes.values().map(AsRef::as_ref).filter(|other| other.id() != seen.id);
    let there = |other: &&Volume| server(other).or(other.spec.server.node_name.as_ref()) == Some(node);
    for other in others.filter(there).filter(before) {
        if let Some(Source::HostPath(taken)) = &other.spec.source
            && (path.starts_with(&taken.path) || Path::new(&taken.path).starts_with(path))
        {
            let what = format!(
                "{} and {} of Volume {} lie within each other on node {node}; choose another directory",
                at.path,
                taken.path,
                other.id()
            );
            judged.problems.push(Problem::new("PathTaken", field, what));
        }
    }
}

fn choose_nodes(seen: &Seen<'_>, judged: &mut Judged) {
    let Some(selector) = &seen.volume.spec.replication.node_selector else { return };
    let field = "spec.replication.nodeSelector";
    let nodes = match selected(seen.nodes, selector) {
        Ok(nodes) => nodes,
        Err(why) => {
            judged.problems.push(Problem::new("SelectorInvalid", field, why));
            // What a selector without a meaning used to say is what its Replicators are.
            let ours = seen.replicators.iter().filter(|replicator| seen.is_ours(replicator));
            judged.wanted = ours.map(|replicator| replicator.spec.node_name.clone()).collect();
            return;
        }
    };
    for node in nodes {
        if let Err(why) = dns_label(&node) {
            let what = format!("node {node} cannot take part: {why}");
            judged.warnings.push(Problem::new("NodeNameInvalid", field, what));
        } else if judged.server.as_ref() != Some(&node) {
            judged.wanted.insert(node);
        }
    }
    let by_hand =
        seen.replicators.iter().filter(|r| !seen.is_ours(r) && r.meta().deletion_timestamp.is_none());
    for replicator in by_hand {
        judged.wanted.remove(&replicator.spec.node_name);
    }
}
