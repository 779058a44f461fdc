//! The server's side of a volume: its KML is the total order, a position is a recno in it.
//!
//! Clients' records are judged in their order, replayed, and confirmed by the KML; what the KML says is logged and
//! forwarded once it is durable (rule 5). Nothing here waits for a writer (rule 15).

mod absorb;
mod backfetch;
mod conflicts;
mod forward;
mod gone;
mod history;
mod judging;
mod offers;
mod orphans;
mod permits;
mod removals;
mod resolving;
mod restoring;
mod retelling;
mod retention;
mod session;
mod snapshot;
mod staged;
pub mod torn;
mod unread;
mod verdict_code;
mod verdicts;
mod vetting;
mod winning;

use crate::cml::content_of;
use crate::context::Contents;
use crate::context::Context;
use crate::context::Syncing;
use crate::facet;
use crate::io::Event;
use crate::io::LogLimit;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReplayOutcome;
use crate::ledger::Ledger;
use crate::ledger::Sums;
use crate::replaying::BatchEnd;
use crate::replaying::Replaying;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
use crate::volume::Safety;
use offers::Offers;
use orphans::Orphans;
use permits::Permits;
use retelling::Retelling;
use serde::Deserialize;
use serde::Serialize;
use session::Refusal;
use session::Session;
use session::SessionState;
pub use session::resync;
use staged::Staged;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use torn::TornFiles;
use unread::Unread;

pub use absorb::ConflictRow;
use conflicts::Conflicts;
pub use conflicts::Kept;
pub use conflicts::Standing;
pub use conflicts::State;
pub use conflicts::Tally;
use gone::Gone;
use history::History;
pub use removals::Held;
use removals::Removals;
use resolving::Resolving;
pub use session::ReplicatorRow;

/// How long after a refusal a record is tried again, in milliseconds; doubled each time, up to a minute.
const REFUSED_PAUSE: u64 = 500;

/// State of the server role; what must survive is in the store.
#[derive(Debug, Default)]
pub struct Server {
    replist: BTreeSet<NodeName>,
    /// This life has been told it.
    knows_replist: bool,
    sessions: BTreeMap<NodeName, Session>,
    replaying: Replaying,
    /// Records of clients that were planned and are not confirmed, in the order of planning.
    in_flight: VecDeque<InFlight>,
    /// Their ids: a record may arrive twice.
    flying: BTreeSet<OpId>,
    /// Records whose content cannot go into the tree, because a file of several names is open for writing here.
    written: BTreeSet<OpId>,
    /// What they will have unified: records behind them name the same objects.
    aliases: crate::judge::alias::UnderWay,
    /// Contents that clients staged.
    staged: Staged,
    contents: Contents,
    /// The log rows that wait for their contents.
    unread: Unread,
    reads: BTreeMap<Ticket, (ObjectId, Recno)>,
    /// The newest record when presto came up: one before it may say that a content is torn.
    journal_end: Recno,
    read_again: BTreeMap<ObjectId, Millis>,
    keeps: BTreeMap<Ticket, Keeping>,
    /// What writers left.
    orphans: Orphans,
    /// What a power cut left.
    torn: TornFiles,
    /// What an earlier life may have told otherwise.
    retelling: Retelling,
    syncing: Syncing,
    /// A sync has begun that covers this: with the disk the log may fall back to it.
    asked: Position,
    durable: Position,
    barriers: BTreeMap<u64, (Position, bool)>,
    truncated: Position,
    /// What the log holds.
    ledger: Ledger,
    /// How much of it is kept for Replicators that are away, and since when they are.
    log_limit: LogLimit,
    away: BTreeMap<NodeName, Millis>,
    conflicts: Conflicts,
    /// Those that leave the list.
    resolving: Resolving,
    /// Of these, what no person has resolved.
    dropped: u64,
    /// Where removed objects were.
    gone: Gone,
    /// What one node is about to remove.
    removals: Removals,
    /// What was.
    history: History,
    judged: Judged,
    /// What clients have of a log that this server has lost.
    offers: Offers,
    /// Whose turn it is to write.
    permits: Permits,
    /// Objects in one message of a snapshot.
    snapshot_chunk: usize,
}

/// Verdicts given since the volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Accepted.
    pub accepted: u64,
    /// Unified with what was there.
    pub unified: u64,
    /// Conflicts.
    pub conflicts: u64,
}

/// A client's record on its way into the tree.
#[derive(Clone, Debug)]
struct InFlight {
    node: NodeName,
    generation: u64,
    /// As it came: planned anew, its objects may have other names.
    op: Operation,
}

#[derive(Clone, Debug)]
enum Keeping {
    /// The losing content of the first record in a client's queue.
    Refused(NodeName, OpId),
    /// What the first record in a client's queue is about to take away.
    Tree {
        /// The client.
        node: NodeName,
        /// Its record.
        record: OpId,
        /// What that takes.
        hash: Hash,
    },
    /// What a writer left in a file that had been replaced.
    Orphan {
        /// Where it lies.
        file: FileId,
        /// Its closes up to here are in the copy.
        upto: Recno,
    },
    /// What a power cut left.
    Torn {
        /// Of what.
        object: ObjectId,
        /// Its closes up to here are in the copy.
        upto: Recno,
    },
}

impl Keeping {
    fn is_of(&self, orphan: FileId) -> bool {
        matches!(self, Keeping::Orphan { file, .. } if *file == orphan)
    }

    fn is_torn(&self, torn: ObjectId) -> bool {
        matches!(self, Keeping::Torn { object, .. } if *object == torn)
    }
}

/// One row of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// What is forwarded.
    pub record: LogRecord,
    /// The content of the record still has to be read from this lower file.
    pub slot: Option<crate::cml::Slot>,
}

impl LogRow {
    fn get(store: &dyn Store, position: Position) -> Result<Option<LogRow>, StoreError> {
        table::get(store, Table::Log, &table::number_key(position.0))
    }

    fn put(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        table::put(store, Table::Log, &table::number_key(self.record.position.0), self)
    }

    /// Bytes that it takes in the store, roughly.
    fn stored(&self) -> u64 {
        let names: usize = match &self.record.what {
            LogWhat::Operation(op) => facet::names(op).map(Vec::len).sum::<usize>() + vetting::weight(op),
            LogWhat::Verdict(_) => 100,
        };
        names as u64
    }

    /// Notes a new row: when it was made, and the bytes of its content where they are known.
    fn note(&self, ledger: &mut Ledger) {
        let (time, bytes) = match &self.record.what {
            LogWhat::Operation(op) if self.slot.is_none() => {
                (Some(op.time), content_of(op).map_or(0, |content| content.size))
            }
            LogWhat::Operation(op) => (Some(op.time), 0),
            LogWhat::Verdict(_) => (None, 0),
        };
        ledger.note(self.record.position, time, bytes, self.stored());
    }
}

impl Server {
    /// Rebuilds what is kept in memory, of a store that has read the KML up to `read`.
    pub fn open(store: &dyn Store, read: Recno, snapshot_chunk: usize) -> Result<Server, StoreError> {
        let snapshot_chunk = snapshot_chunk.max(1);
        let mut server = Server { snapshot_chunk, asked: Position(read.0), ..Server::default() };
        table::each_with_prefix(store, Table::Log, &[], |_, value| {
            let row: LogRow = table::decode(Table::Log, value)?;
            row.note(&mut server.ledger);
            if let (Some(_), LogWhat::Operation(op)) = (row.slot, &row.record.what) {
                server.unread.insert(op.object, row.record.position);
            }
            if let LogWhat::Operation(op) = &row.record.what {
                server.gone.note(op);
            }
            Ok(())
        })?;
        server.conflicts = Conflicts::load(store)?;
        server.removals = Removals::load(store)?;
        server.history = History::load(store)?;
        server.orphans = Orphans::load(store)?;
        server.torn = TornFiles::load(store)?;
        server.permits = Permits::load(store)?;
        Ok(server)
    }

    /// Everything that may go on, goes on. Called after each input.
    pub fn pump(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        self.keep_orphans(ctx)?;
        self.welcome_waiting(ctx)?;
        self.tend_torn(ctx)?;
        self.drop_needless(ctx);
        self.age_conflicts(ctx)?;
        self.age_history(ctx)?;
        self.read_contents(ctx)?;
        self.judge_waiting(ctx)?;
        let read = Position(ctx.meta.last_read().0);
        // One that covers what has come meanwhile serves as well.
        let waits = !ctx.behind && (self.unread.waits_for_sync() || self.orphans.wait_for_sync());
        if (read > self.durable || waits) && self.syncing.want(ctx, read, read) {
            self.unread.sync_begins();
            self.asked = read;
        }
        self.tend_permits(ctx)?;
        self.settle_offers(ctx);
        self.forward(ctx)?;
        self.settle_barriers(ctx)
    }

    /// When `pump` should be called at the latest, and why.
    pub fn wake(&self) -> Vec<(Millis, &'static str)> {
        let mut times = Vec::new();
        times.extend(self.syncing.wake().map(|at| (at, "sync")));
        times.extend(self.replaying.wake().map(|at| (at, "replay again")));
        times.extend(self.offers.wake().map(|at| (at, "no longer wait for who may have what is lost here")));
        times.extend(self.retelling.wake().map(|at| (at, "tell anew what was read")));
        times.extend(
            self.removals.wake().map(|at| (at, "see whether a node has removed all that it wants to")),
        );
        times.extend(self.orphans.wake().map(|at| (at, "keep what a writer left")));
        times.extend(self.conflicts_wake().map(|at| (at, "let go what is kept of decided conflicts")));
        times.extend(self.history_wake().map(|at| (at, "let go what was too long ago")));
        times.extend(self.torn.wake().map(|at| (at, "look again for the content of a torn file")));
        times.extend(self.sessions.values().filter_map(|session| {
            session.refused.as_ref().map(|refused| (refused.until, "try a refused record again"))
        }));
        times.extend(self.permit_wake().into_iter().map(|at| (at, "see to the permit")));
        times.extend(self.read_again.values().map(|at| (*at, "read an unstable file again")));
        times
    }

    /// Presto serves the volume.
    pub fn presto_up(&mut self, ctx: &mut Context<'_>, last: Recno) {
        self.requeue();
        self.permits.door.presto_up(ctx);
        self.replaying.presto_up(last);
        self.syncing.forget();
        self.reads.clear();
        self.unread.forget_reads();
        self.torn.presto_changed();
        self.journal_end = last;
        self.history.presto_up();
        self.orphans.limbo_end = Some(last);
    }

    /// The channel broke: what was asked of presto and not confirmed is planned anew when it is back.
    pub fn presto_down(&mut self) {
        self.requeue();
        self.replaying.presto_down();
        self.permits.door.presto_down();
        self.syncing.forget();
        self.unread.forget_reads();
    }

    /// Answer to a replay.
    pub fn replayed(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        outcomes: &[ReplayOutcome],
    ) -> Result<(), StoreError> {
        let end = self.replaying.answered(ctx.now, ticket, outcomes, ctx.meta.last_read());
        match end {
            BatchEnd::Fine => {}
            BatchEnd::Unknown => self.requeue(),
            BatchEnd::Stopped { object, record, dirs, why } => {
                self.restore_stopped(ctx.now, object, record);
                if !matches!(why, ReplayOutcome::Stale { recno: Some(_) }) {
                    self.retell_stopped(ctx.now, object, record);
                }
                if let ReplayOutcome::Refused { message, .. } = &why {
                    self.hold(ctx.now, record, message);
                }
                if why == ReplayOutcome::Busy {
                    self.written.insert(record);
                }
                self.requeue();
                if why == (ReplayOutcome::Stale { recno: None }) {
                    ctx.doubtful.push((object, dirs));
                }
                if let ReplayOutcome::Refused { errno, message } = why {
                    let path = View::new(ctx.store, Which::Local).path(object)?;
                    ctx.out.push(Output::Event(Event::ReplayRefused { path, errno, message }));
                }
            }
        }
        Ok(())
    }

    /// Presto cannot do a client's record: that client waits, so that the others need not.
    fn hold(&mut self, now: Millis, record: OpId, why: &str) {
        let flight = self.in_flight.iter().find(|flight| flight.op.id == record);
        let Some(session) = flight.and_then(|flight| self.sessions.get_mut(&flight.node)) else { return };
        let times = session.refused.as_ref().map_or(0, |refused| refused.times).saturating_add(1);
        let pause = REFUSED_PAUSE.saturating_mul(1 << times.min(6));
        let until = Millis(now.0.saturating_add(pause));
        session.refused = Some(Refusal { until, times, why: why.to_owned() });
    }

    /// Gives unconfirmed records back to the queues they came from; those that did happen are skipped by their number.
    fn requeue(&mut self) {
        self.flying.clear();
        self.aliases.clear();
        self.conflicts.replan();
        self.resolving.replan();
        self.torn.replan();
        self.retelling.replan();
        for flight in self.in_flight.drain(..).rev() {
            if let Some(session) = self.sessions.get_mut(&flight.node)
                && session.generation == flight.generation
            {
                session.put_back(flight.op);
            }
        }
    }

    /// Answer to a sync.
    pub fn synced(&mut self, ctx: &mut Context<'_>, ticket: Ticket, ok: bool) -> Result<(), StoreError> {
        let pause = if self.sessions.is_empty() { 500 } else { 0 };
        let Some((durable, _)) = self.syncing.done(ctx.now, ticket, ok, pause) else { return Ok(()) };
        self.durable = self.durable.max(durable);
        self.unread.durable(self.durable);
        self.release_orphans(ctx)?;
        self.forget_resolved(ctx);
        self.truncate(ctx)
    }

    /// Everything replayed is read.
    pub fn replays_idle(&self, ctx: &Context<'_>) -> bool {
        self.replaying.is_idle(ctx)
    }

    /// Newest position that may be forwarded.
    fn forwardable(&self) -> Position {
        self.unread.first().map_or(self.durable, |at| self.durable.min(Position(at.0.saturating_sub(1))))
    }

    /// What is up to here is on this server's disk, and nothing of it waits to be kept or restored.
    fn safe_here(&self) -> Position {
        self.forwardable().min(self.orphans.safe()).min(self.torn.safe())
    }

    /// The replication list changed.
    pub fn set_replist(&mut self, ctx: &mut Context<'_>, nodes: Vec<NodeName>) -> Result<(), StoreError> {
        self.replist = nodes.into_iter().collect();
        self.knows_replist = true;
        self.torn.stir();
        let strangers: Vec<NodeName> =
            self.sessions.keys().filter(|node| !self.replist.contains(*node)).cloned().collect();
        for node in strangers {
            self.sessions.remove(&node);
            self.permits.stream_ended(&node);
            self.drop_stage_of(ctx, &node);
            ctx.out.push(Output::Hangup(node, "not in the replication list any more".into()));
        }
        let mut gone = Vec::new();
        table::each_with_prefix(ctx.store, Table::Replicator, &[], |key, _| {
            if !self.replist.iter().any(|node| node.as_bytes() == key) {
                gone.push(key.to_vec());
            }
            Ok(())
        })?;
        for key in gone {
            ctx.store.delete(Table::Replicator, &key)?;
            resync::clear(ctx.store, &String::from_utf8_lossy(&key))?;
        }
        self.away.retain(|node, _| self.replist.contains(node));
        self.truncate(ctx)
    }

    /// A peer's content is in presto's stage.
    pub fn staged(&mut self, node: NodeName, hash: Hash, size: u64, name: String) {
        self.staged.arrived(node, hash, size, name);
    }

    /// A person waits.
    pub fn barrier(&mut self, id: u64, upto: Recno, all: bool) {
        self.barriers.insert(id, (Position(upto.0), all));
    }

    fn settle_barriers(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let everywhere = self.durable_everywhere(ctx.store)?;
        if self.barriers.is_empty() {
            return self.settle_peer_barriers(ctx, everywhere);
        }
        let safe = self.safe_here();
        self.barriers.retain(|id, (upto, all)| {
            let reached = safe >= *upto && (!*all || everywhere >= *upto);
            if reached {
                ctx.out.push(Output::BarrierReached(*id));
            }
            !reached
        });
        self.settle_peer_barriers(ctx, everywhere)
    }

    /// Where what the records up to this one say is safe. With `or_later` it may have been a later one, up to the newest that is
    /// durable here.
    pub fn safety(&self, store: &dyn Store, upto: Recno, or_later: bool) -> Result<Safety, StoreError> {
        if self.safe_here() < Position(upto.0) {
            return Ok(Safety::Local);
        }
        let upto = if or_later { self.durable } else { Position(upto.0) };
        let everywhere = self.durable_everywhere(store)? >= upto && !self.is_any_partial(store)?;
        Ok(if everywhere { Safety::Everywhere } else { Safety::Server })
    }

    /// Answer to `Keep`.
    pub fn kept(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Result<(), StoreError> {
        let Some(keeping) = self.keeps.remove(&ticket) else { return Ok(()) };
        match (keeping, result) {
            (Keeping::Refused(node, record), Ok(())) => {
                if let Some(session) = self.sessions.get_mut(&node)
                    && session.keeping == Some(ticket)
                {
                    session.keeping = None;
                    session.kept = Some(record);
                }
            }
            (Keeping::Refused(node, _), Err(why)) => self.cannot_keep(ctx, node, &why),
            (Keeping::Tree { node, record, hash }, result) => {
                self.tree_kept(ctx, ticket, (node, record, hash), result);
            }
            (Keeping::Orphan { file, upto }, result) => self.orphan_kept(ctx, file, upto, result)?,
            (Keeping::Torn { object, upto }, result) => self.torn_kept(ctx, object, upto, result)?,
        }
        Ok(())
    }

    fn cannot_keep(&mut self, ctx: &mut Context<'_>, node: NodeName, why: &str) {
        ctx.out.push(Output::Event(Event::Waiting(format!("cannot keep a conflict of {node}: {why}"))));
        ctx.out.push(Output::Hangup(node.clone(), format!("cannot keep a conflict: {why}")));
        self.sessions.remove(&node);
    }

    /// What waits, for people.
    pub fn waiting(&self, store: &dyn Store) -> Result<Vec<String>, StoreError> {
        let mut list = Vec::new();
        for object in self.unread.objects().filter(|object| !self.torn.contains(*object)).take(3) {
            list.push(format!("{}: content not read yet", View::new(store, Which::Local).path(object)?));
        }
        if self.orphans.len() > 0 {
            list.push(format!("{} files that writers left are being kept", self.orphans.len()));
        }
        self.removals_waiting(&mut list);
        self.torn_waiting(store, &mut list)?;
        for (node, session) in &self.sessions {
            if session.state == SessionState::Offering {
                list.push(format!("{node} brings back what was lost here"));
            }
            if session.is_estranged() {
                list.push(format!(
                    "{node}: its copy has another history of this volume: nothing is exchanged with it"
                ));
            }
            if let Some(refused) = &session.refused {
                list.push(format!("{node}: the file system here refuses its next record: {}", refused.why));
            }
            if !session.inbox.is_empty() {
                list.push(format!("{node}: {} records without a verdict", session.inbox.len()));
            }
        }
        Ok(list)
    }

    /// A sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_running()
    }

    /// Newest durable position.
    pub fn position(&self) -> Position {
        self.durable
    }

    /// What the log that is durable holds beyond any position.
    pub fn sums(&self) -> Sums<'_> {
        self.ledger.sums(self.durable)
    }

    /// Position of the newest conflict.
    pub fn newest_conflict(&self) -> Position {
        Position(self.conflicts.newest().0)
    }

    /// Verdicts given since the volume was opened.
    pub fn judged(&self) -> Judged {
        self.judged
    }

    /// Whether the stream of this node is up and welcomed.
    pub fn session(&self, node: &NodeName) -> Option<&Session> {
        self.sessions.get(node)
    }

    /// The replication list.
    pub fn replist(&self) -> &BTreeSet<NodeName> {
        &self.replist
    }
}
