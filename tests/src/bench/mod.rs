//! `make bench`: figures of replication beside those of rsync and lsyncd, and of the file system beside the native one
//! under it, as tables and as JSON.
//!
//! It asserts nothing: targets stand beside the figures. What is compared alternates, so that a slow minute hits all.

mod applications;
mod bindfs;
mod figure;
mod files;
mod journal;
mod peers;
mod replication;
mod workloads;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use intermezzo::output::{print_text, say};
use serde::Serialize;

use crate::run::timed;
use crate::sources::{self, Kind};

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures replication, and the file system against the native directory beside it.
#[derive(Debug, Parser)]
pub struct Args {
    /// What to measure
    #[arg(value_enum, default_values_t = [Part::Replication, Part::Files])]
    parts: Vec<Part>,
    /// Pairs of runs of each file system figure
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Only file system figures whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Directory below which everything is made; it says which native file system is measured
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Two nodes, and the same work with rsync and lsyncd
    Replication,
    /// One node and no network: programs and presto on one CPU, lento on another if there is one
    Files,
}

/// All that was measured.
#[derive(Debug, Default, Serialize)]
struct Report {
    replication: Option<replication::Report>,
    files: Option<files::Report>,
}

/// Measures, prints tables, writes the JSON.
///
/// # Errors
/// Something could not be run, or nodes were not equal in the end.
pub fn run(args: &Args) -> Result<()> {
    let mut report = Report::default();
    if args.parts.contains(&Part::Replication) {
        let measured = replication::measure(&args.base).context("replication")?;
        print_text(&measured.render())?;
        report.replication = Some(measured);
    }
    if args.parts.contains(&Part::Files) {
        let measured = files::measure(&args.base, args.pairs, &args.only).context("files")?;
        print_text(&measured.render())?;
        report.files = Some(measured);
    }
    if let Some(dir) = args.json.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&args.json, serde_json::to_vec_pretty(&report)?)?;
    say(format_args!("JSON: {}", args.json.display()));
    Ok(())
}

/// A packed tree to unpack.
#[derive(Debug)]
struct Archive {
    path: PathBuf,
    files: usize,
    bytes: u64,
}

impl Archive {
    /// Packs at most this many files of the dependencies' sources, as `tree/`.
    fn pack(dir: &Path, most: usize) -> Result<Archive> {
        let tree = dir.join("tree");
        fs::create_dir_all(&tree)?;
        let mut archive = Archive { path: dir.join("tree.tar"), files: 0, bytes: 0 };
        for item in sources::dependencies()? {
            if item.kind == Kind::File {
                // The few huge generated ones would make it a test of something else.
                if item.size > 1 << 20 {
                    continue;
                }
                archive.files += 1;
                archive.bytes += item.size;
            }
            sources::copy(&item, &tree)?;
            if archive.files == most {
                break;
            }
        }
        timed("tar", &[Path::new("cf"), &archive.path, Path::new("tree")], dir)?;
        #[allow(clippy::disallowed_methods)] // Made above.
        fs::remove_dir_all(&tree)?;
        Ok(archive)
    }

    fn unpack(&self, dir: &Path) -> Result<Duration> {
        timed("tar", &[Path::new("xf"), &self.path], dir)
    }
}
