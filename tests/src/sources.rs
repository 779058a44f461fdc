//! Real files to copy: the source trees of this project's own dependencies, as cargo has them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

/// One thing to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub from: PathBuf,
    /// Its place in the copy.
    pub to: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its size, if it is a file.
    pub size: u64,
}

/// Kinds of things in a source tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Symbolic link.
    Link,
}

/// All source trees of the dependencies, directories before what is in them.
///
/// # Errors
/// cargo does not know, or a tree cannot be read.
pub fn dependencies() -> Result<Vec<Item>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .context("cargo metadata")?;
    let mut items = Vec::new();
    for package in metadata.packages.iter().filter(|package| package.source.is_some()) {
        let Some(root) = package.manifest_path.parent() else { continue };
        if let Some(name) = root.file_name() {
            collect(root.as_std_path(), Path::new(name), &mut items)?;
        }
    }
    Ok(items)
}

fn collect(from: &Path, to: &Path, items: &mut Vec<Item>) -> Result<()> {
    let meta = fs::symlink_metadata(from).with_context(|| from.display().to_string())?;
    let kind = match meta.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Link,
        _ => Kind::File,
    };
    let size = if kind == Kind::File { meta.len() } else { 0 };
    items.push(Item { from: from.to_owned(), to: to.to_owned(), kind, size });
    if kind == Kind::Directory {
        let mut names: Vec<_> =
            fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
        names.sort();
        for name in names {
            collect(&from.join(&name), &to.join(&name), items)?;
        }
    }
    Ok(())
}

/// Copies one thing below `root` with mode and time, as `cp -a` does.
///
/// # Errors
/// What the file system says, with the path.
pub fn copy(item: &Item, root: &Path) -> Result<()> {
    let to = root.join(&item.to);
    let done = || -> std::io::Result<()> {
        match item.kind {
            Kind::Directory => fs::create_dir_all(&to),
            Kind::Link => symlink(fs::read_link(&item.from)?, &to),
            Kind::File => {
                fs::copy(&item.from, &to)?;
                let modified = fs::metadata(&item.from)?.modified()?;
                File::open(&to)?.set_times(fs::FileTimes::new().set_modified(modified))
            }
        }
    };
    done().with_context(|| format!("copying to {}", to.display()))
}
