//! The programs of a cluster: built from source once, kept in the tools' cache, noticed when they are out of date.
//!
//! Owns `bin/`, `go-build/` and `go-mod/` of that directory. What a module's programs were built from is recorded beside them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command::{DEADLINE, output};

/// What the slowest machine may take for a module.
const BUILD: Duration = Duration::from_secs(3600);
/// The oldest Go that builds them all.
const GO: (u32, u32) = (1, 26);

/// A Go module below tests/cluster and what is made of it.
struct Module {
    name: &'static str,
    programs: &'static [Program],
}

struct Program {
    name: &'static str,
    package: &'static str,
    flags: &'static str,
    /// Other names of the same file.
    links: &'static [&'static str],
}

const MODULES: [Module; 2] = [
    Module {
        name: "tools",
        programs: &[
            Program {
                name: "helm",
                package: "helm.sh/helm/v4/cmd/helm",
                flags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
                links: &[],
            },
            Program { name: "coredns", package: "./coredns", flags: "-s -w", links: &[] },
        ],
    },
    Module {
        name: "kubernetes",
        programs: &[Program {
            name: "kubernetes",
            package: ".",
            flags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.35.4 \
                    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35",
            links: &["kubectl"],
        }],
    },
];

/// Programs of Debian packages that a cluster takes.
const PACKAGES: [(&str, &str); 11] = [
    ("buildah", "buildah"),
    ("busybox", "busybox-static"),
    ("conntrack", "conntrack"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
];

/// Built programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parts {
    dir: PathBuf,
}

impl Parts {
    /// The programs, built if they are absent or made from other sources.
    ///
    /// # Errors
    /// Something they take is missing (all of it is named), or a build fails.
    pub fn ready(step: &mut dyn FnMut(&str)) -> Result<Parts> {
        check()?;
        let tools = tools()?;
        let bin = tools.join("bin");
        fs::create_dir_all(&bin)?;
        let lock = File::create(tools.join("cluster.lock"))?;
        flock(&lock, FlockOperation::LockExclusive).context("cannot lock the tools' cache")?;
        for module in MODULES {
            module.ready(&tools, step)?;
        }
        // Several gigabytes that only the next version of Kubernetes would use, and little of it.
        if std::env::var_os("KEEP_GO_CACHE").is_none() {
            for name in ["go-build", "go-mod"] {
                clear(&tools.join(name));
            }
        }
        Ok(Parts { dir: bin })
    }

    /// Where a program is.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where all of them are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Module {
    fn ready(&self, tools: &Path, step: &mut dyn FnMut(&str)) -> Result<()> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(self.name);
        let wanted = self.stamp(&source)?;
        let stamp = tools.join("bin").join(format!("{}.sources", self.name));
        let is_there = |program: &Program| tools.join("bin").join(program.name).is_file();
        if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) && self.programs.iter().all(is_there) {
            return Ok(());
        }
        check_go()?;
        for program in self.programs {
            step(&format!("Building {} (once; minutes)", program.name));
            program.build(&source, tools)?;
        }
        fs::write(&stamp, wanted)?;
        Ok(())
    }

    /// Hash of everything that the programs depend on.
    fn stamp(&self, source: &Path) -> Result<String> {
        let mut files = Vec::new();
        let mut waiting = vec![source.to_owned()];
        while let Some(dir) = waiting.pop() {
            let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() { waiting.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        let mut hash = Sha256::new();
        for file in files {
            let text = fs::read(&file)?;
            hash.update(file.strip_prefix(source)?.to_string_lossy().as_bytes());
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        }
        for program in self.programs {
            hash.update(format!("{} {} {}\n", program.name, program.package, program.flags));
        }
        hash.update(std::env::consts::ARCH);
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Program {
    fn build(&self, source: &Path, tools: &Path) -> Result<()> {
        let bin = tools.join("bin");
        let next = bin.join(format!("{}.next", self.name));
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", self.flags, "-o"])
            .arg(&next)
            .arg(self.package)
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", tools.join("go-build"))
            .env("GOMODCACHE", tools.join("go-mod"))
            .env_remove("GOFLAGS");
        output(&mut go, BUILD).with_context(|| format!("{} cannot be built", self.name))?;
        fs::rename(&next, bin.join(self.name))?;
        for link in self.links {
            let path = bin.join(link);
            if fs::read_link(&path).is_ok_and(|to| to == Path::new(self.name)) {
                continue;
            }
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(self.name, &path)?;
        }
        Ok(())
    }
}

/// Module directories are read-only, which Go itself knows how to remove.
fn clear(dir: &Path) {
    if !dir.exists() {
        return;
    }
    let _ = Command::new("chmod").args(["-R", "u+w"]).arg(dir).status();
    #[allow(clippy::disallowed_methods, reason = "a cache of this program")]
    let _ = fs::remove_dir_all(dir);
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/intermezzo/tools`
///
/// # Errors
/// Neither is set.
pub fn tools() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("intermezzo/tools"))
}

/// Finds a program of the machine; those for administrators too, wherever the caller's PATH ends.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn check() -> Result<()> {
    let missing = PACKAGES.iter().filter(|(program, _)| find(program).is_none());
    let mut missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    missing.dedup();
    ensure!(
        missing.is_empty(),
        "a cluster takes programs that are not here; on Debian: apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
    Ok(())
}

fn check_go() -> Result<()> {
    let need = format!("Kubernetes and helm are built with Go {}.{} or newer", GO.0, GO.1);
    let Ok(said) =
        output(Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"), DEADLINE)
    else {
        bail!("{need}, and there is no `go` on the PATH; https://go.dev/dl has it")
    };
    let version = said.trim();
    ensure!(
        parse(version).is_some_and(|found| found >= GO),
        "{need}, and this one is {version}; https://go.dev/dl has it"
    );
    Ok(())
}

/// `go1.26.8` is (1, 26).
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("go")?.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        assert_eq!(parse("go1.26.8"), Some((1, 26)));
        assert_eq!(parse("go1.27rc1"), Some((1, 27)));
        assert!(parse("go1.9").unwrap() < GO);
        assert_eq!(parse("devel"), None);
    }

    #[test]
    fn another_source_is_another_stamp() {
        let source = tempfile::tempdir().unwrap();
        let module = &MODULES[0];
        fs::write(source.path().join("go.mod"), "module a\n").unwrap();
        let before = module.stamp(source.path()).unwrap();
        assert_eq!(before, module.stamp(source.path()).unwrap());
        fs::write(source.path().join("go.mod"), "module b\n").unwrap();
        assert_ne!(before, module.stamp(source.path()).unwrap());
    }
}
