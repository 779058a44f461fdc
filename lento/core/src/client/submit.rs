//! `Cml::dispatch` on a client: reintegration, in recno order, contents read as late as possible.

use super::Client;
use super::Stream;
use crate::cml::AfterRead;
use crate::cml::Cml;
use crate::context::Context;
use crate::io::Event;
use crate::io::Output;
use crate::io::ReadResult;
use crate::message::Message;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;

/// Contents at hand for records that cannot go yet.
const AHEAD: usize = 192;
/// Records looked at in one go.
const LOOKS: usize = 1024;
/// Reads under way.
const READS: usize = 64;
/// How far what is sent may lie before the oldest record without a verdict.
const WINDOW: u64 = 20_000;
/// How much inline content the server may have to hold of what is sent and has no verdict.
const WINDOW_BYTES: u64 = 32 << 20;
/// Records in one message.
const RECORDS: usize = 256;
/// Inline bytes in one message.
const BYTES: usize = 1 << 20;
/// Fewer removals than this are not worth a word.
const MANY: u64 = 64;
/// How often they are told while there are more than may be sent, in milliseconds.
const TELL: u64 = 5_000;
/// Wait before an unstable file is read again, in milliseconds.
const UNSTABLE: u64 = 100;

impl Client {
    pub(super) fn submit(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let Stream::Up(welcome) = &self.stream else { return Ok(()) };
        if ctx.meta.snapshot.is_some() || ctx.meta.position < welcome.position {
            return Ok(());
        }
        if std::mem::take(&mut self.frozen) {
            let received = welcome.received;
            if Cml::first(ctx.store)?.is_some_and(|first| first <= received) {
                // All of the log is here, and there is no verdict in it.
                self.greet_as_new(ctx);
                return Ok(());
            }
            self.cml.thaw(received, Cml::sealed(ctx.store)?);
            self.tell_again = false;
            self.tell_removals(ctx)?;
        }
        if std::mem::take(&mut self.tell_again) {
            self.greet_as_new(ctx);
            return Ok(());
        }
        if !ctx.presto {
            return Ok(());
        }
        if self.read_again.is_some_and(|at| at <= ctx.now) {
            self.read_again = None;
            self.cml.look_again(Recno(0));
        }
        loop {
            let sent = self.cml.sent().max(self.received());
            if Cml::first(ctx.store)?.is_some_and(|first| sent.0.saturating_sub(first.0) >= WINDOW)
                || self.cml.under_way() >= WINDOW_BYTES
            {
                if self.ahead_told.is_none_or(|at| ctx.now.0.saturating_sub(at.0) >= TELL) {
                    self.tell_removals(ctx)?;
                }
                return Ok(());
            }
            self.read_ahead(ctx, sent)?;
            let batch = self.next_batch(ctx, sent)?;
            if batch.is_empty() {
                return Ok(());
            }
            ctx.out.push(Output::Send(self.server.clone(), Message::Submit(batch)));
        }
    }

    /// The server asks a person before it removes very much: more than it can see of this log.
    fn tell_removals(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        self.ahead_told = Some(ctx.now);
        // What was sent the server has counted.
        let (mut removals, mut at) = (0_u64, self.cml.sent().max(self.received()));
        while let Some((recno, row)) = Cml::next(ctx.store, at)? {
            removals += u64::from(matches!(row.op.kind, OpKind::Remove { .. }));
            at = recno;
        }
        if removals >= MANY {
            ctx.out.push(Output::Send(self.server.clone(), Message::Ahead { removals, upto: at }));
        }
        Ok(())
    }

    /// Begins to read the contents that come next, each once.
    fn read_ahead(&mut self, ctx: &mut Context<'_>, sent: Recno) -> Result<(), StoreError> {
        let mut looked = self.cml.looked().max(sent);
        for _ in 0..LOOKS {
            if self.read_again.is_some() || self.cml.reading() >= READS {
                break;
            }
            // What is at hand may be waiting for the very one that comes now.
            if self.cml.at_hand() >= AHEAD
                && Cml::number_after(ctx.store, sent)?.is_none_or(|next| next <= looked)
            {
                break;
            }
            let Some((recno, row)) = Cml::next(ctx.store, looked)? else { break };
            if let Some(slot) = row.slot {
                let next = ctx.meta.next_recno;
                let ticket = ctx.ticket();
                self.cml.want_content(recno, slot, next, &self.server, || ticket, ctx.out);
            }
            looked = recno;
            self.cml.look(looked);
        }
        Ok(())
    }

    /// What is ready, in order.
    fn next_batch(&mut self, ctx: &mut Context<'_>, sent: Recno) -> Result<Vec<Operation>, StoreError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut at = sent;
        while batch.len() < RECORDS && bytes < BYTES {
            let Some(recno) = Cml::number_after(ctx.store, at)?.filter(|next| !self.cml.is_being_read(*next))
            else {
                break;
            };
            let Some(row) = Cml::row(ctx.store, recno)? else { break };
            let Some(mut op) = self.cml.take_ready(ctx.store, recno, row)? else { break };
            op.id.0.incarnation = ctx.meta.incarnation;
            bytes += crate::cml::content_of(&op).and_then(|c| c.inline.as_ref()).map_or(0, Vec::len);
            batch.push(op);
            at = recno;
        }
        Ok(batch)
    }

    /// A content was read.
    pub fn content_read(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: ReadResult,
    ) -> Result<(), StoreError> {
        let why = match &result {
            ReadResult::Failed(why) => Some(why.clone()),
            ReadResult::Unstable => Some("changes while it is read".into()),
            ReadResult::Whole { .. } | ReadResult::Gone => None,
        };
        let Some(result) = self.backfetch_read(ctx, ticket, result) else { return Ok(()) };
        let Some(result) = self.offer_read(ctx, ticket, result)? else { return Ok(()) };
        let object = self.cml.object_of_read(ctx.store, ticket)?;
        match self.cml.content_read(ctx.store, ticket, result)? {
            // Nobody may need it any more.
            AfterRead::GoOn => {
                if let Some(object) = object {
                    self.cml.release_limbo(ctx.store, object, ctx.meta.last_read(), ctx.out)?;
                }
            }
            AfterRead::Again => {}
            AfterRead::Later => {
                self.read_again = Some(Millis(ctx.now.0.saturating_add(UNSTABLE)));
                if let (Some(object), Some(why)) = (object, why) {
                    let path = View::new(ctx.store, Which::Local).path(object)?;
                    ctx.out.push(Output::Event(Event::Waiting(format!("{path}: {why}"))));
                }
            }
        }
        Ok(())
    }

    /// Last record of ours that the server had received when it welcomed us.
    pub(super) fn received(&self) -> Recno {
        match &self.stream {
            Stream::Up(welcome) => welcome.received,
            Stream::Down | Stream::Reading | Stream::Greeting | Stream::Estranged(_) | Stream::Offering => {
                Recno(0)
            }
        }
    }
}
