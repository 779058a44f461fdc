//! What a person wants to see when something failed.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use intermezzo::fleet::process::tail;

use super::Cluster;

/// What is said about the cluster, and where: (file name, arguments of kubectl).
const OBJECTS: [(&str, &[&str]); 4] = [
    ("nodes.txt", &["describe", "nodes"]),
    ("pods.txt", &["describe", "pods", "--all-namespaces"]),
    ("events.txt", &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]),
    ("intermezzo.yaml", &["get", "intermezzo", "--all-namespaces", "-o", "yaml"]),
];

/// A short text: which programs ended by themselves, with the ends of their logs.
#[must_use]
pub fn explain(cluster: &Cluster) -> String {
    let mut text = String::from("the cluster failed");
    for machine in std::iter::once(&cluster.control).chain(&cluster.nodes) {
        for program in machine.ended() {
            let end = tail(&machine.log(program), 15);
            let _ = write!(text, "\n{program} on {} has ended; the end of its log:\n{end}", machine.name);
        }
    }
    text
}

/// Copies all logs (programs, pods) and descriptions of all objects into a directory. Best effort: a cluster that failed
/// may not answer.
pub fn collect(cluster: &Cluster, into: &Path) {
    for machine in std::iter::once(&cluster.control).chain(&cluster.nodes) {
        let to = into.join(&machine.name);
        copy(&machine.dir.join("logs"), &to.join("programs"));
        copy(&machine.path("/var/log/pods"), &to.join("pods"));
    }
    let kubectl = cluster.kubectl();
    for (name, arguments) in OBJECTS {
        let said = kubectl.run(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
        let _ = fs::write(into.join(name), said);
    }
}

/// Copies the files of a tree; logs of pods are links to where containerd writes, or files.
fn copy(from: &Path, to: &Path) {
    let mut waiting: Vec<PathBuf> = vec![from.to_owned()];
    while let Some(dir) = waiting.pop() {
        let Ok(below) = dir.strip_prefix(from) else { continue };
        let into = to.join(below);
        let _ = fs::create_dir_all(&into);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let _ = fs::copy(entry.path(), into.join(entry.file_name()));
                }
                _ => {}
            }
        }
    }
}
