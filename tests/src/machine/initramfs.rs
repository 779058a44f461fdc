//! The first file system of a machine: an archive (cpio, "newc") of programs of this computer with the libraries they need.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::kernel::Kernel;
use super::modules;
use crate::cluster::command::output;

const DEADLINE: Duration = Duration::from_secs(120);
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
/// Where modules lie, in the order of loading.
pub const MODULES: &str = "/modules";

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    paths: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Busybox, which is the shell and all ordinary programs; it finds its names when `busybox --install -s` runs.
    ///
    /// # Errors
    /// It is not installed.
    pub fn with_busybox() -> Result<Initramfs> {
        let mut this = Initramfs::default();
        for dir in ["bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "run", "tmp", "etc"] {
            this.directory(Path::new(dir));
        }
        this.program(&found("busybox")?, "bin/busybox")?;
        this.link("bin/sh", "busybox");
        Ok(this)
    }

    /// A file.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) {
        let path = Path::new(path);
        path.parent().into_iter().for_each(|parent| self.directory(parent));
        self.entry(path, 0o100_000 | mode, content);
    }

    /// A program of this computer without its debug information, and its libraries.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let to = Path::new(to);
        to.parent().into_iter().for_each(|parent| self.directory(parent));
        let dir = tempfile::tempdir()?;
        let stripped = dir.path().join("program");
        output(Command::new("strip").arg("-o").arg(&stripped).arg(from), DEADLINE)?;
        let bytes = fs::read(&stripped)?;
        self.entry(to, PROGRAM, &bytes);
        for library in libraries(from)? {
            if !self.paths.contains(relative(&library)) {
                library.parent().into_iter().for_each(|parent| self.directory(relative(parent)));
                let bytes = fs::read(&library).with_context(|| format!("{}", library.display()))?;
                self.entry(relative(&library), PROGRAM, &bytes);
            }
        }
        Ok(())
    }

    /// A program of the system, at the same place.
    ///
    /// # Errors
    /// It is not there.
    pub fn system_program(&mut self, name: &str) -> Result<()> {
        let path = found(name)?;
        self.program(&path, &relative(&path).to_string_lossy())
    }

    /// Modules of the kernel and what they need.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        for (number, module) in modules::closure(&kernel.modules, names)?.into_iter().enumerate() {
            let path = format!("{}/{number:03}-{}.ko", relative(Path::new(MODULES)).display(), module.name);
            self.file(&path, &module.bytes, 0o644);
        }
        Ok(())
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(Path::new(path), LINK, target.as_bytes());
    }

    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || self.paths.contains(path) {
            return;
        }
        path.parent().into_iter().for_each(|parent| self.directory(parent));
        self.entry(path, DIRECTORY, b"");
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.paths.insert(path.to_owned());
        let ino = self.paths.len();
        put(&mut self.bytes, &path.to_string_lossy(), ino, mode, content);
    }

    /// Writes the archive. Several, one behind the other, are one to the kernel.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(mut self, path: &Path) -> Result<()> {
        put(&mut self.bytes, "TRAILER!!!", 0, 0, b"");
        let mut file = fs::File::create(path)?;
        file.write_all(&self.bytes)?;
        Ok(())
    }
}

/// One entry: thirteen numbers of eight digits behind the magic, the name, the content, each filled up to four bytes.
fn put(out: &mut Vec<u8>, name: &str, ino: usize, mode: u32, content: &[u8]) {
    let mode = mode as usize;
    let numbers = [ino, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.extend_from_slice(b"070701");
    for number in numbers {
        out.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    fill(out);
    out.extend_from_slice(content);
    fill(out);
}

fn fill(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Where the shell finds it; root's directories count, whoever runs this.
fn found(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(also).map(|dir| dir.join(name));
    places.find(|path| path.is_file()).with_context(|| format!("the program {name} is not installed"))
}

/// What the dynamic loader takes along; nothing for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let Ok(text) = output(Command::new("ldd").arg(program), DEADLINE) else { return Ok(Vec::new()) };
    let paths = text.lines().filter_map(|line| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path);
        line.split_whitespace().next().filter(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
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
        initramfs.link("a/link", "b/file");
        initramfs.write(&archive).unwrap();
        let unpack = "busybox cpio -idm < archive";
        let mut command = Command::new("sh");
        output(command.args(["-c", unpack]).current_dir(dir.path()), DEADLINE).unwrap();
        assert_eq!(fs::read(dir.path().join("a/link")).unwrap(), b"content");
    }
}
