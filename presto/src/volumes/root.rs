//! A volume that is this node's root file system: which one of the mount table, where, and how it ends.
//!
//! It is mounted before everything else, in a place that becomes `/`, and stays until the machine goes. Other volumes of the
//! table are not served: their mount points would lie in a root that this presto must never look into.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rustix::io::Errno;

use super::mount::{Mounter, is_ours};
use super::served::Served;
use super::source::Surroundings;
use super::table::{Table, TableError};
use super::{Spec, Volumes};
use crate::channel::Link;
use crate::filter::Volume;
use crate::lower;

/// Caches of the volumes on the disk, as NAMESPACE/NAME below it.
const CACHE: &str = "cache";
/// How long running updates may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the server has everything.
const BREATH: Duration = Duration::from_millis(50);
/// A machine that is still there then has not gone after all.
const GONE: Duration = Duration::from_secs(300);

/// Which volume, and where.
#[derive(Clone, Debug)]
pub struct Root {
    /// Mounted on the disk: the state directory and `cache` lie in it, wherever they lay when they were made.
    pub disk: PathBuf,
    /// Where it is to be mounted; later it is at `/`.
    pub at: PathBuf,
    /// Name, where the table has several.
    pub volume: Option<String>,
    /// Who says what the volume is to be.
    pub filled: Filled,
}

/// How the root file system comes to be in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It is there, and so is what the mount table says of it.
    Before,
    /// Lento is there as well, names it by `SetVolume` and fills it. Then it is served as soon as that comes.
    ByLento,
}

/// The volume that is the root file system, and its place.
#[derive(Debug)]
pub(super) struct RootPlace {
    pub name: String,
    pub at: PathBuf,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The mount table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It has no volume, or not that one, or several.
    #[error("{0}")]
    Which(String),
    /// The volume is stuck.
    #[error("{0}")]
    Fault(String),
}

impl Root {
    fn choose(&self, state: &Path, specs: Vec<Spec>) -> Result<Spec, RootError> {
        let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        let all = names.join(", ");
        let mut specs =
            specs.into_iter().filter(|spec| self.volume.as_ref().is_none_or(|name| *name == spec.name));
        let chosen = match (specs.next(), specs.next(), &self.volume) {
            (Some(spec), None, _) => spec,
            (Some(_), Some(_), _) => {
                return Err(RootError::Which(format!(
                    "{} has the volumes {all}; say which one is the root file system: rootflags=volume=NAME",
                    state.display()
                )));
            }
            (None, _, Some(name)) if !all.is_empty() => {
                return Err(RootError::Which(format!(
                    "{} has no volume {name} but {all}; correct rootflags=volume=NAME",
                    state.display()
                )));
            }
            (None, ..) => {
                return Err(RootError::Which(format!(
                    "{} has no volume; run presto and lento with their state and caches on this disk until the volume \
                     is in sync, then boot from it",
                    state.display()
                )));
            }
        };
        if chosen.source.is_some() {
            return Err(RootError::Which(format!(
                "volume {}: it is an adopted directory here, and those cannot be a root file system",
                chosen.name
            )));
        }
        let cache = self.disk.join(CACHE).join(&chosen.name);
        if !cache.join("tree").is_dir() {
            return Err(RootError::Which(format!(
                "volume {}: {} is no cache; the disk must hold `presto` (the state) and `{CACHE}`",
                chosen.name,
                cache.display()
            )));
        }
        Ok(Spec { cache, ..chosen })
    }

    /// It is where it was mounted, or has become `/` since.
    fn place(&self) -> PathBuf {
        let slash = Path::new("/");
        if is_ours(slash) { slash.to_owned() } else { self.at.clone() }
    }
}

/// A root file system is never mounted over another one: users would stay in the old one, which nobody serves.
pub(super) fn is_free(at: &Path) -> Result<(), String> {
    if is_ours(at) {
        return Err("the root file system was lost with the presto that served it: reboot".to_owned());
    }
    Ok(())
}

impl Volumes {
    /// Serves one volume as the root file system: for reading, and without Lento; or waits for Lento to name it.
    ///
    /// # Errors
    /// The table has none that can be; or it is stuck.
    pub fn open_root(
        state: &Path,
        link: Arc<Link>,
        mounter: Arc<dyn Mounter>,
        root: &Root,
    ) -> Result<Arc<Volumes>, RootError> {
        for volume in Table::peek(state) {
            let _ = mounter.holds(&volume);
        }
        let (table, specs) = Table::open(state, &|volume| mounter.holds(volume))?;
        let (name, at, served) = match (&root.volume, root.filled) {
            (Some(name), Filled::ByLento) if specs.is_empty() => {
                (name.clone(), root.place(), BTreeMap::new())
            }
            _ => {
                let spec = root.choose(state, specs)?;
                let (name, at) = (spec.name.clone(), root.place());
                let nobody = Surroundings::default();
                let served = Served::start(spec, &link, mounter.as_ref(), &nobody, Some(&at));
                let fault = served.info().fault;
                if !fault.is_empty() {
                    return Err(RootError::Fault(fault));
                }
                // Until a Lento says that it is there; one that runs since the initramfs is always waited for.
                if root.filled == Filled::Before
                    && let Some(volume) = served.volume()
                {
                    volume.marks.no_filter.set(true);
                }
                (name.clone(), at, BTreeMap::from([(name, served)]))
            }
        };
        let (served, root) = (RwLock::new(served), Some(RootPlace { name, at }));
        Ok(Arc::new(Volumes { table, link, mounter, sources: Vec::new(), served, root }))
    }

    /// The root file system.
    #[must_use]
    pub fn root(&self) -> Option<Arc<Volume>> {
        self.volume(&self.root.as_ref()?.name)
    }

    /// Where it was mounted.
    #[must_use]
    pub fn root_place(&self) -> Option<PathBuf> {
        Some(self.get(&self.root.as_ref()?.name)?.root()?.to_owned())
    }

    /// Lets nobody change the root file system any more, and waits until the server has every update of it; at most this long.
    /// How many records it has not.
    ///
    /// # Errors
    /// For people.
    pub fn send_last(&self, limit: Duration) -> Result<u64, String> {
        let volume = self.root().ok_or("there is no root file system")?;
        if !volume.marks.resting.set(true) {
            // Whoever is in the middle of an update ends it; the guard goes at once.
            drop(volume.gate.try_write_for(DRAIN));
        }
        let begun = Instant::now();
        loop {
            let left = unsent(&volume);
            if left == 0 || begun.elapsed() >= limit {
                return Ok(left);
            }
            std::thread::sleep(BREATH);
        }
    }

    /// Brings the root file system to rest: nothing changes any more, and on the disk it is as if it were unmounted. Reading
    /// goes on. Nobody may use the channel any more.
    ///
    /// # Errors
    /// What is not on disk, for people.
    pub fn rest(&self) -> Result<(), String> {
        let served =
            self.root.as_ref().and_then(|root| self.get(&root.name)).ok_or("there is no root file system")?;
        let running = served.running()?;
        let volume = &running.volume;
        let text =
            |what: &str, error: &dyn std::fmt::Display| format!("volume {}: {what}: {error}", volume.name);
        volume.marks.resting.set(true);
        if volume.gate.try_write_for(DRAIN).is_none() {
            tracing::warn!(target: "root", volume = volume.name, "updates still run");
        }
        running.syncer.stop();
        let begun = Instant::now();
        let disk = volume.lower.stage();
        rustix::fs::syncfs(disk).map_err(|errno| text("the disk cannot be synced", &errno))?;
        volume
            .journal
            .sync()
            .and_then(|_| volume.journal.mark_clean())
            .map_err(|error| text("the journal is not closed", &error))?;
        match lower::freeze(disk) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(text("the disk's file system is not brought to rest", &errno)),
        }
        tracing::info!(target: "root", volume = volume.name, ms = begun.elapsed().as_millis(),
            "everything is on disk; the machine may go");
        thaw_later(Arc::clone(volume));
        Ok(())
    }
}

/// How many records the server does not have. What programs left in mappings, and in files that they never closed, is looked for
/// first of all when everything else is there: nobody may be told so before.
fn unsent(volume: &Volume) -> u64 {
    let left = || volume.journal.published().0.saturating_sub(volume.limbo.settled().0);
    if left() > 0 {
        return left();
    }
    let mut unknown = 0;
    for id in volume.writers.all() {
        match volume.look_at(id) {
            Ok(_) | Err(Errno::STALE | Errno::NOENT) => volume.probe(id),
            Err(errno) => {
                tracing::warn!(target: "root", volume = volume.name, object = %id, %errno,
                    "what was stored last in a file is not journaled");
                unknown += 1;
            }
        }
    }
    left().saturating_add(unknown)
}

/// Should the machine not go, whoever writes elsewhere on the disk must not wait for ever.
fn thaw_later(volume: Arc<Volume>) {
    let spawned = std::thread::Builder::new().name("thaw".to_owned()).spawn(move || {
        std::thread::sleep(GONE);
        tracing::warn!(target: "root", volume = volume.name,
            "the machine is still there: its disk can be written again, the root file system cannot");
        let _ = lower::thaw(volume.lower.stage());
    });
    if let Err(error) = spawned {
        tracing::warn!(target: "root", %error, "no thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, more: &serde_json::Value) -> Spec {
        let mut spec = serde_json::json!({"name": name, "uid": 7, "cache": "/elsewhere/cache", "mountpoint": "/elsewhere/m"});
        if let Some(source) = more.get("source") {
            spec["source"] = source.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn plain(name: &str) -> Spec {
        spec(name, &serde_json::Value::Null)
    }

    #[test]
    fn the_only_volume_of_the_disk_is_taken_and_its_cache_is_where_the_disk_is_now() {
        let disk = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(disk.path().join("cache/a/b/tree")).unwrap();
        let root = |volume: Option<&str>| Root {
            disk: disk.path().to_owned(),
            at: "/newroot".into(),
            volume: volume.map(str::to_owned),
            filled: Filled::Before,
        };
        let state = Path::new("/disk/presto");
        let why = |volume, specs| root(volume).choose(state, specs).unwrap_err().to_string();
        let chosen = root(None).choose(state, vec![plain("a/b")]).unwrap();
        assert_eq!(chosen.cache, disk.path().join("cache/a/b"));
        let two = vec![plain("a/b"), plain("a/c")];
        assert!(why(None, two.clone()).contains("a/b, a/c"));
        assert!(why(Some("a/d"), two.clone()).contains("no volume a/d but a/b, a/c"));
        assert!(why(Some("a/c"), two.clone()).contains("is no cache"));
        assert_eq!(root(Some("a/b")).choose(state, two).unwrap().name, "a/b");
        assert!(why(None, Vec::new()).contains("has no volume; run presto and lento"));
        let adopted = spec("a/b", &serde_json::json!({"source": "/srv"}));
        assert!(why(None, vec![adopted]).contains("adopted"));
    }
}
