//! kill -9 of every component, one after the other, while programs work on every node and check what they did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use intermezzo::fleet::process::{Recorded, Signal};

use super::{NODES, PATIENCE, SYSTEM, Suite, wait};
use crate::cluster::command::until;
use crate::cluster::pod::Pod;
use crate::workload::{Mount, Worker};

/// Work before the first kill and after each.
const WORK: Duration = Duration::from_secs(2);

pub(super) fn kills(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    let before = suite.conflicts()?.len();
    let stop = AtomicBool::new(false);
    let mut workers = Vec::new();
    for (seed, (node, tree)) in (1..).zip(NODES.iter().zip(&trees)) {
        let mount = Arc::new(Mount::new(node, tree.clone()));
        workers.push(Worker::new(mount, &format!("worker-{node}"), suite.scratch, seed)?);
    }
    let killed = std::thread::scope(|scope| {
        let threads: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| work(worker, &stop))).collect();
        let killed = suite.kill_all(&stop);
        stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        killed
    })?;
    let steps: u64 = workers.iter().map(|worker| worker.done).sum();
    let failed: u64 = workers.iter().map(|worker| worker.failed).sum();
    ensure!(failed == 0, "{failed} steps failed, and presto was never killed");
    let names = wait::equal(&trees)?;
    for (node, tree) in NODES.iter().zip(&trees) {
        for worker in &workers {
            worker.check(node, tree)?;
        }
    }
    let after = suite.conflicts()?.len();
    ensure!(
        after == before,
        "{after} conflicts, {before} before; everybody worked in a directory of his own"
    );
    Ok(format!(
        "{}: {steps} steps, none failed, none lost; {names} names equal on three nodes",
        killed.join(", ")
    ))
}

fn work(worker: &mut Worker, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        if let Err(error) = worker.step() {
            stop.store(true, Ordering::SeqCst);
            return Err(error);
        }
    }
    Ok(())
}

impl Suite<'_> {
    fn kill_all(&mut self, stop: &AtomicBool) -> Result<Vec<&'static str>> {
        let mut killed = Vec::new();
        let mut goes_on = |what: &'static str| {
            killed.push(what);
            std::thread::sleep(WORK);
            ensure!(!stop.load(Ordering::SeqCst), "the workload failed after the end of {what}");
            Ok(())
        };
        goes_on("nobody")?;
        for (what, node) in [("the server's lento", "node1"), ("a client's lento", "node2")] {
            let pod = self.part("lento", node)?;
            kill(&pod)?;
            goes_on(what)?;
        }
        let operators = "app.kubernetes.io/component=operator";
        for node in NODES {
            // Both of them: one leads.
            if let Ok(pod) = Pod::of(&self.kubectl, SYSTEM, operators, node) {
                kill(&pod)?;
            }
        }
        goes_on("the operators")?;
        for program in ["kubelet", "containerd"] {
            self.cluster.stop_on("node3", program)?;
            std::thread::sleep(WORK);
            self.cluster.restart_on("node3", program)?;
            // A kubelet that begins while there is no containerd ends again, and nobody starts it a second time here.
            self.reports_again("node3")?;
        }
        goes_on("kubelet and containerd")?;
        until("node3 to be ready", PATIENCE, || {
            ensure!(self.kubectl.ready_nodes()?.contains("node3"), "node3 is not ready");
            Ok(())
        })?;
        self.wait_parts()?;
        Ok(killed.split_off(1))
    }

    /// The node's kubelet renews its Lease.
    fn reports_again(&self, node: &str) -> Result<()> {
        let lease =
            ["get", "lease", node, "--namespace", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"];
        let before = self.kubectl.run(&lease)?;
        until(&format!("{node} to report"), PATIENCE, || {
            ensure!(self.kubectl.run(&lease)? != before, "its Lease is of {before}");
            Ok(())
        })
    }

    /// Paths of the Conflicts of `default`.
    pub(super) fn conflicts(&self) -> Result<Vec<String>> {
        let paths = self.kubectl.run(&[
            "get",
            "conflicts",
            "-o",
            "jsonpath={range .items[*]}{.spec.path}{\"\\n\"}{end}",
        ])?;
        Ok(paths.lines().map(str::to_owned).collect())
    }
}

/// Ends the first process of a pod; the kubelet starts it again.
pub(super) fn kill(pod: &Pod) -> Result<()> {
    let before = pod.process()?;
    end(&before).with_context(|| format!("pod {}", pod.name))?;
    until(&format!("{} to be started again", pod.name), PATIENCE, || {
        ensure!(pod.process()? != before, "it is the same process");
        Ok(())
    })
}

/// kill -9.
pub(super) fn end(process: &Recorded) -> Result<()> {
    process.signal(Signal::Kill);
    ensure!(process.wait(PATIENCE), "process {} does not end", process.pid);
    Ok(())
}
