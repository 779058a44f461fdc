//! The first file system of a machine: an archive of programs of this computer with the libraries they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use intermezzo::initramfs::Archive;
pub use intermezzo::initramfs::MODULES;
use intermezzo::initramfs::modules::Modules;

use super::kernel::Kernel;
use crate::cluster::command::output;

const DEADLINE: Duration = Duration::from_secs(120);

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Initramfs(Archive);

impl Initramfs {
    /// Busybox, which is the shell and all ordinary programs; it finds its names when `busybox --install -s` runs.
    ///
    /// # Errors
    /// It is not installed.
    pub fn with_busybox() -> Result<Initramfs> {
        let mut this = Initramfs::default();
        for dir in ["bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "run", "tmp", "etc"] {
            this.0.directory(dir);
        }
        this.program(&found("busybox")?, "bin/busybox")?;
        this.0.link("bin/sh", "busybox");
        Ok(this)
    }

    /// A file.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) {
        self.0.file(path, content, mode);
    }

    /// A program of this computer without its debug information, and its libraries.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let stripped = dir.path().join("program");
        output(Command::new("strip").arg("-o").arg(&stripped).arg(from), DEADLINE)?;
        self.0.program(&stripped, to)
    }

    /// A program of the system, at the same place.
    ///
    /// # Errors
    /// It is not there.
    pub fn system_program(&mut self, name: &str) -> Result<()> {
        let path = found(name)?;
        self.program(&path, &path.to_string_lossy())
    }

    /// Modules of the kernel and what they need.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        self.0.modules(&Modules::open(&kernel.modules)?, names)
    }

    /// Writes the archive. Several, one behind the other, are one to the kernel.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        Ok(fs::write(path, self.0.finish())?)
    }
}

/// Where the shell finds it; root's directories count, whoever runs this.
///
/// # Errors
/// Nowhere.
pub fn found(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(also).map(|dir| dir.join(name));
    places.find(|path| path.is_file()).with_context(|| format!("the program {name} is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_unpacks_what_was_packed() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let mut initramfs = Initramfs::default();
        initramfs.file("a/b/file", b"content", 0o600);
        initramfs.0.link("a/link", "b/file");
        initramfs.write(&archive).unwrap();
        let unpack = "busybox cpio -idm < archive";
        let mut command = Command::new("sh");
        output(command.args(["-c", unpack]).current_dir(dir.path()), DEADLINE).unwrap();
        assert_eq!(fs::read(dir.path().join("a/link")).unwrap(), b"content");
    }
}
