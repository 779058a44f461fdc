//! `intermezzo prefetch`: the contents below some paths come now, before somebody waits for them.
//!
//! Opening a file brings its content, so that is all it does, many at a time, with the rights of whoever asks. What is here is
//! told by the space that it takes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use crate::Exit;
use crate::args::PrefetchArgs;
use crate::output::{bytes, say};
use crate::progress::Progress;

/// Opened at a time: half of what a server has in work for one node, so that who opens something meanwhile does not stand in line.
const AT_ONCE: usize = 4;
/// Failures that are named.
const NAMED: usize = 10;

/// A file whose content may not be here.
struct Lacking {
    path: PathBuf,
    size: u64,
}

pub(super) fn run(args: &PrefetchArgs) -> Result<Exit> {
    let looking = Progress::spinner("Looking for what is not here");
    let mut found = Found::default();
    for path in &args.paths {
        find(path, &mut found).with_context(|| format!("cannot look through {}", path.display()))?;
    }
    looking.finish();
    let Found { mut lacking, mut failed } = found;
    // Whoever wants many small files is not kept waiting by a large one.
    lacking.sort_by_key(|file| file.size);
    let wanted: u64 = lacking.iter().map(|file| file.size).sum();
    let progress = Progress::steps("Fetching", lacking.len() as u64);
    let refused = fetch(&lacking, &progress);
    progress.finish();
    let came = lacking.len().saturating_sub(refused.len());
    failed.extend(refused);
    say(format_args!("{came} of {} contents, {} in all, are here now", lacking.len(), bytes(wanted)));
    for (path, error) in failed.iter().take(NAMED) {
        say(format_args!("{}: {error}", path.display()));
    }
    if failed.len() > NAMED {
        say(format_args!("and {} more", failed.len() - NAMED));
    }
    Ok(if failed.is_empty() { Exit::Done } else { Exit::NotTrue })
}

/// What a walk has met.
#[derive(Default)]
struct Found {
    lacking: Vec<Lacking>,
    failed: Vec<(PathBuf, io::Error)>,
}

/// Walks fetch nothing. What cannot be looked at keeps nobody from the rest.
fn find(at: &Path, found: &mut Found) -> Result<()> {
    let first = fs::symlink_metadata(at)?;
    if first.is_file() {
        found.lacking.extend(lacking(at.to_owned(), &first));
        return Ok(());
    }
    if !first.is_dir() {
        bail!("it is neither a file nor a directory");
    }
    let mut dirs = vec![at.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => {
                found.failed.push((dir, error));
                continue;
            }
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    found.failed.push((dir.clone(), error));
                    break;
                }
            };
            match fs::symlink_metadata(&path) {
                // Something else may be mounted there.
                Ok(meta) if meta.dev() != first.dev() => {}
                Ok(meta) if meta.is_dir() => dirs.push(path),
                Ok(meta) if meta.is_file() => found.lacking.extend(lacking(path, &meta)),
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => {}
                Err(error) => found.failed.push((path, error)),
            }
        }
    }
    Ok(())
}

/// A file with less on the disk than it has bytes. A sparse one looks the same, and opening it costs nothing.
fn lacking(path: PathBuf, meta: &Metadata) -> Option<Lacking> {
    (meta.blocks() * 512 < meta.len()).then_some(Lacking { path, size: meta.len() })
}

/// Opens them; what could not be opened, and why.
fn fetch(lacking: &[Lacking], progress: &Progress) -> Vec<(PathBuf, io::Error)> {
    let (next, came) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || {
        let mut failed = Vec::new();
        while let Some(file) = lacking.get(next.fetch_add(1, Ordering::Relaxed)) {
            match File::open(&file.path) {
                Ok(_) => drop(came.fetch_add(file.size, Ordering::Relaxed)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed.push((file.path.clone(), error)),
            }
            progress.note(&bytes(came.load(Ordering::Relaxed)));
            progress.advance(1);
        }
        failed
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(lacking.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    })
}
