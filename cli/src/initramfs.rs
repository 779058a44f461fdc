//! An initramfs: the archive (cpio, "newc") that the kernel unpacks into its first file system.
//!
//! Owns the bytes of the archive. `modules` finds the kernel's modules, `identity` says which node a machine is. Knows nothing of what the programs in it do; the order
//! of the entries and their times are always the same, so what is made twice of the same parts is the same and can be signed.

pub mod identity;
pub mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::replace::replace;
use modules::Modules;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
/// Where modules lie, in the order of loading.
pub const MODULES: &str = "/modules";

/// Who may read an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Everybody,
    /// It holds secrets.
    Owner,
}

/// Writes a finished archive. Whoever serves it to machines never has half of one.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, archive: &[u8], access: Access) -> Result<()> {
    let mode = if access == Access::Owner { 0o600 } else { 0o644 };
    replace(path, archive, mode).with_context(|| format!("cannot write {}", path.display()))
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// A file and the directories above it.
    pub fn file(&mut self, path: impl AsRef<Path>, content: &[u8], mode: u32) {
        let path = relative(path.as_ref());
        self.above(path);
        self.entry(path, REGULAR | mode, content);
    }

    /// A symbolic link and the directories above it.
    pub fn link(&mut self, path: impl AsRef<Path>, target: &str) {
        let path = relative(path.as_ref());
        self.above(path);
        self.entry(path, LINK, target.as_bytes());
    }

    /// A directory and those above it.
    pub fn directory(&mut self, path: impl AsRef<Path>) {
        let path = relative(path.as_ref());
        if path.as_os_str().is_empty() || self.paths.contains(path) {
            return;
        }
        self.above(path);
        self.entry(path, DIRECTORY, b"");
    }

    /// A program. One that is not static brings along the libraries that it has on this system.
    ///
    /// # Errors
    /// It cannot be read, or lacks a library.
    pub fn program(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read the program {}", from.display()))?;
        ensure!(
            bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!"),
            "{} is no program",
            from.display()
        );
        self.file(to, &bytes, 0o755);
        for library in libraries(from)? {
            if !self.paths.contains(relative(&library)) {
                let bytes = fs::read(&library).with_context(|| format!("{}", library.display()))?;
                self.file(&library, &bytes, 0o755);
            }
        }
        Ok(())
    }

    /// Modules of a kernel, with what each needs before it.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn modules(&mut self, kernel: &Modules, names: &[&str]) -> Result<()> {
        for (number, module) in kernel.closure(names)?.into_iter().enumerate() {
            self.file(format!("{MODULES}/{number:03}-{}.ko", module.name), &module.bytes, 0o644);
        }
        Ok(())
    }

    /// The whole archive. Several, one behind the other, are one to the kernel.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        put(&mut self.bytes, "TRAILER!!!", 0, 0, b"");
        self.bytes
    }

    fn above(&mut self, path: &Path) {
        path.parent().into_iter().for_each(|parent| self.directory(parent));
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.paths.insert(path.to_owned());
        let ino = self.paths.len();
        put(&mut self.bytes, &path.to_string_lossy(), ino, mode, content);
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

/// What the dynamic loader takes along; nothing for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    if !told.status.success() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&told.stdout);
    ensure!(!text.contains("not found"), "{} lacks a library: {text}", program.display());
    let paths = text.lines().filter_map(|line| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path);
        line.split_whitespace().next().filter(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}
