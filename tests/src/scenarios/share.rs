//! Everybody writes, everybody sees it: single files with the time it takes, and a tree with all that a file can be.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::{NODES, Suite, wait};

/// Rounds of create, change, rename and delete.
const ROUNDS: usize = 24;
/// Files of the tree.
const FILES: usize = 400;

pub(super) fn share(suite: &mut Suite<'_>) -> Result<String> {
    // Once by `kubectl exec`, as a person does it.
    suite.user("node3")?.exec(&["sh", "-c", "echo hello > /shared/hello"])?;
    let trees = suite.shared()?;
    for tree in &trees {
        wait::has(&tree.join("hello"), "hello\n")?;
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let (from, to) = (round % NODES.len(), (round + 1 + round / NODES.len() % 2) % NODES.len());
        let (from, to) = (trees.get(from).context("no node")?, trees.get(to).context("no node")?);
        times.extend(one_file(from, to, round)?);
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();

    let (first, others) = trees.split_first().context("no nodes")?;
    plant(&first.join("tree"))?;
    let names = wait::equal(&trees)?;
    // Changed from another node, then removed from a third one.
    let [second, third] = others else { anyhow::bail!("three nodes are wanted") };
    wait::seen("the tree on node2", || second.join("tree/other name").exists())?;
    change(&second.join("tree"))?;
    wait::equal(&trees)?;
    wait::seen("the change on node3", || third.join("moved/d1").exists())?;
    #[allow(clippy::disallowed_methods, reason = "a user removes what a user made")]
    fs::remove_dir_all(third.join("moved"))?;
    wait::equal(&trees)?;
    Ok(format!(
        "create, change, rename, delete seen by another pod after {:.1} ms (median), {:.1} ms (90 %); a tree of {names} names \
         with all attributes equal on three nodes",
        milliseconds(at(50)),
        milliseconds(at(90))
    ))
}

fn one_file(from: &Path, to: &Path, round: usize) -> Result<Vec<Duration>> {
    let (name, other) = (format!("file-{round}"), format!("renamed-{round}"));
    let mut times = Vec::new();
    for content in [format!("made {round}"), format!("changed {round}")] {
        fs::write(from.join(&name), &content)?;
        times.push(wait::has(&to.join(&name), &content)?);
    }
    fs::rename(from.join(&name), from.join(&other))?;
    times.push(wait::seen("a rename", || to.join(&other).exists() && !to.join(&name).exists())?);
    fs::remove_file(from.join(&other))?;
    times.push(wait::seen("a removal", || !to.join(&other).exists())?);
    Ok(times)
}

/// Every kind of file, mode, name and attribute.
fn plant(root: &Path) -> Result<()> {
    for n in 0..FILES {
        let dir = root.join(format!("d{}/e{}", n % 20, n % 3));
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("file {n}"));
        fs::write(&path, format!("{n}\n").repeat(n))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400 + (n as u32 % 8) * 0o11))?;
        if n % 10 == 0 {
            setxattr(&path, "user.number", n.to_string().as_bytes(), XattrFlags::empty())?;
            symlink(format!("file {n}"), dir.join(format!("link {n}")))?;
            std::os::unix::fs::chown(&path, Some(1000 + n as u32), Some(2000))?;
        }
    }
    fs::hard_link(root.join("d0/e0/file 0"), root.join("other name"))?;
    fs::set_permissions(root.join("d1"), fs::Permissions::from_mode(0o1777))?;
    mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(1 << 20)?;
    Ok(())
}

/// Attributes of what another node made, and a rename of all of it.
fn change(root: &Path) -> Result<()> {
    let name: PathBuf = root.join("other name");
    setxattr(&name, "user.second", b"2", XattrFlags::empty())?;
    fs::set_permissions(&name, fs::Permissions::from_mode(0o711))?;
    fs::write(root.join("d2/e2/file 2"), "changed on node2")?;
    fs::remove_file(root.join("pipe"))?;
    fs::rename(root, root.with_file_name("moved"))?;
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
