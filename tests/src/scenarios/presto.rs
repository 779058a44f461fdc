//! kill -9 of presto, as `docs/kubernetes.md` says it: programs of that node lose the mount, nobody else does, and a pod that
//! starts afterwards has everything. Where a holder keeps the mounts, this is the file that changes.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{PATIENCE, Suite, kills, wait};
use crate::cluster::command::until;

const NODE: &str = "node2";

pub(super) fn killed(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    let [first, second, third] = trees.as_slice() else { bail!("three nodes are wanted") };
    for n in 0..100 {
        fs::write(second.join(format!("last-words-{n}")), format!("{n}"))?;
    }
    let user = suite.user(NODE)?;
    kills::kill(&suite.part("presto", NODE)?)?;
    // The others do not notice.
    fs::write(first.join("meanwhile"), "written on node1")?;
    wait::has(&third.join("meanwhile"), "written on node1")?;
    let lost = match fs::read_dir(second) {
        Ok(_) => "kept its mount",
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            "lost its mount"
        }
        Err(error) => bail!("the pod on {NODE} sees neither its files nor the end of its mount: {error}"),
    };
    // On the node it is there again, with what was written before.
    let on_node = suite.on_node(NODE, "default/shared")?;
    wait::has(&on_node.join("meanwhile"), "written on node1")?;
    wait::has(&first.join("last-words-99"), "99")?;
    if lost == "lost its mount" {
        suite.kubectl.run(&["delete", "pod", &user.name])?;
        until("the pod's successor", PATIENCE, || {
            let next = suite.user(NODE)?;
            ensure!(
                next.name != user.name && fs::read_dir(next.root()?.join("shared")).is_ok(),
                "it has no files yet"
            );
            Ok(())
        })?;
    }
    let trees = suite.shared()?;
    let names = wait::equal(&trees)?;
    let of_node = trees.get(1).context("no node2")?;
    fs::write(of_node.join("again"), "written on node2")?;
    for tree in &trees {
        wait::has(&tree.join("again"), "written on node2")?;
    }
    suite.wait_condition("volume/shared", "InSync", "True")?;
    Ok(format!("a pod of {NODE} {lost}, others went on; its successor has all {names} names, and writes"))
}
