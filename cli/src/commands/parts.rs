//! A conflict with parts: a tree that was made in a directory which somebody else had removed. It is made again, through the
//! mount, as any program would.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intermezzo_proto::v1::ConflictRecord;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::resolve::{DIR, NEW, Spot, WITHIN, plain};
use crate::output::say;

/// Mode of directories of which nobody knows it any more.
const LOST_DIR: u32 = 0o755;

/// Makes everything again that the parts made, below the directory that is gone, or below `name` beside that. What of it is
/// in the tree by now stays as it is, so a second try goes on where the first one ended.
pub(super) fn restore(
    mountpoint: &Path,
    conflict: &ConflictRecord,
    parts: &[ConflictRecord],
    name: Option<&str>,
) -> Result<PathBuf> {
    let root = rustix::fs::open(mountpoint, DIR, Mode::empty())
        .with_context(|| format!("cannot open {}", mountpoint.display()))?;
    let gone = plain(conflict)?.parent().unwrap_or(Path::new("")).to_owned();
    let target = match name {
        None => gone.clone(),
        Some(name) if name.contains('/') || [".", "..", ""].contains(&name) => {
            bail!("--name {name:?} is no name of a directory")
        }
        Some(name) if gone.as_os_str().is_empty() => PathBuf::from(name),
        Some(name) => gone.with_file_name(name),
    };
    for part in std::iter::once(conflict).chain(parts) {
        let path = plain(part)?;
        let Ok(below) = path.strip_prefix(&gone) else {
            say(format_args!("{}: left out, it is not below {}", part.path, gone.display()));
            continue;
        };
        again(&root, mountpoint, &target.join(below), part)?;
    }
    Ok(mountpoint.join(target))
}

fn again(root: &OwnedFd, mountpoint: &Path, path: &Path, part: &ConflictRecord) -> Result<()> {
    let shown = mountpoint.join(path);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{}: a name that cannot be written here", shown.display()))?;
    let above = make_dirs(root, path.parent().unwrap_or(Path::new("")))
        .with_context(|| format!("cannot make the directory of {}", shown.display()))?;
    let cannot = || format!("cannot make {}", shown.display());
    let kind = FileType::from_raw_mode(part.mode);
    match part.operation.as_str() {
        "create" if kind == FileType::Directory => {
            let mode = Mode::from_raw_mode(part.mode & 0o7777);
            there_already(rustix::fs::mkdirat(&above, name, mode)).with_context(cannot)
        }
        "create" if kind == FileType::Symlink => {
            there_already(rustix::fs::symlinkat(&part.target, &above, name)).with_context(cannot)
        }
        "create" if kind == FileType::RegularFile => {
            let mode = Mode::from_raw_mode(part.mode & 0o777);
            let flags = NEW | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&above, name, flags, mode) {
                Ok(_) => {}
                Err(Errno::EXIST) => return Ok(()),
                Err(errno) => return Err(errno).with_context(cannot),
            }
            write(above, name, shown, part)
        }
        // The newest content of a file that another part made.
        "close" => write(above, name, shown, part),
        other => {
            say(format_args!(
                "{}: {other} is not done again; do it by hand where it matters",
                shown.display()
            ));
            Ok(())
        }
    }
}

fn write(dir: OwnedFd, name: &str, shown: PathBuf, part: &ConflictRecord) -> Result<()> {
    if part.content.is_empty() {
        return Ok(());
    }
    Spot::in_dir(dir, name, shown).write(part, OFlags::empty())
}

/// The directory at this path, with those above it.
fn make_dirs(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat2(root, ".", DIR, Mode::empty(), WITHIN)?;
    for part in path.components() {
        there_already(rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(LOST_DIR)))?;
        dir = rustix::fs::openat2(&dir, part.as_os_str(), DIR, Mode::empty(), WITHIN)?;
    }
    Ok(dir)
}

fn there_already(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
