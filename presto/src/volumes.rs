//! The volumes of this node: which there are, how each is, and what Lento may ask of them.
//!
//! Owns the mount table and one `Served` per volume. A volume that is stuck has a fault text and harms no other.

mod background;
mod calls;
mod discard;
mod fuse;
mod mount;
mod root;
mod served;
mod source;
mod spec;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use intermezzo_channel::PROTOCOL;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{Attach, Attached, Mark};
use parking_lot::RwLock;
use rustix::io::Errno;

pub use fuse::Fuse;
pub use mount::{Mounted, Mounter, NoMount};
pub use root::{Filled, Root, RootError};
pub use spec::{Access, Spec, WhenFull};
pub use table::{Table, TableError};

use crate::channel::{Link, Reply, Service};
use root::RootPlace;
use served::Served;
use source::Surroundings;

/// Everything presto serves.
pub struct Volumes {
    table: Table,
    link: Arc<Link>,
    mounter: Arc<dyn Mounter>,
    sources: Vec<PathBuf>,
    served: RwLock<BTreeMap<String, Arc<Served>>>,
    /// The volume that is the root file system.
    root: Option<RootPlace>,
}

impl Volumes {
    /// Reads the mount table in `state` and serves what it names, without waiting for Lento. What is stuck is told by
    /// its fault, not by an error. Directories at or below `sources` may be adopted.
    ///
    /// # Errors
    /// The table cannot be read, or another presto uses this directory.
    pub fn open(
        state: &Path,
        link: Arc<Link>,
        mounter: Arc<dyn Mounter>,
        sources: Vec<PathBuf>,
    ) -> Result<Arc<Volumes>, TableError> {
        // At once: should the holder go as well, it is this presto that keeps the mounts.
        for volume in Table::peek(state) {
            let _ = mounter.holds(&volume);
        }
        let (table, specs) = Table::open(state, &|volume| mounter.holds(volume))?;
        let volumes =
            Arc::new(Volumes { table, link, mounter, sources, served: RwLock::default(), root: None });
        std::thread::scope(|scope| {
            for spec in specs {
                // One slow disk does not keep the others waiting.
                let volumes = &volumes;
                scope.spawn(move || volumes.begin(spec));
            }
        });
        Ok(volumes)
    }

    /// Unmounts everything and closes the journals; what is not done by the deadline stays as after a crash.
    pub fn close(&self, deadline: Instant) {
        let all: Vec<_> = std::mem::take(&mut *self.served.write()).into_values().collect();
        for served in &all {
            served.unmount();
        }
        for served in &all {
            if Instant::now() >= deadline {
                tracing::warn!(target: "volumes", volume = served.name(), "no time left to close the journal");
                continue;
            }
            served.close(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        }
    }

    /// Leaves the mounts to the next presto, as far as the holder keeps them. The caller ends the process at once.
    pub fn leave(&self, deadline: Instant) {
        let all: Vec<_> = self.served.read().values().cloned().collect();
        for served in all {
            served.leave(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        }
    }

    /// The volume by this name, for tests and embedding.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<Arc<crate::filter::Volume>> {
        self.get(name).and_then(|served| served.volume())
    }

    fn begin(&self, spec: Spec) -> Arc<Served> {
        let name = spec.name.clone();
        let surroundings = Surroundings { allowed: self.sources.clone(), others: self.table.others(&name) };
        let root = self.root.as_ref().filter(|root| root.name == name).map(|root| root.at.as_path());
        let served = Served::start(spec, &self.link, self.mounter.as_ref(), &surroundings, root);
        self.served.write().insert(name, Arc::clone(&served));
        served
    }

    fn get(&self, name: &str) -> Option<Arc<Served>> {
        self.served.read().get(name).cloned()
    }

    fn attach(&self, attach: &Attach) -> Reply {
        tracing::info!(target: "volumes", lento = attach.lento_version, "Lento is here");
        let all: Vec<_> = self.served.read().values().cloned().collect();
        Reply::of(Body::Attached(Attached {
            protocol: PROTOCOL,
            presto_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.mounter.offers(),
            volumes: all.iter().map(|served| served.info()).collect(),
        }))
    }

    fn set(&self, spec: &Spec) -> Reply {
        let name = spec.name.clone();
        if let Some(root) = self.root.as_ref().filter(|root| root.name != name) {
            let message = format!(
                "volume {name}: this node's root file system is volume {}, and it serves no other one",
                root.name
            );
            return Reply::failure(Errno::OPNOTSUPP, message);
        }
        let before = self.table.get(&name).filter(|before| before.same_place(spec));
        let spec = &Spec { adopted: before.is_some_and(|before| before.adopted), ..spec.clone() };
        let served = match self.get(&name) {
            None => self.begin(spec.clone()),
            Some(served) => match served.change(spec) {
                Ok(true) => served,
                // It is stuck: another try.
                Ok(false) if served.root().is_none() => {
                    served.close(Duration::from_secs(1));
                    self.begin(spec.clone())
                }
                Ok(false) => {
                    return Reply::failure(
                        Errno::IO,
                        format!("volume {name}: the root file system is stuck"),
                    );
                }
                Err(message) => return Reply::failure(Errno::BUSY, message),
            },
        };
        if served.refused() {
            // Not this replica's cache: never to be mounted by the table at the next start.
            self.served.write().remove(&name);
            return Reply::failure(Errno::INVAL, served.info().fault);
        }
        if let Err(error) = self.table.put(spec) {
            return Reply::failure(Errno::IO, format!("volume {name}: {error}"));
        }
        Reply::of(Body::VolumeInfo(served.info()))
    }

    fn clear(&self, name: &str, uid: u64) -> Reply {
        if self.root.as_ref().is_some_and(|root| root.name == name) {
            let message = format!(
                "volume {name}: it is this node's root file system and stays until the node boots from another one"
            );
            return Reply::failure(Errno::BUSY, message);
        }
        let meant = |served: &Arc<Served>| uid == 0 || served.uid() == uid;
        if !self.get(name).as_ref().is_some_and(meant) {
            return Reply::done();
        }
        let Some(served) = self.served.write().remove(name) else { return Reply::done() };
        served.unmount();
        served.close(Duration::from_secs(20));
        match self.table.remove(name) {
            Ok(()) => Reply::done(),
            Err(error) => Reply::failure(Errno::IO, format!("volume {name}: {error}")),
        }
    }
}

impl Volumes {
    /// Lento knows all of an adopted directory: that is remembered before anybody may write.
    fn adopted(&self, name: &str, mark: Mark) -> Reply {
        let Some(served) = self.get(name) else { return unknown(name) };
        if let Some(spec) = served.adopting() {
            if let Err(error) = self.table.put(&spec) {
                return Reply::failure(Errno::IO, format!("volume {name}: {error}"));
            }
            served.adopted();
            tracing::info!(target: "volumes", volume = name, "the adopted directory is known: users may write");
        }
        served.call(Body::Mark(mark))
    }
}

fn unknown(volume: &str) -> Reply {
    Reply::failure(Errno::NOENT, format!("volume {volume}: presto does not serve it"))
}

impl Service for Volumes {
    fn call(&self, volume: &str, body: Body) -> Reply {
        match body {
            Body::Attach(attach) => self.attach(&attach),
            Body::SetVolume(set) => match Spec::from_wire(volume, &set) {
                Ok(spec) => self.set(&spec),
                Err(reason) => Reply::failure(Errno::INVAL, format!("volume {volume}: {reason}")),
            },
            Body::ClearVolume(clear) => self.clear(volume, clear.uid),
            Body::DiscardVolume(discard) => self.discard(volume, &discard),
            Body::Mark(mark) if mark.adopted => self.adopted(volume, mark),
            body => match self.get(volume) {
                Some(served) => served.call(body),
                None => unknown(volume),
            },
        }
    }
}
