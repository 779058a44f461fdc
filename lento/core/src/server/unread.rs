//! Contents of the server's own users that have no hash yet: they are read, and until then hold up the log.

use super::LogRow;
use super::Server;
use crate::cml::Slot;
use crate::cml::fill_content;
use crate::context::Context;
use crate::io::Event;
use crate::io::Output;
use crate::io::ReadResult;
use crate::store::StoreError;
use crate::tree::Stored;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::Position;
use crate::types::Ticket;
use crate::types::Verdict;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// When a content is read again, in milliseconds.
const AGAIN: u64 = 100;

/// Contents without a hash: by object, and by the positions that they hold up.
#[derive(Debug, Default)]
pub struct Unread {
    objects: BTreeMap<ObjectId, BTreeSet<Position>>,
    positions: BTreeSet<Position>,
    /// Rows that show what a later record left, and that record: a power cut that took it back would leave another content
    /// at their place than others have been told.
    held: BTreeMap<Position, Position>,
    /// Their files were gone when they were to be read, and no record says why.
    missing: BTreeSet<ObjectId>,
}

impl Unread {
    /// The rows of an object, oldest first.
    pub fn of(&self, object: ObjectId) -> Vec<Position> {
        self.objects.get(&object).into_iter().flatten().copied().collect()
    }

    /// The objects.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.keys().copied()
    }

    /// One more.
    pub fn insert(&mut self, object: ObjectId, position: Position) {
        self.objects.entry(object).or_default().insert(position);
        self.positions.insert(position);
    }

    /// The object's content is known.
    pub fn remove(&mut self, object: &ObjectId) {
        for position in self.objects.remove(object).unwrap_or_default() {
            self.positions.remove(&position);
        }
        self.missing.remove(object);
    }

    /// This row waits no longer for its content, but for `until` to be durable.
    fn hold(&mut self, at: Position, until: Position) {
        self.held.insert(at, until);
    }

    /// Everything up to here is durable.
    pub fn durable(&mut self, upto: Position) {
        self.held.retain(|_, until| *until > upto);
    }

    /// The oldest position that is held up.
    pub fn first(&self) -> Option<Position> {
        let held = self.held.first_key_value().map(|(at, _)| *at);
        self.positions.first().copied().into_iter().chain(held).min()
    }
}

impl Server {
    /// Asks for what has no hash.
    pub(super) fn read_contents(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if !ctx.presto || ctx.meta.last_read() < self.journal_end {
            return Ok(());
        }
        let wanted: Vec<(ObjectId, Position)> = self
            .unread
            .objects
            .iter()
            .filter(|(object, _)| !self.reads.values().any(|(o, _)| o == *object))
            .filter(|(object, _)| self.read_again.get(object).is_none_or(|at| *at <= ctx.now))
            // What is in a torn file is not what its records say.
            .filter(|(object, _)| !self.torn.contains(**object))
            .filter_map(|(object, rows)| Some((*object, *rows.last()?)))
            .take(64_usize.saturating_sub(self.reads.len()))
            .collect();
        for (object, position) in wanted {
            self.read_again.remove(&object);
            let Some(slot) = LogRow::get(ctx.store, position)?.and_then(|row| row.slot) else {
                self.unread.remove(&object);
                continue;
            };
            let ticket = ctx.ticket();
            self.reads.insert(ticket, (object, ctx.meta.next_recno));
            ctx.out.push(Output::ReadContent { ticket, file: slot.file, stage_at: None });
        }
        Ok(())
    }

    /// Answer to a read of a user's content.
    pub fn content_read(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: ReadResult,
    ) -> Result<(), StoreError> {
        let Some(result) = self.torn_read(ctx, ticket, result)? else { return Ok(()) };
        let Some((object, began_before)) = self.reads.remove(&ticket) else { return Ok(()) };
        let Some(newest) = self.unread.of(object).pop().filter(|_| !self.torn.contains(object)) else {
            return Ok(());
        };
        let Some(slot) = LogRow::get(ctx.store, newest)?.and_then(|row| row.slot) else { return Ok(()) };
        match result {
            ReadResult::Whole { hash, size, version, racy, inline } => {
                if !(slot.latest < began_before || version == slot.version && !racy) {
                    return Ok(());
                }
                self.fill(ctx, object, hash, size)?;
                if let Some(bytes) = inline {
                    self.contents.insert(hash, bytes);
                }
            }
            ReadResult::Unstable | ReadResult::Failed(_) => {
                let path = View::new(ctx.store, Which::Local).path(object)?;
                ctx.out.push(Output::Event(Event::Waiting(format!("{path}: changes while it is read"))));
                self.read_again.insert(object, Millis(ctx.now.0.saturating_add(AGAIN)));
            }
            ReadResult::Gone => {
                let state = View::new(ctx.store, Which::Local).object(object)?;
                if state.is_some_and(|state| state.file == slot.file) {
                    // The record of it is about to come; if not, it was removed behind presto's back.
                    self.read_again.insert(object, Millis(ctx.now.0.saturating_add(AGAIN)));
                    if !self.unread.missing.insert(object) {
                        ctx.doubtful.push((object, Vec::new()));
                    }
                    return Ok(());
                }
                // Its removal is a later record, and nobody has to show this content.
                self.end_wait(ctx, object, Position(ctx.meta.last_read().0), |_| None)?;
            }
        }
        Ok(())
    }

    /// The object's rows of the log wait no longer: each gets the content that is found for it; where there is none, it was
    /// nobody's update. `until`: the record that left things so, where it is not the close that they wait for. The file of
    /// the newest.
    pub(super) fn end_wait(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        until: Position,
        found: impl Fn(Position) -> Option<Stored>,
    ) -> Result<Option<Slot>, StoreError> {
        let mut slot = None;
        for at in self.unread.of(object) {
            let Some(mut row) = LogRow::get(ctx.store, at)? else { continue };
            slot = row.slot.take();
            let until = slot.map_or(until, |slot| until.max(Position(slot.latest.0)));
            match (&mut row.record.what, found(at)) {
                (LogWhat::Operation(op), Some(Stored { hash, size })) => {
                    fill_content(op, Content { hash, size, inline: None });
                    self.ledger.fill(at, size);
                }
                (what, _) => *what = LogWhat::Verdict(Verdict::Accepted(None)),
            }
            row.put(ctx.store)?;
            if until > self.durable {
                self.unread.hold(at, until);
            }
        }
        self.unread.remove(&object);
        Ok(slot)
    }
}
