//! Images, built by buildah without a container engine, and archives of them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::command::output;

/// Copies of some ten megabytes, on a busy disk.
const DEADLINE: Duration = Duration::from_secs(300);

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// Its name with its tag.
    pub name: &'a str,
    /// The Containerfile.
    pub containerfile: &'a Path,
    /// Where its COPY lines look.
    pub context: &'a Path,
    /// OCI labels.
    pub labels: &'a [(&'a str, String)],
    /// Seconds since 1970 of every file and of the image: what is made twice is the same.
    pub timestamp: u64,
}

impl Recipe<'_> {
    /// Builds it and writes a `docker-archive`, which containerd, docker and podman load.
    ///
    /// # Errors
    /// buildah fails; with what it says.
    pub fn archive(&self, archive: &Path) -> Result<()> {
        // A store of its own: the machine's is not touched, and it goes at the end.
        let store = tempfile::Builder::new().prefix("intermezzo-image-").tempdir()?;
        fs::write(store.path().join("containers.conf"), settings(store.path()))?;
        let timestamp = self.timestamp.to_string();
        let mut bud = buildah(store.path());
        // In the other format the configuration holds a container's random name, and no image is like the one before.
        bud.args(["bud", "--quiet", "--isolation", "chroot", "--format", "oci", "--layers=false"])
            .args(["--timestamp", &timestamp, "--tag", self.name, "--file"])
            .arg(self.containerfile);
        for (label, value) in self.labels {
            bud.args(["--label", &format!("{label}={value}")]);
        }
        output(bud.arg(self.context), DEADLINE)
            .with_context(|| format!("cannot build the image {}", self.name))?;
        let next = archive.with_extension("next");
        let _ = fs::remove_file(&next);
        let mut target = OsStr::new("docker-archive:").to_owned();
        target.push(&next);
        target.push(format!(":{}", self.name));
        let mut push = buildah(store.path());
        output(push.args(["push", "--quiet", self.name]).arg(target), DEADLINE)
            .with_context(|| format!("cannot write {}", archive.display()))?;
        fs::rename(&next, archive)?;
        Ok(())
    }
}

/// A directory in which an image's COPY lines look: nothing but what goes into the image.
///
/// # Errors
/// A file is missing.
pub fn context(files: &[(&Path, &str)]) -> Result<tempfile::TempDir> {
    let context = tempfile::Builder::new().prefix("intermezzo-context-").tempdir()?;
    for (from, to) in files {
        let to: PathBuf = context.path().join(to.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(context)
}

fn buildah(store: &Path) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
    command.args(["--storage-driver", "vfs", "--registries-conf", "/dev/null"]);
    command.env("CONTAINERS_CONF", store.join("containers.conf"));
    command
}

/// buildah makes a lock where it thinks networks are configured, which would be in /etc, although none is used.
fn settings(store: &Path) -> String {
    format!("[network]\nnetwork_config_dir = {:?}\n", store.join("networks"))
}
