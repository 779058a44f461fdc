//! One Volume on this node.

mod permit;
mod safety;
mod status;

pub use permit::PermitState;
pub use safety::Safety;
pub use status::CmlEntry;
pub use status::ReplicatorStatus;
pub use status::Status;

use crate::client::Client;
use crate::context::Context;
use crate::context::Meta;
use crate::io::Demanded;
use crate::io::Input;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::Ref;
use crate::lineage::Lineage;
use crate::missing;
use crate::record::KmlRecord;
use crate::scrub::Found;
use crate::scrub::Scrub;
use crate::server::Server;
use crate::server::torn;
use crate::store::Store;
use crate::store::StoreError;
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
use crate::types::Position;
use crate::types::Recno;
use crate::types::Version;
use crate::types::mode;
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

/// How a volume was left when its last life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The machine has been up since, and nothing was lost; or there was no life.
    Whole,
    /// Tree, journal and store were synced, in this order, and nothing was stored after that; then the machine went. They agree, but
    /// all of it may be an old copy: a new incarnation begins.
    Rested,
    /// The machine or the store lost what was not synced (power cut, restored backup): a new incarnation begins, and the tree is
    /// looked through.
    Lost,
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
    /// How the volume was left here.
    pub before: Before,
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
    renamed: Vec<(ObjectId, ObjectId)>,
    moved: Vec<ObjectId>,
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
                if config.before != Before::Whole {
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
        let lacks = missing::sum(store)?;
        if server && lacks.files > 0 {
            return Err(Fault::Inconsistent(format!(
                "{}: {} contents are not on this node, which cannot serve the volume without them: let it fetch all first (mode: Full)",
                config.name, lacks.files
            )));
        }
        // A server gives its tree to everybody, and looks once more.
        if config.before == Before::Lost || (config.before == Before::Rested && server) {
            crate::scrub::doubt_tree(store)?;
        }
        if !server {
            crate::history::forget(store)?;
        }
        meta.save(store)?;
        for (file, object) in [(config.root, ObjectId::ROOT), (config.staging, ObjectId::STAGING)] {
            handle::put(store, file, object)?;
        }
        let part = match &config.role {
            Role::Server => {
                let mut server = Server::open(store, meta.last_read(), config.snapshot_chunk)?;
                if config.before != Before::Whole {
                    server.may_have_lost(store)?;
                }
                Part::Server(Box::new(server))
            }
            Role::Client { server } => {
                let mut client = Client::open(server.clone(), store, config.tail, config.entropy)?;
                if config.before != Before::Whole {
                    client.may_have_lost(store)?;
                }
                Part::Client(Box::new(client))
            }
        };
        let scrub = Scrub::new(config.adopts);
        Ok(Volume {
            config,
            meta,
            part,
            scrub,
            doubtful: Vec::new(),
            renamed: Vec::new(),
            moved: Vec::new(),
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
                use Output::{Admit, List, Replay, Revoke, Scrub, Sync};
                matches!(
                    output,
                    Replay { .. } | Sync { .. } | List { .. } | Scrub { .. } | Admit { .. } | Revoke { .. }
                )
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
            behind: !self.backlog.is_empty(),
            doubtful: &mut self.doubtful,
            renamed: &mut self.renamed,
            moved: &mut self.moved,
            look_through: &mut self.look_through,
        };
        let up = match &input {
            Input::PrestoUp { last, .. } => Some(*last),
            _ => None,
        };
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
        ctx.scrubbing = self.scrub.holds_replays(ctx.meta.last_read());
        match &mut self.part {
            Part::Server(server) => feed_server(server, &mut ctx, &mut self.generations, input)?,
            Part::Client(client) => feed_client(client, &mut ctx, input)?,
        }
        let replays_idle = self.part.pump(&mut ctx)?;
        if let Some(last) = up {
            self.scrub.presto_up(&ctx, last)?;
        }
        scrub(&mut self.scrub, &mut ctx, up.is_some() && self.config.adopts, replays_idle)?;
        if ctx.scrubbing && !self.scrub.holds_replays(ctx.meta.last_read()) {
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

    /// Server: the lower file that should hold this content now, for a peer's fetch. `None`: superseded, or torn.
    ///
    /// # Errors
    /// The store's.
    pub fn content_source(
        store: &dyn Store,
        object: ObjectId,
        hash: Hash,
    ) -> Result<Option<(FileId, Version)>, Fault> {
        if torn::is_torn(store, object)? {
            return Ok(None);
        }
        let state = View::new(store, Which::Local).object(object)?;
        let state = state.filter(|state| state.content.is_some_and(|content| content.hash == hash));
        let state = state.filter(|state| !state.missing);
        Ok(state.map(|state| (state.file, state.version)))
    }

    /// The object of a lower file; `None`: not known.
    ///
    /// # Errors
    /// The store's.
    pub fn object_of(store: &dyn Store, file: FileId) -> Result<Option<ObjectId>, Fault> {
        Ok(handle::get(store, file)?)
    }
}

/// The scrub's turn, after both parts have had theirs.
fn scrub(
    scrub: &mut Scrub,
    ctx: &mut Context<'_>,
    adopted_presto_up: bool,
    replays_idle: bool,
) -> Result<(), StoreError> {
    for (object, target) in std::mem::take(ctx.renamed) {
        scrub.renamed(object, target);
    }
    for object in std::mem::take(ctx.moved) {
        scrub.moved(ctx, object)?;
    }
    if std::mem::take(ctx.look_through) {
        scrub.look_through(ctx.meta.adopting);
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
            server.presto_up(ctx, last);
        }
        Input::Timeout | Input::Scrub(_) | Input::Listed { .. } | Input::Scrubbed { .. } => {}
        Input::PrestoDown => server.presto_down(),
        Input::Journal(records) => in_order(ctx, &records, |ctx, record| server.absorb(ctx, record))?,
        Input::Replayed { ticket, outcomes } => server.replayed(ctx, ticket, &outcomes)?,
        Input::ContentRead { ticket, result } => server.content_read(ctx, ticket, result)?,
        Input::Fetched { .. } | Input::Undemand(_) | Input::Keep(_) | Input::HoldBack(_) => {}
        // A server has all its contents.
        Input::Demand { id, .. } => ctx.out.push(Output::Demanded(id, Demanded::Look)),
        Input::Kept { ticket, result } => server.kept(ctx, ticket, result)?,
        Input::Synced { ticket, recno } => server.synced(ctx, ticket, recno.is_some())?,
        Input::Connected(node) => {
            *generations += 1;
            server.connected(node, *generations);
        }
        Input::Disconnected(node) => server.disconnected(ctx.now, &node),
        Input::Message(node, message) => server.message(ctx, &node, message)?,
        Input::Staged { node, hash, size, name } => server.staged(node, hash, size, name),
        Input::Resolved(position) => server.resolved(position),
        Input::Conflicts(options) => server.set_conflict_options(options),
        Input::MassRemoval(options) => server.set_mass_options(ctx, options)?,
        Input::History(options) => server.set_history(ctx, options),
        Input::Judged(node, judgement) => server.judged_removals(ctx, &node, judgement)?,
        Input::Replist(nodes) => server.set_replist(ctx, nodes)?,
        Input::Writes(writes) => server.set_writes(ctx, writes)?,
        Input::PermitWanted => server.permit_wanted(ctx),
        Input::Revoked { ticket, upto } => server.door_closed(ctx.now, ticket, upto),
        Input::LogLimit(limit) => server.set_log_limit(ctx, limit)?,
        Input::Barrier { id, upto, all } => server.barrier(id, upto, all),
    }
    Ok(())
}

/// One input for a client's side.
fn feed_client(client: &mut Client, ctx: &mut Context<'_>, input: Input) -> Result<(), Fault> {
    match input {
        Input::PrestoUp { last, .. } => client.presto_up(ctx, last)?,
        Input::Timeout | Input::Scrub(_) | Input::Listed { .. } | Input::Scrubbed { .. } => {}
        Input::PrestoDown => client.presto_down(),
        Input::Journal(records) => in_order(ctx, &records, |ctx, record| client.absorb(ctx, record))?,
        Input::Replayed { ticket, outcomes } => client.replayed(ctx, ticket, &outcomes)?,
        Input::ContentRead { ticket, result } => client.content_read(ctx, ticket, result)?,
        Input::Fetched { ticket, results } => client.fetched(ctx, ticket, results),
        Input::Demand { id, file } => client.demand(ctx, id, file),
        Input::Undemand(id) => client.undemand(id),
        Input::Keep(keeping) => client.keep(ctx, keeping)?,
        Input::HoldBack(held) => client.hold_back(held),
        Input::Kept { .. }
        | Input::Staged { .. }
        | Input::Resolved(_)
        | Input::Conflicts(_)
        | Input::MassRemoval(_)
        | Input::History(_)
        | Input::Judged(..)
        | Input::Replist(_)
        | Input::LogLimit(_) => {}
        Input::Synced { ticket, recno } => client.synced(ctx, ticket, recno.is_some()),
        Input::Writes(writes) => client.set_writes(ctx, writes),
        Input::PermitWanted => client.permit_wanted(ctx),
        Input::Revoked { ticket, upto } => client.door_closed(ctx.now, ticket, upto),
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
