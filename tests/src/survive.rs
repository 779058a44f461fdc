//! What programs do while presto is killed under them: each call's result is known beforehand, and none may differ.
//!
//! `Worker`s are small endless programs; `Tally` is what one of them has to say at the end.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Names in the directory that is read again and again.
const MANY: usize = 2000;

/// What a worker did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Its name.
    pub worker: String,
    /// Rounds that went as they must.
    pub rounds: u64,
    /// The first that did not.
    pub error: Option<String>,
    /// Its longest round in seconds.
    pub worst: f64,
}

impl Tally {
    /// The same worker's other rounds.
    pub fn add(&mut self, other: &Tally) {
        self.rounds += other.rounds;
        self.worst = self.worst.max(other.worst);
    }
}

/// One of the programs.
pub type Worker = (String, Box<dyn FnMut(u64) -> Result<()> + Send>);

/// All programs on a mounted volume.
///
/// # Errors
/// They cannot be set up.
pub fn workers(mount: &Path) -> Result<Vec<Worker>> {
    let mut all: Vec<Worker> = Vec::new();
    for number in 0..3 {
        let dir = mount.join(format!("names-{number}"));
        fs::create_dir(&dir)?;
        all.push((format!("names {number}"), Box::new(move |round| names(&dir, round))));
    }
    let path = mount.join("data");
    let file = open(&path)?;
    all.push(("data".into(), Box::new(move |round| data(&file, round))));
    all.push(("reopen".into(), Box::new(move |round| reopen(&path, round))));
    let gone = mount.join("gone");
    let file = open(&gone)?;
    fs::remove_file(&gone)?;
    all.push(("unlinked".into(), Box::new(move |round| unlinked(&file, round))));
    let log = mount.join("log");
    let file = File::options().append(true).create(true).open(&log)?;
    all.push(("append".into(), Box::new(move |round| append(&file, &log, round))));
    let many = mount.join("many");
    fs::create_dir(&many)?;
    for number in 0..MANY {
        fs::write(many.join(format!("{number:04}")), b"")?;
    }
    all.push(("scan".into(), Box::new(move |_| scan(&many))));
    let lock = mount.join("lock");
    let held = open(&lock)?;
    rustix::fs::flock(&held, FlockOperation::LockExclusive)?;
    all.push(("lock".into(), Box::new(move |_| still_locked(&held, &lock))));
    let path = mount.join("whole");
    all.push(("replace".into(), Box::new(move |round| replace(&path, round))));
    Ok(all)
}

/// Runs a worker until it is told to stop or has failed.
#[must_use]
pub fn run((name, mut work): Worker, stop: &AtomicBool) -> Tally {
    let mut tally = Tally { worker: name, ..Tally::default() };
    while !stop.load(Ordering::Relaxed) && tally.error.is_none() {
        let begin = Instant::now();
        match work(tally.rounds) {
            Ok(()) => tally.rounds += 1,
            Err(error) => tally.error = Some(format!("round {}: {error:#}", tally.rounds)),
        }
        tally.worst = tally.worst.max(begin.elapsed().as_secs_f64());
    }
    tally
}

fn open(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).create(true).truncate(false).open(path)?)
}

fn refused<T>(result: Result<T, Errno>, expected: Errno, what: &str) -> Result<()> {
    match result {
        Err(errno) if errno == expected => Ok(()),
        Err(errno) => bail!("{what}: {errno} instead of {expected}"),
        Ok(_) => bail!("{what} went well, but must be {expected}"),
    }
}

/// Every call that changes a name, with the exact result of doing it twice.
fn names(dir: &Path, round: u64) -> Result<()> {
    let [a, b, c, s, d, e] = ["a", "b", "c", "s", "d", "e"].map(|name| dir.join(name));
    let excl = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let create = |path: &PathBuf| rustix::fs::open(path, excl, Mode::from_raw_mode(0o640));
    let text = format!("round {round}");
    let file = File::from(create(&a).context("create")?);
    file.write_all_at(text.as_bytes(), 0).context("write")?;
    refused(create(&a), Errno::EXIST, "the second create")?;
    rustix::fs::rename(&a, &b).context("rename")?;
    refused(rustix::fs::rename(&a, &b), Errno::NOENT, "the second rename")?;
    rustix::fs::link(&b, &c).context("link")?;
    refused(rustix::fs::link(&b, &c), Errno::EXIST, "the second link")?;
    ensure!(fs::metadata(&c)?.nlink() == 2, "two links");
    symlink(&text, &s).context("symlink")?;
    ensure!(fs::read_link(&s)?.to_string_lossy() == text, "the link's target");
    fs::set_permissions(&b, fs::Permissions::from_mode(0o600)).context("chmod")?;
    ensure!(fs::metadata(&c)?.mode() & 0o777 == 0o600, "the mode by the other name");
    let set = |flags| rustix::fs::setxattr(&b, "user.round", text.as_bytes(), flags);
    set(XattrFlags::CREATE).context("setxattr")?;
    refused(set(XattrFlags::CREATE), Errno::EXIST, "the second setxattr")?;
    rustix::fs::removexattr(&b, "user.round").context("removexattr")?;
    refused(rustix::fs::removexattr(&b, "user.round"), Errno::NODATA, "the second removexattr")?;
    fs::File::options().write(true).open(&b)?.set_len(5).context("truncate")?;
    ensure!(fs::read(&c)? == b"round", "the truncated content by the other name");
    fs::create_dir(&d).context("mkdir")?;
    refused(rustix::fs::mkdir(&d, Mode::RWXU), Errno::EXIST, "the second mkdir")?;
    let swap = |from: &PathBuf, to: &PathBuf, flags| {
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
    };
    refused(swap(&c, &b, RenameFlags::NOREPLACE), Errno::EXIST, "rename without replacing")?;
    swap(&d, &s, RenameFlags::EXCHANGE).context("exchange")?;
    ensure!(fs::symlink_metadata(&s)?.is_dir(), "exchanged");
    swap(&c, &e, RenameFlags::NOREPLACE).context("rename to a free name")?;
    rustix::fs::rmdir(&s).context("rmdir")?;
    refused(rustix::fs::rmdir(&s), Errno::NOENT, "the second rmdir")?;
    for path in [&b, &e, &d] {
        rustix::fs::unlink(path).with_context(|| format!("unlink {}", path.display()))?;
        refused(rustix::fs::unlink(path), Errno::NOENT, "the second unlink")?;
    }
    ensure!(file.metadata()?.nlink() == 0, "no link is left");
    let left = fs::read_dir(dir)?.count();
    ensure!(left == 0, "{left} names are left");
    Ok(())
}

fn data(file: &File, round: u64) -> Result<()> {
    let at = round % 64 * 512;
    let content = [u8::try_from(round % 251).unwrap_or(0); 512];
    file.write_all_at(&content, at).context("pwrite")?;
    let mut read = [0; 512];
    file.read_exact_at(&mut read, at).context("pread")?;
    ensure!(read == content, "what was written is read");
    if round.is_multiple_of(64) {
        file.sync_all().context("fsync")?;
    }
    Ok(())
}

fn unlinked(file: &File, round: u64) -> Result<()> {
    data(file, round)?;
    let length = 40_000 + round % 100;
    file.set_len(length).context("ftruncate")?;
    let meta = file.metadata().context("fstat")?;
    ensure!(meta.len() == length && meta.nlink() == 0, "size {} and {} links", meta.len(), meta.nlink());
    Ok(())
}

/// Opens a file that somebody else has open as well.
fn reopen(path: &Path, round: u64) -> Result<()> {
    let file = if round.is_multiple_of(2) { File::open(path)? } else { open(path)? };
    let mut byte = [0];
    let _ = file.read_at(&mut byte, 0).context("read")?;
    Ok(())
}

fn append(mut file: &File, path: &Path, round: u64) -> Result<()> {
    use std::io::Write;
    file.write_all(b"0123456789abcde\n").context("append")?;
    if round % 100 == 99 {
        let length = fs::metadata(path)?.len();
        ensure!(length == (round + 1) * 16, "{length} bytes after {} lines", round + 1);
    }
    Ok(())
}

fn scan(dir: &Path) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .context("readdir")?;
    names.sort_unstable();
    names.dedup();
    ensure!(names.len() == MANY, "{} of {MANY} names", names.len());
    Ok(())
}

/// Nobody else gets the lock that `held` has.
fn still_locked(held: &File, path: &Path) -> Result<()> {
    ensure!(held.metadata()?.ino() == fs::metadata(path)?.ino(), "the locked file has its name");
    let other = OwnedFd::from(open(path)?);
    let taken = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    refused(taken, Errno::WOULDBLOCK, "a second lock")
}

/// As editors save: whoever looks sees the old content or the new one, whole.
fn replace(path: &Path, round: u64) -> Result<()> {
    let new = path.with_extension("new");
    let text = format!("{round:08}").repeat(100);
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(&new).context("create")?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_all().context("fsync")?;
    drop(file);
    fs::rename(&new, path).context("rename over")?;
    ensure!(fs::read_to_string(path)? == text, "the new content");
    Ok(())
}

/// How long a stopped client may take: it may be waiting for one last answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
