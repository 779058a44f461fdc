//! The kernel's modules that were packed, loaded in the order of their names.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::console::say;

/// Where they lie in the initramfs.
pub const DIR: &str = "/modules";

/// Loads all of them. One whose hardware is not there is none that is needed.
///
/// # Errors
/// The directory cannot be read.
pub fn load() -> Result<()> {
    let dir = Path::new(DIR);
    if !dir.is_dir() {
        return Ok(()); // Everything is built in.
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .context(DIR)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let mut is_one_absent = false;
    for path in files {
        let loaded = File::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(rustix::system::finit_module(&file, c"", 0)?));
        let Err(error) = loaded else { continue };
        match error.downcast_ref::<Errno>() {
            Some(&Errno::EXIST) => {}
            Some(&Errno::NODEV) => is_one_absent = true,
            // It builds on that one.
            Some(&Errno::NOENT) if is_one_absent => {}
            Some(&Errno::NOEXEC) => {
                say(format_args!(
                    "{}: not a module of this kernel; pack the initramfs for it",
                    path.display()
                ));
            }
            _ => say(format_args!("{} is not loaded: {error}", path.display())),
        }
    }
    Ok(())
}

/// Gives their memory back.
pub fn forget() {
    for entry in std::fs::read_dir(DIR).into_iter().flatten().flatten() {
        let _ = rustix::fs::unlink(entry.path());
    }
}
