//! Wrong objects: refused with a sentence that says what to write instead, or given a condition that names the field; and a
//! broken object harms no other.

use anyhow::{Result, bail, ensure};

use super::{PATIENCE, Suite, replicator, volume, wait};
use crate::cluster::command::until;

/// What the API server refuses itself: (lines of the spec, what the sentence says).
const VOLUMES: [(&str, &str); 7] = [
    ("server: {}", "exactly one of the two"),
    ("server: {nodeName: node1, nodeSelector: {}}", "exactly one of the two"),
    ("server: {nodeName: Node_1}", "must be a DNS label"),
    ("server: {nodeName: node1}\nwrites: Sometimes", "Unsupported value: \"Sometimes\""),
    ("server: {nodeName: node1}\nlog: {maxBytes: 4096}", "should be greater than or equal to 67108864"),
    ("server: {nodeName: node1}\nsource: {hostPath: {path: srv/data}}", "write an absolute path"),
    ("server: {nodeName: node1}\nsource: {hostPath: {path: /srv/../etc}}", "write the path without `..`"),
];

/// What only the operator can know: (name, lines of the spec, what the condition says).
const UNACCEPTED: [(&str, &str, &str); 3] = [
    ("no-such-node", "server: {nodeName: node9}", "spec.server.nodeName"),
    ("nobody-matches", "server: {nodeSelector: {matchLabels: {disk: none}}}", "spec.server.nodeSelector"),
    (
        "not-allowed",
        "server: {nodeName: node1}\nsource: {hostPath: {path: /srv/data}}",
        "spec.source.hostPath.path",
    ),
];

const REPLICATORS: [(&str, &str, &str); 2] = [
    ("of-nothing", "volume: nothing\nnodeName: node2", "spec.volume"),
    ("of-the-server", "volume: shared\nnodeName: node1", "spec.nodeName"),
];

pub(super) fn refused(suite: &mut Suite<'_>) -> Result<String> {
    for (spec, sentence) in VOLUMES {
        suite.is_refused(&volume("wrong", spec), sentence)?;
    }
    suite.is_refused(&volume("Wrong_Name", "server: {nodeName: node1}"), "Wrong_Name")?;
    suite.is_refused(&volume("shared", "server: {nodeName: node2}"), "cannot be moved")?;
    suite.is_refused(&replicator("wrong", "volume: shared"), "nodeName")?;
    suite.is_refused(&replicator("wrong", "volume: Shared\nnodeName: node2"), "must be a DNS label")?;
    let made = suite.kubectl.run(&["get", "replicators", "-o", "jsonpath={.items[0].metadata.name}"])?;
    suite.is_refused(&replicator(&made, "volume: shared\nnodeName: node1"), "nodeName cannot be changed")?;
    let server = suite.kubectl.run(&["get", "volume/shared", "-o", "jsonpath={.status.server}"])?;
    ensure!(server == "node1", "the server is {server} now");
    Ok(format!("{} wrong objects refused, each with what to write instead", VOLUMES.len() + 5))
}

pub(super) fn conditions(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    let mut all = Vec::new();
    for (name, spec, field) in UNACCEPTED {
        all.push((format!("volume/{name}"), volume(name, spec), field));
    }
    for (name, spec, field) in REPLICATORS {
        all.push((format!("replicator/{name}"), replicator(name, spec), field));
    }
    let manifests: Vec<&str> = all.iter().map(|(_, manifest, _)| manifest.as_str()).collect();
    let manifests = manifests.join("---\n");
    suite.kubectl.apply(&manifests)?;
    for (object, _, field) in &all {
        let message = suite.wait_condition(object, "Accepted", "False")?;
        ensure!(message.contains(field), "{object}: its condition does not name {field}: {message}");
    }
    // The others go on, and a new one beside the broken ones begins.
    let (Some(first), Some(last)) = (trees.first(), trees.last()) else { bail!("no nodes") };
    std::fs::write(last.join("beside"), "broken objects")?;
    wait::has(&first.join("beside"), "broken objects")?;
    suite.kubectl.apply(&volume("right", "server: {nodeName: node3}"))?;
    suite.wait_condition("volume/right", "Ready", "True")?;
    suite.kubectl.delete(&volume("right", "server: {nodeName: node3}"))?;
    suite.kubectl.delete(&manifests)?;
    until("the broken objects to go", PATIENCE, || {
        let left = suite.kubectl.run(&["get", "volumes", "-o", "name"])?;
        ensure!(left.lines().eq(["volume.intermezzo.dev/shared"]), "volumes are {left}");
        Ok(())
    })?;
    Ok(format!("{} objects not accepted, each condition names the field; the others go on", all.len()))
}

impl Suite<'_> {
    fn is_refused(&self, manifest: &str, sentence: &str) -> Result<()> {
        let Err(error) = self.kubectl.apply(manifest) else {
            bail!("the API server takes what it shall refuse ({sentence}):\n{manifest}")
        };
        let said = format!("{error:#}");
        ensure!(said.contains(sentence), "it is refused, but not with {sentence:?}: {said}");
        Ok(())
    }
}
