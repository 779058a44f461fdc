//! One client's stream, and the Replicator row that outlives it.

use super::Server;
use super::offers::Offer;
use super::snapshot::Sending;
use super::vetting;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::message::Ack;
use crate::message::Hello;
use crate::message::Message;
use crate::message::Welcome;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::OpId;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;
use std::collections::VecDeque;

/// No stream has this number.
const NO_STREAM: u64 = 0;

/// A client's stream.
#[derive(Debug, Default)]
pub struct Session {
    /// Told apart from an earlier stream of the same node.
    pub(super) generation: u64,
    pub(super) hello: Option<Hello>,
    pub(super) state: SessionState,
    /// Records not judged yet, in their order.
    pub(super) inbox: VecDeque<Operation>,
    /// Bytes of these.
    pub(super) weight: usize,
    /// The newest record that came on this stream.
    pub(super) submitted: Recno,
    /// The lower file system refuses its first record.
    pub(super) refused: Option<Refusal>,
    /// The losing content of the first record is being kept.
    pub(super) keeping: Option<crate::types::Ticket>,
    /// It is kept.
    pub(super) kept: Option<OpId>,
    /// What its first record takes away is kept: that record, and what it is.
    pub(super) gave_way: Option<(OpId, crate::types::Hash)>,
    /// Positions up to here were sent.
    pub(super) sent: Position,
    /// Position it followed the log from when it was welcomed.
    pub(super) began: Position,
    /// The tree that it is being sent.
    pub(super) snapshot: Option<Sending>,
    pub(super) barriers: Vec<PeerBarrier>,
    pub(super) offer: Offer,
}

/// What the lower file system does not do for a client's record. Others go on meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Not tried again before.
    pub until: Millis,
    /// How often it was.
    pub times: u32,
    /// For people.
    pub why: String,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionState {
    /// No hello yet.
    #[default]
    Connected,
    /// Hello said; records of its earlier stream are still on their way into the tree.
    Fencing,
    /// Has its welcome, and first brings back what was lost here.
    Offering,
    /// Has its welcome.
    Welcomed,
    /// Has its welcome, and another history: nothing is exchanged.
    Estranged,
}

impl Session {
    /// One more record without a verdict.
    pub(super) fn put(&mut self, op: Operation) {
        self.weight = self.weight.saturating_add(vetting::weight(&op));
        self.inbox.push_back(op);
    }

    /// One that was on its way comes back.
    pub(super) fn put_back(&mut self, op: Operation) {
        self.weight = self.weight.saturating_add(vetting::weight(&op));
        self.inbox.push_front(op);
    }

    /// The first one is on its way.
    pub(super) fn take(&mut self) {
        if let Some(op) = self.inbox.pop_front() {
            self.weight = self.weight.saturating_sub(vetting::weight(&op));
        }
    }

    /// Its node knows another history of the volume.
    pub fn is_estranged(&self) -> bool {
        self.state == SessionState::Estranged
    }

    /// It follows the log.
    pub fn is_welcomed(&self) -> bool {
        self.state == SessionState::Welcomed
    }

    /// The position it began to follow the log from.
    pub(super) fn follows_from(&self) -> Option<Position> {
        match self.state {
            SessionState::Welcomed => Some(self.began),
            SessionState::Fencing => self.hello.as_ref().map(|hello| hello.position),
            SessionState::Connected | SessionState::Offering | SessionState::Estranged => None,
        }
    }

    /// It is being sent the whole tree.
    pub fn is_syncing(&self) -> bool {
        self.snapshot.is_some()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PeerBarrier {
    pub id: u64,
    pub after: Recno,
    /// Position that must be durable everywhere, once known.
    pub target: Option<Position>,
}

/// What the server knows of a Replicator, connected or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicatorRow {
    /// Its replica id.
    pub replica: u64,
    /// How far it is.
    pub ack: AckRow,
    /// It has been welcomed: the log is kept for it from where it is.
    pub follows: bool,
    /// Contents may lack there.
    pub partial: bool,
}

/// [`Ack`] in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRow {
    /// Base, durable.
    pub position: Position,
    /// Visible.
    pub applied: Position,
    /// Visible and durable.
    pub durable: Position,
}

impl ReplicatorRow {
    /// Reads it; a node never seen is at the beginning.
    pub fn get(store: &dyn Store, node: &NodeName) -> Result<ReplicatorRow, StoreError> {
        Ok(table::get(store, Table::Replicator, node.as_bytes())?.unwrap_or_default())
    }

    pub(super) fn put(&self, store: &mut dyn Store, node: &NodeName) -> Result<(), StoreError> {
        table::put(store, Table::Replicator, node.as_bytes(), self)
    }
}

/// Replicators that were away when the log became too long: they get the whole tree.
pub mod resync {
    use super::Position;
    use super::Store;
    use super::StoreError;
    use super::Table;
    use super::table;

    fn key(node: &str) -> Vec<u8> {
        [b"resync/", node.as_bytes()].concat()
    }

    /// The position up to which it has the log that is gone; `None`: it need not.
    pub fn since(store: &dyn Store, node: &str) -> Result<Option<Position>, StoreError> {
        table::get(store, Table::Meta, &key(node))
    }

    /// From now on it must.
    pub fn mark(store: &mut dyn Store, node: &str, has: Position) -> Result<(), StoreError> {
        table::put(store, Table::Meta, &key(node), &has)
    }

    /// It gets what it needs, or is gone.
    pub fn clear(store: &mut dyn Store, node: &str) -> Result<(), StoreError> {
        store.delete(Table::Meta, &key(node))
    }
}

/// Last record of each (replica, incarnation) that has a verdict.
pub(super) mod judged {
    use super::OpId;
    use super::Recno;
    use super::Store;
    use super::StoreError;
    use super::Table;
    use super::table;

    fn key(replica: u64, incarnation: u32) -> Vec<u8> {
        let mut key = replica.to_be_bytes().to_vec();
        key.extend_from_slice(&incarnation.to_be_bytes());
        key
    }

    /// The last one.
    pub fn last(store: &dyn Store, replica: u64, incarnation: u32) -> Result<Recno, StoreError> {
        Ok(table::get(store, Table::Judged, &key(replica, incarnation))?.unwrap_or_default())
    }

    /// Notes one.
    pub fn note(store: &mut dyn Store, record: OpId) -> Result<(), StoreError> {
        let recno = Recno(record.0.number);
        if recno > last(store, record.0.replica, record.0.incarnation)? {
            table::put(store, Table::Judged, &key(record.0.replica, record.0.incarnation), &recno)?;
        }
        Ok(())
    }
}

impl Server {
    /// A stream came up; an older one of the same node is fenced by it.
    pub fn connected(&mut self, node: NodeName, generation: u64) {
        self.torn.peer_changed(&node);
        self.permits.stream_ended(&node);
        self.sessions.insert(node, Session { generation, ..Session::default() });
    }

    /// A message from a client.
    pub fn message(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        message: Message,
    ) -> Result<(), StoreError> {
        if !self.replist.contains(node) {
            let reason = format!("{node} is not in the replication list");
            ctx.out.push(Output::Send(node.clone(), Message::Refused { reason, retry: true }));
            return Ok(());
        }
        if let Message::Hello(hello) = &message
            && let Some(owner) = vetting::owner(ctx, node, hello.replica)?
        {
            let reason = format!(
                "the replica id of {node} is that of {owner}: was its state copied? \
                 Move its cache and state directories of this volume aside"
            );
            ctx.out.push(Output::Send(node.clone(), Message::Refused { reason, retry: true }));
            return Ok(());
        }
        let Some(session) = self.sessions.get_mut(node) else { return Ok(()) };
        match message {
            Message::Hello(hello) => {
                let mut row = ReplicatorRow::get(ctx.store, node)?;
                if row.replica != hello.replica {
                    row = ReplicatorRow { replica: hello.replica, ..ReplicatorRow::default() };
                    row.put(ctx.store, node)?;
                }
                if row.partial != hello.partial {
                    row.partial = hello.partial;
                    row.put(ctx.store, node)?;
                }
                session.inbox.clear();
                (session.weight, session.submitted, session.refused) = (0, Recno(0), None);
                // What comes again may come with another content.
                (session.keeping, session.kept, session.gave_way) = (None, None, None);
                self.written.retain(|id| id.0.replica != hello.replica);
                // Nor does what is under way come back: what the welcome says is final.
                let flights = self.in_flight.iter_mut().filter(|flight| flight.node == *node);
                flights.for_each(|flight| flight.generation = NO_STREAM);
                session.hello = Some(hello);
                session.state = SessionState::Fencing;
                session.snapshot = None;
                session.offer = Offer::default();
                self.torn.peer_changed(node);
                self.permits.stream_ended(node);
                self.drop_stage_of(ctx, node);
            }
            Message::Submit(operations) => {
                let Some(hello) = session.hello.as_ref().filter(|_| session.state == SessionState::Welcomed)
                else {
                    ctx.out.push(Output::Hangup(node.clone(), "records before the welcome".into()));
                    return Ok(());
                };
                if let Some(why) = session.objection(hello, &operations) {
                    ctx.out.push(Output::Hangup(node.clone(), why.into()));
                    self.sessions.remove(node);
                    return Ok(());
                }
                self.count_removals(ctx, node, &operations)?;
                let Some(session) = self.sessions.get_mut(node) else { return Ok(()) };
                for op in operations {
                    session.submitted = Recno(op.id.0.number);
                    session.put(op);
                }
            }
            Message::Ahead { removals, upto } => self.removals_ahead(ctx, node, removals, upto),
            Message::Offer { records, upto } => self.offered(ctx, node, records, upto),
            Message::SnapshotStored(upto) => {
                if let Some(sending) = &mut session.snapshot {
                    sending.stored(upto);
                }
            }
            Message::Backfetched { object, holds } => self.backfetched(ctx, node, object, holds)?,
            Message::PermitAsk { stamp } => self.permit_asked(ctx, node, stamp),
            Message::PermitReleased { epoch } => self.permit_released(ctx.now, node, epoch),
            Message::Ack(ack) => self.acknowledged(ctx, node, ack)?,
            Message::Barrier { .. } if session.barriers.len() >= vetting::BARRIERS => {
                ctx.out.push(Output::Hangup(node.clone(), "too many barriers".into()));
            }
            Message::Barrier { id, after } => session.barriers.push(PeerBarrier { id, after, target: None }),
            Message::Welcome(_)
            | Message::Refused { .. }
            | Message::Records { .. }
            | Message::Offered(_)
            | Message::Backfetch { .. }
            | Message::SnapshotBegin { .. }
            | Message::SnapshotChunk(_)
            | Message::SnapshotEnd(_)
            | Message::PermitGranted { .. }
            | Message::PermitRevoked { .. }
            | Message::BarrierReached { .. } => {
                ctx.out.push(Output::Hangup(node.clone(), "a server's message from a client".into()));
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, ctx: &mut Context<'_>, node: &NodeName, ack: Ack) -> Result<(), StoreError> {
        if !self.sessions.get(node).is_some_and(Session::is_welcomed) {
            return Ok(());
        }
        let read = Position(ctx.meta.last_read().0);
        if ack.position > read || ack.applied > read || ack.durable > read {
            ctx.out.push(Output::Hangup(node.clone(), format!("acknowledges {} of {read}", ack.position)));
            return Ok(());
        }
        let mut row = ReplicatorRow::get(ctx.store, node)?;
        row.ack = AckRow { position: ack.position, applied: ack.applied, durable: ack.durable };
        row.put(ctx.store, node)
    }

    /// Answers hellos whose earlier stream has come to rest (rule 7: only then is "received" final).
    pub(super) fn welcome_waiting(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if !ctx.presto {
            return Ok(());
        }
        // What an earlier life of this node replayed is in the KML; "received" is final only when that is read.
        if !self.replaying.has_read_all(ctx) {
            return Ok(());
        }
        let fencing: Vec<NodeName> = self
            .sessions
            .iter()
            .filter(|(node, session)| {
                session.state == SessionState::Fencing && !self.in_flight.iter().any(|f| f.node == **node)
            })
            .map(|(node, _)| node.clone())
            .collect();
        for node in self.admitted(ctx, fencing) {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let Some(hello) = &mut session.hello else { continue };
            let position = Position(ctx.meta.last_read().0);
            let received = judged::last(ctx.store, hello.replica, hello.incarnation)?;
            let greeting = hello.greeting;
            let lineage = ctx.meta.lineage.clone();
            let welcome = Welcome { greeting, lineage, position, received };
            ctx.out.push(Output::Send(node.clone(), Message::Welcome(welcome)));
            session.state = SessionState::Welcomed;
            self.torn.stir();
            let fork = hello.lineage.fork(hello.position, &ctx.meta.lineage, position);
            if fork.is_none() && !hello.lineage.is_empty() {
                session.state = SessionState::Estranged;
                continue;
            }
            let mut row = ReplicatorRow::get(ctx.store, &node)?;
            row.follows = true;
            row.put(ctx.store, &node)?;
            resync::clear(ctx.store, &node)?;
            if let Some(fork) = Server::fork(ctx, hello) {
                self.expect_offer(ctx, &node, fork)?;
                continue;
            }
            // Half a snapshot shows objects as they were later; in an era before this one that may be lost.
            let whole = hello.snapshot.is_none() || hello.lineage.epoch() == ctx.meta.lineage.epoch();
            let follows = whole && fork == Some(hello.position) && hello.position >= ctx.meta.log_floor;
            // A replica that never followed any epoch begins where the log begins, if it still does.
            let begins = hello.position == Position(0) && ctx.meta.log_floor == Position(0);
            let half = hello.snapshot.map(Sending::from);
            if half.is_some() || !(follows || begins) {
                // The verdicts it missed are not in the snapshot, nor what its objects were unified with.
                hello.has = (Recno(0), Recno(0));
            }
            if follows || (begins && half.is_none()) {
                session.sent = hello.position;
                session.began = hello.position;
                session.snapshot = half;
            } else {
                self.begin_snapshot(ctx, &node)?;
            }
        }
        self.send_snapshots(ctx)
    }
}
