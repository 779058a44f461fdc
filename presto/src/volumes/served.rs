//! One volume from opening to closing: cache, journal, recovery, mount, and the fault where one of them fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use intermezzo_channel::v1::VolumeInfo;
use intermezzo_kml::KmlError;
use parking_lot::{Mutex, RwLock};

use super::background::Syncer;
use super::mount::{Mounted, Mounter, prepare, vacate};
use super::source::{Surroundings, uncover};
use super::spec::{Access, Spec, Writes};
use crate::channel::{Link, convert};
use crate::filter::{OpenError, Volume};
use crate::recovery;
use crate::replay::Replayer;
use crate::scrub::Scrubber;

/// How long users of a detached mount are waited for.
const LEAVE: Duration = Duration::from_secs(2);

/// A volume in the table, well or stuck.
pub(super) struct Served {
    spec: RwLock<Spec>,
    link: Arc<Link>,
    state: RwLock<State>,
    /// It is the root file system, and here it is mounted, whatever the table says.
    root: Option<PathBuf>,
}

enum State {
    Up(Arc<Running>),
    /// Nothing of it is open; the reason, and whether the request itself was wrong.
    Stuck(String, Blame),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blame {
    Node,
    Request,
}

/// What an open volume consists of.
pub(super) struct Running {
    pub volume: Arc<Volume>,
    pub replayer: Arc<Replayer>,
    pub scrubber: Scrubber,
    pub syncer: Syncer,
    mount: Mutex<Option<Box<dyn Mounted>>>,
    /// Why it is not mounted.
    fault: String,
    /// See `VolumeInfo.loss`.
    loss: u64,
    /// Lento said so by `Mark`.
    pub marked_read_only: std::sync::atomic::AtomicBool,
}

impl Served {
    /// Opens, recovers and mounts. A failure becomes the volume's fault.
    pub fn start(
        spec: Spec,
        link: &Arc<Link>,
        mounter: &dyn Mounter,
        surroundings: &Surroundings,
        root: Option<&Path>,
    ) -> Arc<Served> {
        link.set_policy(&spec.name, spec.no_lento);
        let state = match open(&spec, link, mounter, surroundings, root) {
            Ok(running) => State::Up(running),
            Err((fault, blame)) => {
                tracing::error!(target: "volumes", volume = spec.name, fault, "volume is not served");
                State::Stuck(fault, blame)
            }
        };
        Arc::new(Served {
            spec: RwLock::new(spec),
            link: Arc::clone(link),
            state: RwLock::new(state),
            root: root.map(Path::to_owned),
        })
    }

    pub fn name(&self) -> String {
        self.spec.read().name.clone()
    }

    pub fn uid(&self) -> u64 {
        self.spec.read().uid
    }

    /// The parts, or why there are none.
    pub fn running(&self) -> Result<Arc<Running>, String> {
        match &*self.state.read() {
            State::Up(running) => Ok(Arc::clone(running)),
            State::Stuck(fault, _) => Err(fault.clone()),
        }
    }

    pub fn volume(&self) -> Option<Arc<Volume>> {
        self.running().ok().map(|running| Arc::clone(&running.volume))
    }

    /// Whether what was asked can never be served.
    pub fn refused(&self) -> bool {
        matches!(&*self.state.read(), State::Stuck(_, Blame::Request))
    }

    /// Applies changed options. `Ok(false)`: it is stuck or not mounted, start it anew.
    pub fn change(&self, spec: &Spec) -> Result<bool, String> {
        let mut present = self.spec.write();
        let Ok(running) = self.running() else { return Ok(false) };
        // Where else Lento would mount it does not matter to the root file system.
        let elsewhere = Spec { mountpoint: present.mountpoint.clone(), ..spec.clone() };
        if !present.same_place(if self.root.is_some() { &elsewhere } else { spec }) {
            return Err(format!(
                "volume {}: it is served from cache {}{} (uid {:#x}) at {}; clear it first",
                present.name,
                present.cache.display(),
                present
                    .source
                    .as_ref()
                    .map(|source| format!(" and source {}", source.display()))
                    .unwrap_or_default(),
                present.uid,
                present.mountpoint.display()
            ));
        }
        if !running.fault.is_empty() {
            return Ok(false);
        }
        running.volume.journal.set_max_bytes(spec.journal().max_bytes);
        self.link.set_policy(&spec.name, spec.no_lento);
        running.volume.set_when_full(spec.when_full());
        running
            .volume
            .set_exclude(spec.exclude()?)
            .map_err(|errno| format!("volume {}: exclude is not changed: {errno}", spec.name))?;
        running.volume.set_limits(spec.limits());
        running.volume.permit.set_needed(spec.writes == Writes::Permits);
        running.volume.durable.set(spec.durability);
        running.volume.history.set_keep(spec.keep());
        running.apply_access(spec);
        *present = spec.clone();
        Ok(true)
    }

    /// Lento's marks and the access mode together.
    pub fn refresh_access(&self) {
        let spec = self.spec.read();
        if let Ok(running) = self.running() {
            running.apply_access(&spec);
        }
    }

    /// What the table will say once Lento knows all of an adopted directory; `None` where there is nothing to say.
    pub fn adopting(&self) -> Option<Spec> {
        let spec = self.spec.read();
        let news = spec.source.is_some() && !spec.adopted && self.running().is_ok();
        news.then(|| Spec { adopted: true, ..spec.clone() })
    }

    /// The table says it.
    pub fn adopted(&self) {
        self.spec.write().adopted = true;
    }

    pub fn info(&self) -> VolumeInfo {
        let spec = self.spec.read();
        let mut info = VolumeInfo {
            name: spec.name.clone(),
            uid: spec.uid,
            cache: spec.cache.display().to_string(),
            mountpoint: spec.mountpoint.display().to_string(),
            kml: spec.cache.join("kml").display().to_string(),
            source: spec.source.as_ref().map(|source| source.display().to_string()).unwrap_or_default(),
            ..VolumeInfo::default()
        };
        if self.root.is_some() {
            info.mountpoint = "/".to_owned();
        }
        match self.running() {
            Ok(running) => {
                let volume = &running.volume;
                info.root = Some(convert::to_file_id(volume.lower.root()));
                info.staging = Some(convert::to_file_id(volume.lower.staging()));
                info.first_recno = volume.journal.first().0;
                info.last_recno = volume.journal.published().0;
                info.loss = running.loss;
                info.fault = running.fault();
            }
            Err(fault) => info.fault = fault,
        }
        info
    }

    /// Where it is mounted, as this presto sees it, if it is the root file system.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    pub fn log_max_bytes(&self) -> u64 {
        self.spec.read().journal().max_bytes
    }

    /// Users no longer find it, and who is still in it changes nothing any more; reads, and writes to what is open, go on.
    pub fn unmount(&self) {
        if self.root.is_some() {
            return; // Everything runs from it.
        }
        if let Ok(running) = self.running() {
            running.volume.marks.ended.set(true);
            running.volume.notifier.attach(false);
            if let Some(mount) = running.mount.lock().as_ref() {
                mount.detach();
                vacate(&self.spec.read().mountpoint);
            }
        }
    }

    /// Leaves the mount to the next presto, with a durable journal; one that nobody holds is taken away.
    pub fn leave(&self, deadline: Duration) {
        let Ok(running) = self.running() else { return };
        if !running.mount.lock().as_ref().is_some_and(|mount| mount.is_held()) {
            return self.close(deadline);
        }
        if let Err(error) = running.volume.journal.sync() {
            tracing::warn!(target: "volumes", volume = running.volume.name, %error, "journal not synced");
        }
    }

    /// Ends the mount, also for those who do not leave it, and closes the journal.
    pub fn close(&self, deadline: Duration) {
        self.unmount();
        let state =
            std::mem::replace(&mut *self.state.write(), State::Stuck("closed".to_owned(), Blame::Node));
        let State::Up(running) = state else { return };
        let name = running.volume.name.clone();
        if let Some(mount) = running.mount.lock().take()
            && !mount.wait(deadline.min(LEAVE))
        {
            // What they would write now nobody would ever learn of.
            tracing::info!(target: "volumes", volume = name, "still in use: its users get errors from now on");
            mount.abort();
            if !mount.wait(deadline.min(LEAVE)) {
                tracing::warn!(target: "volumes", volume = name, "requests are still served");
            }
        }
        // In a thread: a disk that hangs must not keep presto from ending.
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        let spawned = std::thread::Builder::new().name("close".to_owned()).spawn(move || {
            running.syncer.stop();
            let journal = &running.volume.journal;
            let _ = rustix::fs::syncfs(running.volume.lower.stage());
            let result = journal.sync().and_then(|_| journal.mark_clean());
            drop(running);
            let _ = done.send(result);
        });
        match spawned.map(|_| wait.recv_timeout(deadline)) {
            Ok(Ok(Ok(()))) => tracing::info!(target: "volumes", volume = name, "closed"),
            Ok(Ok(Err(error))) => {
                tracing::warn!(target: "volumes", volume = name, %error, "journal not closed cleanly")
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(target: "volumes", volume = name, "journal not closed in time")
            }
        }
    }
}

impl Running {
    fn apply_access(&self, spec: &Spec) {
        let marked = self.marked_read_only.load(std::sync::atomic::Ordering::Relaxed);
        self.volume.marks.read_only.set(marked || spec.is_read_only());
        self.volume.marks.lento_read_only.set(spec.lento_access == Access::ReadOnly);
    }

    /// What is wrong with it; empty: nothing.
    pub fn fault(&self) -> String {
        if self.fault.is_empty() { self.volume.broken() } else { self.fault.clone() }
    }

    pub fn passthrough(&self) -> bool {
        self.mount.lock().as_ref().is_some_and(|mount| mount.passthrough())
    }
}

fn open(
    spec: &Spec,
    link: &Arc<Link>,
    mounter: &dyn Mounter,
    surroundings: &Surroundings,
    root: Option<&Path>,
) -> Result<Arc<Running>, (String, Blame)> {
    let node = |text: String| (text, Blame::Node);
    let covered = spec.source.as_ref().and_then(|_| mounter.covered(&spec.name));
    let is_covered = covered.is_some();
    let source = surroundings
        .adopt(spec, covered)
        .map_err(|reason| (format!("volume {}: {reason}", spec.name), Blame::Request))?;
    std::fs::create_dir_all(&spec.cache)
        .map_err(|error| node(format!("volume {}: cache {}: {error}", spec.name, spec.cache.display())))?;
    let upcalls = Arc::clone(link);
    let (volume, unresolved) =
        Volume::open(&spec.name, &spec.cache, spec.options(source), upcalls).map_err(|error| {
            let wrong = matches!(&error, OpenError::Journal { source: KmlError::WrongVolume { .. }, .. });
            (error.to_string(), if wrong { Blame::Request } else { Blame::Node })
        })?;
    let volume = Arc::new(volume);
    let replayer = Replayer::new(Arc::clone(&volume))
        .map_err(|errno| node(format!("volume {}: lml: {errno}", spec.name)))?;
    let replayer = Arc::new(replayer);
    let report = recovery::run(&volume, &replayer, &unresolved).map_err(|error| node(error.to_string()))?;
    if report != recovery::Report::default() {
        tracing::info!(target: "recovery", volume = spec.name, ?report, "journal and tree brought into agreement");
    }
    volume.marks.read_only.set(spec.is_read_only());
    volume.set_limits(spec.limits());
    volume.permit.set_needed(spec.writes == Writes::Permits);
    volume.durable.set(spec.durability);
    volume.history.set_keep(spec.keep());
    // A volume that cannot be shown is still replicated: Lento can read and replay.
    let at = root.unwrap_or(&spec.mountpoint);
    let ready = || if root.is_some() { super::root::is_free(at) } else { prepare(at) };
    let shown = match mounter.adopt(&volume, at) {
        Some(mount) => Ok(mount),
        None => {
            // The cover of a mount that was to go on and does not.
            let uncovered =
                spec.source.as_ref().filter(|_| is_covered).map_or(Ok(()), |source| uncover(source));
            uncovered.and_then(|()| ready()).and_then(|()| mounter.mount(Arc::clone(&volume), at))
        }
    };
    let (mount, fault) = match shown {
        Ok(mount) => (Some(mount), String::new()),
        Err(fault) => {
            tracing::error!(target: "volumes", volume = spec.name, fault, "volume is not mounted");
            (None, format!("volume {}: {fault}", spec.name))
        }
    };
    let syncer = Syncer::start(&volume, &replayer);
    let loss =
        volume.lower.loss().map_err(|errno| node(format!("volume {}: its last loss: {errno}", spec.name)))?;
    let running = Running {
        scrubber: Scrubber::new(Arc::clone(&volume)),
        volume,
        replayer,
        syncer,
        mount: Mutex::new(mount),
        fault,
        loss,
        marked_read_only: std::sync::atomic::AtomicBool::new(false),
    };
    running.apply_access(spec);
    Ok(Arc::new(running))
}
