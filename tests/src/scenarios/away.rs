//! Operator and API server are away: programs write, updates travel, an agent that is killed comes back by itself.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{NODES, PATIENCE, SYSTEM, Suite, kills, wait};
use crate::cluster::command::until;

pub(super) fn away(suite: &mut Suite<'_>) -> Result<String> {
    // While kubectl answers.
    let trees = suite.shared()?;
    let scale = |to: &str| {
        suite.kubectl.run(&[
            "scale",
            "deployment/intermezzo-operator",
            "--namespace",
            SYSTEM,
            "--replicas",
            to,
        ])
    };
    scale("0")?;
    until("the operators to end", PATIENCE, || {
        let selector = "app.kubernetes.io/component=operator";
        let left = suite.kubectl.run(&[
            "get",
            "pods",
            "--namespace",
            SYSTEM,
            "--selector",
            selector,
            "-o",
            "name",
        ])?;
        ensure!(left.is_empty(), "there is {left}");
        Ok(())
    })?;
    suite.cluster.stop("kube-apiserver")?;
    let begin = Instant::now();
    let went_on = suite.goes_on(&trees);
    let gone = begin.elapsed();
    suite.cluster.restart("kube-apiserver")?;
    until("the API server to be back", PATIENCE, || suite.kubectl.run(&["get", "--raw", "/readyz"]))?;
    suite.kubectl.run(&[
        "scale",
        "deployment/intermezzo-operator",
        "--namespace",
        SYSTEM,
        "--replicas",
        "2",
    ])?;
    let restarts = went_on?;
    suite.wait_parts()?;
    suite.wait_condition("volume/shared", "InSync", "True")?;
    wait::equal(&trees)?;
    Ok(format!(
        "{:.0} s without both: writes on every node seen on every node; {restarts} lentos killed meanwhile went on from their disks",
        gone.as_secs_f64()
    ))
}

impl Suite<'_> {
    fn goes_on(&self, trees: &[std::path::PathBuf]) -> Result<usize> {
        self.everybody_writes(trees, "away")?;
        let killed = [NODES[1], NODES[0]];
        for node in killed {
            let machine = self.cluster.node(node)?;
            let before = machine.processes("lento")?;
            ensure!(before.len() == 1, "{} lentos on {node}", before.len());
            kills::end(before.first().context("no lento")?)?;
            until(&format!("another lento on {node}"), PATIENCE, || {
                let now = machine.processes("lento")?;
                ensure!(now.len() == 1 && now != before, "there is none");
                Ok(())
            })?;
            self.everybody_writes(trees, &format!("away-{node}"))?;
        }
        Ok(killed.len())
    }

    fn everybody_writes(&self, trees: &[std::path::PathBuf], name: &str) -> Result<()> {
        for (node, tree) in NODES.iter().zip(trees) {
            fs::write(tree.join(format!("{name}-by-{node}")), *node)?;
        }
        for (node, tree) in NODES.iter().flat_map(|node| trees.iter().map(move |tree| (node, tree))) {
            wait::has(&tree.join(format!("{name}-by-{node}")), node)?;
        }
        Ok(())
    }
}
