//! Getting Presto to serve the volume, and beginning a life once it does.

use super::ASK_AGAIN;
use super::Life;
use super::VolumeTask;
use crate::channel::convert::file_id_back;
use crate::jobs::Jobs;
use crate::jobs::Shared;
use crate::journal::Journal;
use crate::random;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::ChannelState;
use crate::store::LastTime;
use crate::store::TransactionError;
use crate::store::VolumeStore;
use crate::store::store_path;
use crate::store::witness_path;
use crate::volume::Mail;
use intermezzo_api::Access;
use intermezzo_api::volume::Durability;
use intermezzo_api::volume::WhenFull;
use intermezzo_channel::v1;
use intermezzo_channel::v1::VolumeInfo;
use intermezzo_channel::v1::packet::Body;
use lento_core::Volume;
use lento_core::io::Alone;
use lento_core::io::Input;
use lento_core::io::Writes;
use lento_core::types::Recno;
use lento_core::volume::Before;
use lento_core::volume::Config;
use lento_core::volume::Role;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Mounting may have to recover first.
const SET_VOLUME_DEADLINE: Duration = Duration::from_secs(60);

/// Objects in one message of a snapshot.
const SNAPSHOT_CHUNK: usize = 512;
/// Positions of the server's log that a client keeps for a server that comes back from a backup, about 20 MiB.
const TAIL: u64 = 65_536;

impl VolumeTask {
    pub(super) fn mountpoint(&self) -> PathBuf {
        self.around.mounts.join(&*self.handle.name)
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.around.cache.join(&*self.handle.name)
    }

    pub(super) fn channel_changed(&mut self, inputs: &mut Vec<Input>) {
        let up = self.channel.borrow_and_update().generation().is_some();
        if self.served.take().is_some()
            && let Some(life) = self.life.as_mut()
        {
            life.detach(inputs);
        }
        if up {
            self.ask_presto();
        } else if self.life.is_none() && self.retry_at.is_none() {
            self.fault = "waiting for presto".to_owned();
        }
    }

    /// Asks Presto to serve the volume; the answer comes by mail.
    pub(super) fn ask_presto(&mut self) {
        let (generation, known) = match &*self.channel.borrow() {
            ChannelState::Down => return,
            ChannelState::Up(generation, attached) => {
                let known = attached.volumes.iter().find(|info| *info.name == *self.handle.name);
                (*generation, known.map(|info| info.uid))
            }
        };
        let uid = match self.uid(known) {
            Ok(uid) => uid,
            Err(error) => return self.fail(error),
        };
        let body = v1::SetVolume {
            uid,
            cache: self.cache().display().to_string(),
            mountpoint: self.mountpoint().display().to_string(),
            access: access(self.desired.access).into(),
            lento_access: access(self.desired.lento_access).into(),
            log_max_bytes: self.desired.log_max_bytes.unwrap_or(0),
            when_full: match self.desired.when_full {
                WhenFull::Wait => v1::WhenFull::Block,
                WhenFull::ReadOnly => v1::WhenFull::ReadOnly,
            }
            .into(),
            no_lento: match self.desired.writes {
                Writes::Permits(Alone::ReadOnly) => v1::NoLento::Fail,
                Writes::Permits(Alone::Steal) | Writes::Optimistic => v1::NoLento::Steal,
            }
            .into(),
            writes: match self.desired.writes {
                Writes::Permits(_) => v1::Writes::Permits,
                Writes::Optimistic => v1::Writes::Optimistic,
            }
            .into(),
            source: self.source(),
            exclude: self.desired.exclude.clone(),
            max_bytes: self.desired.limits.max_bytes.unwrap_or(0),
            max_inodes: self.desired.limits.max_inodes.unwrap_or(0),
            history: self.history(),
            durability: match self.desired.durability {
                // This node's disk is the server's.
                _ if self.desired.is_server(&self.around.node) => v1::Durability::LocalDisk,
                Durability::Local => v1::Durability::LocalDisk,
                Durability::Server => v1::Durability::ServerDisk,
                Durability::ServerIfThere => v1::Durability::ServerDiskIfThere,
            }
            .into(),
        };
        let (handle, downcalls) = (self.handle.clone(), self.around.downcalls.pinned(generation));
        tokio::spawn(async move {
            let call = downcalls.call(&handle.name, Body::SetVolume(body), "SetVolume", SET_VOLUME_DEADLINE);
            let result = match call.await {
                Ok((Body::VolumeInfo(info), _)) => Ok(Box::new(info)),
                Ok(_) => Err("presto answered SetVolume with another message".to_owned()),
                Err(error) => {
                    if matches!(error, CallError::Gone) {
                        // No fault where the connection goes as well: the next presto is asked as soon as it is there.
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    Err(error.to_string())
                }
            };
            handle.send(Mail::Served(generation, result)).await;
        });
    }

    /// What presto keeps of what was: on the server.
    fn history(&self) -> Option<v1::History> {
        let history = self.desired.history.filter(|_| self.desired.is_server(&self.around.node))?;
        Some(v1::History { max_bytes: history.max_bytes(), copy_bytes: history.max_copy_bytes() })
    }

    /// The directory that this node's part of the volume is, where one is adopted.
    fn source(&self) -> String {
        let serves = self.desired.is_server(&self.around.node);
        self.desired.source.clone().filter(|_| serves).unwrap_or_default()
    }

    /// The id of the cache that belongs to the store, which is opened for it.
    fn uid(&mut self, known: Option<u64>) -> Result<u64, String> {
        let store = match &self.store {
            Some(store) => store.clone(),
            None => {
                let path = store_path(&self.around.state, &self.handle.name);
                let witness = witness_path(&self.around.run, &self.handle.name);
                let store = open_store(&path, &self.around.boot, &witness)?;
                self.store = Some(store.clone());
                self.admit();
                store
            }
        };
        let uid = store.uid().map_err(|error| error.to_string())?;
        match (uid, known) {
            (Some(uid), _) => Ok(uid),
            // The store was lost and the cache was not: it is taken over, as a new incarnation.
            (None, Some(uid)) => {
                self.foreign = true;
                store.set_uid(uid).map(|()| uid).map_err(|error| error.to_string())
            }
            (None, None) => store.make_uid().map_err(|error| error.to_string()),
        }
    }

    pub(super) fn presto_serves(
        &mut self,
        connection: u64,
        result: Result<Box<VolumeInfo>, String>,
        inputs: &mut Vec<Input>,
    ) {
        let info = match result {
            Ok(info) => *info,
            Err(error) => return self.fail(error),
        };
        let again = self.served.replace(info.clone()).is_some();
        if again && self.life.is_some() {
            return; // Only options were changed.
        }
        let result = self.is_new_loss(&info).and_then(|lost| {
            if lost && self.life.is_some() {
                self.fault = "presto has begun anew after a power cut".to_owned();
                self.end_life();
            }
            match self.life {
                Some(_) => Ok(()),
                None => self.begin(&info, lost),
            }
        });
        match result.and_then(|()| self.attach_journal(connection, &info, inputs)) {
            Ok(()) => {}
            Err(fault) => self.fail(fault),
        }
    }

    fn attach_journal(
        &mut self,
        connection: u64,
        info: &VolumeInfo,
        inputs: &mut Vec<Input>,
    ) -> Result<(), String> {
        let Some(life) = self.life.as_mut() else { return Ok(()) };
        let journal = Journal::open(Path::new(&info.kml)).map_err(|error| error.to_string())?;
        life.attach(connection, journal);
        let up = Input::PrestoUp { first: Recno(info.first_recno), last: Recno(info.last_recno) };
        inputs.push(up);
        if !self.life.as_mut().is_some_and(Life::first_time) {
            return Ok(());
        }
        inputs.push(Input::Writes(self.desired.writes));
        self.writers_wait(inputs);
        if self.desired.is_server(&self.around.node) {
            // Before anything is judged or let go.
            inputs.push(Input::Conflicts(self.desired.conflicts));
            inputs.push(Input::MassRemoval(self.desired.mass));
            inputs.push(Input::History(self.desired.history_options()));
            inputs.push(self.replication_list());
            inputs.push(self.log_limit());
            inputs.extend(self.links.keys().cloned().map(Input::Connected));
        } else {
            // Before the hello, which says it.
            inputs.push(Input::Keep(self.desired.keeping.clone()));
            inputs.push(self.hold_back());
            self.greet(inputs);
        }
        Ok(())
    }

    /// Told by presto, and not yet by an earlier life of this volume.
    fn is_new_loss(&self, info: &VolumeInfo) -> Result<bool, String> {
        let store = self.store.as_ref().ok_or_else(|| "the store is not open".to_owned())?;
        store.is_new_loss(info.loss).map_err(|error| error.to_string())
    }

    fn begin(&mut self, info: &VolumeInfo, lost_by_presto: bool) -> Result<(), String> {
        let store = self.store.clone().ok_or_else(|| "the store is not open".to_owned())?;
        let (Some(root), Some(staging)) = (&info.root, &info.staging) else {
            return Err("presto did not say which directory is the root".to_owned());
        };
        let lost = store.last_time() == LastTime::Lost && !self.loss_noted;
        // What presto has lost, and what another one has journaled, no note of ours vouches for.
        let is_known = !lost_by_presto && !self.foreign;
        let rested = store.rested().map_err(|error| error.to_string())?;
        let agree = rested.is_some_and(|recno| info.first_recno <= recno + 1 && recno <= info.last_recno);
        let before = match (lost, is_known, agree) {
            (false, true, _) => Before::Whole,
            (true, true, true) => Before::Rested,
            _ => Before::Lost,
        };
        let config = Config {
            name: self.handle.name.to_string(),
            role: if self.desired.is_server(&self.around.node) {
                Role::Server
            } else {
                Role::Client { server: self.desired.server.clone() }
            },
            new_replica: random::id().map_err(|error| error.to_string())?,
            root: file_id_back(root),
            staging: file_id_back(staging),
            before,
            entropy: random::id().map_err(|error| error.to_string())?,
            tail: TAIL,
            adopts: !self.source().is_empty(),
            snapshot_chunk: SNAPSHOT_CHUNK,
        };
        let core = store.write(|tables| Volume::open(config, tables)).map_err(|error| match error {
            TransactionError::Inner(fault) => fault.to_string(),
            TransactionError::Store(error) => error.to_string(),
        })?;
        if before != Before::Whole {
            // Makes the new incarnation durable with the note, so that it is begun once.
            store.loss_noted(info.loss).map_err(|error| error.to_string())?;
            self.loss_noted = true;
            self.foreign = false;
        }
        self.lives += 1;
        self.fault.clear();
        let writing = Arc::default();
        let shared = Shared {
            volume: self.handle.clone(),
            life: self.lives,
            downcalls: self.around.downcalls.clone(),
            peers: self.around.peers.clone(),
            server: self.desired.server.clone(),
            store: store.clone(),
            writing: Arc::clone(&writing),
            conflicts: store.conflicts(),
            contents: self.around.contents.clone(),
            ended: CancellationToken::new(),
        };
        let jobs = Jobs::start(shared);
        if self.desired.is_server(&self.around.node) {
            jobs.sweep_conflicts(Recno(info.last_recno));
        }
        self.life = Some(Life::new(self.lives, core, store, writing, jobs));
        info!(target: "volume", volume = &*self.handle.name, ?before, life = self.lives, "serving");
        Ok(())
    }
}

fn access(access: Access) -> v1::Access {
    match access {
        Access::ReadWrite => v1::Access::ReadWrite,
        Access::ReadOnly => v1::Access::ReadOnly,
    }
}

fn open_store(path: &Path, boot: &str, witness: &Path) -> Result<Arc<VolumeStore>, String> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    VolumeStore::open(path, boot, witness).map(Arc::new).map_err(|error| error.to_string())
}
