//! The mount table: one JSON file, replaced whole, so that a start without Lento mounts what was mounted before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::Spec;

const FILE: &str = "volumes.json";
const VERSION: u32 = 1;
/// Of signals that are pending (proc(5)).
const SIGKILL: u64 = 1 << 8;
/// How long a dying presto is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked at, at first and later.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Why the mount table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file system refused.
    #[error("mount table {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// Not a mount table.
    #[error("mount table {path} cannot be read: {reason}; put it right or move it away")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two prestos would change the same volumes.
    #[error("state directory {path} is used by another presto")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    volumes: Vec<Spec>,
}

/// The table and the lock on its directory.
#[derive(Debug)]
pub struct Table {
    dir: PathBuf,
    specs: Mutex<BTreeMap<String, Spec>>,
    _lock: File,
}

impl Table {
    pub(super) fn open(dir: &Path, is_held: &dyn Fn(&str) -> bool) -> Result<(Table, Vec<Spec>), TableError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| TableError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let lock_path = dir.join("lock");
        let lock = rustix::fs::open(
            &lock_path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|errno| io(&lock_path)(errno.into()))?;
        let lock = File::from(lock);
        let path = dir.join(FILE);
        take(&lock, &path, is_held).map_err(|()| TableError::InUse { path: dir.to_owned() })?;
        // Whoever finds it locked can look whether we are still alive.
        lock.set_len(0)
            .and_then(|()| (&lock).write_all(std::process::id().to_string().as_bytes()))
            .map_err(io(&lock_path))?;
        let specs = Table::read(dir)?;
        let by_name = specs.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
        Ok((Table { dir: dir.to_owned(), specs: Mutex::new(by_name), _lock: lock }, specs))
    }

    /// What the table says, without a presto: it may be in use.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(dir: &Path) -> Result<Vec<Spec>, TableError> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(text) => parse(&text).map_err(|reason| TableError::Damaged { path, reason }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(TableError::Io { path, source }),
        }
    }

    /// Names in the table, as far as it can be read, without waiting for a presto that uses it.
    pub(super) fn peek(dir: &Path) -> Vec<String> {
        Table::read(dir).unwrap_or_default().into_iter().map(|spec| spec.name).collect()
    }

    /// What it says of a volume.
    pub(super) fn get(&self, name: &str) -> Option<Spec> {
        self.specs.lock().get(name).cloned()
    }

    /// All volumes.
    pub(super) fn all(&self) -> Vec<Spec> {
        self.specs.lock().values().cloned().collect()
    }

    /// All volumes but this one.
    pub(super) fn others(&self, name: &str) -> Vec<Spec> {
        self.specs.lock().values().filter(|spec| spec.name != name).cloned().collect()
    }

    /// Remembers a volume; durable when this returns.
    pub(super) fn put(&self, spec: &Spec) -> Result<(), TableError> {
        let mut specs = self.specs.lock();
        if specs.get(&spec.name) == Some(spec) {
            return Ok(());
        }
        specs.insert(spec.name.clone(), spec.clone());
        self.write(&specs)
    }

    /// Forgets a volume; durable when this returns.
    pub(super) fn remove(&self, name: &str) -> Result<(), TableError> {
        let mut specs = self.specs.lock();
        if specs.remove(name).is_none() {
            return Ok(());
        }
        self.write(&specs)
    }

    fn write(&self, specs: &BTreeMap<String, Spec>) -> Result<(), TableError> {
        let path = self.dir.join(FILE);
        let temporary = self.dir.join("volumes.json.new");
        let on_disk = OnDisk { version: VERSION, volumes: specs.values().cloned().collect() };
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec_pretty(&on_disk)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| TableError::Io { path: path.clone(), source })
    }
}

/// Takes the lock. A presto that was killed may hold it still: it cannot end while one of its threads waits in the
/// kernel for a user's request, which in turn waits for presto. Aborting its mounts ends both. (Where there is a holder,
/// no thread of presto's waits in that way, and the mounts are to go on.)
fn take(lock: &File, table: &Path, is_held: &dyn Fn(&str) -> bool) -> Result<(), ()> {
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    while begun.elapsed() < PATIENCE {
        if rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        if !is_dying(lock) {
            return Err(());
        }
        let specs = std::fs::read(table).ok().and_then(|text| parse(&text).ok()).unwrap_or_default();
        for spec in specs.into_iter().filter(|spec| !is_held(&spec.name)) {
            let covers = spec.source.as_deref().map(super::source::uncover);
            for error in [Some(super::mount::clear(&spec.mountpoint)), covers]
                .into_iter()
                .flatten()
                .filter_map(Result::err)
            {
                tracing::warn!(target: "volumes", volume = spec.name, error);
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Err(())
}

/// Whether the process that wrote the lock file was killed and has not ended.
fn is_dying(lock: &File) -> bool {
    let mut pid = [0; 16];
    let Ok(length) = std::os::unix::fs::FileExt::read_at(lock, &mut pid, 0) else { return false };
    let Some(pid) = pid.get(..length).and_then(|pid| std::str::from_utf8(pid).ok()) else { return false };
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status.lines().any(|line| match line.split_once(':') {
            Some(("State", state)) => state.contains(['Z', 'X']),
            // Killed, and has not noticed yet.
            Some(("SigPnd" | "ShdPnd", pending)) => {
                u64::from_str_radix(pending.trim(), 16).is_ok_and(|pending| pending & SIGKILL != 0)
            }
            _ => false,
        }),
        Err(_) => true,
    }
}

fn parse(text: &[u8]) -> Result<Vec<Spec>, String> {
    let on_disk: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if on_disk.version != VERSION {
        return Err(format!("version {} is not known here", on_disk.version));
    }
    for spec in &on_disk.volumes {
        spec.check().map_err(|reason| format!("volume {}: {reason}", spec.name))?;
    }
    Ok(on_disk.volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> Spec {
        let text = format!(r#"{{"name":"{name}","uid":7,"cache":"/c","mountpoint":"/m"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_put_is_there_after_a_restart_and_what_is_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (table, specs) = Table::open(dir.path(), &|_| false).unwrap();
        assert!(specs.is_empty());
        table.put(&spec("a/b")).unwrap();
        table.put(&spec("a/c")).unwrap();
        table.remove("a/b").unwrap();
        drop(table);
        let (_, specs) = Table::open(dir.path(), &|_| false).unwrap();
        assert_eq!(specs, [spec("a/c")]);
    }

    #[test]
    fn a_second_presto_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _table = Table::open(dir.path(), &|_| false).unwrap();
        assert!(matches!(Table::open(dir.path(), &|_| false), Err(TableError::InUse { .. })));
    }

    #[test]
    fn random_damage_is_an_error_or_a_table_of_checked_volumes() {
        let whole =
            serde_json::to_vec_pretty(&OnDisk { version: VERSION, volumes: vec![spec("a/b"), spec("a/c")] })
                .unwrap();
        let mut state = 1_u64;
        let mut roll = |sides: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % sides
        };
        let mut refused = 0;
        for _ in 0..5000 {
            let mut text = whole.clone();
            match roll(8) {
                0 => text.truncate(roll(whole.len())),
                1 => text.extend(vec![b'x'; roll(9) + 1]),
                _ => (0..=roll(4)).for_each(|_| text[roll(whole.len())] ^= 1 << roll(8)),
            }
            match parse(&text) {
                Ok(specs) => specs.iter().for_each(|spec| assert_eq!(spec.check(), Ok(()))),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 4000, "{refused}");
    }

    #[test]
    fn a_table_of_a_later_version_is_refused() {
        assert!(parse(br#"{"version":2,"volumes":[]}"#).unwrap_err().contains("version 2"));
    }

    #[test]
    fn a_damaged_table_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Table::open(dir.path(), &|_| false).unwrap_err().to_string();
        assert!(error.contains("volumes.json"), "{error}");
    }
}
