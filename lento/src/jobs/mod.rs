//! What a volume's outputs set in motion. Each output is a job that runs beside the volume's task and answers by mail.

mod fetch;
mod keep;
mod notes;
mod permit;
mod read;
mod replay;
mod scrub;
mod sweep;
mod sync;

use crate::content::assembly::Ground;
use crate::dialer::Peers;
use crate::fetch_service;
use crate::req_dispatcher::Answer;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::Downcalls;
use crate::store::VolumeStore;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use intermezzo_channel::v1::OpenStage;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::FetchItem;
use lento_core::io::Input;
use lento_core::io::KeepContent;
use lento_core::io::NodeName;
use lento_core::io::ReplayItem;
use lento_core::io::ScrubItem;
use lento_core::scrub::Found;
use lento_core::types::FileId;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use lento_core::volume::Millis;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use notes::Note;

/// How long an ordinary downcall may take.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How many contents one agent reads or writes at a time.
pub const CONCURRENCY: usize = 16;

/// How long a peer may say nothing about a content of this many bytes: it reads and hashes what does not travel. The size
/// is what a peer claims.
#[must_use]
pub fn patience(size: u64) -> Duration {
    Duration::from_secs(60 + size / SLOWEST_DISK).min(LONGEST)
}

/// Nobody is waited for longer, however large the content is.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// The least throughput of a disk that is waited for, in bytes per second.
const SLOWEST_DISK: u64 = 16 << 20;

/// Where something new is about to be renamed over something old, that comes so soon after its close.
const RENAME_COMES: Duration = Duration::from_millis(20);
/// A content of so many bytes waits for that: without an old one it takes longer than this to travel.
const WORTH_WAITING: u64 = 1 << 20;

/// What all jobs of a volume's life share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where answers go.
    pub volume: VolumeHandle,
    /// The life they belong to.
    pub life: u64,
    /// Presto.
    pub downcalls: Downcalls,
    /// Servers.
    pub peers: Peers,
    /// The server of this volume.
    pub server: NodeName,
    /// The volume's store.
    pub store: Arc<VolumeStore>,
    /// Held by whoever writes to the store.
    pub writing: Arc<tokio::sync::Mutex<()>>,
    /// Where conflicts are kept.
    pub conflicts: PathBuf,
    /// Room for contents in work; one for the whole agent.
    pub contents: Arc<Semaphore>,
    /// The life has ended.
    pub ended: CancellationToken,
}

impl Shared {
    /// Answers an output.
    pub async fn answer(&self, ticket: Ticket, input: Input) {
        self.volume.send(Mail::Answer(self.life, ticket, input)).await;
    }

    /// Asks Presto something about this volume.
    async fn call(&self, body: Body, call: &'static str, deadline: Duration) -> Result<Answer, CallError> {
        self.downcalls.call(&self.volume.name, body, call, deadline).await
    }

    /// Opens a staged file.
    async fn open_stage(&self, name: &str, size: u64) -> Result<File, CallError> {
        open_stage(&self.downcalls, &self.volume.name, name, size).await
    }

    /// What a large content of this object is built upon.
    async fn ground(&self, object: ObjectId) -> Option<Ground> {
        fetch_service::ground(&self.downcalls, &self.volume, Some(&self.store), Some(object), None).await
    }

    /// Runs until done or the life ends.
    fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        tokio::spawn(async move {
            ended.run_until_cancelled(job).await;
        });
    }
}

/// Opens a staged file of a volume.
///
/// # Errors
/// See [`CallError`].
pub async fn open_stage(
    downcalls: &Downcalls,
    volume: &str,
    name: &str,
    size: u64,
) -> Result<File, CallError> {
    let body = Body::OpenStage(OpenStage { name: name.to_owned(), size });
    match downcalls.call(volume, body, "OpenStage", DEADLINE).await? {
        (Body::Done(_), fds) => {
            let fd = fds.into_iter().next().ok_or(CallError::Confused("OpenStage"))?;
            Ok(File::from(fd))
        }
        _ => Err(CallError::Confused("OpenStage")),
    }
}

/// The jobs of one life of a volume. Dropping it ends them.
#[derive(Debug)]
pub struct Jobs {
    shared: Shared,
    replays: mpsc::UnboundedSender<replay::Batch>,
    reads: mpsc::UnboundedSender<read::Request>,
    syncs: mpsc::UnboundedSender<Ticket>,
    notes: mpsc::UnboundedSender<Note>,
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.shared.ended.cancel();
    }
}

impl Jobs {
    /// Starts the workers.
    #[must_use]
    pub fn start(shared: Shared) -> Jobs {
        let (replays, replay_queue) = mpsc::unbounded_channel();
        let (reads, read_queue) = mpsc::unbounded_channel();
        let (syncs, sync_queue) = mpsc::unbounded_channel();
        let (notes, note_queue) = mpsc::unbounded_channel();
        shared.spawn(replay::run(shared.clone(), replay_queue));
        shared.spawn(read::run(shared.clone(), read_queue));
        shared.spawn(sync::run(shared.clone(), sync_queue));
        shared.spawn(notes::run(shared.clone(), note_queue));
        Jobs { shared, replays, reads, syncs, notes }
    }

    /// `Output::Replay`: batches run one after the other, on the connection that the core knows of. The next one may be
    /// there already, and tell the core where its journal ends before it would get to the batch.
    pub fn replay(&self, ticket: Ticket, items: Vec<ReplayItem>, untouched_since: Recno, connection: u64) {
        let presto = self.shared.downcalls.pinned(connection);
        let _ = self.replays.send(replay::Batch { ticket, items, untouched_since, presto });
    }

    /// Contents in the conflict store that no row needs go, once this record has been read.
    pub fn sweep_conflicts(&self, journal_end: Recno) {
        self.shared.spawn(sweep::run(self.shared.clone(), journal_end));
    }

    /// `Output::ReadContent`.
    pub fn read(&self, ticket: Ticket, file: FileId, stage_at: Option<NodeName>) {
        let _ = self.reads.send(read::Request { ticket, file, stage_at });
    }

    /// `Output::Fetch`.
    pub fn fetch(&self, ticket: Ticket, items: Vec<FetchItem>) {
        self.shared.spawn(fetch::run(self.shared.clone(), ticket, items));
    }

    /// `Output::Keep`.
    pub fn keep(&self, ticket: Ticket, record: OpId, content: KeepContent) {
        self.shared.spawn(keep::run(self.shared.clone(), ticket, record, content));
    }

    /// `Output::Forget`.
    pub fn forget(&self, record: OpId) {
        self.shared.spawn(keep::forget(self.shared.clone(), record));
    }

    /// `Output::Sync`: one at a time; those who wait meanwhile share the next.
    pub fn sync(&self, ticket: Ticket) {
        let _ = self.syncs.send(ticket);
    }

    /// `Output::List`.
    pub fn list(&self, ticket: Ticket, dir: FileId, after: u64) {
        self.shared.spawn(scrub::list(self.shared.clone(), ticket, dir, after));
    }

    /// `Output::Scrub`.
    pub fn scrub(&self, ticket: Ticket, items: Vec<ScrubItem>, untouched_since: Recno, found: Found) {
        self.shared.spawn(scrub::scrub(self.shared.clone(), ticket, items, untouched_since, found));
    }

    /// `Output::Admit`.
    pub fn admit(&self, serial: u64, until: Millis) {
        self.shared.spawn(permit::admit(self.shared.clone(), serial, until));
    }

    /// `Output::Revoke`.
    pub fn revoke(&self, ticket: Ticket, serial: u64) {
        self.shared.spawn(permit::revoke(self.shared.clone(), ticket, serial));
    }

    /// Downcalls without an answer, in order.
    pub fn note(&self, note: Note) {
        let _ = self.notes.send(note);
    }
}
