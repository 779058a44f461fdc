//! Nodes, a network that delays and breaks, users, crashes: all decided by one seed.

use super::crashes::Backup;
pub use super::dice::Dice;
use super::disk::Disk;
use super::disk::ROOT;
use super::disk::STAGING;
use super::memory::Memory;
use super::past::Remembered;
use super::permits::Door;
use super::timing::Timing;
use lento_core::Volume;
use lento_core::history::HistoryOptions;
use lento_core::io::ConflictOptions;
use lento_core::io::Demanded;
use lento_core::io::FetchResult;
use lento_core::io::Input;
use lento_core::io::KeepContent;
use lento_core::io::LogLimit;
use lento_core::io::MassOptions;
use lento_core::io::Output;
use lento_core::io::ReplayItem;
use lento_core::io::Writes;
use lento_core::keeping::Keeping;
use lento_core::message::Message;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::OpId;
use lento_core::types::Recno;
use lento_core::volume::Before;
use lento_core::volume::Config;
use lento_core::volume::Millis;
use lento_core::volume::Role;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

pub struct Node {
    pub name: String,
    pub disk: Disk,
    pub store: Memory,
    pub volume: Option<Volume>,
    /// What the shell has not run yet.
    pub jobs: VecDeque<Output>,
    told: Recno,
    /// The first part of its sync is done.
    pub(super) half_synced: bool,
    pub kept: BTreeSet<Hash>,
    /// The same by the record that it is kept of.
    pub(super) kept_of: BTreeMap<OpId, BTreeSet<Hash>>,
    pub(super) lives: u64,
    pub faults: Vec<String>,
    /// Time inside the core.
    pub spent: std::time::Duration,
    pub barriers: BTreeSet<u64>,
    /// Its tree was there before the volume.
    pub adopts: bool,
    /// Lento said that it knows all of it.
    pub adopted: bool,
    /// Files that cannot be read so many times.
    pub unreadable: BTreeMap<FileId, u32>,
    /// How often its disk has been replaced.
    pub wiped: u64,
    /// What its presto lets in, under permits.
    pub door: Door,
    /// How much it keeps.
    pub keeping: Keeping,
    /// Who waits for a content.
    pub asks: BTreeSet<u64>,
}

pub struct World {
    pub nodes: Vec<Node>,
    /// Messages under way, for each direction of each client's stream.
    links: BTreeMap<(usize, usize), VecDeque<Message>>,
    pub up: Vec<bool>,
    pub dice: Dice,
    pub now: u64,
    pub(super) counter: u64,
    /// Contents that were staged at the server.
    pub(super) staged: u64,
    /// Opens of what was not here, and how many had it in the end.
    pub asked_for: u64,
    pub had: u64,
    pub log: Vec<String>,
    /// Contents that were closed.
    pub written: BTreeMap<Hash, String>,
    /// Contents that a restored server does not have, and nobody else durably: nobody was promised that they survive
    /// one more power cut.
    pub fragile: BTreeSet<Hash>,
    /// Contents that a user took away while looking at them.
    pub superseded: BTreeSet<Hash>,
    /// Positions of the server's log that clients keep in any case.
    pub tail: u64,
    pub(super) backup: Option<Backup>,
    /// Whole trees that the server began to send.
    pub trees_sent: u64,
    /// What the server keeps of its log.
    pub log_limit: LogLimit,
    /// What becomes of updates that exclude each other.
    pub conflicts: ConflictOptions,
    /// When a person is asked before one node's removals are done.
    pub mass: MassOptions,
    /// How users' updates are admitted.
    pub writes: Writes,
    /// What was asked.
    pub asked: u64,
    /// A power cut tears files that were being written.
    pub tears: bool,
    /// A power cut may leave the tree ahead of the log.
    pub skews: bool,
    /// What it left of those of which somebody else had the good content, and that.
    pub torn: BTreeMap<Hash, Hash>,
    /// Conflicts that went although no person resolved them.
    pub dropped: u64,
    /// Torn files that the server had back.
    pub restored: u64,
    /// What becomes of messages on their way; `None`: the receiver hangs up.
    pub mangle: Option<Mangle>,
    /// How long disks take; `None`: everything is done in its turn.
    pub timing: Option<Timing>,
    /// Files that change whenever they are read, by node.
    pub restless: BTreeSet<(usize, FileId)>,
    /// What the server keeps of what was.
    pub history: Option<HistoryOptions>,
    pub remembered: Remembered,
}

/// Told who speaks, to whom, and what.
pub type Mangle = Box<dyn FnMut(usize, usize, Message) -> Option<Vec<Message>>>;

pub const SERVER: usize = 0;

impl World {
    pub fn new(seed: u64, clients: usize) -> World {
        World::with_tail(seed, clients, 1_000_000)
    }

    pub fn with_tail(seed: u64, clients: usize, tail: u64) -> World {
        let mut nodes = Vec::new();
        for index in 0..=clients {
            nodes.push(Node {
                name: format!("n{index}"),
                disk: Disk::new(),
                store: Memory::default(),
                volume: None,
                jobs: VecDeque::new(),
                adopts: false,
                adopted: false,
                unreadable: BTreeMap::new(),
                told: Recno(0),
                half_synced: false,
                kept: BTreeSet::new(),
                kept_of: BTreeMap::new(),
                lives: 0,
                wiped: 0,
                door: Door::default(),
                faults: vec![],
                spent: std::time::Duration::ZERO,
                barriers: BTreeSet::new(),
                keeping: Keeping::All,
                asks: BTreeSet::new(),
            });
        }
        let mut world = World {
            nodes,
            links: BTreeMap::new(),
            up: vec![false; clients + 1],
            dice: Dice(seed),
            now: 1,
            counter: 0,
            staged: 0,
            asked_for: 0,
            had: 0,
            log: vec![],
            written: BTreeMap::new(),
            superseded: BTreeSet::new(),
            fragile: BTreeSet::new(),
            tail,
            backup: None,
            trees_sent: 0,
            log_limit: LogLimit::default(),
            conflicts: ConflictOptions::default(),
            mass: MassOptions::default(),
            writes: Writes::default(),
            asked: 0,
            tears: false,
            skews: false,
            torn: BTreeMap::new(),
            restored: 0,
            dropped: 0,
            mangle: None,
            timing: None,
            restless: BTreeSet::new(),
            history: None,
            remembered: Remembered::default(),
        };
        for index in 0..=clients {
            world.nodes[index].disk.nsec = index as u32;
            world.start(index, false);
        }
        for index in 1..=clients {
            world.connect(index);
        }
        world
    }

    pub fn note(&mut self, text: String) {
        self.log.push(text);
    }

    /// What a node's present life was begun with.
    pub fn entropy(&self, index: usize) -> u64 {
        let node = &self.nodes[index];
        Dice(node.lives * 1000 + node.wiped * 1_000_000 + index as u64).roll(u64::MAX)
    }

    pub fn start(&mut self, index: usize, unclean: bool) {
        self.start_after(index, if unclean { Before::Lost } else { Before::Whole });
    }

    pub fn start_after(&mut self, index: usize, before: Before) {
        let replist: Vec<String> = (1..self.nodes.len()).map(|i| format!("n{i}")).collect();
        let node = &mut self.nodes[index];
        node.lives += 1;
        let entropy = self.entropy(index);
        let node = &mut self.nodes[index];
        let role = if index == SERVER { Role::Server } else { Role::Client { server: "n0".into() } };
        let config = Config {
            name: "test/sim".into(),
            role,
            new_replica: 100 + index as u64 + 1000 * node.wiped,
            root: ROOT,
            staging: STAGING,
            before,
            entropy,
            tail: self.tail,
            adopts: node.adopts && index == SERVER,
            snapshot_chunk: 3,
        };
        node.volume = Some(Volume::open(config, &mut node.store).unwrap());
        if index == SERVER {
            self.forget_the_future();
        }
        let node = &mut self.nodes[index];
        node.store.commit();
        node.jobs.clear();
        node.half_synced = false;
        // Nobody of this life knows of it.
        node.disk.stage.clear();
        if node.lives == 1 {
            node.store.make_durable();
            node.disk.make_durable();
        }
        let last = node.disk.last();
        self.nodes[index].asks.clear();
        self.give(index, Input::PrestoUp { first: Recno(1), last });
        self.give(index, Input::Writes(self.writes));
        let keeping = self.nodes[index].keeping.clone();
        self.give(index, Input::Keep(keeping));
        if index == SERVER {
            self.give(index, Input::Replist(replist));
            self.give(index, Input::LogLimit(self.log_limit));
            self.give(index, Input::Conflicts(self.conflicts));
            self.give(index, Input::MassRemoval(self.mass));
            self.give(index, Input::History(self.history));
        }
    }

    /// Feeds one input and takes the outputs.
    pub fn give(&mut self, index: usize, input: Input) {
        self.give_all(index, vec![input]);
    }

    /// Feeds inputs in one transaction, as the shell does, and takes the outputs.
    pub fn give_all(&mut self, index: usize, inputs: Vec<Input>) {
        let clock = self.clock_of(index);
        let node = &mut self.nodes[index];
        let began = std::time::Instant::now();
        for input in inputs {
            let Some(volume) = &mut node.volume else { return };
            if let Err(fault) = volume.handle(Millis(clock), input, &mut node.store) {
                node.faults.push(fault.to_string());
                node.volume = None;
                node.store.abort();
                return;
            }
        }
        node.store.commit();
        let Some(volume) = &mut node.volume else { return };
        while let Some(output) = volume.poll_output() {
            node.jobs.push_back(output);
        }
        node.spent += began.elapsed();
        node.check_counts();
    }

    pub fn connect(&mut self, client: usize) {
        if self.up[client] || self.nodes[client].volume.is_none() || self.nodes[SERVER].volume.is_none() {
            return;
        }
        self.up[client] = true;
        self.links.insert((client, SERVER), VecDeque::new());
        self.links.insert((SERVER, client), VecDeque::new());
        let name = self.nodes[client].name.clone();
        self.give(SERVER, Input::Connected(name));
        self.give(client, Input::Connected("n0".into()));
    }

    /// A client that was refused asks again on the stream it has, which may have been welcomed meanwhile.
    pub fn greet_again(&mut self, client: usize) {
        if self.up[client] {
            self.note(format!("n{client} greets again"));
            self.give(client, Input::Connected("n0".into()));
        }
    }

    pub fn cut(&mut self, client: usize) {
        if !self.up[client] {
            return;
        }
        self.note(format!("cut n{client}"));
        self.up[client] = false;
        self.links.remove(&(client, SERVER));
        self.links.remove(&(SERVER, client));
        // The shell runs outputs as soon as they are there: what was said on this stream ends with it.
        let name = self.nodes[client].name.clone();
        let said = |peer: &str, job: &Output| matches!(job, Output::Send(to, _) | Output::Hangup(to, _) if to == peer);
        self.nodes[SERVER].jobs.retain(|job| !said(&name, job));
        self.nodes[client].jobs.retain(|job| !said("n0", job));
        let name = self.nodes[client].name.clone();
        self.give(SERVER, Input::Disconnected(name));
        self.give(client, Input::Disconnected("n0".into()));
    }

    pub(super) fn cut_all(&mut self, index: usize) {
        if index == SERVER {
            for client in 1..self.nodes.len() {
                self.cut(client);
            }
        } else {
            self.cut(index);
        }
    }

    /// Lento reads some of the KML.
    pub fn read_journal(&mut self, index: usize, most: usize) -> bool {
        let node = &self.nodes[index];
        let Some(volume) = &node.volume else { return false };
        let from = volume.next_recno().0 as usize - 1;
        let records: Vec<_> = node.disk.kml.iter().skip(from).take(most).cloned().collect();
        if records.is_empty() {
            return false;
        }
        self.give(index, Input::Journal(records));
        true
    }

    /// Runs one output of the shell, while some do not end.
    pub fn run_job_except(&mut self, index: usize, endless: fn(&Output) -> bool) -> bool {
        let jobs = &mut self.nodes[index].jobs;
        let Some(at) = jobs.iter().position(|job| !endless(job)) else { return false };
        let Some(job) = jobs.remove(at) else { return false };
        jobs.push_front(job);
        self.run_job(index)
    }

    /// Presto is about to be asked for a replay.
    pub fn next_is_replay(&self, index: usize) -> bool {
        matches!(self.nodes[index].jobs.front(), Some(Output::Replay { .. }))
    }

    /// Reads the content that was asked for first, or does what is to be done beside reading.
    pub fn run_read(&mut self, index: usize, read: bool) -> bool {
        let jobs = &mut self.nodes[index].jobs;
        let Some(at) = jobs.iter().position(|job| matches!(job, Output::ReadContent { .. }) == read) else {
            return false;
        };
        let Some(job) = jobs.remove(at) else { return false };
        jobs.push_front(job);
        self.run_job(index)
    }

    /// Batches that presto was asked for and has not done.
    pub fn replays_under_way(&self, index: usize) -> usize {
        self.nodes[index].jobs.iter().filter(|job| matches!(job, Output::Replay { .. })).count()
    }

    /// Runs one output of the shell.
    pub fn run_job(&mut self, index: usize) -> bool {
        if self.put_off(index) {
            return true;
        }
        let Some(job) = self.nodes[index].jobs.pop_front() else { return false };
        match job {
            Output::Send(peer, message) => {
                let to: usize = peer[1..].parse().unwrap();
                self.trees_sent += u64::from(matches!(message, Message::SnapshotBegin { .. }));
                if let Some(link) = self.links.get_mut(&(index, to)) {
                    link.push_back(message);
                }
            }
            Output::Hangup(peer, why) => {
                let to: usize = peer[1..].parse().unwrap();
                self.note(format!("n{index} hangs up on {peer}: {why}"));
                self.cut(index.max(to));
            }
            Output::Replay { ticket, items, untouched_since } => {
                let outcomes = self.nodes[index].disk.replay(&items, untouched_since);
                self.check_replay(index, &items, &outcomes);
                self.give(index, Input::Replayed { ticket, outcomes });
            }
            Output::List { ticket, dir, after } => {
                let listing = self.nodes[index].disk.list(dir, after);
                self.give(index, Input::Listed { ticket, listing });
            }
            Output::Scrub { ticket, items, untouched_since, found } => {
                let disk = &mut self.nodes[index].disk;
                let outcomes: Vec<_> =
                    items.iter().map(|item| disk.scrub(item, untouched_since, found)).collect();
                for (item, outcome) in items.iter().zip(&outcomes) {
                    self.note(format!("n{index} scrub {item:?} -> {outcome:?}"));
                }
                self.give(index, Input::Scrubbed { ticket, outcomes });
            }
            Output::Adopted => self.nodes[index].adopted = true,
            Output::ReadContent { ticket, file, stage_at } => {
                self.read_content(index, ticket, file, stage_at.is_some())
            }
            Output::Fetch { ticket, items } => {
                let server = &self.nodes[SERVER];
                let results = items
                    .iter()
                    .map(|item| {
                        if !self.up[index] {
                            return FetchResult::Failed("cut".into());
                        }
                        match Volume::content_source(&server.store, item.object, item.hash) {
                            Ok(Some((file, _)))
                                if server.disk.inodes.contains_key(&file)
                                    && server.disk.hash(file) == item.hash =>
                            {
                                FetchResult::Inline(server.disk.inodes[&file].bytes.clone())
                            }
                            _ => FetchResult::Superseded,
                        }
                    })
                    .collect();
                self.give(index, Input::Fetched { ticket, results });
            }
            Output::Keep { ticket, content, record } => {
                let node = &mut self.nodes[index];
                let bytes = match content {
                    KeepContent::Inline(bytes) => Some(bytes),
                    KeepContent::Staged(name) => node.disk.stage.get(&name).cloned(),
                    KeepContent::File(file) => node.disk.inodes.get(&file).map(|inode| inode.bytes.clone()),
                };
                let result = match bytes {
                    Some(bytes) => {
                        node.kept.insert(Hash::of(&bytes));
                        node.kept_of.entry(record).or_default().insert(Hash::of(&bytes));
                        Ok(())
                    }
                    None => Err("no such file".to_owned()),
                };
                self.give(index, Input::Kept { ticket, result });
            }
            Output::Sync { ticket } => {
                if !self.is_half_a_sync(index, &job) {
                    let node = &mut self.nodes[index];
                    node.store.make_durable();
                    let recno = Some(node.disk.last());
                    self.give(index, Input::Synced { ticket, recno });
                }
            }
            Output::Settled(recno) => self.nodes[index].disk.settled = recno.0,
            Output::ReleaseLimbo { files, upto } => {
                self.nodes[index].disk.release_limbo(&files, false, upto.0);
            }
            Output::RetainLimbo { files, upto } => {
                self.nodes[index].disk.release_limbo(&files, true, upto.0);
            }
            Output::BarrierReached(id) => {
                self.nodes[index].barriers.insert(id);
            }
            Output::DropStage(names) => {
                for name in names {
                    self.nodes[index].disk.stage.remove(&name);
                }
            }
            Output::Forget(record) => self.forget(index, record),
            Output::Truncate(_) | Output::HistoryFloor(_) => {}
            Output::Admit { serial, until } => self.nodes[index].door.admit(serial, until.0),
            Output::Revoke { ticket, serial } => self.revoke(index, ticket, serial),
            Output::RefuseWriters => {}
            Output::Demanded(id, answer) => {
                self.had += u64::from(answer == Demanded::Look);
                self.note(format!("n{index}: {id} {answer:?}"));
                self.nodes[index].asks.remove(&id);
            }
            Output::Event(event) => self.told(index, event),
        }
        true
    }

    /// Replays never take away a content that is not known to be safe elsewhere: the core's own promise.
    fn check_replay(
        &mut self,
        index: usize,
        items: &[ReplayItem],
        outcomes: &[lento_core::io::ReplayOutcome],
    ) {
        if std::env::var_os("SIM_TRACE").is_some() {
            for (item, outcome) in items.iter().zip(outcomes) {
                self.note(format!(
                    "n{index} replay {:?} {:?} {:?} -> {outcome:?}",
                    item.record, item.object, item.op
                ));
            }
        }
    }

    /// What comes next.
    pub fn next_message(&self, from: usize, to: usize) -> Option<&Message> {
        self.links.get(&(from, to)).and_then(VecDeque::front)
    }

    pub fn deliver(&mut self, from: usize, to: usize) -> bool {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return false;
        };
        if std::env::var_os("SIM_TRACE").is_some() {
            self.note(format!("t{} n{from} -> n{to}: {message:?}", self.now));
        }
        let name = self.nodes[from].name.clone();
        let Some(mangle) = &mut self.mangle else {
            self.give(to, Input::Message(name, message));
            return true;
        };
        let Some(messages) = mangle(from, to, message) else {
            self.cut(from.max(to));
            return true;
        };
        self.give_all(
            to,
            messages.into_iter().map(|message| Input::Message(name.clone(), message)).collect(),
        );
        true
    }

    pub fn timeout(&mut self, index: usize) {
        let Some(volume) = &self.nodes[index].volume else { return };
        if let Some((at, _)) = volume.poll_timeout()
            && at.0 <= self.clock_of(index)
        {
            self.give(index, Input::Timeout);
        }
    }

    /// One random step of machines and network.
    pub fn step(&mut self) {
        self.now += self.dice.roll(4);
        let index = self.dice.roll(self.nodes.len() as u64) as usize;
        match self.dice.roll(10) {
            0..=2 => {
                let most = 1 + self.dice.roll(6) as usize;
                self.read_journal(index, most);
            }
            3..=5 => {
                // Reads overtake each other and wait for each other.
                if self.dice.roll(4) == 0 {
                    let reads = |job: &Output| matches!(job, Output::ReadContent { .. });
                    let skip = self.dice.roll(3) as usize;
                    let jobs = &mut self.nodes[index].jobs;
                    let found =
                        jobs.iter().enumerate().filter(|(_, job)| reads(job)).nth(skip).map(|(at, _)| at);
                    if let Some(job) = found.and_then(|at| jobs.remove(at)) {
                        jobs.push_front(job);
                    }
                }
                self.run_job(index);
            }
            6..=8 => {
                if index != SERVER {
                    if self.dice.roll(2) == 0 {
                        self.deliver(index, SERVER)
                    } else {
                        self.deliver(SERVER, index)
                    };
                }
            }
            _ => self.timeout(index),
        }
    }
}
