//! What is in a worker's directory: names, which of them are one file, sizes, and a number for each sector.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::content::{SECTOR, hash};

/// One name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Names of one file have the same.
        inode: u64,
        /// In bytes.
        size: usize,
        /// Hashes.
        sectors: Vec<u64>,
    },
    /// What no worker makes.
    Other,
}

/// All names by path.
pub type Observed = BTreeMap<String, Found>;

/// Looks at a worker's directory; one that is not there is empty.
///
/// # Errors
/// What the file system says.
pub fn observe(dir: &Path) -> io::Result<Observed> {
    let mut observed = Observed::new();
    if dir.exists() {
        below(dir, "", &mut observed)?;
    }
    Ok(observed)
}

fn below(dir: &Path, prefix: &str, observed: &mut Observed) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            below(&path, &format!("{name}/"), observed)?;
            observed.insert(name, Found::Directory);
        } else if meta.is_file() {
            let bytes = fs::read(&path)?;
            let sectors = bytes.chunks(SECTOR).map(hash).collect();
            observed.insert(name, Found::File { inode: meta.ino(), size: bytes.len(), sectors });
        } else {
            observed.insert(name, Found::Other);
        }
    }
    Ok(())
}
