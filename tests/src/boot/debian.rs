//! A minimal Debian with systemd: made once by debootstrap, kept beside the kernels, never changed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::command::output;
use crate::machine::kernel::{self, Release};

/// For some two hundred packages.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Beside what every Debian has.
const PACKAGES: &str = "--include=systemd-sysv,udev,dbus,iproute2,kmod";

/// Its directory.
///
/// # Errors
/// debootstrap is not installed, or the archive is not reached.
pub fn tree(release: Release) -> Result<PathBuf> {
    let trees = kernel::cache()?.with_file_name("trees");
    let tree = trees.join(release.name());
    if !tree.exists() {
        fs::create_dir_all(&trees)?;
        let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&trees)?;
        let root = new.path().join("root");
        let mut make = Command::new("debootstrap");
        make.args(["--variant=minbase", PACKAGES, release.name()]).arg(&root).arg(kernel::archive()?);
        output(&mut make, PATIENCE).context("debootstrap (a package of that name) makes no system")?;
        output(Command::new("chroot").arg(&root).args(["apt-get", "clean"]), PATIENCE)?;
        fs::rename(&root, &tree)?;
    }
    Ok(tree)
}
