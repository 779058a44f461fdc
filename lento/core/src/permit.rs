//! Permits (`writes: Permits`), the part that both roles have: how long what holds, and the door of this node's presto.
//!
//! `server/permits.rs` decides whose turn it is, `client/permits.rs` asks, holds and gives back. A permit only admits: whatever
//! comes from whoever is judged as ever. `docs/technical/permits.md` says why nobody waits for ever and nothing conflicts.

use crate::context::Context;
use crate::io::Output;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;

/// How long a node may hold the permit without a word from the server, in milliseconds from its own last word to it.
pub const LEASE: u64 = 10_000;
/// So much longer the server waits: clocks tick alike, timers fire late.
pub const MARGIN: u64 = 1_000;
/// How often a holder tells the server that it is there, and who waits that it still does.
pub const RENEW: u64 = 2_500;
/// Whoever gets the permit may use it for so long, whoever waits.
const HOLD: u64 = 100;
/// Unless it has been used and then not for so long.
const IDLE: u64 = 5;
/// Wait before presto is asked again to close, in milliseconds.
const AGAIN: u64 = 500;

/// A client that has not used it for so long gives it back unasked: nobody need be heard of all the time.
pub const UNUSED: u64 = 30_000;

/// A permit without a lease: of the server's own users, or of nobody's giving.
pub const NO_END: Millis = Millis(u64::MAX);

/// Whether presto of this node lets users' updates in.
#[derive(Debug, Default)]
pub struct Door {
    state: State,
    /// Numbers openings. Larger than any of an earlier life, so that what presto was told then can be told apart.
    serial: u64,
    opened: Millis,
    /// When a user's record was read last, since it was opened.
    used: Option<Millis>,
    not_before: Millis,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// An earlier life may have opened it.
    #[default]
    Unknown,
    /// Until then.
    Open(Millis),
    /// Presto waits for the updates that it has let in.
    Closing(Ticket),
    /// What it has let in ends with this record.
    Closed(Recno),
}

impl Door {
    /// Another presto, or the same on another connection.
    pub fn presto_up(&mut self, ctx: &mut Context<'_>) {
        match self.state {
            State::Open(until) => self.admit(ctx, until),
            State::Unknown | State::Closing(_) | State::Closed(_) => self.state = State::Unknown,
        }
        self.not_before = Millis::default();
    }

    /// What it was asked it will not answer.
    pub fn presto_down(&mut self) {
        if matches!(self.state, State::Closing(_)) {
            self.state = State::Unknown;
        }
    }

    /// Lets users in until then; or for longer, if it is open.
    pub fn open(&mut self, ctx: &mut Context<'_>, until: Millis) {
        if !self.is_open() {
            self.next_serial(ctx.now);
            (self.opened, self.used) = (ctx.now, None);
        }
        self.state = State::Open(until);
        self.admit(ctx, until);
    }

    /// Says again that they may, to whoever has not heard it.
    pub fn admit_again(&self, ctx: &mut Context<'_>) {
        if let State::Open(until) = self.state {
            self.admit(ctx, until);
        }
    }

    fn admit(&self, ctx: &mut Context<'_>, until: Millis) {
        ctx.out.push(Output::Admit { serial: self.serial, until });
    }

    fn next_serial(&mut self, now: Millis) {
        self.serial = self.serial.saturating_add(1).max(now.0 << 8);
    }

    /// Begins to close it, unless that is under way or done.
    pub fn close(&mut self, ctx: &mut Context<'_>) {
        let closes = matches!(self.state, State::Unknown | State::Open(_));
        if !closes || !ctx.presto || ctx.now < self.not_before {
            return;
        }
        if self.state == State::Unknown {
            // Whatever an earlier life has said.
            self.next_serial(ctx.now);
        }
        let ticket = ctx.ticket();
        self.state = State::Closing(ticket);
        ctx.out.push(Output::Revoke { ticket, serial: self.serial });
    }

    /// Presto's answer: the last record that it has let in; `None`: some updates do not end.
    pub fn closed(&mut self, now: Millis, ticket: Ticket, upto: Option<Recno>) {
        if self.state != State::Closing(ticket) {
            return;
        }
        self.state = upto.map_or(State::Unknown, State::Closed);
        if upto.is_none() {
            self.not_before = Millis(now.0.saturating_add(AGAIN));
        }
    }

    /// A user's record was read.
    pub fn note_use(&mut self, now: Millis) {
        if self.is_open() {
            self.used = Some(now);
        }
    }

    /// Whether users are let in.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// The last record that was let in, once nobody is any more.
    pub fn drained(&self) -> Option<Recno> {
        match self.state {
            State::Closed(upto) => Some(upto),
            State::Unknown | State::Open(_) | State::Closing(_) => None,
        }
    }

    /// From when on whoever has it may be asked to give it back.
    fn may_close_at(&self) -> Millis {
        let held = self.opened.0.saturating_add(HOLD);
        Millis(self.used.map_or(held, |used| held.min(used.0.saturating_add(IDLE))))
    }

    /// Whether its users have had it for long enough, if others wait.
    pub fn may_close(&self, now: Millis) -> bool {
        now >= self.may_close_at()
    }

    /// When it was used last, or opened.
    pub fn used(&self) -> Millis {
        self.used.unwrap_or(self.opened)
    }

    /// When to look again, of a door that others wait for.
    pub fn wake(&self) -> Option<Millis> {
        match self.state {
            State::Open(_) => Some(self.may_close_at()),
            State::Unknown => Some(self.not_before),
            State::Closing(_) | State::Closed(_) => None,
        }
    }
}
