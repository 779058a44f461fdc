//! One life of a core Volume: its transactions, its journal, and the answers it waits for.

use crate::clock;
use crate::jobs::Jobs;
use crate::jobs::Note;
use crate::journal::BATCH;
use crate::journal::Journal;
use crate::link::Link;
use crate::store::TransactionError;
use crate::store::VolumeStore;
use crate::volume::Permit;
use crate::volume::VolumeHandle;
use lento_core::Volume;
use lento_core::io::Demanded;
use lento_core::io::Event;
use lento_core::io::Input;
use lento_core::io::NodeName;
use lento_core::io::Output;
use lento_core::io::ReadResult;
use lento_core::message::Message;
use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::types::FileId;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use lento_core::volume::Fault;
use lento_core::volume::Millis;
use lento_core::volume::Safety;
use lento_core::volume::Status;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;
use tracing::info;
use tracing::warn;

/// What an open ticket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Replay,
    Read,
    Sync,
    Revoke,
    /// Not Presto's to answer.
    Other,
}

/// From opening to fault or stop.
pub struct Life {
    number: u64,
    began: Instant,
    core: Volume,
    store: Arc<VolumeStore>,
    writing: Arc<tokio::sync::Mutex<()>>,
    jobs: Jobs,
    journal: Option<Journal>,
    /// The connection to Presto that the core knows of; none has the number 0.
    connection: u64,
    more: bool,
    /// The core does not know yet that Presto is there.
    fresh: bool,
    open: BTreeMap<Ticket, Waiting>,
    greeted: bool,
}

/// Something that others wait for.
pub(super) enum Reached {
    Barrier(u64),
    Permit(Permit),
    Demanded(u64, Demanded),
}

/// Why a transaction was dropped.
enum Stopped {
    Fault(Fault),
    Journal(crate::journal::JournalError),
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Stopped {
        Stopped::Fault(fault)
    }
}

impl Life {
    pub(super) fn new(
        number: u64,
        core: Volume,
        store: Arc<VolumeStore>,
        writing: Arc<tokio::sync::Mutex<()>>,
        jobs: Jobs,
    ) -> Life {
        Life {
            number,
            began: Instant::now(),
            core,
            store,
            writing,
            jobs,
            journal: None,
            connection: 0,
            more: false,
            fresh: false,
            open: BTreeMap::new(),
            greeted: false,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How long it has lasted.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// There are records that have not been read.
    pub(super) fn more(&self) -> bool {
        self.more
    }

    pub(super) fn writing(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.writing.clone()
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.core.poll_timeout().map(|(then, _)| then)
    }

    /// Whether this is the first call.
    pub(super) fn first_time(&mut self) -> bool {
        !std::mem::replace(&mut self.greeted, true)
    }

    /// Presto is there: the journal may be read.
    pub(super) fn attach(&mut self, connection: u64, journal: Journal) {
        self.connection = connection;
        self.journal = Some(journal);
        self.fresh = true;
        self.jobs.note(Note::Filter);
    }

    /// Presto went away: what it was asked has failed, then that it is gone.
    pub(super) fn detach(&mut self, inputs: &mut Vec<Input>) {
        self.journal = None;
        self.more = false;
        let failed = self.open.extract_if(.., |_, waiting| *waiting != Waiting::Other);
        inputs.extend(failed.filter_map(|(ticket, waiting)| match waiting {
            Waiting::Replay => Some(Input::Replayed { ticket, outcomes: Vec::new() }),
            Waiting::Read => {
                let result = ReadResult::Failed("presto went away".to_owned());
                Some(Input::ContentRead { ticket, result })
            }
            Waiting::Sync => Some(Input::Synced { ticket, recno: None }),
            Waiting::Revoke => Some(Input::Revoked { ticket, upto: None }),
            Waiting::Other => None,
        }));
        inputs.push(Input::PrestoDown);
    }

    /// The ticket is answered; `false`: it was before.
    pub(super) fn close(&mut self, ticket: Ticket) -> bool {
        self.open.remove(&ticket).is_some()
    }

    pub(super) fn status(&self) -> Result<Status, String> {
        self.store.read(|tables| self.core.status(tables)).map_err(|error| error.to_string())
    }

    pub(super) fn reaches_server(&self) -> bool {
        self.core.reaches_server()
    }

    /// Whether the server has these files up to these records, in one transaction.
    pub(super) fn are_at_server(&self, asked: &[(FileId, Recno)]) -> Result<Vec<bool>, String> {
        let is_there = |tables: &dyn Store, (file, newest): &(FileId, Recno)| {
            self.core.safety(tables, *file, *newest).map(|safety| safety >= Safety::Server)
        };
        let read = self.store.read(|tables| asked.iter().map(|asked| is_there(tables, asked)).collect());
        read.map_err(|error: TransactionError<StoreError>| error.to_string())
    }

    pub(super) fn safety(&self, file: FileId, newest: Recno) -> Result<Safety, String> {
        self.store.read(|tables| self.core.safety(tables, file, newest)).map_err(|error| error.to_string())
    }

    /// One transaction: what is new in the journal first, so that the core decides on what is on disk, then `inputs`.
    pub(super) fn step(&mut self, inputs: Vec<Input>) -> Result<(), String> {
        let now = clock::now();
        let (core, journal) = (&mut self.core, &mut self.journal);
        // Presto is announced before its records are.
        let quiet = std::mem::take(&mut self.fresh);
        let read = self.store.write(|tables| {
            let mut read = 0;
            if let Some(journal) = journal
                && !quiet
            {
                let records = journal.pass_to_cml(core.next_recno()).map_err(Stopped::Journal)?;
                read = records.len();
                if read > 0 {
                    core.handle(now, Input::Journal(records), tables)?;
                }
            }
            for input in inputs {
                core.handle(now, input, tables)?;
            }
            Ok(read)
        });
        match read {
            Ok(read) => {
                self.more = self.journal.is_some() && (quiet || read >= BATCH);
                Ok(())
            }
            Err(TransactionError::Inner(Stopped::Fault(fault))) => Err(fault.to_string()),
            Err(TransactionError::Inner(Stopped::Journal(error))) => Err(error.to_string()),
            Err(TransactionError::Store(error)) => Err(error.to_string()),
        }
    }

    /// Runs what the core wants done, in order; what others wait for.
    pub(super) fn run_outputs(
        &mut self,
        volume: &VolumeHandle,
        links: &BTreeMap<NodeName, Link>,
    ) -> Vec<Reached> {
        let mut reached = Vec::new();
        while let Some(output) = self.core.poll_output() {
            self.run_output(output, volume, links, &mut reached);
        }
        reached
    }

    fn run_output(
        &mut self,
        output: Output,
        volume: &VolumeHandle,
        links: &BTreeMap<NodeName, Link>,
        reached: &mut Vec<Reached>,
    ) {
        match output {
            Output::Send(node, message) => {
                if let Some(link) = links.get(&node) {
                    count(volume, &node, &message);
                    link.say(&volume.name, message);
                }
            }
            Output::Hangup(node, reason) => {
                warn!(target: "volume", volume = &*volume.name, peer = node, reason, "hanging up");
                if let Some(link) = links.get(&node) {
                    link.hang_up(&format!("volume {}: {reason}", volume.name));
                }
            }
            Output::Replay { ticket, items, untouched_since } => {
                self.open.insert(ticket, Waiting::Replay);
                self.jobs.replay(ticket, items, untouched_since, self.connection);
            }
            Output::ReadContent { ticket, file, stage_at } => {
                self.open.insert(ticket, Waiting::Read);
                self.jobs.read(ticket, file, stage_at);
            }
            Output::Fetch { ticket, items } => {
                self.open.insert(ticket, Waiting::Other);
                self.jobs.fetch(ticket, items);
            }
            Output::Keep { ticket, record, content } => {
                self.open.insert(ticket, Waiting::Other);
                self.jobs.keep(ticket, record, content);
            }
            Output::Sync { ticket } => {
                self.open.insert(ticket, Waiting::Sync);
                self.jobs.sync(ticket);
            }
            Output::Settled(recno) => self.jobs.note(Note::Settled(recno)),
            Output::ReleaseLimbo { files, upto } => self.jobs.note(Note::ReleaseLimbo(files, upto)),
            Output::RetainLimbo { files, upto } => self.jobs.note(Note::RetainLimbo(files, upto)),
            Output::Truncate(recno) => self.jobs.note(Note::Truncate(recno)),
            Output::HistoryFloor(recno) => self.jobs.note(Note::HistoryFloor(recno)),
            Output::DropStage(names) => self.jobs.note(Note::DropStage(names)),
            Output::Forget(record) => self.jobs.forget(record),
            Output::List { ticket, dir, after } => {
                self.open.insert(ticket, Waiting::Other);
                self.jobs.list(ticket, dir, after);
            }
            Output::Scrub { ticket, items, untouched_since, found } => {
                self.open.insert(ticket, Waiting::Other);
                self.jobs.scrub(ticket, items, untouched_since, found);
            }
            Output::Adopted => self.jobs.note(Note::Adopted),
            Output::BarrierReached(id) => reached.push(Reached::Barrier(id)),
            Output::Admit { serial, until } => {
                self.jobs.admit(serial, until);
                reached.push(Reached::Permit(Permit::Granted { serial, until }));
            }
            Output::RefuseWriters => reached.push(Reached::Permit(Permit::ReadOnly)),
            Output::Revoke { ticket, serial } => {
                self.open.insert(ticket, Waiting::Revoke);
                self.jobs.revoke(ticket, serial);
            }
            Output::Demanded(id, answer) => reached.push(Reached::Demanded(id, answer)),
            Output::Event(event) => tell(&volume.name, event),
        }
    }
}

fn count(volume: &VolumeHandle, node: &NodeName, message: &Message) {
    match message {
        Message::Submit(records) => drop(volume.meters().submitted.inc_by(records.len() as u64)),
        Message::Records { records, .. } => volume.meters().forwarded(node, records.len()),
        _ => {}
    }
}

fn tell(volume: &str, event: Event) {
    match event {
        Event::Conflict { record, kind, path } => {
            warn!(target: "volume", volume, %record, ?kind, path, "a conflict was kept");
        }
        Event::RemovalsHeld { node, removals, objects, path } => {
            warn!(target: "volume", volume, node, removals, objects, path,
                "a node is about to remove a large part of the tree: nothing of it is done until somebody approves or refuses it (intermezzo hold)");
        }
        Event::RemovalsJudged { node, removals, objects, judgement } => {
            info!(target: "volume", volume, node, removals, objects, ?judgement, "the removal of a large part of the tree is decided");
        }
        Event::ConflictDropped { record, path, is_old } => {
            let why = if is_old {
                "it has been kept for as long as the volume wants"
            } else {
                "more is kept than the volume wants"
            };
            warn!(target: "volume", volume, %record, path, why,
                "what lost a conflict that the volume's policy had decided is kept no longer");
        }
        Event::ConflictsLarge { count, bytes, limit } => {
            warn!(target: "volume", volume, count, bytes, limit,
                "conflicts that wait for a person take more room than the volume wants: resolve them; nothing is dropped");
        }
        Event::Offering { server, fork, position } => {
            warn!(target: "volume", volume, server, %fork, %position,
                "the server has lost the end of its log and gets it from here");
        }
        Event::MustResync { node, position, stored, limit } => {
            warn!(target: "volume", volume, node, %position, stored, limit,
                "the log is too long to be kept for a Replicator that is away: it will get the whole tree when it is back");
        }
        Event::Torn { path } => {
            warn!(target: "volume", volume, path,
                "a power cut may have torn a file: it is given to nobody until a Replicator has brought back its good content");
        }
        Event::Restored { path } => {
            info!(target: "volume", volume, path, "a file that a power cut tore has its good content again");
        }
        Event::TornTaken { path, left } => {
            let left = left.map(|left| left.to_string()).unwrap_or_default();
            warn!(target: "volume", volume, path, left,
                "a power cut may have torn a file, and nobody has a better content: look at it");
        }
        Event::Scrubbed { looked, found, taken } => {
            info!(target: "volume", volume, looked, found, taken, "the tree was looked through");
        }
        Event::Unknown { recno, file } => {
            warn!(target: "volume", volume, %recno, file.ino, file.generation,
                "a record does not follow from those before it: the tree was changed behind presto's back and is looked through");
        }
        Event::PermitStolen(true) => {
            warn!(target: "volume", volume, "the server is away: users of this node write without the permit, and conflicts are possible");
        }
        Event::PermitStolen(false) => {
            info!(target: "volume", volume, "the server is back: users of this node write under the permit again");
        }
        Event::PermitLapsed => {
            warn!(target: "volume", volume, "the server was not heard of for so long that the permit of this node has ended");
        }
        Event::PermitExpired(node) => {
            warn!(target: "volume", volume, node, "the holder of the permit was not heard of for so long that others get it");
        }
        Event::Waiting(reason) => info!(target: "volume", volume, reason, "waiting"),
        Event::ReplayRefused { path, errno, message } => {
            warn!(target: "volume", volume, path, errno, message, "the lower file system refuses a change");
        }
        #[allow(unreachable_patterns)]
        other => debug!(target: "volume", volume, ?other, "event"),
    }
}
