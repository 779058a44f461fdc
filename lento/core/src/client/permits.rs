//! A client under permits: it asks for the permit when a user of this node wants to write, holds it on a lease, and gives it
//! back when the server wants it, once everything that it has admitted is sent.

use super::Client;
use crate::cml::Cml;
use crate::context::Context;
use crate::io::Alone;
use crate::io::Event;
use crate::io::Output;
use crate::io::Writes;
use crate::message::Message;
use crate::permit::Door;
use crate::permit::LEASE;
use crate::permit::NO_END;
use crate::permit::RENEW;
use crate::permit::UNUSED;
use crate::store::StoreError;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
use crate::volume::PermitState;

/// How long a server that is away is waited for before the volume's policy decides, in milliseconds.
const PATIENCE: u64 = 5_000;
/// How long, with the permit, users wait for verdicts on what was written without it.
const SETTLE: u64 = 5_000;
/// How long one that others wait for may take to get the tree that goes with it, in milliseconds.
const CATCH_UP: u64 = 10_000;

/// What a client knows of the permit.
#[derive(Debug, Default)]
pub struct Permits {
    writes: Writes,
    pub(super) door: Door,
    standing: Standing,
    /// A user waits.
    wanted: bool,
    /// Since when the server is away; `None`: it is there, or nobody has looked yet.
    away: Option<Millis>,
    /// When the server was last told.
    told: Millis,
    /// The newest grant that was given back: what the server says of it has been on its way for long.
    given_back: u64,
}

/// Where this node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// Nobody here may write.
    #[default]
    Without,
    /// The server was asked.
    Asked,
    /// It has said yes; what others wrote before is not all here yet.
    Granted(Lease),
    /// Users write.
    Held(Lease),
    /// No more; what they wrote is on its way.
    Leaving(Option<Lease>),
    /// They write without the server.
    Alone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    epoch: u64,
    /// What others wrote before ends here.
    position: Position,
    since: Millis,
    until: Millis,
    /// The server wants it back.
    revoked: bool,
}

impl Permits {
    /// What was said on the stream ends with it.
    pub(super) fn stream_ended(&mut self) {
        self.given_back = 0;
    }
}

/// When a permit that nobody uses is given back.
fn unused(door: &Door) -> Millis {
    Millis(door.used().0.saturating_add(UNUSED))
}

impl Client {
    /// How the volume's owner wants updates admitted.
    pub fn set_writes(&mut self, ctx: &mut Context<'_>, writes: Writes) {
        if self.permits.writes == writes {
            return;
        }
        self.permits.writes = writes;
        if writes == Writes::Optimistic {
            // Presto asks no more; who waits already is let in.
            self.permits = Permits::default();
            self.permits.door.open(ctx, NO_END);
        }
    }

    /// A user of this node wants to write.
    pub fn permit_wanted(&mut self, ctx: &mut Context<'_>) {
        match self.permits.writes {
            Writes::Optimistic => self.permits.door.open(ctx, NO_END),
            Writes::Permits(_) if self.permits.door.is_open() => self.permits.door.admit_again(ctx),
            Writes::Permits(_) => self.permits.wanted = true,
        }
    }

    /// The server has given the permit, or given it for longer.
    pub(super) fn permit_granted(
        &mut self,
        ctx: &mut Context<'_>,
        epoch: u64,
        position: Position,
        stamp: Millis,
    ) {
        // Counted from our own word, of which the server knows no more than that it came later.
        let until = Millis(stamp.min(ctx.now).0.saturating_add(LEASE));
        let renewed = |lease: Lease| Lease { until: until.max(lease.until), ..lease };
        match self.permits.standing {
            _ if epoch <= self.permits.given_back => {}
            Standing::Asked => {
                let lease = Lease { epoch, position, since: ctx.now, until, revoked: false };
                self.permits.standing = Standing::Granted(lease);
            }
            Standing::Granted(lease) if lease.epoch == epoch => {
                self.permits.standing = Standing::Granted(renewed(lease));
            }
            Standing::Held(lease) if lease.epoch == epoch => {
                let lease = renewed(lease);
                self.permits.door.open(ctx, lease.until);
                self.permits.standing = Standing::Held(lease);
            }
            Standing::Leaving(Some(lease)) if lease.epoch == epoch => {
                self.permits.standing = Standing::Leaving(Some(renewed(lease)));
            }
            // Asked for by one that is gone by now.
            Standing::Without
            | Standing::Granted(_)
            | Standing::Held(_)
            | Standing::Leaving(_)
            | Standing::Alone => self.give_back(ctx, epoch),
        }
    }

    fn give_back(&mut self, ctx: &mut Context<'_>, epoch: u64) {
        self.permits.given_back = self.permits.given_back.max(epoch);
        ctx.out.push(Output::Send(self.server.clone(), Message::PermitReleased { epoch }));
    }

    /// Others wait for it.
    pub(super) fn permit_revoked(&mut self, epoch: u64) {
        if let Standing::Granted(lease) | Standing::Held(lease) = &mut self.permits.standing
            && lease.epoch == epoch
        {
            lease.revoked = true;
        }
    }

    /// The turn of permits: each step of them that can be made is made.
    pub(super) fn tend_permits(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let Writes::Permits(alone) = self.permits.writes else { return Ok(()) };
        let is_there = self.is_connected();
        match (is_there, self.permits.away) {
            (true, _) => self.permits.away = None,
            (false, None) => self.permits.away = Some(ctx.now),
            (false, Some(_)) => {}
        }
        loop {
            let before = self.permits.standing;
            self.permits.standing = self.next_standing(ctx, before, is_there, alone)?;
            if self.permits.standing == before {
                return Ok(());
            }
        }
    }

    fn next_standing(
        &mut self,
        ctx: &mut Context<'_>,
        standing: Standing,
        is_there: bool,
        alone: Alone,
    ) -> Result<Standing, StoreError> {
        let now = ctx.now;
        let expired = |lease: Lease| now >= lease.until;
        Ok(match standing {
            Standing::Without => {
                self.permits.door.close(ctx);
                match self.permits.wanted {
                    false => standing,
                    // Whoever is far behind would keep it from others for long.
                    true if is_there && (self.frozen || ctx.meta.snapshot.is_some()) => standing,
                    true if is_there => {
                        self.ask_for_permit(ctx);
                        Standing::Asked
                    }
                    true => self.without_server(ctx, alone),
                }
            }
            Standing::Asked | Standing::Granted(_) if !is_there => Standing::Without,
            Standing::Granted(lease) if expired(lease) => {
                self.give_back(ctx, lease.epoch);
                Standing::Without
            }
            Standing::Asked => {
                self.renew_permit(ctx);
                standing
            }
            // It has come no nearer for long, and others wait: what keeps it back may last.
            Standing::Granted(lease) if lease.revoked && now.0 >= lease.since.0.saturating_add(CATCH_UP) => {
                self.permits.wanted = false;
                self.give_back(ctx, lease.epoch);
                Standing::Without
            }
            Standing::Granted(lease) => {
                self.renew_permit(ctx);
                if self.has_caught_up(ctx, lease)? {
                    self.permits.wanted = false;
                    self.permits.door.open(ctx, lease.until);
                    Standing::Held(lease)
                } else {
                    standing
                }
            }
            Standing::Held(lease) if expired(lease) => {
                ctx.out.push(Output::Event(Event::PermitLapsed));
                self.permits.door.close(ctx);
                Standing::Leaving(Some(lease))
            }
            Standing::Held(lease) if self.may_give_back(lease, now) => {
                self.permits.door.close(ctx);
                Standing::Leaving(Some(lease))
            }
            Standing::Held(_) => {
                self.renew_permit(ctx);
                standing
            }
            Standing::Leaving(lease) => {
                self.permits.door.close(ctx);
                // Without presto nothing can be drained, and its door closes by itself.
                if ctx.presto && lease.is_some_and(|lease| !expired(lease)) {
                    self.renew_permit(ctx);
                }
                self.leave(ctx, lease)?
            }
            Standing::Alone if is_there => {
                ctx.out.push(Output::Event(Event::PermitStolen(false)));
                self.permits.door.close(ctx);
                Standing::Leaving(None)
            }
            Standing::Alone => standing,
        })
    }

    /// Others have waited for long enough, or nobody here has needed it for long.
    fn may_give_back(&self, lease: Lease, now: Millis) -> bool {
        let door = &self.permits.door;
        (lease.revoked && door.may_close(now)) || now >= unused(door)
    }

    fn ask_for_permit(&mut self, ctx: &mut Context<'_>) {
        self.permits.told = ctx.now;
        ctx.out.push(Output::Send(self.server.clone(), Message::PermitAsk { stamp: ctx.now }));
    }

    /// One that asks may have to wait for long, and one that holds must be heard of.
    fn renew_permit(&mut self, ctx: &mut Context<'_>) {
        if self.is_connected() && ctx.now.0 >= self.permits.told.0.saturating_add(RENEW) {
            self.ask_for_permit(ctx);
        }
    }

    /// Whether what the permit's earlier holders wrote is in the tree, and what this node wrote without it is decided. A file that
    /// somebody here has open for writing is not waited for: that one may be waiting for the permit.
    fn has_caught_up(&self, ctx: &Context<'_>, lease: Lease) -> Result<bool, StoreError> {
        if ctx.meta.snapshot.is_some() || ctx.meta.position < lease.position {
            return Ok(false);
        }
        if !self.work.is_visible_to(lease.position) {
            return Ok(false);
        }
        let settled = ctx.now.0 >= lease.since.0.saturating_add(SETTLE);
        Ok(settled || Cml::first(ctx.store)?.is_none())
    }

    /// Once what users wrote is read and sent, the permit is given back. The server waits for its verdicts itself.
    fn leave(&mut self, ctx: &mut Context<'_>, lease: Option<Lease>) -> Result<Standing, StoreError> {
        let drained = self.permits.door.drained().filter(|upto| ctx.meta.last_read() >= *upto);
        let (Some(upto), Some(held)) = (drained, lease) else {
            return Ok(if drained.is_some() { Standing::Without } else { Standing::Leaving(lease) });
        };
        if !self.is_connected() {
            return Ok(Standing::Without);
        }
        if !self.has_sent(ctx, upto)? {
            return Ok(Standing::Leaving(lease));
        }
        self.give_back(ctx, held.epoch);
        Ok(Standing::Without)
    }

    fn has_sent(&self, ctx: &Context<'_>, upto: Recno) -> Result<bool, StoreError> {
        if self.frozen {
            return Ok(false);
        }
        let sent = self.cml.sent().max(self.received());
        Ok(Cml::number_after(ctx.store, sent)?.is_none_or(|next| next > upto))
    }

    /// The server has been away for long enough.
    fn without_server(&mut self, ctx: &mut Context<'_>, alone: Alone) -> Standing {
        let since = self.permits.away.unwrap_or(ctx.now);
        if ctx.now.0 < since.0.saturating_add(PATIENCE) {
            return Standing::Without;
        }
        self.permits.wanted = false;
        match alone {
            Alone::Steal => {
                ctx.out.push(Output::Event(Event::PermitStolen(true)));
                self.permits.door.open(ctx, NO_END);
                Standing::Alone
            }
            Alone::ReadOnly => {
                ctx.out.push(Output::RefuseWriters);
                Standing::Without
            }
        }
    }

    /// Presto's answer to being asked to close its door.
    pub fn door_closed(&mut self, now: Millis, ticket: Ticket, upto: Option<Recno>) {
        self.permits.door.closed(now, ticket, upto);
    }

    /// When to look again.
    pub(super) fn permit_wake(&self) -> Vec<Millis> {
        let permits = &self.permits;
        if permits.writes == Writes::Optimistic {
            return Vec::new();
        }
        let renew = Millis(permits.told.0.saturating_add(RENEW));
        match permits.standing {
            Standing::Without => {
                let away = permits.away.filter(|_| permits.wanted);
                let away = away.map(|since| Millis(since.0.saturating_add(PATIENCE)));
                permits.door.wake().into_iter().chain(away).collect()
            }
            Standing::Asked => vec![renew],
            Standing::Granted(lease) => {
                vec![renew, lease.until, Millis(lease.since.0.saturating_add(SETTLE))]
            }
            Standing::Held(lease) if lease.revoked => {
                permits.door.wake().into_iter().chain([renew, lease.until]).collect()
            }
            Standing::Held(lease) => vec![renew, lease.until, unused(&permits.door)],
            Standing::Leaving(_) => permits.door.wake().into_iter().chain([renew]).collect(),
            Standing::Alone => Vec::new(),
        }
    }

    /// For people.
    pub fn permit_state(&self) -> PermitState {
        let permits = &self.permits;
        let Writes::Permits(alone) = permits.writes else { return PermitState::NotNeeded };
        match permits.standing {
            Standing::Asked | Standing::Granted(_) => PermitState::Asked,
            Standing::Held(_) => PermitState::Held,
            Standing::Leaving(_) => PermitState::Leaving,
            Standing::Alone => PermitState::Stolen,
            Standing::Without if self.is_connected() || alone == Alone::Steal => PermitState::Without,
            Standing::Without => PermitState::ReadOnly,
        }
    }
}
