//! Who has a replica: labels of nodes, Replicators by hand, paused ones.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{PATIENCE, Suite, replicator, volume, wait};
use crate::cluster::command::until;

const VOLUME: &str = "server: {nodeName: node1}\nreplication: {nodeSelector: {matchLabels: {team: blue}}}";
/// Long enough that what is paused would have come.
const QUIET: Duration = Duration::from_secs(3);

/// A label makes a Replicator; without it, what was written there is at the server before the Replicator goes.
pub(super) fn membership(suite: &mut Suite<'_>) -> Result<String> {
    suite.kubectl.apply(&volume("labelled", VOLUME))?;
    suite.wait_condition("volume/labelled", "Ready", "True")?;
    let server = suite.on_node("node1", "default/labelled")?;
    fs::write(server.join("before"), "the label")?;
    suite.list_is("volume/labelled", "")?;

    suite.kubectl.run(&["label", "node/node2", "team=blue"])?;
    suite.list_is("volume/labelled", "node2")?;
    let replica = suite.on_node("node2", "default/labelled")?;
    wait::has(&replica.join("before"), "the label")?;

    for n in 0..200 {
        fs::write(replica.join(format!("last-{n}")), format!("words {n}"))?;
    }
    suite.kubectl.run(&["label", "node/node2", "team-"])?;
    suite.list_is("volume/labelled", "")?;
    until("the Replicator to go", PATIENCE, || {
        let selector = "jsonpath={.items[?(@.spec.volume==\"labelled\")].metadata.name}";
        let left = suite.kubectl.run(&["get", "replicators", "-o", selector])?;
        ensure!(left.is_empty(), "there is still {left}");
        Ok(())
    })?;
    for n in 0..200 {
        let path = server.join(format!("last-{n}"));
        let found = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
        ensure!(found == format!("words {n}"), "{}: {found}", path.display());
    }
    wait::seen("node2 to unmount", || !replica.join("before").exists())?;
    Ok("a label makes a Replicator; without it the last 200 files are at the server, then it goes".into())
}

/// A Replicator on a node that no selector takes, paused and resumed.
pub(super) fn by_hand_and_paused(suite: &mut Suite<'_>) -> Result<String> {
    let server = suite.on_node("node1", "default/labelled")?;
    suite.kubectl.apply(&replicator("by-hand", "volume: labelled\nnodeName: node3"))?;
    suite.list_is("volume/labelled", "node3")?;
    let replica = suite.on_node("node3", "default/labelled")?;
    wait::has(&replica.join("last-7"), "words 7")?;
    suite.wait_condition("replicator/by-hand", "InSync", "True")?;

    suite.kubectl.apply(&replicator("by-hand", "volume: labelled\nnodeName: node3\npaused: true"))?;
    suite.wait_condition("replicator/by-hand", "Connected", "False")?;
    fs::write(server.join("meanwhile"), "at the server")?;
    fs::write(replica.join("here"), "on node3")?;
    std::thread::sleep(QUIET);
    ensure!(!replica.join("meanwhile").exists(), "a paused Replicator receives");
    ensure!(!server.join("here").exists(), "a paused Replicator sends");
    suite.kubectl.apply(&replicator("by-hand", "volume: labelled\nnodeName: node3\npaused: false"))?;
    wait::has(&replica.join("meanwhile"), "at the server")?;
    wait::has(&server.join("here"), "on node3")?;
    wait::equal(&[server, replica])?;
    suite.wait_condition("replicator/by-hand", "InSync", "True")?;
    suite.kubectl.delete(&replicator("by-hand", "volume: labelled\nnodeName: node3"))?;
    suite.kubectl.delete(&volume("labelled", VOLUME))?;
    Ok("a Replicator by hand joins, is held back while paused, and catches up both ways".into())
}

impl Suite<'_> {
    /// Waits until the replication list of a Volume is this.
    pub(super) fn list_is(&self, object: &str, nodes: &str) -> Result<()> {
        until(&format!("the replication list of {object} to be {nodes:?}"), PATIENCE, || {
            let list = self.kubectl.run(&["get", object, "-o", "jsonpath={.status.replicationList[*]}"])?;
            ensure!(list == nodes, "it is {list:?}");
            Ok(())
        })
    }
}
