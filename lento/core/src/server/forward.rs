//! Update forward: log records to each Replicator that is behind, snapshots to those the log cannot help.

use super::LogRow;
use super::Server;
use super::session::SessionState;
use super::session::judged;
use crate::cml::content_of;
use crate::cml::fill_content;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::message::Hello;
use crate::message::Message;
use crate::message::SnapshotObject;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Verdict;
use std::collections::VecDeque;

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
            .filter(|(_, session)| session.state == SessionState::Welcomed && session.sent < limit)
            .map(|(node, _)| node.clone())
            .collect();
        for node in behind {
            while self.forward_one(ctx, &node, limit)? {}
        }
        Ok(())
    }

    fn forward_one(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        limit: Position,
    ) -> Result<bool, StoreError> {
        let acknowledged = super::ReplicatorRow::get(ctx.store, node)?.ack.position;
        let Some(session) = self.sessions.get_mut(node) else { return Ok(false) };
        let Some(hello) = &mut session.hello else { return Ok(false) };
        if session.sent < ctx.meta.log_floor {
            hello.has = (Recno(0), Recno(0));
            session.state = SessionState::WantsSnapshot;
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
            let mut record = for_receiver(row.record, hello);
            if let LogWhat::Operation(op) = &mut record.what
                && let Some(content) = content_of(op)
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
        ctx.out.push(Output::Send(node.clone(), Message::Records { records, upto }));
        Ok(upto < limit)
    }

    /// Snapshots for those who wait, at a moment when every content has its hash.
    pub(super) fn send_snapshots(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let waiting: Vec<NodeName> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.state == SessionState::WantsSnapshot)
            .map(|(node, _)| node.clone())
            .collect();
        // What is sent must be durable here, and is: positions and tree are those of the last record read.
        let read = Position(ctx.meta.last_read().0);
        if waiting.is_empty() || !self.unread.is_empty() || self.durable < read {
            return Ok(());
        }
        let chunks = snapshot(ctx)?;
        let objects = chunks.iter().map(Vec::len).sum::<usize>() as u64;
        for node in waiting {
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            session.state = SessionState::Welcomed;
            session.sent = read;
            session.began = read;
            ctx.out.push(Output::Send(node.clone(), Message::SnapshotBegin { position: read, objects }));
            for chunk in &chunks {
                ctx.out.push(Output::Send(node.clone(), Message::SnapshotChunk(chunk.clone())));
            }
            ctx.out.push(Output::Send(node.clone(), Message::SnapshotEnd));
        }
        Ok(())
    }

    /// Whether reading the KML should pause, so that a snapshot finds every content read.
    pub fn wants_quiet(&self) -> bool {
        !self.unread.is_empty() && self.sessions.values().any(|s| s.state == SessionState::WantsSnapshot)
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

/// A Replicator gets the verdict of what it sent itself and still has, else the full record (rule 4).
fn for_receiver(record: LogRecord, hello: &Hello) -> LogRecord {
    let origin = record.origin.0;
    let own = origin.replica == hello.replica && origin.incarnation == hello.incarnation;
    let has = own && origin.number >= hello.has.0.0 && hello.has.0.0 > 0;
    match record.what {
        LogWhat::Operation(op) if has => {
            let hash = content_of(&op).map(|content| content.hash);
            LogRecord { what: LogWhat::Verdict(Verdict::Accepted(hash)), ..record }
        }
        LogWhat::Operation(_) | LogWhat::Verdict(_) => record,
    }
}

/// The whole local tree in chunks, parents before children.
fn snapshot(ctx: &Context<'_>) -> Result<Vec<Vec<SnapshotObject>>, StoreError> {
    let view = View::new(ctx.store, Which::Local);
    let mut chunks = vec![Vec::new()];
    let mut queue = VecDeque::from([ObjectId::ROOT]);
    let mut seen = std::collections::BTreeSet::from([ObjectId::ROOT]);
    while let Some(id) = queue.pop_front() {
        let Some(state) = view.object(id)? else { continue };
        if state.attributes.is_dir() {
            for child in view.children(id, usize::MAX)?.into_values() {
                if seen.insert(child) {
                    queue.push_back(child);
                }
            }
        }
        let object = SnapshotObject {
            object: id,
            attributes: state.attributes,
            symlink: state.symlink,
            hash: state.content.filter(|_| state.attributes.is_file()).map(|content| content.hash),
            size: state.content.map_or(0, |content| content.size),
            xattrs: state.xattrs.into_iter().collect(),
            entries: view.names(id)?.into_iter().filter(|(dir, _)| *dir != ObjectId::STAGING).collect(),
        };
        if chunks.last().is_some_and(|chunk| chunk.len() >= RECORDS) {
            chunks.push(Vec::new());
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(object);
        }
    }
    Ok(chunks)
}
