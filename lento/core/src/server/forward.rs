//! Update forward: log records to each Replicator that is behind.

use super::LogRow;
use super::Server;
use super::session::judged;
use crate::cml::content_of;
use crate::cml::fill_content;
use crate::context::Context;
use crate::facet;
use crate::facet::Facet;
use crate::io::NodeName;
use crate::io::Output;
use crate::judge::alias;
use crate::message::Hello;
use crate::message::Message;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Content;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Verdict;

/// Most records in one message.
const RECORDS: usize = 512;
/// Most inline bytes in one message.
const BYTES: u64 = 1 << 20;
/// How far a Replicator's durable base may lie behind what it was sent.
const WINDOW: u64 = 100_000;

impl Server {
    /// Sends every welcomed Replicator what is durable and new to it.
    pub(super) fn forward(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let limit = self.forwardable();
        let behind: Vec<NodeName> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_welcomed() && session.sent < limit)
            .map(|(node, _)| node.clone())
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        let stable = self.stable(ctx)?;
        for node in behind {
            while self.forward_one(ctx, &node, limit, stable)? {}
        }
        Ok(())
    }

    fn forward_one(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        limit: Position,
        stable: Position,
    ) -> Result<bool, StoreError> {
        let acknowledged = super::ReplicatorRow::get(ctx.store, node)?.ack.position;
        let Some(session) = self.sessions.get_mut(node) else { return Ok(false) };
        let Some(hello) = &mut session.hello else { return Ok(false) };
        if session.sent < ctx.meta.log_floor {
            hello.has = (Recno(0), Recno(0));
            self.begin_snapshot(ctx, node)?;
            return Ok(false);
        }
        if session.sent >= limit
            || session.sent.0 > acknowledged.0.max(session.began.0).saturating_add(WINDOW)
        {
            return Ok(false);
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut upto = limit;
        let rows =
            ctx.store.scan(Table::Log, &table::number_key(session.sent.0.saturating_add(1)), RECORDS)?;
        let full = rows.len() == RECORDS;
        for (_, value) in rows {
            let row: LogRow = table::decode(Table::Log, &value)?;
            if row.record.position > limit {
                break;
            }
            let mut record = for_receiver(ctx.store, row.record, hello)?;
            if let LogWhat::Operation(op) = &mut record.what
                && let Some(content) = content_of(op)
                // Who keeps contents on demand asks for those that he wants.
                && !hello.partial
                && let Some(small) = self.contents.get(&content.hash)
            {
                bytes += content.size;
                let content = Content { inline: Some(small.clone()), ..content.clone() };
                fill_content(op, content);
            }
            upto = record.position;
            records.push(record);
            if bytes > BYTES {
                break;
            }
        }
        // The last message reaches up to the limit, over numbers that mean nothing to others.
        if !full && bytes <= BYTES {
            upto = limit;
        }
        session.sent = upto;
        ctx.out.push(Output::Send(node.clone(), Message::Records { records, upto, stable }));
        Ok(upto < limit)
    }

    /// Barriers of clients: their record judged, and everything up to its verdict durable everywhere.
    pub(super) fn settle_peer_barriers(
        &mut self,
        ctx: &mut Context<'_>,
        everywhere: Position,
    ) -> Result<(), StoreError> {
        let read = Position(ctx.meta.last_read().0);
        for (node, session) in &mut self.sessions {
            let Some(hello) = &session.hello else { continue };
            if session.barriers.is_empty() {
                continue;
            }
            let judged = judged::last(ctx.store, hello.replica, hello.incarnation)?;
            session.barriers.retain_mut(|barrier| {
                if barrier.target.is_none() && judged >= barrier.after {
                    barrier.target = Some(read);
                }
                let reached = barrier.target.is_some_and(|target| everywhere >= target);
                if reached {
                    ctx.out.push(Output::Send(node.clone(), Message::BarrierReached { id: barrier.id }));
                }
                !reached
            });
        }
        Ok(())
    }
}

/// A Replicator gets the verdict of what it sent itself and still has, else the full record (rule 4): also where it may
/// have named the object otherwise, and not have heard that it is one with this.
fn for_receiver(store: &dyn Store, record: LogRecord, hello: &Hello) -> Result<LogRecord, StoreError> {
    let origin = record.origin.0;
    let own = origin.replica == hello.replica && origin.incarnation == hello.incarnation;
    let has = own && origin.number >= hello.has.0.0 && hello.has.0.0 > 0;
    Ok(match record.what {
        LogWhat::Operation(op) if has && !has_another_name(store, &op)? => {
            let hash = content_of(&op).map(|content| content.hash);
            LogRecord { what: LogWhat::Verdict(Verdict::Accepted(hash)), ..record }
        }
        LogWhat::Operation(_) | LogWhat::Verdict(_) => record,
    })
}

/// Whether an object of the record had another name once, no matter who made that: with a server that has forgotten its own
/// log, others know it by that name as well.
fn has_another_name(store: &dyn Store, op: &Operation) -> Result<bool, StoreError> {
    for facet in facet::touched(op) {
        if let Facet::Object(object) = facet
            && alias::has_any(store, object)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}
