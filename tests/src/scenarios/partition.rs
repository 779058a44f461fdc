//! A node's cable is pulled: both sides go on, and what they did is everywhere afterwards; what excludes each other is kept.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{PATIENCE, Suite, wait};
use crate::cluster::command::until;

pub(super) fn partition(suite: &mut Suite<'_>) -> Result<String> {
    let trees = suite.shared()?;
    let [first, second, third] = trees.as_slice() else { bail!("three nodes are wanted") };
    let before = suite.conflicts()?;
    fs::write(first.join("both"), "before")?;
    for tree in &trees {
        wait::has(&tree.join("both"), "before")?;
    }
    fs::create_dir(first.join("doomed"))?;
    fs::write(first.join("doomed/file"), "content")?;
    wait::has(&third.join("doomed/file"), "content")?;

    suite.cluster.partition("node3")?;
    let both_sides = || -> Result<()> {
        for n in 0..50 {
            fs::write(first.join(format!("here-{n}")), format!("node1 {n}"))?;
            fs::write(third.join(format!("there-{n}")), format!("node3 {n}"))?;
        }
        fs::rename(first.join("here-0"), first.join("here renamed"))?;
        fs::remove_file(third.join("first"))?;
        #[allow(clippy::disallowed_methods, reason = "a user removes what a user made")]
        fs::remove_dir_all(first.join("doomed"))?;
        fs::write(first.join("both"), "by node1")?;
        fs::write(third.join("both"), "by node3, cut off")?;
        wait::has(&second.join("both"), "by node1")?;
        ensure!(!third.join("here-1").exists(), "node3 is not cut off");
        suite.wait_condition("volume/shared", "Connected", "False")?;
        Ok(())
    };
    let done = both_sides();
    suite.cluster.heal("node3")?;
    let begin = Instant::now();
    done?;

    let names = wait::equal_where(&trees, || first.join("there-49").exists())?;
    let healed = begin.elapsed();
    for tree in &trees {
        for (path, content) in [
            ("here renamed", "node1 0"),
            ("here-49", "node1 49"),
            ("there-49", "node3 49"),
            ("both", "by node1"),
        ] {
            let found = fs::read_to_string(tree.join(path)).with_context(|| path.to_owned())?;
            ensure!(found == content, "{}: {found:?}", tree.join(path).display());
        }
        ensure!(!tree.join("first").exists() && !tree.join("doomed").exists(), "what was removed is back");
    }
    let listed = until("the conflict to be listed", PATIENCE, || {
        let mut now = suite.conflicts()?;
        now.retain(|path| !before.contains(path));
        ensure!(!now.is_empty(), "there is none");
        Ok(now)
    })?;
    ensure!(listed == ["/both"], "conflicts are {listed:?}");
    let from = suite.kubectl.run(&[
        "get", "conflicts", "-o", "jsonpath={.items[?(@.spec.path==\"/both\")].spec.nodeName} {.items[?(@.spec.path==\"/both\")].spec.size}",
    ])?;
    ensure!(from == format!("node3 {}", "by node3, cut off".len()), "it is from {from}");
    suite.wait_condition("volume/shared", "InSync", "True")?;
    Ok(format!(
        "{names} names equal {:.1} s after healing; the one conflict (both, from node3, content kept) is listed",
        healed.as_secs_f64()
    ))
}
