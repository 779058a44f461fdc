//! Programs that people run: a C compiler and SQLite, each if this machine has it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::figure::Figure;
use super::peers::is_installed;
use super::workloads::{Workload, nothing};
use crate::run::timed;
use crate::sources::{self, Kind};

/// A vendored C library among the dependencies, and the part of it that is compiled.
const LIBRARY: (&str, [&str; 2]) = ("zstd-sys-", ["zstd/lib/common", "zstd/lib/decompress"]);
const TRANSACTIONS: usize = 300;

/// Those that can be measured here; makes in `scratch` what they need. And why others cannot.
pub(super) fn available(scratch: &Path) -> Result<(Vec<Workload>, Vec<String>)> {
    let (mut workloads, mut absent) = (Vec::new(), Vec::new());
    let files = fetch_library(&scratch.join("library"))?;
    if files == 0 {
        absent.push("C build: none of the dependencies brings a C library".to_owned());
    } else if !is_installed("cc")? {
        absent.push("C build: no cc".to_owned());
    } else {
        let figure = Figure::at_most("C build", 1.15, "x");
        workloads.push(Workload { figure, prepare: unpack_library, timed: compile });
    }
    if is_installed("sqlite3")? {
        write_transactions(&scratch.join("transactions.sql"))?;
        let figure = Figure::at_most("SQLite WAL", 1.05, "x");
        workloads.push(Workload { figure, prepare: nothing, timed: transact });
    } else {
        absent.push("SQLite WAL: no sqlite3 (apt-get install sqlite3)".to_owned());
    }
    Ok((workloads, absent))
}

/// Copies the library's sources, headers and all; how many files will be compiled.
fn fetch_library(to: &Path) -> Result<usize> {
    let items = sources::dependencies()?;
    let root = items.iter().find(|item| item.to.to_string_lossy().starts_with(LIBRARY.0));
    let Some(root) = root.map(|item| item.to.clone()) else { return Ok(0) };
    for item in items {
        if let Ok(below) = item.to.strip_prefix(&root)
            && below.starts_with("zstd/lib")
            && (item.kind == Kind::Directory || is_c(below, &["c", "h"]))
        {
            sources::copy(&sources::Item { to: below.to_owned(), ..item }, to)?;
        }
    }
    Ok(units(to)?.len())
}

/// Files to compile.
fn units(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for part in LIBRARY.1 {
        for entry in fs::read_dir(root.join(part)).into_iter().flatten() {
            found.push(entry?.path());
        }
    }
    found.retain(|path| is_c(path, &["c"]));
    found.sort();
    Ok(found)
}

fn is_c(path: &Path, endings: &[&str]) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| endings.contains(&ending))
}

fn unpack_library(dir: &Path, scratch: &Path) -> Result<()> {
    timed("cp", &[Path::new("-r"), &scratch.join("library"), dir], scratch).map(drop)
}

/// As a make without -j does: one compiler after the other, objects beside the sources, then the library.
fn compile(dir: &Path, _: &Path) -> Result<()> {
    let root = dir.join("library");
    let mut objects = vec![PathBuf::from("rcs"), PathBuf::from("lib.a")];
    for unit in units(&root)? {
        let object = unit.with_extension("o");
        let flags = ["-c", "-O0", "-fPIC", "-DZSTD_DISABLE_ASM=1", "-o"].map(Path::new);
        timed("cc", &[&flags[..], &[&object, &unit]].concat(), &root)?;
        objects.push(object);
    }
    timed("ar", &objects, &root).map(drop)
}

/// One transaction a line, each as durable as SQLite makes it by itself.
fn write_transactions(to: &Path) -> Result<()> {
    let mut text =
        "PRAGMA journal_mode=WAL;\nCREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);\n".to_owned();
    for n in 0..TRANSACTIONS {
        writeln!(text, "INSERT INTO t (text) VALUES ('row {n} {}');", "x".repeat(100))?;
    }
    Ok(fs::write(to, text)?)
}

fn transact(dir: &Path, scratch: &Path) -> Result<()> {
    let status = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(dir.join("base"))
        .stdin(File::open(scratch.join("transactions.sql"))?)
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "sqlite3 failed: {status}");
    Ok(())
}
