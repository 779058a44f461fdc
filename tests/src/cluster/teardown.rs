//! Taking a cluster away: machines (and with them processes, mounts and links), control groups of its containers, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use intermezzo::fleet::mounts;

use super::Cluster;
use super::machine::Machine;

/// For the kernel to finish with processes and namespaces that were ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// containerd's name for what belongs to Kubernetes, in paths of control groups too.
const NAMESPACE: &str = "k8s.io";

/// Takes everything of the cluster in `dir` away, whatever state it is in.
///
/// # Errors
/// What is left, and why. Calling it again goes on.
pub fn down(dir: &Path) -> Result<()> {
    let cluster = Cluster::open(dir)?;
    let machines: Vec<&Machine> = std::iter::once(&cluster.control).chain(&cluster.nodes).collect();
    let containers: Vec<String> = machines.iter().flat_map(|machine| containers(machine)).collect();
    for machine in &machines {
        machine.end()?;
    }
    cluster.network.disconnect(&cluster.dir)?;
    for group in control_groups(&containers) {
        remove_group(&group)?;
    }
    remove(&cluster.dir)
}

/// Containers that the node's containerd knows: it has a directory for each.
fn containers(machine: &Machine) -> Vec<String> {
    let tasks = machine.path("/run/containerd/io.containerd.runtime.v2.task").join(NAMESPACE);
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Their control groups: one in each hierarchy.
fn control_groups(containers: &[String]) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchies = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| Path::new(point).join(NAMESPACE))
    });
    let mut groups: Vec<PathBuf> = Vec::new();
    for hierarchy in hierarchies {
        groups.extend(containers.iter().map(|container| hierarchy.join(container)));
        // Refused while it holds anybody else's.
        groups.push(hierarchy);
    }
    groups.retain(|group| group.is_dir());
    groups
}

fn remove_group(group: &Path) -> Result<()> {
    let is_shared = group.file_name().is_some_and(|name| name == NAMESPACE);
    let begin = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Ok(()) => return Ok(()),
            Err(_) if is_shared => return Ok(()),
            // Its processes were ended, and may not be gone yet.
            Err(_) if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => {
                return Err(error).with_context(|| format!("the control group {} stays", group.display()));
            }
        }
    }
}

/// Removes the directory, never through a mount.
fn remove(dir: &Path) -> Result<()> {
    let begin = Instant::now();
    while !mounts::below(dir).is_empty() {
        if begin.elapsed() > PATIENCE {
            bail!("there are mounts below {} still, so it is left in place", dir.display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // Directories below which volumes were mounted are immutable, so that nobody writes into them by mistake.
    let _ = Command::new("find")
        .arg(dir)
        .args(["-xdev", "-type", "d", "-path", "*/mounts/*", "-exec", "chattr", "-f", "-i", "{}", "+"])
        .status();
    let removed = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(dir).status()?;
    ensure!(removed.success(), "{} cannot be removed", dir.display());
    Ok(())
}
