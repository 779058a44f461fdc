//! Does the steps of a plan on a real directory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::content::SECTOR;
use super::model::{Model, Step};

/// Does one step; `after` is the model behind it.
///
/// # Errors
/// What the file system says.
pub fn act(dir: &Path, step: &Step, after: &Model) -> Result<()> {
    calls(dir, step, after).with_context(|| format!("{step:?}"))
}

fn calls(dir: &Path, step: &Step, after: &Model) -> Result<()> {
    match step {
        Step::Make(name, _) => {
            let mut file = File::create_new(dir.join(name))?;
            file.write_all(&after.bytes(name))?;
        }
        Step::Append(name, by) => {
            let bytes = after.bytes(name);
            let added = bytes.get(bytes.len().saturating_sub(*by)..).unwrap_or_default();
            File::options().append(true).open(dir.join(name))?.write_all(added)?;
        }
        Step::Overwrite(name, sectors) => {
            let bytes = after.bytes(name);
            let (from, to) = (sectors.start * SECTOR, bytes.len().min(sectors.end * SECTOR));
            let written = bytes.get(from..to).unwrap_or_default();
            File::options().write(true).open(dir.join(name))?.write_all_at(written, from as u64)?;
        }
        Step::Rename(from, to) => fs::rename(dir.join(from), dir.join(to))?,
        Step::Link(from, to) => fs::hard_link(dir.join(from), dir.join(to))?,
        Step::Remove(name) => fs::remove_file(dir.join(name))?,
        Step::MakeDirectory(name) => fs::create_dir(dir.join(name))?,
        Step::Sync(name) => File::open(dir.join(name))?.sync_all()?,
        Step::SyncData(name) => File::options().write(true).open(dir.join(name))?.sync_data()?,
        Step::SyncDirectory(name) => File::open(dir.join(name))?.sync_all()?,
    }
    Ok(())
}
