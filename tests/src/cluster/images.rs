//! Images that the cluster itself takes, made of what is on this machine; and loading archives on nodes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::machine::Machine;
use super::parts::{self, Parts, tools};
use crate::image::{Recipe, context};

/// What holds a pod's namespaces, and what test pods are made of: busybox.
pub const SANDBOX: &str = "test.intermezzo.dev/busybox:cluster";
const DNS: &str = "test.intermezzo.dev/coredns:cluster";

/// Archives of the images that every cluster needs, made anew if their programs changed.
///
/// # Errors
/// buildah fails.
pub fn for_cluster(parts: &Parts) -> Result<Vec<PathBuf>> {
    for_cluster_in(&tools()?.join("images"), parts)
}

/// The same in another directory than the tools' cache.
///
/// # Errors
/// buildah fails.
pub fn for_cluster_in(dir: &Path, parts: &Parts) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let busybox = parts::find("busybox").context("there is no busybox; on Debian: busybox-static has it")?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/images");
    Ok(vec![
        archive(dir, SANDBOX, &busybox, "bin/busybox", &sources.join("busybox.Containerfile"))?,
        archive(dir, DNS, &parts.program("coredns"), "coredns", &sources.join("coredns.Containerfile"))?,
    ])
}

fn archive(dir: &Path, name: &str, program: &Path, to: &str, containerfile: &Path) -> Result<PathBuf> {
    let metadata = fs::metadata(program)?;
    let made_of = format!(
        "{} {}.{} {}",
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        fs::read_to_string(containerfile)?
    );
    let file = name.rsplit('/').next().unwrap_or(name).replace(':', "-");
    let (archive, stamp) = (dir.join(format!("{file}.tar")), dir.join(format!("{file}.sources")));
    if archive.is_file() && fs::read_to_string(&stamp).is_ok_and(|before| before == made_of) {
        return Ok(archive);
    }
    let context = context(&[(program, to)])?;
    Recipe { name, containerfile, context: context.path(), labels: &[], timestamp: 0 }.archive(&archive)?;
    fs::write(stamp, made_of)?;
    Ok(archive)
}

/// Archives of our own images, as `make images` leaves them below the target directory.
///
/// # Errors
/// There are none.
pub fn ours(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(dir).with_context(|| format!("no images in {}; run `make images`", dir.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    found.sort();
    ensure!(!found.is_empty(), "no images in {}; run `make images`", dir.display());
    Ok(found)
}

/// Loads an archive on a node.
///
/// # Errors
/// containerd refuses it.
pub fn load(node: &Machine, archive: &Path) -> Result<()> {
    let path = archive.canonicalize()?;
    let load = || node.run("ctr", &["--namespace", "k8s.io", "images", "import", &path.to_string_lossy()]);
    // containerd may still be starting.
    super::command::until(
        &format!("{} to load {}", node.name, archive.display()),
        super::command::DEADLINE,
        load,
    )?;
    Ok(())
}
