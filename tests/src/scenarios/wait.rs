//! Waiting for what others see: files, whole trees, conditions. Each with a deadline and the last reason.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{NODES, PATIENCE, SYSTEM, Suite};
use crate::cluster::command::until;
use crate::walk::walk_both;

/// Between two looks at a file: short, where the time until it is seen is measured.
const LOOK: Duration = Duration::from_millis(1);

/// Looks at files until it is so; how long that took.
pub(super) fn seen(what: &str, mut is_so: impl FnMut() -> bool) -> Result<Duration> {
    let begin = Instant::now();
    while !is_so() {
        if begin.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(begin.elapsed())
}

/// Waits until a file has this content.
pub(super) fn has(path: &Path, content: &str) -> Result<Duration> {
    seen(&format!("{} to be {content:?}", path.display()), || {
        fs::read(path).is_ok_and(|found| found == content.as_bytes())
    })
}

/// Waits until something is mounted there; what root writes a moment before lands in the directory under it.
pub(super) fn mounted(path: &Path) -> Result<()> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let above = path.parent().context("the root directory")?;
    seen(
        &format!("{} to be mounted", path.display()),
        || matches!((device(path), device(above)), (Ok(here), Ok(above)) if here != above),
    )?;
    Ok(())
}

/// Waits until all trees are equal in everything that a program can see; how many names they have.
pub(super) fn equal(trees: &[PathBuf]) -> Result<usize> {
    equal_where(trees, || true)
}

/// The same, of trees that are equal by chance as long as it is not so.
pub(super) fn equal_where(trees: &[PathBuf], is_so: impl Fn() -> bool) -> Result<usize> {
    let (first, others) = trees.split_first().context("no trees")?;
    until("the nodes to be equal", PATIENCE, || {
        ensure!(is_so(), "they have not heard of each other");
        let mut names = 0;
        for other in others {
            let (one, two) = walk_both(first, other)?;
            let different: Vec<String> =
                one.differences(&two).iter().take(10).map(ToString::to_string).collect();
            ensure!(
                different.is_empty(),
                "{} and {}: {}",
                first.display(),
                other.display(),
                different.join("; ")
            );
            names = one.entries.len();
        }
        Ok(names)
    })
}

impl Suite<'_> {
    /// Waits for a condition's status; its message.
    pub(super) fn wait_condition(&self, object: &str, kind: &str, status: &str) -> Result<String> {
        until(&format!("{object} to have {kind} {status}"), PATIENCE, || {
            let (found, message) = self.condition(object, kind)?;
            ensure!(found == status, "{kind} is {found}: {message}");
            Ok(message)
        })
    }

    /// Waits until a pod's phase is `Running`.
    pub(super) fn wait_running(&self, pod: &str) -> Result<()> {
        until(&format!("pod {pod} to run"), PATIENCE, || {
            let phase = self.kubectl.run(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"])?;
            ensure!(phase == "Running", "pod {pod} is {phase}");
            Ok(())
        })
    }

    /// Waits until every part runs on every node and is ready.
    pub(super) fn wait_parts(&self) -> Result<()> {
        self.kubectl.rolled_out(SYSTEM, "deployment/intermezzo-operator", PATIENCE)?;
        // `kubectl rollout status` knows nothing of `OnDelete`.
        for part in ["intermezzo-presto", "intermezzo-lento"] {
            until(&format!("{part} to be ready everywhere"), PATIENCE, || {
                let found = self.kubectl.get(&["daemonset", part, "--namespace", SYSTEM])?;
                let ready = found.pointer("/status/numberReady").and_then(serde_json::Value::as_u64);
                ensure!(ready == Some(NODES.len() as u64), "{ready:?} of {} are ready", NODES.len());
                Ok(())
            })?;
        }
        Ok(())
    }
}
