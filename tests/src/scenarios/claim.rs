//! A Volume used through its claim, by pods of a namespace where the `restricted` standard holds.

use std::fs;

use anyhow::{Result, ensure};

use super::{NODES, PATIENCE, Suite, wait};
use crate::cluster::command::until;
use crate::cluster::pod::Pod;

const CLAIM: &str = include_str!("../../cluster/manifests/claim.yaml");
/// Of the pods.
const USER: u32 = 1000;

fn claimer(node: &str) -> String {
    include_str!("../../cluster/manifests/claimer.yaml").replace("NODE", node)
}

pub(super) fn claim(suite: &mut Suite<'_>) -> Result<String> {
    let [server, second, third] = NODES;
    suite.kubectl.run(&["label", &format!("node/{second}"), "apps=yes"])?;
    suite.kubectl.apply(CLAIM)?;
    is(suite, "the claim to be bound", &["-n", "apps", "get", "pvc", "team"], "{.status.phase}", "Bound")?;
    let tree = suite.on_node(server, "apps/team")?;
    wait::mounted(&tree)?;
    std::os::unix::fs::chown(&tree, Some(USER), Some(USER))?;

    // The standard holds: what the other scenarios' pods do is refused here.
    let by_path =
        claimer(second).replace("persistentVolumeClaim: {claimName: team}", "hostPath: {path: /run}");
    let refused = suite.kubectl.apply(&by_path).unwrap_or_else(|error| format!("{error:#}"));
    ensure!(refused.contains("violates PodSecurity"), "a pod with hostPath is not refused: {refused}");

    suite.kubectl.apply(&claimer(server))?;
    suite.kubectl.apply(&claimer(second))?;
    suite.kubectl.apply(&claimer(third))?;
    for node in [server, second] {
        is(
            suite,
            "the pod to run",
            &["-n", "apps", "get", "pod", &format!("claimer-{node}")],
            "{.status.phase}",
            "Running",
        )?;
    }
    let pod = |node: &str| Pod::named(&suite.kubectl, "apps", &format!("claimer-{node}"));
    until("a pod to write", PATIENCE, || {
        pod(second).exec(&["sh", "-c", "echo hello > /team/file"]).map(drop)
    })?;
    wait::has(&tree.join("file"), "hello\n")?;
    let found = pod(server).exec(&["cat", "/team/file"])?;
    ensure!(found.trim() == "hello", "the other pod reads {found:?}");

    // A node without the volume gets none of its pods until it has it.
    let waits = suite.kubectl.run(&[
        "-n",
        "apps",
        "get",
        "pod",
        &format!("claimer-{third}"),
        "-o",
        "jsonpath={.status.phase}{.spec.nodeName}",
    ])?;
    ensure!(waits == "Pending", "the pod of {third}, which has no replica, is {waits}");
    suite.kubectl.run(&["label", &format!("node/{third}"), "apps=yes"])?;
    is(
        suite,
        "the third pod to run",
        &["-n", "apps", "get", "pod", &format!("claimer-{third}")],
        "{.status.phase}",
        "Running",
    )?;
    until("the third pod to see the file", PATIENCE, || {
        let found = pod(third).exec(&["cat", "/team/file"])?;
        ensure!(found.trim() == "hello", "it reads {found:?}");
        Ok(())
    })?;

    for node in NODES {
        suite.kubectl.delete(&claimer(node))?;
    }
    suite.kubectl.run(&["-n", "apps", "delete", "volume/team"])?;
    until("nothing to be left of the claim", PATIENCE, || {
        let claims = suite.kubectl.run(&["-n", "apps", "get", "pvc", "-o", "name"])?;
        let volumes = suite.kubectl.run(&["get", "pv", "-o", "name"])?;
        let labels = suite.kubectl.run(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}"])?;
        ensure!(claims.is_empty() && volumes.is_empty(), "there is still {claims} {volumes}");
        ensure!(!labels.contains("mounts.intermezzo.dev"), "nodes still have the label: {labels}");
        Ok(())
    })?;
    ensure!(!fs::exists(tree.join("file"))?, "the volume is deleted and still mounted");
    suite.kubectl.run(&["delete", "namespace/apps"])?;
    for node in [second, third] {
        suite.kubectl.run(&["label", &format!("node/{node}"), "apps-"])?;
    }
    Ok("pods under the restricted standard share a volume by its claim; one waits for a node that has it; nothing is left".into())
}

/// Waits until a field of an object is this.
fn is(suite: &Suite<'_>, what: &str, object: &[&str], field: &str, wanted: &str) -> Result<()> {
    let path = format!("jsonpath={field}");
    until(what, PATIENCE, || {
        let found = suite.kubectl.run(&[object, &["-o", &path]].concat())?;
        ensure!(found == wanted, "{} is {found:?}", object.join(" "));
        Ok(())
    })
}
