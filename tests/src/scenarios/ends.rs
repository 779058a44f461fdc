//! How things end: Volumes, with a node that does not answer too, and the whole installation, which leaves nothing but data.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::install::{DELETION_DEADLINE, shared};
use super::{MOUNTS, NODES, PATIENCE, SYSTEM, Suite, user_of, volume, wait};
use crate::cluster::command::until;
use crate::cluster::pod::Pod;

const RUN: &str = "/run/intermezzo";
const CACHE: &str = "/var/lib/intermezzo/cache";
/// As proc(5) has their names: at most 15 bytes.
const PROGRAMS: [&str; 3] = ["presto", "lento", "intermezzo-oper"];

pub(super) fn volumes(suite: &mut Suite<'_>) -> Result<String> {
    let kept = suite.retained()?;
    let waited = suite.stuck()?;
    Ok(format!("{kept}; with a node cut off its end took {:.0} s", waited.as_secs_f64()))
}

pub(super) fn uninstall(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    fs::write(trees.first().context("no nodes")?.join("survives"), "the uninstallation")?;
    let names = wait::equal(&trees)?;
    suite.wait_condition("volume/shared", "InSync", "True")?;
    suite.kubectl.run(&["delete", "daemonset/user"])?;
    suite
        .cluster
        .helm()
        .run_within(&["uninstall", "intermezzo", "--namespace", SYSTEM, "--wait"], PATIENCE)?;
    for node in NODES {
        suite.is_clean(node)?;
        let file = suite.path_of(node, CACHE)?.join("default/shared");
        ensure!(file.is_dir(), "the data of {node} is gone: {}", file.display());
    }
    let volumes = suite.kubectl.run(&["get", "volumes", "-o", "name"])?;
    ensure!(volumes.lines().any(|name| name.ends_with("/shared")), "Volumes are {volumes:?}");

    let begin = Instant::now();
    suite.helm_install()?;
    suite.kubectl.apply(&shared())?;
    suite.first_file("once more")?;
    let again = begin.elapsed();
    let trees = suite.shared()?;
    for tree in &trees {
        wait::has(&tree.join("survives"), "the uninstallation")?;
    }
    let now = wait::equal(&trees)?;
    ensure!(now >= names, "{now} names, {names} before");
    suite.wait_condition("volume/shared", "InSync", "True")?;
    Ok(format!(
        "no mount, process or socket left on any node; installed again, Volume and all {names} names there after {:.1} s",
        again.as_secs_f64()
    ))
}

impl Suite<'_> {
    /// `deletionPolicy: Retain`, with a pod that uses it.
    fn retained(&self) -> Result<String> {
        let spec = "server: {nodeName: node1}\nreplication: {nodeSelector: {}}";
        self.kubectl.apply(&volume("kept", spec))?;
        self.wait_condition("volume/kept", "Ready", "True")?;
        let places: Vec<_> =
            NODES.iter().map(|node| self.on_node(node, "default/kept")).collect::<Result<_>>()?;
        let (first, last) = (places.first().context("no node")?, places.last().context("no node")?);
        for place in &places {
            wait::mounted(place)?;
        }
        fs::write(first.join("data"), "to keep")?;
        wait::has(&last.join("data"), "to keep")?;
        self.kubectl.apply(&user_of("kept", "reader"))?;
        self.wait_running("reader")?;
        let inside = Pod::named(&self.kubectl, "default", "reader").root()?.join("kept");
        wait::has(&inside.join("data"), "to keep")?;

        let begin = Instant::now();
        self.kubectl.delete(&volume("kept", spec))?;
        let took = begin.elapsed();
        for (node, place) in NODES.iter().zip(&places) {
            wait::seen("the mount to go", || !place.join("data").exists())?;
            let mounts = fs::read_to_string(self.cluster.node(node)?.root()?.join("proc/1/mounts"))?;
            ensure!(!mounts.contains("default/kept "), "{node} has it mounted: {mounts}");
            let found = find(&self.path_of(node, CACHE)?.join("default/kept"), "data")?;
            ensure!(fs::read_to_string(&found)? == "to keep", "the data of {node} is gone");
        }
        // Whoever had it open is told, and does not hang.
        let path = inside.join("data");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(fs::write(path, "too late")));
        let Ok(written) = told.recv_timeout(PATIENCE) else { bail!("a write in the pod hangs") };
        self.kubectl.delete(&user_of("kept", "reader"))?;
        let found = find(&self.path_of("node2", CACHE)?.join("default/kept"), "data")?;
        let content = fs::read_to_string(&found)?;
        ensure!(written.is_err() && content == "to keep", "a write after the end: {written:?}, {content:?}");
        Ok(format!("deleted in {:.1} s, unmounted everywhere, data kept", took.as_secs_f64()))
    }

    /// `deletionPolicy: Delete` while a node is cut off: it is waited for, and not for ever.
    fn stuck(&self) -> Result<Duration> {
        let manifest = volume(
            "stuck",
            "server: {nodeName: node1}\nreplication: {nodeSelector: {}}\ndeletionPolicy: Delete",
        );
        self.kubectl.apply(&manifest)?;
        self.wait_condition("volume/stuck", "InSync", "True")?;
        let place = self.on_node("node3", "default/stuck")?;
        wait::mounted(&place)?;
        fs::write(place.join("data"), "to go")?;
        self.keep_an_operator_off("node3")?;
        self.cluster.partition("node3")?;
        let begin = Instant::now();
        let deleted = self.kubectl.delete(&manifest);
        let took = begin.elapsed();
        let events = self.kubectl.run(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=stuck",
            "-o",
            "wide",
        ]);
        self.cluster.heal("node3")?;
        deleted?;
        let events = events?;
        ensure!(
            events.contains("DataLeft") && events.contains("node3"),
            "no event says what is left: {events}"
        );
        ensure!(events.contains("DataRemoved"), "no event says what is removed: {events}");
        for node in ["node1", "node2"] {
            let cache = self.path_of(node, CACHE)?.join("default/stuck");
            ensure!(!cache.exists(), "the data of {node} is not removed: {}", cache.display());
        }
        let deadline = Duration::from_secs(DELETION_DEADLINE);
        ensure!(took + Duration::from_secs(1) >= deadline, "node3 was not waited for: {took:?}");
        // When it is back it lets go too.
        wait::seen("node3 to unmount", || !place.join("data").exists())?;
        until("node3 to be ready", PATIENCE, || {
            ensure!(self.kubectl.ready_nodes()?.contains("node3"), "node3 is not ready");
            Ok(())
        })?;
        Ok(took)
    }

    /// After a time in which only one node was ready all operators may be on it, and would be cut off with it.
    fn keep_an_operator_off(&self, node: &str) -> Result<()> {
        let selector = "app.kubernetes.io/component=operator";
        let column = "-o=custom-columns=NAME:.metadata.name,NODE:.spec.nodeName";
        let get = ["get", "pods", "--namespace", SYSTEM, "--selector", selector, "--no-headers", column];
        until("an operator on another node", PATIENCE, || {
            let pods = self.kubectl.run(&get)?;
            let all: Vec<_> = pods.lines().filter_map(|pod| pod.split_once(char::is_whitespace)).collect();
            if all.iter().all(|(_, at)| at.trim() == node)
                && let Some((name, _)) = all.first()
            {
                self.kubectl.run(&["delete", "pod", "--namespace", SYSTEM, name])?;
                bail!("all operators are on {node}: {pods}");
            }
            Ok(())
        })?;
        let rollout =
            ["rollout", "status", "--namespace", SYSTEM, "deployment/intermezzo-operator", "--timeout=60s"];
        self.kubectl.run(&rollout).map(drop)
    }

    /// No mount, no process, no socket.
    fn is_clean(&self, node: &str) -> Result<()> {
        let machine = self.cluster.node(node)?;
        let root = machine.root()?;
        until(&format!("{node} to be clean"), PATIENCE, || {
            let mounts = fs::read_to_string(root.join("proc/1/mounts"))?;
            let ours: Vec<&str> = mounts.lines().filter(|line| line.contains("intermezzo")).collect();
            ensure!(ours.is_empty(), "mounts are left on {node}: {ours:?}");
            let programs = machine.run("sh", &["-c", "cat /proc/[0-9]*/comm 2>/dev/null || true"])?;
            let left: Vec<&str> = programs.lines().filter(|name| PROGRAMS.contains(name)).collect();
            ensure!(left.is_empty(), "{left:?} run on {node}");
            for dir in [RUN, &format!("{MOUNTS}/default")] {
                let entries =
                    fs::read_dir(root.join(dir.trim_start_matches('/'))).into_iter().flatten().flatten();
                // The marks of lives belong to the data, which stays: they tell a kill from a power cut.
                let names: Vec<_> = entries
                    .map(|entry| entry.file_name())
                    .filter(|name| Path::new(name).extension() != Some("life".as_ref()))
                    .collect();
                ensure!(names.is_empty(), "{dir} of {node} has {names:?}");
            }
            Ok(())
        })
    }
}

/// The only file of this name below a directory.
fn find(dir: &Path, name: &str) -> Result<std::path::PathBuf> {
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else if entry.file_name() == name {
                return Ok(entry.path());
            }
        }
    }
    bail!("there is no {name} below {}", dir.display())
}
