//! One task owns one core Volume: it selects what happened, applies it in one transaction, commits, and runs the
//! outputs in order.
//!
//! A core is opened when Presto serves the volume. That is a *life*. A fault ends it: the transaction is dropped, the
//! reason stays in the status, and a new life begins from the store after a while. Other volumes do not notice.

mod demands;
mod desired;
mod life;
mod permit;
mod serve;
mod syncs;

use crate::clock;
use crate::desired::DesiredVolume;
use crate::dialer::Peers;
use crate::link::Link;
use crate::random::Backoff;
use crate::req_dispatcher::ChannelState;
use crate::req_dispatcher::Downcalls;
use crate::store::VolumeStore;
use crate::volume::Mail;
use crate::volume::Report;
use crate::volume::VolumeHandle;
use demands::Demands;
use intermezzo_channel::v1;
use intermezzo_channel::v1::VolumeInfo;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::Input;
use lento_core::io::LogLimit;
use lento_core::io::NodeName;
use lento_core::message::Message;
use lento_core::types::Recno;
use lento_core::volume::Status;
use life::Life;
use life::Reached;
use permit::Waiting;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use syncs::Syncs;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::error;
use tracing::info;

/// A journal upcall may be lost, so the KML is looked at this often in any case.
const JOURNAL_POLL: Duration = Duration::from_secs(1);
/// Most letters in one transaction.
const MAIL_BATCH: usize = 256;
/// How long presto may take to sync when the volume stops.
const LAST_SYNC_DEADLINE: Duration = Duration::from_secs(2);
/// How long after a refusal the server is asked again, and after a lost call presto.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often presto is asked what is wrong with a disk that takes nothing.
const ASK_OF_DISK: Duration = Duration::from_secs(10);

/// What every volume's task of this agent shares.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// This node.
    pub node: NodeName,
    /// Presto.
    pub downcalls: Downcalls,
    /// Servers.
    pub peers: Peers,
    /// Room for contents in work.
    pub contents: Arc<Semaphore>,
    /// Where stores and conflicts lie.
    pub state: PathBuf,
    /// Where caches lie.
    pub cache: PathBuf,
    /// Where volumes are mounted.
    pub mounts: PathBuf,
    /// The machine's boot id.
    pub boot: String,
    /// Where what ends with the machine lies.
    pub run: PathBuf,
}

/// The task.
pub struct VolumeTask {
    around: Surroundings,
    handle: VolumeHandle,
    mailbox: mpsc::Receiver<Mail>,
    bell: Arc<Notify>,
    channel: watch::Receiver<ChannelState>,
    desired: DesiredVolume,
    /// Streams that are up.
    links: BTreeMap<NodeName, Link>,
    /// What presto said of the volume on the present connection.
    served: Option<VolumeInfo>,
    store: Option<Arc<VolumeStore>>,
    /// The cache was there before the store was.
    foreign: bool,
    /// A loss has been passed on to the core.
    loss_noted: bool,
    life: Option<Life>,
    lives: u64,
    fault: String,
    backoff: Backoff,
    /// When to try again after a fault.
    retry_at: Option<Instant>,
    /// Why the server has refused this node, as its last word.
    refused: String,
    /// When to say hello again after a refusal.
    ask_again_at: Option<Instant>,
    /// When presto was last asked what is wrong with its disk.
    asked_of_disk: Option<Instant>,
    /// Users that wait for the permit.
    writers: Waiting,
    waits: BTreeMap<u64, oneshot::Sender<()>>,
    next_wait: u64,
    /// Who waits for contents.
    demands: Demands,
    /// Who waits for the server's disk.
    syncs: Syncs,
}

enum Action {
    Mail(Mail),
    Journal,
    Channel,
    Clock,
    /// Every handle is gone.
    Abandoned,
}

impl VolumeTask {
    /// The task of one volume; [`VolumeTask::run`] does the work.
    #[must_use]
    pub fn new(
        around: Surroundings,
        handle: VolumeHandle,
        mailbox: mpsc::Receiver<Mail>,
        desired: DesiredVolume,
    ) -> VolumeTask {
        let mut channel = around.downcalls.state();
        channel.mark_changed();
        let task = VolumeTask {
            bell: handle.bell(),
            channel,
            handle,
            mailbox,
            desired,
            around,
            links: BTreeMap::new(),
            served: None,
            store: None,
            foreign: false,
            loss_noted: false,
            life: None,
            lives: 0,
            fault: "waiting for presto".to_owned(),
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            retry_at: None,
            refused: String::new(),
            ask_again_at: None,
            asked_of_disk: None,
            writers: Waiting::default(),
            waits: BTreeMap::new(),
            next_wait: 1,
            demands: Demands::default(),
            syncs: Syncs::default(),
        };
        task.admit();
        task
    }

    /// Until a letter says stop.
    pub async fn run(mut self) {
        loop {
            let action = self.select().await;
            if self.apply(action).await {
                return;
            }
        }
    }

    async fn select(&mut self) -> Action {
        let more = self.life.as_ref().is_some_and(Life::more);
        let wake_at = self.wake_at();
        tokio::select! {
            biased;
            // First: letters may come without end, and until then nothing that is asked of presto gets there.
            changed = self.channel.changed() => {
                if changed.is_ok() { Action::Channel } else { Action::Abandoned }
            }
            mail = self.mailbox.recv() => mail.map_or(Action::Abandoned, Action::Mail),
            () = std::future::ready(()), if more => Action::Journal,
            () = self.bell.notified() => Action::Journal,
            () = tokio::time::sleep_until(wake_at) => Action::Clock,
        }
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let core = self
            .life
            .as_ref()
            .and_then(Life::poll_timeout)
            .map(|then| now + clock::until(then).min(JOURNAL_POLL));
        let times = [core, self.retry_at, self.ask_again_at, Some(now + JOURNAL_POLL)];
        times.into_iter().flatten().min().unwrap_or(now)
    }

    /// `true`: it is over.
    async fn apply(&mut self, action: Action) -> bool {
        let mut inputs = Vec::new();
        match action {
            Action::Mail(mail) => {
                if let Some(done) = self.open_mail(mail, &mut inputs) {
                    return self.stop(inputs, done).await;
                }
                while inputs.len() < MAIL_BATCH
                    && let Ok(mail) = self.mailbox.try_recv()
                {
                    if let Some(done) = self.open_mail(mail, &mut inputs) {
                        return self.stop(inputs, done).await;
                    }
                }
            }
            Action::Journal => {}
            Action::Channel => self.channel_changed(&mut inputs),
            Action::Clock => self.clock(&mut inputs),
            Action::Abandoned => return true,
        }
        self.step(inputs).await;
        self.look_at_syncs();
        false
    }

    fn clock(&mut self, inputs: &mut Vec<Input>) {
        let now = Instant::now();
        self.writers.look(self.life.is_some());
        inputs.extend(self.demands.given_up());
        if self.retry_at.is_some_and(|then| then <= now) {
            self.retry_at = None;
            // Its journal has gone on since it was asked last.
            self.ask_presto();
        }
        if self.ask_again_at.is_some_and(|then| then <= now) {
            self.ask_again_at = None;
            self.greet(inputs);
        }
        let due = self.life.as_ref().and_then(Life::poll_timeout).is_some_and(|then| then <= clock::now());
        if due {
            inputs.push(Input::Timeout);
        }
    }

    /// Turns a letter into inputs; `Some`: it says stop.
    fn open_mail(&mut self, mail: Mail, inputs: &mut Vec<Input>) -> Option<oneshot::Sender<()>> {
        match mail {
            Mail::Connected(node, link) => self.connected(node, link, inputs),
            Mail::Message(node, id, message) => self.message(node, id, message, inputs),
            Mail::Disconnected(node, id) => {
                if self.links.get(&node).is_some_and(|link| link.id() == id) {
                    self.links.remove(&node);
                    if self.life.is_some() {
                        inputs.push(Input::Disconnected(node));
                    }
                }
            }
            Mail::Answer(life, ticket, input) => {
                if let Some(current) = self.life.as_mut()
                    && current.number() == life
                    && current.close(ticket)
                {
                    if matches!(input, Input::Synced { recno: None, .. }) {
                        self.ask_of_disk();
                    }
                    inputs.push(input);
                }
            }
            Mail::Served(generation, result) => {
                if self.channel.borrow().generation() == Some(generation) {
                    self.presto_serves(generation, result, inputs);
                }
            }
            Mail::Staged { node, hash, size, name } => {
                // Without a life nobody takes note; the client stages again when it connects.
                if self.life.is_some() {
                    inputs.push(Input::Staged { node, hash, size, name });
                }
            }
            Mail::Resolved(position) => {
                if self.life.is_some() {
                    inputs.push(Input::Resolved(position));
                }
            }
            Mail::Judged(node, judgement) => {
                if self.life.is_some() {
                    inputs.push(Input::Judged(node, judgement));
                }
            }
            Mail::Desired(desired) => self.desired_changed(*desired, inputs),
            Mail::Safety(file, newest, reply) => {
                if let Some(Ok(safety)) = self.life.as_ref().map(|life| life.safety(file, newest)) {
                    let _ = reply.send(safety);
                }
            }
            Mail::Keep(file, newest, reply) => self.sync_wanted(file, newest, reply),
            Mail::Permit(reply) => self.permit_wanted(reply, inputs),
            Mail::Demand(file, reply) => {
                if self.life.is_some() {
                    inputs.push(self.demands.begin(file, reply));
                }
            }
            Mail::Report(reply) => drop(reply.send(self.report())),
            Mail::Wait { upto, all, reached } => {
                if self.life.is_some() {
                    let id = self.next_wait;
                    self.next_wait += 1;
                    self.waits.retain(|_, waiting| !waiting.is_closed());
                    self.waits.insert(id, reached);
                    inputs.push(Input::Barrier { id, upto, all });
                }
            }
            Mail::Scrub(found) => {
                if self.life.is_some() {
                    inputs.push(Input::Scrub(found));
                }
            }
            Mail::Stop(done) => return Some(done),
        }
        None
    }

    /// Nothing is durable: presto may know why, and its word is what status and conditions show.
    fn ask_of_disk(&mut self) {
        if self.asked_of_disk.is_none_or(|then| then.elapsed() >= ASK_OF_DISK) {
            self.asked_of_disk = Some(Instant::now());
            self.ask_presto();
        }
    }

    fn connected(&mut self, node: NodeName, link: Link, inputs: &mut Vec<Input>) {
        let serving = self.desired.is_server(&self.around.node);
        if self.life.is_none() && serving {
            self.refuse(&link);
            return;
        }
        self.links.insert(node.clone(), link);
        if serving {
            inputs.push(Input::Connected(node));
        } else {
            self.greet(inputs);
        }
    }

    /// A client speaks to its server, if it may and can.
    fn greet(&self, inputs: &mut Vec<Input>) {
        if self.life.is_some() && !self.is_paused() && self.links.contains_key(&self.desired.server) {
            inputs.push(Input::Connected(self.desired.server.clone()));
        }
    }

    /// This node's own Replicator is paused.
    fn is_paused(&self) -> bool {
        self.desired.paused.contains(&self.around.node)
    }

    fn message(&mut self, node: NodeName, id: u64, message: Message, inputs: &mut Vec<Input>) {
        // A stream that has been replaced or refused has nothing to say.
        if self.life.is_none() || self.is_paused() || self.links.get(&node).is_none_or(|link| link.id() != id)
        {
            return;
        }
        match &message {
            Message::Refused { reason, retry } => {
                self.refused.clone_from(reason);
                if *retry {
                    self.ask_again_at = Some(Instant::now() + ASK_AGAIN);
                }
            }
            _ => self.refused.clear(),
        }
        inputs.push(Input::Message(node, message));
    }

    fn refuse(&self, link: &Link) {
        let reason = format!("volume {} is not ready: {}", self.handle.name, self.fault);
        link.say(&self.handle.name, Message::Refused { reason, retry: true });
    }

    /// Ends the streams of those who may not follow the volume any more.
    fn part_with_refused(&mut self, inputs: &mut Vec<Input>) {
        let handle = &self.handle;
        self.links.retain(|node, link| {
            let Some(reason) = handle.refusal(node) else { return true };
            link.say(&handle.name, Message::Refused { reason, retry: true });
            inputs.push(Input::Disconnected(node.clone()));
            false
        });
    }

    fn replication_list(&self) -> Input {
        Input::Replist(self.desired.replication_list.iter().cloned().collect())
    }

    /// Whether others' updates stay out of the tree; presto refuses them as well.
    fn hold_back(&self) -> Input {
        Input::HoldBack(self.desired.lento_access == intermezzo_api::Access::ReadOnly)
    }

    /// The log is as long as the journal may be.
    fn log_limit(&self) -> Input {
        let bytes = self.desired.log_max_bytes.filter(|bytes| *bytes > 0);
        let bytes = bytes.unwrap_or_else(|| intermezzo_kml::Config::default().max_bytes);
        Input::LogLimit(LogLimit { bytes, ..LogLimit::default() })
    }

    /// Tells the other rooms who may speak to this volume.
    fn admit(&self) {
        let mut admission = self.handle.admission().write();
        admission.serving = self.desired.is_server(&self.around.node);
        admission.replication_list = self.desired.replication_list.clone();
        admission.paused = self.desired.paused.clone();
        admission.store = self.store.clone();
    }

    /// Feeds the core, commits, runs its outputs.
    async fn step(&mut self, inputs: Vec<Input>) {
        let Some(life) = self.life.as_mut() else { return };
        let writing = life.writing().lock_owned().await;
        let result = life.step(inputs);
        drop(writing);
        match result {
            Ok(()) => self.run_outputs(),
            Err(fault) => self.fail(fault),
        }
    }

    fn run_outputs(&mut self) {
        let Some(life) = self.life.as_mut() else { return };
        for reached in life.run_outputs(&self.handle, &self.links) {
            match reached {
                Reached::Permit(permit) => self.writers.tell(permit),
                Reached::Barrier(id) => {
                    if let Some(waiting) = self.waits.remove(&id) {
                        let _ = waiting.send(());
                    }
                }
                Reached::Demanded(id, answer) => self.demands.answered(id, answer),
            }
        }
    }

    /// The life ends; another begins after a while.
    fn fail(&mut self, fault: String) {
        let lived = self.life.as_ref().map(Life::age).unwrap_or_default();
        let wait = self.backoff.wait_after(lived);
        error!(target: "volume", volume = &*self.handle.name, fault, again_in = ?wait, "the volume is stopped");
        self.handle.meters().fault();
        self.fault = fault;
        self.retry_at = Some(Instant::now() + wait);
        self.end_life();
    }

    /// Whoever waits asks the next one, and peers begin anew with it.
    fn end_life(&mut self) {
        self.life = None;
        self.writers.life_ended();
        self.waits.clear();
        self.demands = Demands::default();
        if self.desired.is_server(&self.around.node) {
            for link in std::mem::take(&mut self.links).values() {
                self.refuse(link);
            }
        } else {
            // To its server it is away until it greets again.
            for link in self.links.values() {
                link.goodbye(&self.handle.name);
            }
        }
    }

    fn report(&self) -> Report {
        let info = self.served.as_ref();
        let status = self.life.as_ref().map_or_else(|| Ok(Status::default()), Life::status);
        let mut report = Report {
            server: self.desired.server.clone(),
            serving: self.desired.is_server(&self.around.node),
            mountpoint: self.mountpoint().display().to_string(),
            cache: self.cache().display().to_string(),
            kml: info.map(|info| (Recno(info.first_recno), Recno(info.last_recno))).unwrap_or_default(),
            fault: self.fault.clone(),
            alive: self.life.is_some(),
            served: info.is_some(),
            ..Report::default()
        };
        match status {
            Ok(status) => report.status = self.with_reasons(status),
            Err(error) => report.fault = error,
        }
        if let Some(info) = info
            && report.fault.is_empty()
        {
            report.fault = info.fault.clone();
        }
        report
    }

    /// With what the core does not know. Who is paused waits for nothing else.
    fn with_reasons(&self, mut status: Status) -> Status {
        if self.desired.is_server(&self.around.node) {
            let text = |node| format!("node {node}: its Replicator is paused");
            status.waiting.extend(self.desired.paused.iter().map(text));
        } else if self.is_paused() {
            status.waiting.insert(0, "this node's Replicator is paused".to_owned());
        } else if !status.connected {
            let server = &self.desired.server;
            status.waiting.extend(self.around.peers.trouble(server));
            if !self.refused.is_empty() && self.links.contains_key(server) {
                status.waiting.push(format!("{server} refuses: {}", self.refused));
            }
        }
        status
    }

    /// Takes leave and leaves the store clean.
    async fn stop(&mut self, inputs: Vec<Input>, done: oneshot::Sender<()>) -> bool {
        self.step(inputs).await;
        if !self.desired.is_server(&self.around.node) {
            for link in self.links.values() {
                link.goodbye(&self.handle.name);
            }
        }
        self.life = None;
        self.handle.admission().write().store = None;
        if let Some(store) = self.store.take() {
            // The store may be no further ahead on the disk than log and tree are.
            let synced = self.around.downcalls.call(
                &self.handle.name,
                Body::Sync(v1::Sync {}),
                "Sync",
                LAST_SYNC_DEADLINE,
            );
            let answer = if self.served.is_some() { synced.await.ok() } else { None };
            let synced = match answer {
                Some((Body::Synced(synced), _)) => Some(synced.recno),
                _ => None,
            };
            let close = move || synced.map_or(Ok(()), |recno| store.rest(recno));
            let result = tokio::task::spawn_blocking(close).await.map_err(|error| error.to_string());
            match result.and_then(|result| result.map_err(|error| error.to_string())) {
                Ok(()) => info!(target: "volume", volume = &*self.handle.name, synced, "stopped"),
                Err(error) => {
                    error!(target: "volume", volume = &*self.handle.name, error, "stopped; its store recovers when opened");
                }
            }
        }
        let _ = done.send(());
        true
    }
}
