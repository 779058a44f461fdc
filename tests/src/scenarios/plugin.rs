//! The plugin, as kubectl finds and runs it.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{NODES, PATIENCE, Suite};
use crate::cluster::command::output;

/// What is in a file.
const SAFE: &str = "what is in the file that was waited for";

pub(super) fn plugin(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    fs::write(trees.get(1).context("no second node")?.join("waited for"), SAFE)?;
    let begin = Instant::now();
    suite.plugin(&["wait", "shared", "--all", "--timeout", "60"])?;
    let waited = begin.elapsed();
    for (node, tree) in NODES.iter().zip(&trees) {
        let found = fs::read_to_string(tree.join("waited for"))
            .with_context(|| format!("`wait` came back, and {node} has no such file"))?;
        ensure!(found == SAFE, "{node} has {found:?}");
    }
    let status = suite.plugin(&["status"])?;
    for word in ["default/shared", "Server", "node1", "node2", "node3", "2/2"] {
        ensure!(status.contains(word), "{word} is not in the status: {status}");
    }
    let lag = suite.plugin(&["lag", "shared"])?;
    ensure!(lag.contains("node2") && lag.contains("node3"), "lag: {lag}");
    let listed = suite.plugin(&["conflicts", "list", "shared"])?;
    let conflicts = suite.conflicts()?;
    for path in &conflicts {
        ensure!(listed.contains(path), "{path} is not listed: {listed}");
    }
    let wrong = suite.plugin(&["wait", "nothing", "--timeout", "5"]);
    ensure!(
        wrong.is_err_and(|error| format!("{error:#}").contains("nothing")),
        "waits for a Volume that is not there"
    );
    let files = bundle(suite)?;
    Ok(format!(
        "`kubectl intermezzo wait --all` after {} ms, all nodes had it; status, lag, {} conflicts, a support bundle of {files} files",
        waited.as_millis(),
        conflicts.len()
    ))
}

/// A support bundle has what it should, and neither contents nor keys. The number of its files.
fn bundle(suite: &Suite<'_>) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("bundle");
    suite.plugin(&["support-bundle", "-A", "--out", &out.to_string_lossy()])?;
    let mut files = Vec::new();
    for dir in [out.clone(), out.join("logs"), out.join("status")] {
        for entry in fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push((entry.file_name(), fs::read_to_string(entry.path())?));
            }
        }
    }
    for node in NODES {
        let status = fs::read_to_string(out.join(format!("status/{node}.json")))?;
        ensure!(status.contains("default/shared"), "status of {node}: {status}");
    }
    for part in ["lento", "presto", "holder", "operator"] {
        let has = |(name, text): &&(std::ffi::OsString, String)| {
            name.to_string_lossy().ends_with(&format!(".{part}.log")) && !text.is_empty()
        };
        ensure!(files.iter().any(|file| has(&file)), "no log of {part}");
    }
    for (name, text) in &files {
        for secret in [SAFE, "PRIVATE KEY"] {
            ensure!(!text.contains(secret), "{} has what nobody else may have: {secret}", name.display());
        }
    }
    Ok(files.len())
}

impl Suite<'_> {
    /// `kubectl intermezzo`; the plugin is the one that was built beside this program.
    fn plugin(&self, arguments: &[&str]) -> Result<String> {
        let programs = std::env::current_exe()?;
        let programs = programs.parent().context("no directory of programs")?;
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(programs.to_owned()).chain(std::env::split_paths(&others)))?;
        let mut command = self.kubectl.command();
        output(command.env("PATH", path).arg("intermezzo").args(arguments), PATIENCE)
    }
}
