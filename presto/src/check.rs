//! `presto --check`: whether this machine, and what the mount table names, can be served. Changes nothing, and may be asked
//! while a presto serves.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use presto_holder::Client;
use rustix::io::Errno;

use crate::fuse;
use crate::lower::Shape;
use crate::lower::is_capable;
use crate::volumes::Spec;
use crate::volumes::Table;

/// Oldest Linux.
const NEEDED: (u32, u32) = (5, 10);
/// What newer ones offer, and what it is good for.
const OFFERS: [(&str, &str); 4] = [
    ("passthrough", "data inside the kernel"),
    ("resend", "mounts that outlive presto"),
    ("expire", "names believed for a day"),
    ("idmap", "idmapped mounts"),
];
/// What presto does that other users may not.
const CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_FOWNER", 3),
    ("CAP_MKNOD", 27),
    ("CAP_SYS_ADMIN", 21),
];

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub about: String,
    /// How it is; an error says what to do.
    pub is: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.is {
            Ok(is) => write!(f, "ok     {}: {is}", self.about),
            Err(wrong) => write!(f, "WRONG  {}: {wrong}", self.about),
        }
    }
}

/// Looks at everything.
#[must_use]
pub fn check(state: &Path, holder: Option<&Path>, sources: &[PathBuf]) -> Vec<Finding> {
    let finding = |about: &str, is| Finding { about: about.to_owned(), is };
    let mut findings = vec![
        finding("kernel", kernel(&rustix::system::uname().release().to_string_lossy())),
        finding("FUSE", offers()),
        finding("capabilities", capabilities()),
    ];
    let held = match holder {
        Some(path) => {
            Client::connect(path).map(|_| format!("answers at {}", path.display())).map_err(|error| {
                format!("{}: {error}; start presto-holder, or leave --holder away", path.display())
            })
        }
        None => Ok("none (--holder): mounts end with presto".to_owned()),
    };
    findings.push(finding("holder", held));
    match Table::read(state) {
        Ok(specs) => {
            let count = format!("{} volumes in {}", specs.len(), state.display());
            findings.push(finding("mount table", Ok(count)));
            findings.extend(
                specs.iter().map(|spec| finding(&format!("volume {}", spec.name), volume(spec, sources))),
            );
        }
        Err(error) => findings.push(finding("mount table", Err(error.to_string()))),
    }
    findings
}

fn kernel(release: &str) -> Result<String, String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version >= NEEDED => Ok(format!("Linux {release}")),
        _ => Err(format!("Linux {release}: {}.{} or newer is needed", NEEDED.0, NEEDED.1)),
    }
}

fn offers() -> Result<String, String> {
    let offered = fuse::offered().map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV => {
            format!("{errno}; load the module (modprobe fuse), or give the container /dev/fuse")
        }
        errno => format!("{errno}; run as root, in a container as privileged"),
    })?;
    let with = |there: bool| {
        let names = OFFERS.iter().filter(|(name, _)| offered.contains(name) == there);
        names.map(|(name, what)| format!("{name} ({what})")).collect::<Vec<_>>().join(", ")
    };
    let lacks = with(false);
    Ok(if lacks.is_empty() { with(true) } else { format!("{}; this kernel lacks {lacks}", with(true)) })
}

fn capabilities() -> Result<String, String> {
    let lacking: Vec<_> =
        CAPABILITIES.iter().filter(|(_, number)| !is_capable(*number)).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return Ok("all that are needed".to_owned());
    }
    Err(format!("{} missing; run as root, in a container as privileged", lacking.join(", ")))
}

fn volume(spec: &Spec, sources: &[PathBuf]) -> Result<String, String> {
    let tree = spec.source.clone().unwrap_or_else(|| spec.cache.join("tree"));
    let open = File::open(&tree).map_err(|error| format!("tree {}: {error}", tree.display()))?;
    match Shape::learn(open.as_fd()) {
        Ok(Some(_)) => {}
        // The mount covers what it has adopted.
        _ if spec.source.is_some() => {}
        _ => return Err(format!("{}: its file system is none of ext4, xfs, btrfs, tmpfs", tree.display())),
    }
    if let Some(source) = &spec.source
        && !sources.iter().any(|allowed| source.starts_with(allowed))
    {
        return Err(format!(
            "source {0} is not allowed; start presto with --allow-source {0}",
            source.display()
        ));
    }
    match std::fs::symlink_metadata(&spec.mountpoint) {
        Ok(found) if !found.is_dir() => {
            return Err(format!("mount point {} is no directory", spec.mountpoint.display()));
        }
        _ => {}
    }
    let journal = spec.cache.join("kml");
    let report = intermezzo_kml::verify(&journal)
        .map_err(|error| format!("journal {}: {error}", journal.display()))?;
    let left = if report.clean { "left in order" } else { "in use, or its presto was killed" };
    Ok(format!("{}, journal of {} bytes up to record {}, {left}", tree.display(), report.bytes, report.last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_release() {
        assert_eq!(kernel("6.18.1"), Ok("Linux 6.18.1".to_owned()));
        assert!(kernel("5.10.0-40-cloud-amd64").is_ok());
        for old in ["5.4.0", "4.19", "strange"] {
            assert!(kernel(old).unwrap_err().contains("5.10 or newer"));
        }
    }

    #[test]
    fn a_volume_without_its_cache_says_which_path_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let spec: Spec = serde_json::from_value(
            serde_json::json!({"name": "a/b", "uid": 7, "cache": cache, "mountpoint": dir.path().join("mnt")}),
        )
        .unwrap();
        assert!(volume(&spec, &[]).unwrap_err().contains(&cache.display().to_string()));
        std::fs::create_dir_all(cache.join("tree")).unwrap();
        assert!(volume(&spec, &[]).unwrap_err().contains("journal"));
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        let adopted = Spec { source: Some(source.clone()), ..spec };
        assert!(volume(&adopted, &[]).unwrap_err().contains("--allow-source"));
        assert!(!volume(&adopted, &[source]).unwrap_err().contains("--allow-source"));
    }
}
