//! A Volume on this node, as the other rooms see it: a mailbox, a bell for the journal, and who may speak to it.

use crate::content::known::Known;
use crate::link::Link;
use crate::meters::Meters;
use crate::store::VolumeStore;
use lento_core::io::Demanded;
use lento_core::io::Input;
use lento_core::io::Judgement;
use lento_core::io::NodeName;
use lento_core::message::Message;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use lento_core::volume::Millis;
use lento_core::volume::Safety;
use lento_core::volume::Status;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What a volume's task is told.
#[derive(Debug)]
pub enum Mail {
    /// A stream with this node is up.
    Connected(NodeName, Link),
    /// It said something; the number is the link's.
    Message(NodeName, u64, Message),
    /// That stream is gone.
    Disconnected(NodeName, u64),
    /// A job has finished. The number is the life that started it.
    Answer(u64, Ticket, Input),
    /// Presto serves the volume, or says why not. The number is the connection.
    Served(u64, Result<Box<intermezzo_channel::v1::VolumeInfo>, String>),
    /// A content lies staged.
    Staged {
        /// By whom.
        node: NodeName,
        /// The content.
        hash: Hash,
        /// Its length.
        size: u64,
        /// Its name.
        name: String,
    },
    /// A person has resolved the conflict at this position.
    Resolved(Position),
    /// A person has decided about what this node is about to remove.
    Judged(NodeName, Judgement),
    /// The desired state has changed.
    Desired(Box<crate::desired::DesiredVolume>),
    /// Where is this lower file safe, of which that is the newest record?
    Safety(FileId, Recno, oneshot::Sender<Safety>),
    /// The same, told when the server has it.
    Keep(FileId, Recno, oneshot::Sender<Kept>),
    /// A user waits for the permit; dropped when nobody can say.
    Permit(oneshot::Sender<Permit>),
    /// Somebody opens a lower file that lacks its content; dropped when he waits no more.
    Demand(FileId, oneshot::Sender<Demanded>),
    /// How is it?
    Report(oneshot::Sender<Report>),
    /// Tell when everything up to the newest record of now is safe.
    Wait {
        /// Newest record that matters.
        upto: Recno,
        /// At every Replicator.
        all: bool,
        /// Told when it is so; dropped when the volume stops or begins anew.
        reached: oneshot::Sender<()>,
    },
    /// Look the tree through.
    Scrub(lento_core::scrub::Found),
    /// The end: leave the store clean.
    Stop(oneshot::Sender<()>),
}

/// What a program is told whose fsync waits for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The server has it on its disk.
    AtServer,
    /// The server has been away for a while.
    Away,
}

/// What a user who waits for the permit is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Go on.
    Granted {
        /// Numbers what was granted.
        serial: u64,
        /// When it ends, on this node's clock.
        until: Millis,
    },
    /// The server is away, and the volume is to be read only meanwhile.
    ReadOnly,
}

/// How a volume is.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The core's words; default while it has not begun.
    pub status: Status,
    /// Server of the volume.
    pub server: NodeName,
    /// This node is it.
    pub serving: bool,
    /// Where users see it.
    pub mountpoint: String,
    /// Where it lies.
    pub cache: String,
    /// The KML's first and last record, as presto said last.
    pub kml: (Recno, Recno),
    /// Why it does not work; empty when it does.
    pub fault: String,
    /// It has a core, so that `status` says something.
    pub alive: bool,
    /// Presto serves it now.
    pub served: bool,
}

impl Report {
    /// Why the volume does not work on this node now; `None`: it does.
    #[must_use]
    pub fn not_ready(&self) -> Option<&str> {
        if !self.fault.is_empty() {
            return Some(&self.fault);
        }
        match (self.alive, self.served) {
            (true, true) => None,
            (false, _) => Some("it has not begun yet"),
            (true, false) => Some("presto does not serve it"),
        }
    }
}

/// Who may speak to a volume, and its store for those who only look.
#[derive(Debug, Default)]
pub struct Admission {
    /// This node serves it.
    pub serving: bool,
    /// Who may follow it.
    pub replication_list: BTreeSet<NodeName>,
    /// Who of them may not for now.
    pub paused: BTreeSet<NodeName>,
    /// Its store, while it is open.
    pub store: Option<Arc<VolumeStore>>,
}

/// The way to a volume's task.
#[derive(Clone, Debug)]
pub struct VolumeHandle {
    /// namespace/name.
    pub name: Arc<str>,
    mail: mpsc::Sender<Mail>,
    bell: Arc<Notify>,
    admission: Arc<RwLock<Admission>>,
    meters: Arc<Meters>,
    known: Known,
}

/// How many letters a volume may let lie before those who write must wait.
const MAILBOX: usize = 512;
/// How long a volume may take to say how it is.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);

impl VolumeHandle {
    /// A handle and the mailbox for its task.
    #[must_use]
    pub fn new(name: &str) -> (VolumeHandle, mpsc::Receiver<Mail>) {
        let (mail, mailbox) = mpsc::channel(MAILBOX);
        let handle = VolumeHandle {
            name: name.into(),
            mail,
            bell: Arc::default(),
            admission: Arc::default(),
            meters: Arc::default(),
            known: Known::default(),
        };
        (handle, mailbox)
    }

    /// There are records in the KML. Never waits.
    pub fn wake(&self) {
        self.bell.notify_one();
    }

    /// Rings when there are records.
    #[must_use]
    pub fn bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }

    /// Puts a letter into the mailbox; waits while it is full. `false`: the volume is gone.
    pub async fn send(&self, mail: Mail) -> bool {
        self.mail.send(mail).await.is_ok()
    }

    /// How it is; a fault says so where it does not answer in time.
    pub async fn report(&self) -> Report {
        let asked = async {
            let (reply, answer) = oneshot::channel();
            self.send(Mail::Report(reply)).await;
            answer.await.ok()
        };
        match timeout(REPORT_DEADLINE, asked).await {
            Ok(Some(report)) => report,
            Ok(None) => Report { fault: "the volume is stopping".to_owned(), ..Report::default() },
            Err(_) => {
                let fault = format!("the volume did not say how it is within {REPORT_DEADLINE:?}");
                Report { fault, ..Report::default() }
            }
        }
    }

    /// Where a file is safe; `None`: nobody knows now. Waits as long as the volume takes.
    pub async fn safety(&self, file: FileId, newest: Recno) -> Option<Safety> {
        let (reply, answer) = oneshot::channel();
        self.send(Mail::Safety(file, newest, reply)).await;
        answer.await.ok()
    }

    /// Told when the server has a file's updates up to this one, or when it is no use to wait; `None`: nobody can say.
    pub async fn keep(&self, file: FileId, newest: Recno) -> Option<Kept> {
        let (reply, answer) = oneshot::channel();
        self.send(Mail::Keep(file, newest, reply)).await;
        answer.await.ok()
    }

    /// The permit for a user's update; `None`: nobody can say. Waits as long as it takes.
    pub async fn permit(&self) -> Option<Permit> {
        let (reply, answer) = oneshot::channel();
        self.send(Mail::Permit(reply)).await;
        answer.await.ok()
    }

    /// What becomes of somebody who opens a file that lacks its content; `None`: nobody can say now.
    pub async fn demand(&self, file: FileId) -> Option<Demanded> {
        let (reply, answer) = oneshot::channel();
        self.send(Mail::Demand(file, reply)).await;
        answer.await.ok()
    }

    /// What its jobs count.
    #[must_use]
    pub fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    /// What is remembered of its contents.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Who may speak to it.
    #[must_use]
    pub fn admission(&self) -> &RwLock<Admission> {
        &self.admission
    }

    /// Why `node` may not follow the volume here; `None`: it may.
    #[must_use]
    pub fn refusal(&self, node: &str) -> Option<String> {
        let admission = self.admission.read();
        if !admission.serving {
            return Some(format!("volume {} is not served by this node", self.name));
        }
        if !admission.replication_list.contains(node) {
            return Some(format!("node {node} is not on the replication list of volume {}", self.name));
        }
        if admission.paused.contains(node) {
            return Some(format!("the Replicator of volume {} on node {node} is paused", self.name));
        }
        None
    }

    /// Its store, while it is open.
    #[must_use]
    pub fn store(&self) -> Option<Arc<VolumeStore>> {
        self.admission.read().store.clone()
    }
}

/// All volumes of this node, by name.
#[derive(Clone, Debug, Default)]
pub struct Volumes(Arc<RwLock<BTreeMap<String, VolumeHandle>>>);

impl Volumes {
    /// The volume of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<VolumeHandle> {
        self.0.read().get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<VolumeHandle> {
        self.0.read().values().cloned().collect()
    }

    /// Adds or replaces one.
    pub fn insert(&self, handle: VolumeHandle) {
        self.0.write().insert(handle.name.to_string(), handle);
    }

    /// Removes one.
    pub fn remove(&self, name: &str) {
        self.0.write().remove(name);
    }
}
