//! After a power cut that took more than it may, or with a restored backup, clients come with records of a log that has
//! gone on without this server. What they offer is judged like any record and keeps its first origin; what is known by
//! that is skipped.
//!
//! The one that is furthest ahead comes first, and the others wait for it: so the lost records come back in their
//! order, before any new ones. Nobody waits for longer than [`PATIENCE`].

use super::LogRow;
use super::Server;
use super::session::SessionState;
use super::vetting;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::judge::Decision;
use crate::message::Hello;
use crate::message::Message;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// How long an offer may make no progress before others are served, in milliseconds.
const PATIENCE: u64 = 30_000;
/// How long Replicators are waited for that have not come back, in milliseconds.
const GRACE: u64 = 3_000;

/// What is lost, as far as this life of the server knows.
#[derive(Debug, Default)]
pub struct Offers {
    /// Something may be lost: the first welcome waits until everybody is here who may have it, or until then.
    grace: Grace,
    /// An offer goes on: nobody else is welcomed until then.
    until: Option<Millis>,
    /// Origins of what the log holds behind the first fork; `None`: nobody has offered anything yet.
    known: Option<BTreeSet<OpId>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Grace {
    #[default]
    Over,
    NotBegun,
    Until(Millis),
}

/// A stream's part.
#[derive(Clone, Debug, Default)]
pub(super) struct Offer {
    /// Up to here its log is ours.
    fork: Position,
    /// Contents that its records have left in files here.
    left: BTreeMap<ObjectId, Hash>,
    /// Offered up to here, and queued.
    upto: Position,
    /// Answered up to here.
    said: Position,
    /// Our position that holds all of it.
    target: Option<Position>,
}

impl Offer {
    /// Whether its log has this record as well.
    pub fn is_shared(&self, record: Recno) -> bool {
        Position(record.0) <= self.fork
    }

    /// Whether the newest of its records about this object's content has left this one.
    pub fn has_left(&self, object: ObjectId, content: Hash) -> bool {
        self.left.get(&object) == Some(&content)
    }

    /// One of its records has its verdict, or had it before.
    pub fn judged(&mut self, op: &Operation, decision: Decision) {
        let left = match &op.kind {
            OpKind::Close { content, .. } | OpKind::Create { content: Some(content), .. } => content.hash,
            OpKind::Create { .. } => Hash::empty(),
            _ => return,
        };
        match decision {
            Decision::Accept => self.left.insert(op.object, left),
            Decision::Unify(there) => self.left.insert(there, left),
            Decision::Refuse(_) => self.left.remove(&op.object),
        };
    }
}

impl Offers {
    /// A record with this origin is in the log.
    pub fn note(&mut self, origin: OpId) {
        if let Some(known) = &mut self.known {
            known.insert(origin);
        }
    }

    /// Whether the log has it.
    pub fn knows(&self, origin: &OpId) -> bool {
        self.known.as_ref().is_some_and(|known| known.contains(origin))
    }

    /// When to look again.
    pub fn wake(&self) -> Option<Millis> {
        match (self.until, self.grace) {
            (Some(at), _) | (None, Grace::Until(at)) => Some(at),
            (None, Grace::Over | Grace::NotBegun) => None,
        }
    }
}

impl Server {
    /// This life follows a power cut or a restored backup.
    pub fn may_have_lost(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.offers.grace = Grace::NotBegun;
        self.permits.may_have_lost(store)
    }

    /// Where this client's log and ours have forked, if it has gone on from there.
    pub(super) fn fork(ctx: &Context<'_>, hello: &Hello) -> Option<Position> {
        let head = Position(ctx.meta.last_read().0);
        let fork = hello.lineage.fork(hello.position, &ctx.meta.lineage, head)?;
        (fork < hello.position && hello.snapshot.is_none()).then_some(fork)
    }

    /// Of those who wait for their welcome, those who may have it now.
    pub(super) fn admitted(&mut self, ctx: &Context<'_>, waiting: Vec<NodeName>) -> Vec<NodeName> {
        if waiting.is_empty() {
            return waiting;
        }
        if self.offers.until.is_some_and(|until| until > ctx.now)
            && self.sessions.values().any(|session| session.state == SessionState::Offering)
        {
            return Vec::new();
        }
        self.offers.until = None;
        if self.waits_for_others(ctx.now) {
            return Vec::new();
        }
        // Records say more than a tree; and who has come furthest with its tree has their contents, if it keeps all.
        let ahead = |node: &NodeName| {
            let hello = self.sessions.get(node)?.hello.as_ref()?;
            Server::fork(ctx, hello)
                .map(|fork| (hello.tail_from <= fork, !hello.partial, hello.applied, hello.position))
        };
        let furthest = waiting.iter().filter_map(|node| Some((ahead(node)?, node.clone()))).max();
        match furthest {
            Some((_, node)) => vec![node],
            None => waiting,
        }
    }

    /// Right after a loss the one who is furthest ahead may be about to come back.
    fn waits_for_others(&mut self, now: Millis) -> bool {
        let grace = match self.offers.grace {
            Grace::Over => return false,
            Grace::NotBegun => Millis(now.0.saturating_add(GRACE)),
            Grace::Until(at) => at,
        };
        let here = |node: &NodeName| self.sessions.get(node).is_some_and(|session| session.hello.is_some());
        let waits = grace > now && !self.replist.iter().all(here);
        self.offers.grace = if waits { Grace::Until(grace) } else { Grace::Over };
        waits
    }

    /// A client was welcomed although its log has gone on: first it offers that.
    pub(super) fn expect_offer(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        fork: Position,
    ) -> Result<(), StoreError> {
        if self.offers.known.is_none() {
            let mut known = BTreeSet::new();
            table::each_with_prefix(ctx.store, Table::Log, &[], |_, value| {
                let row: LogRow = table::decode(Table::Log, value)?;
                if row.record.position > fork {
                    known.insert(row.record.origin);
                }
                Ok(())
            })?;
            self.offers.known = Some(known);
        }
        let Some(session) = self.sessions.get_mut(node) else { return Ok(()) };
        session.state = SessionState::Offering;
        session.offer = Offer { fork, ..Offer::default() };
        self.offers.until = Some(Millis(ctx.now.0.saturating_add(PATIENCE)));
        Ok(())
    }

    /// Records of the lost part.
    pub(super) fn offered(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        records: Vec<LogRecord>,
        upto: Position,
    ) {
        let Some(session) = self.sessions.get_mut(node) else { return };
        let mut hang_up = |why: &str| ctx.out.push(Output::Hangup(node.clone(), why.to_owned()));
        if session.state != SessionState::Offering {
            return hang_up("an offer that nobody asked for");
        }
        if upto <= session.offer.upto {
            return hang_up("an offer out of order");
        }
        let Some(Hello { replica, incarnation, .. }) = session.hello else { return };
        let mut operations = Vec::new();
        for LogRecord { origin, what, .. } in records {
            let LogWhat::Operation(op) = what else { return hang_up("a verdict is offered") };
            let stands_in = op.id != origin;
            if (stands_in && !op.id.is_made_up_by(replica, incarnation)) || vetting::lies(&op) {
                return hang_up("an offer of another origin, or with a wrong hash");
            }
            if self.offers.knows(&origin) {
                // On an earlier stream: what it had left is there, or something else.
                session.offer.judged(&op, Decision::Unify(op.object));
                continue;
            }
            let done = stands_in.then(|| Operation::done(origin, &op));
            operations.push(op);
            operations.extend(done);
        }
        if let Some(why) = session.too_much(&operations) {
            return hang_up(why);
        }
        session.offer.upto = upto;
        session.offer.target = None;
        operations.into_iter().for_each(|op| session.put(op));
    }

    /// `node` has brought back a record of somebody who was welcomed before: what that one sends of older ones would pass
    /// for judged. It learns by another welcome what is known of it.
    pub(super) fn greet_again(&mut self, ctx: &mut Context<'_>, node: &NodeName, record: OpId) {
        let is_of =
            |hello: &Hello| (hello.replica, hello.incarnation) == (record.0.replica, record.0.incarnation);
        let owner = self.sessions.iter().find(|(other, session)| {
            *other != node && session.is_welcomed() && session.hello.as_ref().is_some_and(is_of)
        });
        let Some(owner) = owner.map(|(owner, _)| owner.clone()) else { return };
        let why = format!("{node} has brought back records of it that were lost here");
        ctx.out.push(Output::Hangup(owner.clone(), why));
        self.sessions.remove(&owner);
    }

    /// Answers offers whose records have their places, durably.
    pub(super) fn settle_offers(&mut self, ctx: &mut Context<'_>) {
        let read = Position(ctx.meta.last_read().0);
        for (node, session) in &mut self.sessions {
            let offer = &mut session.offer;
            if session.state != SessionState::Offering
                || offer.upto <= offer.said
                || !session.inbox.is_empty()
                || self.in_flight.iter().any(|flight| flight.node == *node)
            {
                continue;
            }
            let target = *offer.target.get_or_insert(read);
            if self.durable >= target {
                offer.said = offer.upto;
                offer.target = None;
                self.offers.until = Some(Millis(ctx.now.0.saturating_add(PATIENCE)));
                ctx.out.push(Output::Send(node.clone(), Message::Offered(offer.said)));
            }
        }
    }
}
