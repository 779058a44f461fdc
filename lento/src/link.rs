//! The way out to one peer: what volumes say is queued here and a task of the stream takes it away.
//!
//! Queueing never waits, so that one slow peer cannot hold a volume. A peer that lets too much pile up loses its
//! stream and resumes from its acknowledged position.

use lento_core::message::Message;
use lento_core::types::LogRecord;
use lento_core::types::LogWhat;
use lento_core::types::OpKind;
use lento_core::types::Operation;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most that may wait for one peer, in bytes.
const QUEUE_MAX: usize = 256 << 20;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// One thing to say.
#[derive(Debug)]
pub struct Saying {
    /// Which volume says it.
    pub volume: Arc<str>,
    /// What; `None`: goodbye.
    pub message: Option<Message>,
    weight: usize,
}

#[derive(Debug)]
struct Shared {
    id: u64,
    queued: AtomicUsize,
    reason: Mutex<String>,
    ended: CancellationToken,
}

/// The end that volumes hold.
#[derive(Clone, Debug)]
pub struct Link {
    queue: mpsc::UnboundedSender<Saying>,
    shared: Arc<Shared>,
}

/// The end that the stream's task holds.
#[derive(Debug)]
pub struct LinkQueue {
    queue: mpsc::UnboundedReceiver<Saying>,
    shared: Arc<Shared>,
}

/// A new way out.
#[must_use]
pub fn link() -> (Link, LinkQueue) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        queued: AtomicUsize::new(0),
        reason: Mutex::default(),
        ended: CancellationToken::new(),
    });
    (Link { queue: sender, shared: shared.clone() }, LinkQueue { queue: receiver, shared })
}

impl Link {
    /// Tells one stream from the next with the same peer.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Queues a message; dropped if the stream has ended.
    pub fn say(&self, volume: &Arc<str>, message: Message) {
        let weight = weight(&message);
        if self.shared.queued.fetch_add(weight, Ordering::Relaxed).saturating_add(weight) > QUEUE_MAX {
            self.hang_up("the peer is too slow: too much waits for it");
            return;
        }
        let _ = self.queue.send(Saying { volume: volume.clone(), message: Some(message), weight });
    }

    /// Takes leave for one volume.
    pub fn goodbye(&self, volume: &Arc<str>) {
        let _ = self.queue.send(Saying { volume: volume.clone(), message: None, weight: 0 });
    }

    /// Ends the stream.
    pub fn hang_up(&self, reason: &str) {
        let mut kept = self.shared.reason.lock();
        if kept.is_empty() {
            reason.clone_into(&mut kept);
        }
        self.shared.ended.cancel();
    }

    /// Completes when somebody has hung up.
    pub async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Why somebody hung up; empty if nobody did.
    #[must_use]
    pub fn reason(&self) -> String {
        self.shared.reason.lock().clone()
    }
}

impl LinkQueue {
    /// The next thing to say; `None` when every volume has let go.
    pub async fn next(&mut self) -> Option<Saying> {
        let saying = self.queue.recv().await?;
        self.shared.queued.fetch_sub(saying.weight, Ordering::Relaxed);
        Some(saying)
    }
}

/// Roughly how many bytes a message holds.
fn weight(message: &Message) -> usize {
    match message {
        Message::Submit(operations) => operations.iter().map(operation_weight).sum(),
        Message::Records { records, .. } => records.iter().map(record_weight).sum(),
        Message::SnapshotChunk(objects) => {
            let of = |object: &lento_core::message::SnapshotObject| {
                let values: usize = object.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
                200 + object.symlink.len() + values + 64 * object.entries.len()
            };
            objects.iter().map(of).sum()
        }
        _ => 100,
    }
}

fn record_weight(record: &LogRecord) -> usize {
    match &record.what {
        LogWhat::Operation(operation) => operation_weight(operation),
        LogWhat::Verdict(_) => 100,
    }
}

fn operation_weight(operation: &Operation) -> usize {
    let content = match &operation.kind {
        OpKind::Create { content: Some(content), .. } | OpKind::Close { content, .. } => {
            content.inline.as_ref().map_or(0, Vec::len)
        }
        OpKind::SetXattr { value, .. } => value.len(),
        _ => 0,
    };
    300 + content
}
