//! Debian's kernels: fetched once, unpacked into the cache, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cluster::command::output;

/// The kernel that is meant for virtual machines: its packages are small.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// For an index or a package to arrive.
const PATIENCE: Duration = Duration::from_secs(600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A Debian release, for its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// Debian 12: Linux 6.1, without FUSE passthrough and without RESEND.
    Bookworm,
    /// Debian 13: Linux 6.12, with both.
    Trixie,
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What boots.
    pub image: PathBuf,
    /// The directory below which its modules lie.
    pub modules: PathBuf,
}

impl Release {
    /// As Debian's archive names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

impl Kernel {
    /// The kernel of a release, from the cache or from the archive that this system's apt uses.
    ///
    /// # Errors
    /// The archive is not reached, or has none.
    pub fn get(release: Release) -> Result<Kernel> {
        let cache = cache()?;
        let dir = cache.join(release.name());
        if !dir.exists() {
            fs::create_dir_all(&cache)?;
            let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&cache)?;
            fetch(release, new.path())
                .with_context(|| format!("cannot fetch the kernel of Debian {}", release.name()))?;
            fs::rename(new.path().join("root"), &dir)?;
        }
        Kernel::at(&dir).with_context(|| format!("remove {} to fetch it again", dir.display()))
    }

    fn at(dir: &Path) -> Result<Kernel> {
        let image = only(&dir.join("boot"), "vmlinuz-")?;
        let lib = [dir.join("lib/modules"), dir.join("usr/lib/modules")];
        let lib = lib.iter().find(|dir| dir.is_dir()).context("the package has no modules")?;
        Ok(Kernel { image, modules: only(lib, "")? })
    }
}

fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let names = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?.flatten();
    let mut found = names.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let found = found.next().with_context(|| format!("no {prefix}* in {}", dir.display()))?;
    Ok(found.path())
}

/// Where they are kept.
///
/// # Errors
/// Nobody is at home.
pub fn cache() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("intermezzo/kernels"))
}

/// Unpacks the package into `dir/root`. Apt gets a state of its own, so that the system knows nothing of the release.
fn fetch(release: Release, dir: &Path) -> Result<()> {
    let state = dir.join("apt");
    for below in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(below))?;
    }
    let sources = state.join("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {} main\n", archive()?, release.name()))?;
    output(apt("apt-get", &state).args(["-qq", "update"]), PATIENCE)?;
    let depends = output(apt("apt-cache", &state).args(["depends", PACKAGE]), PATIENCE)?;
    let real = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let real = format!("linux-image-{}", real.context("the kernel's package names no kernel")?);
    output(apt("apt-get", &state).args(["-qq", "download", &real]).current_dir(dir), PATIENCE)?;
    let package = only(dir, &real)?;
    output(Command::new("dpkg").arg("-x").arg(package).arg(dir.join("root")), PATIENCE)?;
    Ok(())
}

fn apt(program: &str, state: &Path) -> Command {
    let mut command = Command::new(program);
    let mut option = |name: &str, value: &Path| {
        command.arg("-o").arg(format!("{name}={}", value.display()));
    };
    option("Dir::State", state);
    option("Dir::State::status", Path::new("/var/lib/dpkg/status"));
    option("Dir::Cache", &state.join("cache"));
    option("Dir::Etc::sourcelist", &state.join("sources.list"));
    option("Dir::Etc::sourceparts", Path::new("/dev/null"));
    command.args([
        "-o",
        "Acquire::Languages=none",
        "-o",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
    ]);
    // Apt's own user comes into no directory of ours.
    command.args(["-o", "APT::Sandbox::User=root"]);
    command
}

/// Where this system gets its packages from.
///
/// # Errors
/// It is no Debian, or has no source.
pub fn archive() -> Result<String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"];
    let targets = output(Command::new("apt-get").args(format), PATIENCE)?;
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(mine) = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")) else {
        bail!("/etc/os-release names no release of Debian")
    };
    let found =
        targets.lines().filter_map(|line| line.rsplit_once(' ')).find(|(_, release)| *release == mine);
    let (uri, _) = found.with_context(|| format!("apt has no source for {mine}"))?;
    Ok(uri.to_owned())
}
