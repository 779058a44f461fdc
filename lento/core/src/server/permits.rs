//! Whose turn it is to write, under permits: one holder, who is asked to give it back when others wait, in the order in which
//! they asked.
//!
//! A holder that is a client has a lease, and is not heard of any more when that has ended. Who holds it is in the store, so
//! that the server's own end changes nothing.

use super::Server;
use super::session::Session;
use crate::context::Context;
use crate::context::Meta;
use crate::io::Event;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::Writes;
use crate::message::Message;
use crate::permit::Door;
use crate::permit::LEASE;
use crate::permit::MARGIN;
use crate::permit::NO_END;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Epoch;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
use crate::volume::PermitState;
use serde::Deserialize;
use serde::Serialize;
use std::collections::VecDeque;

/// Where the holder is noted.
const HOLDER: &[u8] = b"permit";
/// A holder that was asked to give it back, and is there, is waited for no longer, in milliseconds: its contents may be large.
const LEAVING: u64 = 300_000;
/// What a former holder has sent is waited for no longer: a person may have to decide about it.
const JUDGING: u64 = 10_000;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Permits {
    writes: Writes,
    /// Of the server's own users.
    pub(super) door: Door,
    holder: Option<Holder>,
    waiting: VecDeque<Asked>,
    /// Counts grants.
    epoch: u64,
    start: Start,
}

/// What an earlier life, or an earlier server, may have granted.
#[derive(Clone, Debug, Default)]
enum Start {
    /// It was looked at, or nothing was.
    #[default]
    Known,
    /// As the store says.
    As(Noted),
    /// Nobody gets it before.
    After(Millis),
}

/// Who holds it, in the store. The server's own users are nobody: their door is closed first in any case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
enum Noted {
    #[default]
    Nobody,
    Node(NodeName),
    /// A power cut may have taken what was noted.
    Unsure,
}

/// In the store.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Row {
    holder: Noted,
    epoch: u64,
    /// When it was written. In a later one another server may have granted it.
    era: Epoch,
}

impl Row {
    fn get(store: &dyn Store) -> Result<Option<Row>, StoreError> {
        table::get(store, Table::Meta, HOLDER)
    }

    fn put(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        table::put(store, Table::Meta, HOLDER, self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// Users of the server.
    Own,
    Node(NodeName),
}

#[derive(Clone, Debug)]
struct Holder {
    who: Who,
    /// Not before then is it taken for gone.
    expires: Millis,
    /// When it was asked to give the permit back.
    revoked: Option<Millis>,
    /// When it did.
    released: Option<Millis>,
}

impl Holder {
    fn new(who: Who, expires: Millis) -> Holder {
        Holder { who, expires, revoked: None, released: None }
    }
}

#[derive(Clone, Debug)]
struct Asked {
    who: Who,
    /// What its clock said when it asked last.
    stamp: Millis,
    /// What ours said when that came.
    at: Millis,
}

impl Permits {
    /// What is known of an earlier life.
    pub fn load(store: &dyn Store) -> Result<Permits, StoreError> {
        let lineage = Meta::load(store)?.map(|meta| meta.lineage).unwrap_or_default();
        let row = Row::get(store)?;
        let epoch = row.as_ref().map_or(0, |row| row.epoch);
        let holder = match row {
            Some(row) if row.era == lineage.epoch() => row.holder,
            None if lineage.eras().len() <= 1 => Noted::Nobody,
            Some(_) | None => Noted::Unsure,
        };
        Ok(Permits { epoch, start: Start::As(holder), ..Permits::default() })
    }

    /// The store may have forgotten who holds it. That stays noted until it does not matter any more.
    pub fn may_have_lost(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.start = Start::As(Noted::Unsure);
        let era = Meta::load(store)?.map(|meta| meta.lineage.epoch()).unwrap_or_default();
        Row { holder: Noted::Unsure, epoch: self.epoch, era }.put(store)
    }

    fn save(&self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let holder = match self.holder.as_ref().map(|holder| &holder.who) {
            Some(Who::Node(node)) => Noted::Node(node.clone()),
            Some(Who::Own) | None => Noted::Nobody,
        };
        Row { holder, epoch: self.epoch, era: ctx.meta.lineage.epoch() }.put(ctx.store)
    }

    fn holds(&self, node: &NodeName) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.who == Who::Node(node.clone()))
    }

    /// A stream has ended: what was asked on it is asked anew, and what was sent on it may not have come.
    pub fn stream_ended(&mut self, node: &NodeName) {
        self.waiting.retain(|asked| asked.who != Who::Node(node.clone()));
        if self.holds(node)
            && let Some(holder) = &mut self.holder
        {
            (holder.released, holder.revoked) = (None, None);
        }
    }

    /// Who was asked in an earlier life.
    fn begin(&mut self, now: Millis) {
        let over = Millis(now.0.saturating_add(LEASE + MARGIN));
        match std::mem::take(&mut self.start) {
            Start::As(Noted::Node(node)) => self.holder = Some(Holder::new(Who::Node(node), over)),
            Start::As(Noted::Unsure) => self.start = Start::After(over),
            Start::After(at) if now < at => self.start = Start::After(at),
            Start::After(_) | Start::As(Noted::Nobody) | Start::Known => {}
        }
    }

    fn enqueue(&mut self, asked: Asked) {
        match self.waiting.iter_mut().find(|other| other.who == asked.who) {
            Some(other) => *other = asked,
            None => self.waiting.push_back(asked),
        }
    }

    fn wake(&self) -> Vec<Millis> {
        let mut times = Vec::new();
        if let Start::After(at) = self.start {
            times.push(at);
        }
        if let Some(holder) = self.holder.as_ref().filter(|holder| holder.who != Who::Own) {
            times.push(holder.expires);
            times.extend(holder.released.map(|at| Millis(at.0.saturating_add(JUDGING))));
        }
        times.extend(self.door.wake().filter(|_| !self.waiting.is_empty()));
        times
    }
}

impl Server {
    /// How the volume's owner wants updates admitted.
    pub fn set_writes(&mut self, ctx: &mut Context<'_>, writes: Writes) -> Result<(), StoreError> {
        if self.permits.writes == writes {
            return Ok(());
        }
        self.permits.writes = writes;
        if writes == Writes::Optimistic {
            let epoch = self.permits.epoch;
            self.permits = Permits { epoch, ..Permits::default() };
            self.permits.save(ctx)?;
            // Who waits already is let in.
            self.permits.door.open(ctx, NO_END);
        }
        Ok(())
    }

    /// A user of the server wants to write.
    pub fn permit_wanted(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now;
        match self.permits.writes {
            Writes::Optimistic => self.permits.door.open(ctx, NO_END),
            Writes::Permits(_) if self.permits.door.is_open() => self.permits.door.admit_again(ctx),
            Writes::Permits(_) => self.permits.enqueue(Asked { who: Who::Own, stamp: now, at: now }),
        }
    }

    /// A client wants to write, or goes on to.
    pub(super) fn permit_asked(&mut self, ctx: &mut Context<'_>, node: &NodeName, stamp: Millis) {
        let is_there = self.sessions.get(node).is_some_and(Session::is_welcomed);
        if !is_there || self.permits.writes == Writes::Optimistic {
            return;
        }
        self.permits.begin(ctx.now);
        let (who, epoch) = (Who::Node(node.clone()), self.permits.epoch);
        match &mut self.permits.holder {
            Some(holder) if holder.who == who && holder.released.is_none() => {
                let late = |at: Millis| ctx.now.0 >= at.0.saturating_add(LEAVING);
                if holder.revoked.is_some_and(late) {
                    return;
                }
                holder.expires = Millis(ctx.now.0.saturating_add(LEASE + MARGIN));
                // To a holder that goes on the position says nothing; one that begins anew has its own log to see.
                let position = Position(ctx.meta.last_read().0);
                let granted = Message::PermitGranted { epoch, position, stamp };
                ctx.out.push(Output::Send(node.clone(), granted));
            }
            _ => self.permits.enqueue(Asked { who, stamp, at: ctx.now }),
        }
    }

    /// A client has given it back; everything that it admitted has come before.
    pub(super) fn permit_released(&mut self, now: Millis, node: &NodeName, epoch: u64) {
        if self.permits.holds(node)
            && epoch == self.permits.epoch
            && let Some(holder) = &mut self.permits.holder
        {
            holder.released = Some(now);
        }
    }

    /// The turn of permits.
    pub(super) fn tend_permits(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.permits.writes == Writes::Optimistic {
            return Ok(());
        }
        self.permits.begin(ctx.now);
        self.take_back(ctx);
        if self.is_given_back(ctx) {
            self.permits.holder = None;
            self.permits.save(ctx)?;
        }
        self.grant(ctx)
    }

    /// Asks for it where others wait. A door that nobody has opened is closed in any case.
    fn take_back(&mut self, ctx: &mut Context<'_>) {
        let is_wanted = !self.permits.waiting.is_empty();
        let permits = &mut self.permits;
        match &mut permits.holder {
            Some(holder) if holder.who == Who::Own => {
                if is_wanted && permits.door.may_close(ctx.now) {
                    permits.door.close(ctx);
                }
            }
            Some(holder) => {
                permits.door.close(ctx);
                if let Who::Node(node) = &holder.who
                    && is_wanted
                    && holder.revoked.is_none()
                    && self.sessions.get(node).is_some_and(Session::is_welcomed)
                {
                    holder.revoked = Some(ctx.now);
                    let revoked = Message::PermitRevoked { epoch: permits.epoch };
                    ctx.out.push(Output::Send(node.clone(), revoked));
                }
            }
            None => permits.door.close(ctx),
        }
    }

    /// Whether all that the holder has admitted has its place in the log, or nobody waits for it any more.
    fn is_given_back(&self, ctx: &mut Context<'_>) -> bool {
        let Some(holder) = &self.permits.holder else { return false };
        let Who::Node(node) = &holder.who else { return self.is_door_drained(ctx) };
        if ctx.now >= holder.expires {
            ctx.out.push(Output::Event(Event::PermitExpired(node.clone())));
            return true;
        }
        let judged = || {
            let waits = self.sessions.get(node).is_some_and(|session| !session.inbox.is_empty());
            let flies = self.in_flight.iter().any(|flight| flight.node == *node);
            !waits && !flies && self.replaying.has_read_all(ctx)
        };
        holder.released.is_some_and(|at| ctx.now.0 >= at.0.saturating_add(JUDGING) || judged())
    }

    fn is_door_drained(&self, ctx: &Context<'_>) -> bool {
        self.permits.door.drained().is_some_and(|upto| ctx.meta.last_read() >= upto)
    }

    /// Gives it to whoever has waited longest.
    fn grant(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let may = self.permits.holder.is_none()
            && matches!(self.permits.start, Start::Known)
            && self.is_door_drained(ctx);
        if !may {
            return Ok(());
        }
        while let Some(Asked { who, stamp, at }) = self.permits.waiting.pop_front() {
            let expires = Millis(at.0.saturating_add(LEASE + MARGIN));
            match &who {
                Who::Own => self.permits.door.open(ctx, NO_END),
                Who::Node(node) if self.sessions.get(node).is_some_and(Session::is_welcomed) => {
                    let epoch = self.permits.epoch.saturating_add(1);
                    let position = Position(ctx.meta.last_read().0);
                    let granted = Message::PermitGranted { epoch, position, stamp };
                    ctx.out.push(Output::Send(node.clone(), granted));
                }
                Who::Node(_) => continue,
            }
            self.permits.epoch = self.permits.epoch.saturating_add(1);
            self.permits.holder = Some(Holder::new(who, expires));
            self.permits.save(ctx)?;
            self.take_back(ctx);
            return Ok(());
        }
        Ok(())
    }

    /// Presto's answer to being asked to close its door.
    pub fn door_closed(&mut self, now: Millis, ticket: Ticket, upto: Option<Recno>) {
        self.permits.door.closed(now, ticket, upto);
    }

    /// When to look again.
    pub(super) fn permit_wake(&self) -> Vec<Millis> {
        if self.permits.writes == Writes::Optimistic { Vec::new() } else { self.permits.wake() }
    }

    /// For people: where this node's own users stand.
    pub fn permit_state(&self) -> PermitState {
        let permits = &self.permits;
        let own = |who: &Who| *who == Who::Own;
        if permits.writes == Writes::Optimistic {
            PermitState::NotNeeded
        } else if permits.door.is_open() {
            PermitState::Held
        } else if permits.holder.as_ref().is_some_and(|holder| own(&holder.who)) {
            PermitState::Leaving
        } else if permits.waiting.iter().any(|asked| own(&asked.who)) {
            PermitState::Asked
        } else {
            PermitState::Without
        }
    }

    /// For people: the client that holds the permit, and how many nodes wait.
    pub fn permit_holder(&self) -> (Option<&NodeName>, u64) {
        let holder = self.permits.holder.as_ref().and_then(|holder| match &holder.who {
            Who::Own => None,
            Who::Node(node) => Some(node),
        });
        (holder, self.permits.waiting.len() as u64)
    }
}
