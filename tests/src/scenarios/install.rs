//! helm: lint, install, test.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{MOUNTS, PATIENCE, SYSTEM, Suite, volume, wait};
use crate::cluster::images::SANDBOX;

/// For helm's own waits.
const HELM: Duration = Duration::from_secs(300);
/// How long the deletion of a Volume waits for nodes that do not answer; minutes by default.
pub(super) const DELETION_DEADLINE: u64 = 20;

/// From `helm install` to the first file that a pod of one node wrote and a pod of another read.
pub(super) fn install(suite: &mut Suite<'_>) -> Result<String> {
    let chart = suite.chart.display().to_string();
    let lint = suite.cluster.helm().run_within(&["lint", "--strict", &chart], HELM)?;
    ensure!(lint.contains("0 chart(s) failed"), "helm lint: {lint}");
    let begin = Instant::now();
    suite.helm_install()?;
    suite.kubectl.apply(&shared())?;
    let first_file = suite.first_file("from node1")?;
    let total = begin.elapsed();
    suite.wait_condition("volume/shared", "Ready", "True")?;
    suite.list_is("volume/shared", "node2 node3")?;
    Ok(format!(
        "{:.1} s from `helm install` to a file that node1 wrote and node2 and node3 read ({} ms after the write)",
        total.as_secs_f64(),
        first_file.as_millis()
    ))
}

/// The chart's own test.
pub(super) fn helm_test(suite: &mut Suite<'_>) -> Result<String> {
    suite
        .cluster
        .helm()
        .run_within(&["test", "intermezzo", "--namespace", SYSTEM, "--timeout", "240s"], HELM)?;
    Ok("`helm test` passes".into())
}

impl Suite<'_> {
    pub(super) fn helm_install(&self) -> Result<()> {
        let (chart, image) = (self.chart.display().to_string(), format!("tests.image={SANDBOX}"));
        let deadline = format!("operator.deletionDeadlineSeconds={DELETION_DEADLINE}");
        self.cluster.helm().run_within(
            &[
                "install",
                "intermezzo",
                &chart,
                "--namespace",
                SYSTEM,
                "--create-namespace",
                "--set",
                &image,
                "--set",
                &deadline,
            ],
            HELM,
        )?;
        Ok(())
    }

    /// A file from the first node's pod to the others'; how long after the write it was there.
    pub(super) fn first_file(&self, content: &str) -> Result<Duration> {
        self.kubectl.rolled_out("default", "daemonset/user", PATIENCE)?;
        let trees = self.shared()?;
        let (first, others) = trees.split_first().context("no nodes")?;
        fs::write(first.join("first"), content).context("node1 cannot write")?;
        let mut slowest = Duration::ZERO;
        for other in others {
            slowest = slowest.max(wait::has(&other.join("first"), content)?);
        }
        Ok(slowest)
    }
}

/// The Volume of most scenarios, and its users. Their path is checked by the kubelet: no pod starts without the volume.
pub(super) fn shared() -> String {
    let volume = volume("shared", "server: {nodeName: node1}\nreplication: {nodeSelector: {}}");
    let users = include_str!("../../cluster/manifests/users.yaml").replace("MOUNTS", MOUNTS);
    format!("{volume}---\n{users}")
}
