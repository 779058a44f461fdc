//! One Volume on this node.
use crate::client::Client;
use crate::cml::Cml;
use crate::context::Context;
use crate::context::Meta;
use crate::facet;
use crate::facet::Facet;
use crate::io::Input;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::Ref;
use crate::ledger::Behind;
use crate::lineage::Lineage;
use crate::record::KmlRecord;
use crate::scrub::Found;
use crate::scrub::Scrub;
use crate::scrub::ScrubStatus;
use crate::server::ConflictRow;
use crate::server::Judged;
use crate::server::ReplicatorRow;
use crate::server::Server;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::Attributes;
use crate::types::Epoch;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Time;
use crate::types::Version;
use crate::types::mode;
use std::collections::BTreeMap;
use std::collections::VecDeque;

/// Milliseconds on a clock that never goes back (CLOCK_BOOTTIME); its zero means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// What this node is for the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its log is the volume's order.
    Server,
    /// It follows this node.
    Client {
        /// The server.
        server: NodeName,
    },
}

/// What the shell knows when it opens a volume.
#[derive(Clone, Debug)]
pub struct Config {
    /// namespace/name, for messages.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Random id for a store that is new.
    pub new_replica: u64,
    /// Identity of the lower root directory.
    pub root: FileId,
    /// Identity of the hidden staging directory.
    pub staging: FileId,
    /// The lower tree may hold more than any record made: a directory is adopted.
    pub adopts: bool,
    /// Objects in one message of a snapshot.
    pub snapshot_chunk: usize,
    /// The machine or the store lost what was not synced (power cut, restored backup): a new incarnation begins.
    pub unclean: bool,
    /// Random: makes new epochs and incarnations other than those that were lost.
    pub entropy: u64,
    /// Client: how many positions of the server's log are kept even if they are durable everywhere.
    pub tail: u64,
}

/// The volume cannot go on; the text says why. Nothing was changed by the input that caused it (drop the transaction).
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The KML says something impossible.
    #[error("journal record {recno}: {reason}")]
    Journal {
        /// Which record.
        recno: Recno,
        /// Why.
        reason: String,
    },
    /// The core contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}

/// The state machine of one volume.
#[derive(Debug)]
pub struct Volume {
    config: Config,
    meta: Meta,
    part: Part,
    scrub: Scrub,
    /// What replays found other than any record left it.
    doubtful: Vec<(ObjectId, Vec<Ref>)>,
    look_through: bool,
    presto: bool,
    generations: u64,
    tickets: u64,
    out: VecDeque<Output>,
    /// Records read while a sync runs. They wait for it, so that the durable store is never ahead of the durable KML.
    backlog: VecDeque<KmlRecord>,
    /// Clock of the last input.
    now: Millis,
}

#[derive(Debug)]
enum Part {
    Server(Box<Server>),
    Client(Box<Client>),
}

impl Part {
    /// Everything that may go on, goes on. Says whether everything replayed is read.
    fn pump(&mut self, ctx: &mut Context<'_>) -> Result<bool, StoreError> {
        match self {
            Part::Server(server) => {
                server.pump(ctx)?;
                Ok(server.replays_idle(ctx))
            }
            Part::Client(client) => {
                client.pump(ctx)?;
                Ok(client.replays_idle(ctx))
            }
        }
    }
}

impl Volume {
    /// Opens or begins the state in `store`.
    ///
    /// # Errors
    /// The store's, or a store of another role.
    pub fn open(config: Config, store: &mut dyn Store) -> Result<Volume, Fault> {
        let server = config.role == Role::Server;
        let meta = match Meta::load(store)? {
            Some(mut meta) => {
                if meta.server != server {
                    return Err(Fault::Inconsistent(format!(
                        "{}: the stored state is that of a {}; handing a volume over is not possible yet",
                        config.name,
                        if meta.server { "server" } else { "client" },
                    )));
                }
                if config.unclean {
                    if server {
                        meta.lineage.begin(Epoch::new(config.entropy), Position(meta.last_read().0));
                    }
                    // Lives that a restored backup knows nothing of had the next numbers.
                    let step = 1 + u32::from(config.entropy as u16);
                    meta.incarnation = meta.incarnation.saturating_add(step);
                }
                meta
            }
            None => Volume::begin(&config, server, store)?,
        };
        meta.save(store)?;
        for (file, object) in [(config.root, ObjectId::ROOT), (config.staging, ObjectId::STAGING)] {
            handle::put(store, file, object)?;
        }
        let part = match &config.role {
            Role::Server => {
                let mut server = Server::open(store, config.snapshot_chunk)?;
                if config.unclean {
                    server.may_have_lost();
                }
                Part::Server(Box::new(server))
            }
            Role::Client { server } => {
                Part::Client(Box::new(Client::open(server.clone(), store, config.tail)?))
            }
        };
        Ok(Volume {
            config,
            meta,
            part,
            scrub: Scrub::default(),
            doubtful: Vec::new(),
            look_through: false,
            presto: false,
            generations: 0,
            tickets: 0,
            out: VecDeque::new(),
            backlog: VecDeque::new(),
            now: Millis::default(),
        })
    }

    fn begin(config: &Config, server: bool, store: &mut dyn Store) -> Result<Meta, Fault> {
        // The root is there before the first record; its attributes are told when somebody changes them.
        let attributes = Attributes { mode: mode::DIR | 0o755, ..Attributes::default() };
        let root =
            Object { attributes, content: Some(Stored::empty()), file: config.root, ..Object::default() };
        for which in [Which::Local, Which::Base] {
            Tree::new(store, which).set_object(ObjectId::ROOT, Some(&root))?;
        }
        Ok(Meta {
            replica: config.new_replica,
            incarnation: 1,
            next_recno: Recno(1),
            lineage: if server { Lineage::first(Epoch::new(config.entropy)) } else { Lineage::default() },
            position: Position(0),
            tail_from: Position(0),
            log_floor: Position(0),
            snapshot: None,
            server,
            adopting: config.adopts && server,
        })
    }

    /// Takes one input.
    ///
    /// # Errors
    /// A [`Fault`] stops the volume.
    pub fn handle(&mut self, now: Millis, input: Input, store: &mut dyn Store) -> Result<(), Fault> {
        self.now = now;
        let before = self.meta.clone();
        let mut out = Vec::new();
        if let Input::Connected(node) | Input::Disconnected(node) = &input {
            // Said to the stream that is gone; the next one would take it for its own.
            self.out.retain(
                |output| !matches!(output, Output::Send(to, _) | Output::Hangup(to, _) if to == node),
            );
        }
        let input = match input {
            Input::Journal(records) if self.is_syncing() => {
                self.backlog.extend(records);
                return Ok(());
            }
            other => other,
        };
        self.dispatch(now, input, store, &mut out)?;
        if !self.backlog.is_empty() && !self.is_syncing() {
            let records = self.backlog.drain(..).collect();
            self.dispatch(now, Input::Journal(records), store, &mut out)?;
        }
        if self.meta != before {
            self.meta.save(store)?;
        }
        if !self.presto {
            // Asked of the presto that is gone, with plans that the next one must not carry out.
            let gone = |output: &Output| {
                use Output::{List, Replay, Scrub, Sync};
                matches!(output, Replay { .. } | Sync { .. } | List { .. } | Scrub { .. })
            };
            self.out.retain(|output| !gone(output));
            out.retain(|output| !gone(output));
        }
        self.out.extend(out);
        Ok(())
    }

    fn dispatch(
        &mut self,
        now: Millis,
        input: Input,
        store: &mut dyn Store,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        match &input {
            Input::PrestoUp { .. } => self.presto = true,
            Input::PrestoDown => {
                self.presto = false;
                self.scrub.presto_down();
            }
            _ => {}
        }
        let mut ctx = Context {
            store,
            out,
            now,
            meta: &mut self.meta,
            tickets: &mut self.tickets,
            root: self.config.root,
            staging: self.config.staging,
            presto: self.presto,
            scrubbing: false,
            doubtful: &mut self.doubtful,
            look_through: &mut self.look_through,
        };
        let up = matches!(input, Input::PrestoUp { .. });
        let input = match input {
            Input::Scrub(found) => {
                self.scrub.begin(found, false);
                Input::Timeout
            }
            Input::Listed { ticket, listing } => {
                self.scrub.listed(&mut ctx, ticket, listing)?;
                Input::Timeout
            }
            Input::Scrubbed { ticket, outcomes } => {
                self.scrub.scrubbed(&mut ctx, ticket, outcomes)?;
                Input::Timeout
            }
            other => other,
        };
        ctx.scrubbing = self.scrub.holds_replays();
        match &mut self.part {
            Part::Server(server) => feed_server(server, &mut ctx, &mut self.generations, input)?,
            Part::Client(client) => feed_client(client, &mut ctx, input)?,
        }
        let replays_idle = self.part.pump(&mut ctx)?;
        scrub(&mut self.scrub, &mut ctx, up && self.config.adopts, replays_idle)?;
        if ctx.scrubbing && !self.scrub.holds_replays() {
            ctx.scrubbing = false;
            self.part.pump(&mut ctx)?;
        }
        Ok(())
    }

    fn is_syncing(&self) -> bool {
        match &self.part {
            Part::Server(server) => server.is_syncing(),
            Part::Client(client) => client.is_syncing(),
        }
    }

    /// Next thing to do, in order, after the store was committed.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call `handle(Timeout)` at the latest, and who wants it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Millis, &'static str)> {
        let mut times = match &self.part {
            Part::Server(server) => server.wake(),
            Part::Client(client) => client.wake(),
        };
        times.extend(self.scrub.wake().map(|at| (at, "go on with the scrub")));
        times.into_iter().filter(|(at, _)| *at > self.now).min_by_key(|(at, _)| *at)
    }

    /// The KML record it wants next.
    #[must_use]
    pub fn next_recno(&self) -> Recno {
        self.backlog.back().map_or(self.meta.next_recno, |record| Recno(record.recno.0.saturating_add(1)))
    }

    /// Server: the lower file that should hold this content now, for a peer's fetch. `None`: superseded.
    ///
    /// # Errors
    /// The store's.
    pub fn content_source(
        store: &dyn Store,
        object: ObjectId,
        hash: Hash,
    ) -> Result<Option<(FileId, Version)>, Fault> {
        let state = View::new(store, Which::Local).object(object)?;
        let state = state.filter(|state| state.content.is_some_and(|content| content.hash == hash));
        Ok(state.map(|state| (state.file, state.version)))
    }

    /// The object of a lower file; `None`: not known.
    ///
    /// # Errors
    /// The store's.
    pub fn object_of(store: &dyn Store, file: FileId) -> Result<Option<ObjectId>, Fault> {
        Ok(handle::get(store, file)?)
    }

    /// The CML for people: recno, what, path, content size, whether it was sent.
    ///
    /// # Errors
    /// The store's.
    pub fn cml(store: &dyn Store, limit: usize) -> Result<Vec<CmlEntry>, Fault> {
        let mut list = Vec::new();
        for (recno, row) in Cml::rows(store, Recno(0), limit)? {
            let view = View::new(store, Which::Local);
            let entry = facet::touched(&row.op).into_iter().find_map(|facet| match facet {
                Facet::Entry(dir, name) => Some((dir, name)),
                Facet::Object(_) => None,
            });
            let path = match entry {
                Some((dir, name)) => view.path_in(dir, &name)?,
                None => view.path(row.op.object)?,
            };
            let operation = match row.op.kind {
                OpKind::Create { .. } => "create",
                OpKind::Link { .. } => "link",
                OpKind::Remove { .. } => "remove",
                OpKind::Rename { .. } => "rename",
                OpKind::SetAttr { .. } => "setattr",
                OpKind::Close { .. } => "close",
                OpKind::SetXattr { .. } => "setxattr",
                OpKind::DelXattr { .. } => "delxattr",
            };
            list.push(CmlEntry {
                recno,
                operation,
                path,
                size: row.slot.map_or(0, |slot| slot.version.size),
            });
        }
        Ok(list)
    }

    /// The nodes of the replicas that this server has met.
    ///
    /// # Errors
    /// The store's.
    pub fn nodes(store: &dyn Store) -> Result<BTreeMap<u64, NodeName>, Fault> {
        let mut nodes = BTreeMap::new();
        table::each_with_prefix(store, Table::Replicator, &[], |key, value| {
            let row: ReplicatorRow = table::decode(Table::Replicator, value)?;
            nodes.insert(row.replica, String::from_utf8_lossy(key).into_owned());
            Ok(())
        })?;
        Ok(nodes)
    }

    /// Conflicts kept by this server, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn conflicts(store: &dyn Store, limit: usize) -> Result<Vec<(Position, ConflictRow)>, Fault> {
        let mut list = Vec::new();
        for (key, value) in store.scan(Table::Conflict, &[], limit)? {
            let position = table::number_from_key(&key).unwrap_or_default();
            list.push((Position(position), table::decode(Table::Conflict, &value)?));
        }
        Ok(list)
    }

    /// Both trees, entry by entry, where they differ: for a test that failed.
    ///
    /// # Errors
    /// The store's.
    pub fn differences(store: &dyn Store) -> Result<String, Fault> {
        let mut text = String::new();
        for (table, which) in [(Table::LocalEntry, "here"), (Table::BaseEntry, "base")] {
            table::each_with_prefix(store, table, &[], |key, value| {
                if let Some((dir, name)) = table::tag_from_key(key) {
                    let object: ObjectId = table::decode(table, value)?;
                    text += &format!("{which} {dir}/{} = {object}\n", String::from_utf8_lossy(name));
                }
                Ok(())
            })?;
        }
        table::each_with_prefix(store, Table::Dirty, &[], |key, _| {
            text += &format!("dirty {:?}\n", Facet::from_key(key));
            Ok(())
        })?;
        Ok(text)
    }

    /// For people and metrics. Reads a few rows for each Replicator and never counts rows: it is asked often.
    ///
    /// # Errors
    /// The store's.
    pub fn status(&self, store: &dyn Store) -> Result<Status, Fault> {
        let mut status = self.status_of_part(store)?;
        status.scrub = self.scrub.status();
        if status.scrub.running {
            let ScrubStatus { adopting, done, looked, found, .. } = &status.scrub;
            let what =
                if *adopting { "the directory is being adopted" } else { "the tree is looked through" };
            let percent = done * 100.0;
            status
                .waiting
                .insert(0, format!("{what}: {percent:.1} %, {looked} names, {found} not known before"));
        }
        Ok(status)
    }

    fn status_of_part(&self, store: &dyn Store) -> Result<Status, Fault> {
        match &self.part {
            Part::Server(server) => {
                let mut replicators = Vec::new();
                let sums = server.sums();
                for node in server.replist() {
                    let row = ReplicatorRow::get(store, node)?;
                    let session = server.session(node);
                    let lag = row.follows.then(|| sums.behind(row.ack.applied));
                    replicators.push(ReplicatorStatus {
                        node: node.clone(),
                        connected: session.is_some_and(|session| session.is_welcomed()),
                        applied: row.ack.applied,
                        durable: row.ack.durable,
                        syncing: session.is_some_and(|session| session.is_syncing()),
                        lag_records: server.position().0.saturating_sub(row.ack.applied.0),
                        lag,
                    });
                }
                Ok(Status {
                    position: server.position(),
                    applied: Position(self.meta.last_read().0),
                    replicators,
                    conflicts: server.conflicts(),
                    judged: server.judged(),
                    waiting: server.waiting(store)?,
                    connected: true,
                    ..Status::default()
                })
            }
            Part::Client(client) => Ok(Status {
                position: self.meta.position,
                applied: client.applied(self.meta.position),
                pending: client.pending().records,
                pending_bytes: client.pending().bytes,
                pending_since: Cml::oldest(store)?,
                dirty: client.dirty(),
                connected: client.is_connected(),
                waiting: client.waiting(&self.meta, store)?,
                ..Status::default()
            }),
        }
    }
}

/// The scrub's turn, after both parts have had theirs.
fn scrub(
    scrub: &mut Scrub,
    ctx: &mut Context<'_>,
    adopted_presto_up: bool,
    replays_idle: bool,
) -> Result<(), StoreError> {
    if std::mem::take(ctx.look_through) {
        scrub.begin(Found::Take, ctx.meta.adopting);
    }
    for (object, dirs) in std::mem::take(ctx.doubtful) {
        scrub.doubt(ctx, object, &dirs)?;
    }
    if adopted_presto_up {
        if ctx.meta.adopting {
            scrub.begin(Found::Take, true);
        } else {
            ctx.out.push(Output::Adopted);
        }
    }
    if scrub.pump(ctx, replays_idle)? && std::mem::take(&mut ctx.meta.adopting) {
        ctx.out.push(Output::Adopted);
    }
    Ok(())
}

/// One input for the server's side.
fn feed_server(
    server: &mut Server,
    ctx: &mut Context<'_>,
    generations: &mut u64,
    input: Input,
) -> Result<(), Fault> {
    match input {
        Input::PrestoUp { last, .. } => {
            // A server needs no limbo: what its users remove, nobody else decides about.
            ctx.out.push(Output::Settled(Recno(u64::MAX)));
            server.presto_up(last);
        }
        Input::Timeout | Input::Scrub(_) | Input::Listed { .. } | Input::Scrubbed { .. } => {}
        Input::PrestoDown => server.presto_down(),
        Input::Journal(records) => in_order(ctx, &records, |ctx, record| server.absorb(ctx, record))?,
        Input::Replayed { ticket, outcomes } => server.replayed(ctx, ticket, &outcomes)?,
        Input::ContentRead { ticket, result } => server.content_read(ctx, ticket, result)?,
        Input::Fetched { .. } => {}
        Input::Kept { ticket, result } => server.kept(ctx, ticket, result)?,
        Input::Synced { ticket, recno } => server.synced(ctx, ticket, recno.is_some())?,
        Input::Connected(node) => {
            *generations += 1;
            server.connected(node, *generations);
        }
        Input::Disconnected(node) => server.disconnected(&node),
        Input::Message(node, message) => server.message(ctx, &node, message)?,
        Input::Staged { hash, size, name } => server.staged(hash, size, name),
        Input::Replist(nodes) => server.set_replist(ctx, nodes)?,
        Input::Barrier { id, upto, all } => server.barrier(id, upto, all),
    }
    Ok(())
}

/// One input for a client's side.
fn feed_client(client: &mut Client, ctx: &mut Context<'_>, input: Input) -> Result<(), Fault> {
    match input {
        Input::PrestoUp { last, .. } => client.presto_up(last),
        Input::Timeout | Input::Scrub(_) | Input::Listed { .. } | Input::Scrubbed { .. } => {}
        Input::PrestoDown => client.presto_down(),
        Input::Journal(records) => in_order(ctx, &records, |ctx, record| client.absorb(ctx, record))?,
        Input::Replayed { ticket, outcomes } => client.replayed(ctx, ticket, &outcomes)?,
        Input::ContentRead { ticket, result } => client.content_read(ctx, ticket, result)?,
        Input::Fetched { ticket, results } => client.fetched(ctx, ticket, results),
        Input::Kept { .. } | Input::Staged { .. } | Input::Replist(_) => {}
        Input::Synced { ticket, recno } => client.synced(ctx, ticket, recno.is_some()),
        Input::Connected(_) => client.connected(),
        Input::Disconnected(_) => client.disconnected(),
        Input::Message(node, message) => client.message(ctx, &node, message)?,
        Input::Barrier { id, upto, all } => client.barrier(id, upto, all),
    }
    Ok(())
}

/// Records of the journal, none left out and none twice.
fn in_order(
    ctx: &mut Context<'_>,
    records: &[KmlRecord],
    mut absorb: impl FnMut(&mut Context<'_>, &KmlRecord) -> Result<(), StoreError>,
) -> Result<(), Fault> {
    for record in records {
        let fault = |reason| Fault::Journal { recno: record.recno, reason };
        if record.recno != ctx.meta.next_recno {
            return Err(fault(format!("record {} was to come next", ctx.meta.next_recno)));
        }
        absorb(ctx, record).map_err(|error| fault(error.to_string()))?;
        ctx.meta.next_recno = Recno(record.recno.0.saturating_add(1));
    }
    Ok(())
}

/// One pending record, for people.
#[derive(Clone, Debug)]
pub struct CmlEntry {
    /// Its number.
    pub recno: Recno,
    /// What it does.
    pub operation: &'static str,
    /// Where.
    pub path: String,
    /// Bytes of content that go with it.
    pub size: u64,
}

/// What `intermezzo status` shows of one volume.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Server: newest durable position. Client: base.
    pub position: Position,
    /// Visible in the tree.
    pub applied: Position,
    /// Own records without a verdict.
    pub pending: u64,
    /// Bytes of content on this node's disk that they stand for.
    pub pending_bytes: u64,
    /// When the oldest of them was made.
    pub pending_since: Option<Time>,
    /// Others' changes not yet in the tree.
    pub dirty: u64,
    /// Client: the stream to the server is up and welcomed.
    pub connected: bool,
    /// Server: its Replicators.
    pub replicators: Vec<ReplicatorStatus>,
    /// Server: conflicts kept.
    pub conflicts: u64,
    /// Server: verdicts given since the volume was opened.
    pub judged: Judged,
    /// What it waits for and why.
    pub waiting: Vec<String>,
    /// How the last scrub went, or goes.
    pub scrub: ScrubStatus,
}

/// One Replicator, seen from the server.
#[derive(Clone, Debug, Default)]
pub struct ReplicatorStatus {
    /// Node.
    pub node: NodeName,
    /// Its stream is up.
    pub connected: bool,
    /// Visible in its tree.
    pub applied: Position,
    /// Visible and durable there.
    pub durable: Position,
    /// It takes a snapshot now.
    pub syncing: bool,
    /// Positions between what is visible in its tree and the server's newest durable one.
    pub lag_records: u64,
    /// What these brought; `None`: it has never followed the log, so it gets the whole tree.
    pub lag: Option<Behind>,
}
