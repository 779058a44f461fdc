//! The client's side of a volume: base follows the server's log, the CML goes to the server, the lower tree is made
//! equal to base wherever no record of its own is pending.

mod absorb;
mod asking;
mod backfetch;
mod demand;
mod materialise;
mod offer;
mod permits;
mod repair;
mod snapshot;
mod submit;
mod verdict;
mod waiting;

use crate::cml::Cml;
use crate::cml::Tally;
use crate::context::Contents;
use crate::context::Context;
use crate::context::Meta;
use crate::context::Syncing;
use crate::io::Event;
use crate::io::FetchResult;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReplayOutcome;
use crate::lineage::Lineage;
use crate::message::Ack;
use crate::message::Hello;
use crate::message::Message;
use crate::message::Welcome;
use crate::replaying::BatchEnd;
use crate::replaying::Replaying;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
use asking::AskAgain;
use backfetch::Backfetches;
use demand::Demands;
use materialise::Work;
use offer::Offering;
use permits::Permits;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;

/// State of the client role; what must survive is in the store.
#[derive(Debug)]
pub struct Client {
    server: NodeName,
    stream: Stream,
    cml: Cml,
    replaying: Replaying,
    work: Work,
    contents: Contents,
    /// Large contents in presto's stage. Each is one object's: a staged file becomes that object's file, and nobody may
    /// write into it again.
    staged: BTreeMap<(Hash, ObjectId), String>,
    fetching: BTreeMap<Ticket, Vec<(Hash, ObjectId)>>,
    fetch_again: AskAgain,
    read_again: Option<Millis>,
    syncing: Syncing,
    /// What the newest sync made durable: base position and visible position.
    durable: (Position, Position),
    acked: Ack,
    settled: Recno,
    /// Newest record whose effects the sync under way makes durable.
    covered: Recno,
    truncated: Recno,
    barriers: BTreeMap<u64, Barrier>,
    /// Hellos said.
    greeting: u64,
    /// Since the welcome, base has not reached its position: the server's log may still say what it has of ours.
    frozen: bool,
    /// A content is pending under a number that has its verdict.
    tell_again: bool,
    /// When the server was last told how many removals there are.
    ahead_told: Option<Millis>,
    /// Newest record when presto came up.
    journal_end: Option<Recno>,
    /// A power cut may have taken what came behind this record, which is not read yet.
    fallback: Option<Fallback>,
    /// The same until presto was told what to keep in limbo.
    limbo_end: Option<Recno>,
    offering: Option<Offering>,
    /// Contents that the server has lost.
    backfetches: Backfetches,
    /// The right of this node's users to write.
    permits: Permits,
    /// Contents that are not here.
    demands: Demands,
    /// Positions of the server's log that are kept in any case.
    tail: u64,
    /// Others' updates stay out of the tree.
    held_back: bool,
}

/// Where the stream to the server stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stream {
    Down,
    /// It is up; the hello waits until the KML of earlier lives of this node is read.
    Reading,
    /// Hello said.
    Greeting,
    /// The server's tree does not follow from the one here: nothing is taken from it, and nothing is given. Why.
    Estranged(String),
    /// The server has lost the end of its log, and gets it from here.
    Offering,
    /// Welcomed; treats and submits records after base has reached the welcome's position (rule 3).
    Up(Welcome),
}

#[derive(Clone, Copy, Debug)]
struct Barrier {
    upto: Recno,
    all: bool,
    asked: bool,
}

/// The end of the journal that a power cut has left; not known before presto is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fallback(Option<Recno>);

/// Where it is noted.
const FALLBACK: &[u8] = b"fallback";

/// Pause between two syncs, in milliseconds: bounds how much of the disk's time acknowledgements may take.
const SYNC_PAUSE: u64 = 30;

impl Client {
    /// Rebuilds what is kept in memory. Whatever is pending may have been received by the server. Greetings are counted from
    /// `greeting`, so that the answer to one of an earlier life is not taken for this one's.
    pub fn open(server: NodeName, store: &dyn Store, tail: u64, greeting: u64) -> Result<Client, StoreError> {
        Ok(Client {
            server,
            stream: Stream::Down,
            cml: Cml::open(store)?,
            replaying: Replaying::default(),
            work: Work::load(store)?,
            contents: Contents::default(),
            staged: BTreeMap::new(),
            fetching: BTreeMap::new(),
            fetch_again: AskAgain::default(),
            read_again: None,
            syncing: Syncing::default(),
            durable: (Position(0), Position(0)),
            acked: Ack::default(),
            settled: Recno(0),
            covered: Recno(0),
            truncated: Recno(0),
            barriers: BTreeMap::new(),
            greeting,
            frozen: true,
            tell_again: false,
            ahead_told: None,
            journal_end: None,
            fallback: table::get(store, Table::Meta, FALLBACK)?,
            limbo_end: None,
            offering: None,
            backfetches: Backfetches::default(),
            permits: Permits::default(),
            demands: Demands::default(),
            tail,
            held_back: false,
        })
    }

    /// This life follows a power cut or a restored backup.
    pub fn may_have_lost(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.fallback = Some(Fallback(None));
        table::put(store, Table::Meta, FALLBACK, &Fallback(None))
    }

    /// Looks at what is pending when the journal that a power cut has left is read, and before what users do after it.
    fn look_after_fallback(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        match self.fallback {
            Some(Fallback(Some(end))) if ctx.meta.last_read() >= end => {
                self.fallback = None;
                ctx.store.delete(Table::Meta, FALLBACK)?;
                self.cml.fall_back(ctx.store)
            }
            _ => Ok(()),
        }
    }

    /// Everything that may go on, goes on. Called after each input.
    pub fn pump(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        self.look_after_fallback(ctx)?;
        self.retain_limbo(ctx)?;
        self.offer(ctx)?;
        self.greet(ctx)?;
        self.submit(ctx)?;
        self.bring_missing(ctx)?;
        self.materialise(ctx)?;
        self.acknowledge(ctx)?;
        self.tend_permits(ctx)?;
        self.settle_barriers(ctx)
    }

    /// When `pump` should be called at the latest, and why.
    pub fn wake(&self) -> Vec<(Millis, &'static str)> {
        let mut times = Vec::new();
        times.extend(self.syncing.wake().map(|at| (at, "sync")));
        times.extend(self.replaying.wake().map(|at| (at, "replay again")));
        times.extend(self.read_again.map(|at| (at, "read an unstable file again")));
        times.extend(self.fetch_again.at().map(|at| (at, "fetch again")));
        times.extend(self.work.wake().map(|at| (at, "look again at busy files")));
        times.extend(self.permit_wake().into_iter().map(|at| (at, "see to the permit")));
        times.extend(self.demands.wake().into_iter().map(|at| (at, "contents that are not here")));
        times.extend(
            self.offering.as_ref().and_then(Offering::wake).map(|at| (at, "read an unstable file again")),
        );
        times
    }

    /// Presto serves the volume; what it journaled before may have been sent by an earlier life of this node.
    pub fn presto_up(&mut self, ctx: &mut Context<'_>, last: Recno) -> Result<(), StoreError> {
        if self.fallback == Some(Fallback(None)) {
            self.fallback = Some(Fallback(Some(last)));
            table::put(ctx.store, Table::Meta, FALLBACK, &Fallback(Some(last)))?;
        }
        self.cml.begin_after(last);
        self.journal_end = Some(last);
        self.limbo_end = Some(last);
        self.replaying.presto_up(last);
        // Another presto knows of no verdict.
        self.settled = Recno(0);
        self.work.requeue_all();
        self.syncing.forget();
        self.permits.door.presto_up(ctx);
        Ok(())
    }

    /// The stream is up.
    pub fn connected(&mut self) {
        self.permits.stream_ended();
        self.stream = Stream::Reading;
    }

    /// What an earlier life had released may not have gone, and what was put into limbo may mean nothing any more.
    fn retain_limbo(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let upto = ctx.meta.last_read();
        if ctx.presto && self.limbo_end.take_if(|end| upto >= *end).is_some() {
            ctx.out.push(Output::RetainLimbo { files: Cml::limbo(ctx.store)?, upto });
        }
        Ok(())
    }

    /// Whether others' updates stay out of the tree. Base follows the log all the same, so that this node's own updates get their
    /// verdicts.
    pub fn hold_back(&mut self, held: bool) {
        self.held_back = held;
    }

    /// Says who we are, once every record that an earlier life may have sent is known here. Nothing is submitted until
    /// the server's log up to its answer is applied.
    fn greet(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.stream != Stream::Reading || self.journal_end.is_none_or(|end| ctx.meta.last_read() < end) {
            return Ok(());
        }
        let first = Cml::first(ctx.store)?.unwrap_or(ctx.meta.next_recno);
        // What is sealed may not be here as it was sent.
        let first = first.max(Recno(Cml::sealed(ctx.store)?.0.saturating_add(1)));
        self.stream = Stream::Greeting;
        self.cml.freeze(ctx.meta.last_read());
        self.greeting = self.greeting.wrapping_add(1);
        let hello = Hello {
            greeting: self.greeting,
            replica: ctx.meta.replica,
            incarnation: ctx.meta.incarnation,
            lineage: ctx.meta.lineage.clone(),
            position: ctx.meta.position,
            applied: self.work.applied(ctx.meta.position),
            tail_from: ctx.meta.tail_from,
            snapshot: ctx.meta.snapshot.map(|snapshot| snapshot.upto),
            has: (first, ctx.meta.last_read().max(first)),
            partial: self.is_partial(ctx)?,
        };
        ctx.out.push(Output::Send(self.server.clone(), Message::Hello(hello)));
        Ok(())
    }

    /// The stream is gone.
    pub fn disconnected(&mut self) {
        self.stream = Stream::Down;
        self.permits.stream_ended();
        self.offering = None;
        self.backfetches.clear();
        self.acked = Ack::default();
        for barrier in self.barriers.values_mut() {
            barrier.asked = false;
        }
    }

    /// A message from the server.
    pub fn message(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        message: Message,
    ) -> Result<(), StoreError> {
        if *node != self.server || self.stream == Stream::Down {
            return Ok(());
        }
        let welcomed = matches!(self.stream, Stream::Up(_));
        match message {
            // Left over from an earlier stream: where it begins is not where we are.
            Message::Records { .. }
            | Message::SnapshotBegin { .. }
            | Message::SnapshotChunk(_)
            | Message::SnapshotEnd(_)
                if !welcomed =>
            {
                Ok(())
            }
            Message::Welcome(welcome)
                if welcome.greeting != self.greeting || self.stream != Stream::Greeting =>
            {
                Ok(())
            }
            Message::Welcome(welcome) if welcome.received > ctx.meta.last_read() => {
                // Records that this node never made are known there under its name: its own get another one.
                self.greet_as_new(ctx);
                Ok(())
            }
            Message::Welcome(welcome) if let Some(why) = estranged(ctx, &welcome) => {
                let why = format!("{node} {why}: nothing is exchanged with it, and what is here stays");
                ctx.out.push(Output::Event(Event::Waiting(why.clone())));
                self.stream = Stream::Estranged(why);
                Ok(())
            }
            Message::Welcome(welcome) if let Some(fork) = lost_behind(ctx, &welcome) => {
                ctx.out.push(Output::Event(Event::Offering {
                    server: node.clone(),
                    fork,
                    position: ctx.meta.position,
                }));
                self.offering = Some(Offering::new(ctx, welcome, fork)?);
                self.stream = Stream::Offering;
                Ok(())
            }
            Message::Backfetch { object, hash } => self.backfetch(ctx, object, hash),
            Message::Offered(upto) => {
                self.offered(upto);
                Ok(())
            }
            Message::Welcome(welcome) => {
                let is_half = ctx.meta.snapshot.is_some() && ctx.meta.lineage != welcome.lineage;
                follow(ctx, &welcome.lineage)?;
                if is_half {
                    // It shows objects as they were later, and that may be lost: the server sends another one.
                    self.await_tree(ctx)?;
                }
                self.stream = Stream::Up(welcome);
                self.frozen = true;
                self.fetch_again.news();
                Ok(())
            }
            Message::Refused { reason, .. } => {
                ctx.out.push(Output::Event(Event::Waiting(format!("{node} refuses: {reason}"))));
                Ok(())
            }
            Message::Records { records, upto, stable } => {
                self.records(ctx, records, upto)?;
                self.trim_tail(ctx, stable)?;
                self.finish_snapshot(ctx)
            }
            Message::SnapshotBegin { position, objects } => self.snapshot_begin(ctx, position, objects),
            Message::SnapshotChunk(objects) => self.snapshot_chunk(ctx, objects),
            Message::SnapshotEnd(position) => self.snapshot_end(ctx, position),
            Message::PermitGranted { epoch, position, stamp } => {
                self.permit_granted(ctx, epoch, position, stamp);
                Ok(())
            }
            Message::PermitRevoked { epoch } => {
                self.permit_revoked(epoch);
                Ok(())
            }
            Message::BarrierReached { id } => {
                if self.barriers.remove(&id).is_some() {
                    ctx.out.push(Output::BarrierReached(id));
                }
                Ok(())
            }
            Message::Hello(_)
            | Message::Submit(_)
            | Message::Offer { .. }
            | Message::Ack(_)
            | Message::SnapshotStored(_)
            | Message::Backfetched { .. }
            | Message::Ahead { .. }
            | Message::PermitAsk { .. }
            | Message::PermitReleased { .. }
            | Message::Barrier { .. } => {
                ctx.out.push(Output::Hangup(node.clone(), "a client's message from the server".into()));
                Ok(())
            }
        }
    }

    /// The channel broke.
    pub fn presto_down(&mut self) {
        self.forget_asks();
        self.replaying.presto_down();
        self.syncing.forget();
        self.permits.door.presto_down();
    }

    /// Answer to a replay.
    pub fn replayed(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        outcomes: &[ReplayOutcome],
    ) -> Result<(), StoreError> {
        match self.replaying.answered(ctx.now, ticket, outcomes, ctx.meta.last_read()) {
            BatchEnd::Fine => {}
            BatchEnd::Unknown => self.work.requeue_all(),
            BatchEnd::Stopped { object, why, dirs, .. } => {
                self.work.requeue_all();
                let path = View::new(ctx.store, Which::Base).path(object)?;
                match why {
                    ReplayOutcome::Stale { recno: None } => ctx.doubtful.push((object, dirs)),
                    ReplayOutcome::Busy if self.demands.is_being_put_in(object, ctx.now) => {}
                    ReplayOutcome::Busy => self.work.busy(ctx.now, object, path),
                    ReplayOutcome::Refused { errno, message } => {
                        self.fill_refused(ctx, object, errno, &message)?;
                        ctx.out.push(Output::Event(Event::ReplayRefused { path, errno, message }));
                    }
                    ReplayOutcome::Applied { .. } | ReplayOutcome::Stale { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// Answer to a fetch.
    pub fn fetched(&mut self, ctx: &mut Context<'_>, ticket: Ticket, results: Vec<FetchResult>) {
        if self.demand_fetched(ctx, ticket, &results) {
            return;
        }
        let Some(items) = self.fetching.remove(&ticket) else { return };
        for (index, (hash, object)) in items.into_iter().enumerate() {
            match results.get(index) {
                Some(FetchResult::Inline(bytes)) => self.contents.insert(hash, bytes.clone()),
                Some(FetchResult::Staged(name)) => {
                    self.staged.insert((hash, object), name.clone());
                }
                // A newer record is on the way, or will be when somebody closes the file.
                Some(FetchResult::Superseded) | Some(FetchResult::Failed(_)) | None => {
                    self.fetch_again.failed(ctx.now);
                    self.work.content_later(&hash);
                    continue;
                }
            }
            self.fetch_again.came();
            self.work.content_came(&hash);
        }
    }

    /// Answer to a sync.
    pub fn synced(&mut self, ctx: &mut Context<'_>, ticket: Ticket, ok: bool) {
        if let Some((base, applied)) = self.syncing.done(ctx.now, ticket, ok, SYNC_PAUSE) {
            self.durable = (self.durable.0.max(base), self.durable.1.max(applied));
            if self.covered > self.truncated {
                self.truncated = self.covered;
                ctx.out.push(Output::Truncate(self.truncated));
            }
        }
    }

    /// Tells the server how far this node is, and presto what it may forget.
    fn acknowledge(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let base = ctx.meta.position;
        let applied = if ctx.meta.snapshot.is_some() { Position(0) } else { self.work.applied(base) };
        let pending_log = ctx.meta.last_read() > self.truncated;
        let is_behind = base > self.durable.0 || applied > self.durable.1 || pending_log;
        if is_behind && self.syncing.want(ctx, base, applied) {
            self.covered = ctx.meta.last_read();
        }
        let ack = Ack { position: self.durable.0, applied, durable: self.durable.1 };
        if ack != self.acked && matches!(self.stream, Stream::Up(_)) {
            self.acked = ack;
            ctx.out.push(Output::Send(self.server.clone(), Message::Ack(ack)));
        }
        let settled =
            Cml::first(ctx.store)?.map_or(ctx.meta.last_read(), |first| Recno(first.0.saturating_sub(1)));
        if settled > self.settled && ctx.presto {
            self.settled = settled;
            ctx.out.push(Output::Settled(settled));
        }
        Ok(())
    }

    /// A person waits.
    pub fn barrier(&mut self, id: u64, upto: Recno, all: bool) {
        self.barriers.insert(id, Barrier { upto, all, asked: false });
    }

    fn settle_barriers(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.barriers.is_empty() {
            return Ok(());
        }
        let first = Cml::first(ctx.store)?;
        let up = matches!(self.stream, Stream::Up(_));
        let last_read = ctx.meta.last_read();
        self.barriers.retain(|id, barrier| {
            if last_read < barrier.upto || first.is_some_and(|first| first <= barrier.upto) {
                return true;
            }
            if !barrier.all {
                ctx.out.push(Output::BarrierReached(*id));
                return false;
            }
            if up && !barrier.asked {
                barrier.asked = true;
                ctx.out
                    .push(Output::Send(self.server.clone(), Message::Barrier { id: *id, after: Recno(0) }));
            }
            true
        });
        Ok(())
    }

    /// Everything replayed is read.
    pub fn replays_idle(&self, ctx: &Context<'_>) -> bool {
        self.replaying.is_idle(ctx)
    }

    /// A sync is under way.
    pub fn is_syncing(&self) -> bool {
        self.syncing.is_running()
    }

    /// Whether the stream is up and welcomed.
    pub fn is_connected(&self) -> bool {
        matches!(self.stream, Stream::Up(_))
    }

    /// The tree is the server's as it was when this node was welcomed, or as it was later, but for what users' open files keep
    /// out. Contents may be missing, where the node keeps them on demand.
    pub fn is_whole(&self, meta: &Meta) -> bool {
        let followed = self.is_connected() && !self.frozen && meta.snapshot.is_none();
        followed && self.work.is_visible_to(meta.position)
    }

    /// Visible in the tree.
    pub fn applied(&self, position: Position) -> Position {
        self.work.applied(position)
    }

    /// Own records without a verdict.
    pub fn pending(&self) -> Tally {
        self.cml.tally()
    }

    /// Others' changes not yet in the tree.
    pub fn dirty(&self) -> u64 {
        self.work.len()
    }
}

/// From here on this node is in the newest of these eras.
fn follow(ctx: &mut Context<'_>, lineage: &Lineage) -> Result<(), StoreError> {
    if ctx.meta.lineage != *lineage {
        if !ctx.meta.lineage.is_empty() {
            Cml::seal(ctx.store, ctx.meta.last_read())?;
        }
        ctx.meta.lineage = lineage.clone();
    }
    Ok(())
}

/// Where the server's log ends for us, if ours has gone on from there: what we have behind that, it has lost.
fn lost_behind(ctx: &Context<'_>, welcome: &Welcome) -> Option<Position> {
    let meta = &ctx.meta;
    let fork = meta.lineage.fork(meta.position, &welcome.lineage, welcome.position)?;
    (fork < meta.position && meta.snapshot.is_none()).then_some(fork)
}

/// Why this server is not the one that this node's base came from. To follow it would take away what it does not have.
fn estranged(ctx: &Context<'_>, welcome: &Welcome) -> Option<String> {
    let meta = &ctx.meta;
    if meta.lineage.is_empty() {
        return None;
    }
    let fork = meta.lineage.fork(meta.position, &welcome.lineage, welcome.position);
    fork.is_none().then(|| "has another history of this volume; it may have lost its data".to_owned())
}
