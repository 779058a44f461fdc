//! What must hold within and between objects, whoever runs them.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use ignore::gitignore::GitignoreBuilder;

use super::error::{Problem, Problems};
use super::{Manifests, namespace};
use crate::names::dns_label;
use crate::volume::Source;
use crate::{Replicator, Volume};

impl Manifests {
    /// Names are DNS labels; each Volume has one server; each Replicator names a Volume that is there, on a node that is
    /// neither its server nor taken by another Replicator of it.
    pub fn check(&self, problems: &mut Problems) {
        for (id, volume) in &self.volumes {
            let file = self.file("Volume", id);
            let mut wrong =
                |field: &str, why: String| problems.push(Problem::object(file, "Volume", id, field, why));
            check_volume(volume, &mut wrong);
        }
        let mut taken: BTreeMap<(String, &str), &str> = BTreeMap::new();
        for (id, replicator) in &self.replicators {
            let file = self.file("Replicator", id);
            let mut wrong =
                |field: &str, why: String| problems.push(Problem::object(file, "Replicator", id, field, why));
            check_replicator(replicator, &mut wrong);
            let (volume, node) = (replicator.volume_id(), replicator.spec.node_name.as_str());
            match self.volumes.get(&volume) {
                None => wrong("spec.volume", format!("there is no Volume {volume}")),
                Some(found) if found.server_node() == Some(node) => wrong(
                    "spec.nodeName",
                    format!("node {node} is the server of {volume}, which needs no Replicator"),
                ),
                Some(_) => {}
            }
            if let Some(other) = taken.insert((volume, node), id) {
                wrong("spec.nodeName", format!("node {node} already has Replicator {other} of this volume"));
            }
        }
    }
}

fn check_names(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    wrong: &mut dyn FnMut(&str, String),
) {
    if let Err(why) = dns_label(metadata.name.as_deref().unwrap_or_default()) {
        wrong("metadata.name", why);
    }
    if let Err(why) = dns_label(namespace(metadata)) {
        wrong("metadata.namespace", why);
    }
}

pub(super) fn check_volume(volume: &Volume, wrong: &mut dyn FnMut(&str, String)) {
    check_names(&volume.metadata, wrong);
    let server = &volume.spec.server;
    match (&server.node_name, &server.node_selector) {
        (None, None) => wrong("spec.server", "name one node (nodeName) or a selector (nodeSelector)".into()),
        (Some(_), Some(_)) => wrong("spec.server", "nodeName and nodeSelector exclude each other".into()),
        (Some(node), None) => {
            if let Err(why) = dns_label(node) {
                wrong("spec.server.nodeName", why);
            }
        }
        (None, Some(_)) => {}
    }
    if let Some(Source::HostPath(at)) = &volume.spec.source {
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !at.path.starts_with('/') || !Path::new(&at.path).components().all(plain) {
            let why = format!("{:?} is not an absolute path without `..`", at.path);
            wrong("spec.source.hostPath.path", why);
        }
    }
    for (at, pattern) in volume.spec.exclude.iter().enumerate() {
        if let Err(why) = GitignoreBuilder::new("").add_line(None, pattern) {
            wrong(&format!("spec.exclude[{at}]"), format!("{pattern:?} is no pattern of .gitignore: {why}"));
        }
    }
    if let Some(name) = volume.spec.claim.as_ref().and_then(|claim| claim.name.as_ref())
        && let Err(why) = dns_label(name)
    {
        wrong("spec.claim.name", why);
    }
    let limits = &volume.spec.limits;
    for (field, limit) in [("maxBytes", limits.max_bytes), ("maxInodes", limits.max_inodes)] {
        if limit == Some(0) {
            wrong(
                &format!("spec.limits.{field}"),
                "0 is no limit: leave the field out, or write 1 or more".into(),
            );
        }
    }
    if let Some(bytes) = volume.spec.log.max_bytes
        && bytes < MIN_LOG_BYTES
    {
        wrong(
            "spec.log.maxBytes",
            format!("{bytes} is too small; at least {MIN_LOG_BYTES} (64 MiB) are needed"),
        );
    }
}

pub(super) fn check_replicator(replicator: &Replicator, wrong: &mut dyn FnMut(&str, String)) {
    check_names(&replicator.metadata, wrong);
    if let Err(why) = dns_label(&replicator.spec.node_name) {
        wrong("spec.nodeName", why);
    }
}

/// Smallest journal: four segments, of which two are kept for replays and verdicts.
const MIN_LOG_BYTES: u64 = 64 << 20;
