//! Contents of the server's own users that have no hash yet: they are read, and until then hold up the log.
//!
//! A row is filled with what its newest close left, as the file's version says. Who writes on and on is not waited for:
//! then a later content takes its place, which only a sync that begins afterwards makes durable.

use super::LogRow;
use super::Server;
use crate::cml::Slot;
use crate::cml::fill_content;
use crate::context::Context;
use crate::io::Event;
use crate::io::Output;
use crate::io::ReadResult;
use crate::promise;
use crate::store::StoreError;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::types::Verdict;
use crate::types::Version;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// When a content is read again, in milliseconds.
const AGAIN: u64 = 100;
/// The same at most, where it is not what its records say and nobody may be told so.
const AGAIN_MAX: u64 = 10_000;
/// Attempts before what was read is taken although the file has moved on.
const PATIENCE: u32 = 10;

/// Most reads at a time.
const READS: usize = 64;
/// So many contents that are read and wait to be told are enough.
const UNTOLD: usize = 1024;

/// What a row waits for that has its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Until {
    /// This record is durable: it left the content, or left none. A power cut that took it back would leave another one
    /// at the row's place than others have been told.
    record: Position,
    /// This sync is done.
    sync: u64,
}

impl Until {
    /// Until this record is durable.
    pub fn durable(record: Recno) -> Until {
        Until { record: Position(record.0), sync: 0 }
    }

    fn and(self, record: Recno) -> Until {
        Until { record: self.record.max(Position(record.0)), ..self }
    }
}

/// Contents without a hash: by object, and by the positions that they hold up.
#[derive(Debug, Default)]
pub struct Unread {
    objects: BTreeMap<ObjectId, BTreeSet<Position>>,
    positions: BTreeSet<Position>,
    /// Rows that have their content and wait all the same.
    held: BTreeMap<Position, Until>,
    /// Their files were gone when they were to be read, and no record says why.
    missing: BTreeSet<ObjectId>,
    /// How often what was read was not what the newest close left.
    moved_on: BTreeMap<ObjectId, u32>,
    /// Later contents that were read while a sync ran: it would make them durable in the log, and not on the disk.
    later: BTreeMap<ObjectId, Stored>,
    /// Syncs that have begun, and the last one that went well.
    syncs: u64,
    synced: u64,
}

impl Unread {
    /// The rows of an object, oldest first.
    pub fn of(&self, object: ObjectId) -> Vec<Position> {
        self.objects.get(&object).into_iter().flatten().copied().collect()
    }

    /// The newest of them.
    pub fn newest(&self, object: ObjectId) -> Option<Position> {
        self.objects.get(&object)?.last().copied()
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
        self.moved_on.remove(object);
        self.later.remove(object);
    }

    /// A later row of the object waits in the place of this one.
    fn pass(&mut self, object: ObjectId, at: Position) {
        self.positions.remove(&at);
        if let Some(rows) = self.objects.get_mut(&object) {
            rows.remove(&at);
        }
    }

    /// A sync begins.
    pub fn sync_begins(&mut self) {
        self.syncs += 1;
    }

    /// It is done: everything up to here is durable.
    pub fn durable(&mut self, upto: Position) {
        self.synced = self.syncs;
        self.held.retain(|_, until| until.record > upto || until.sync > self.synced);
    }

    /// Number of the first sync that covers what is in the store now.
    pub fn next_sync(&self) -> u64 {
        self.syncs + 1
    }

    /// Number of the newest one that is done.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Some row waits for a sync, whatever is durable.
    pub fn waits_for_sync(&self) -> bool {
        self.held.values().any(|until| until.sync > self.synced)
    }

    /// Presto is another one: what it was asked is not answered.
    pub fn forget_reads(&mut self) {
        self.later.clear();
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
        self.take_later(ctx)?;
        if self.reads.len() >= READS || self.retelling.len() >= UNTOLD {
            return Ok(());
        }
        let reading: BTreeSet<ObjectId> = self.reads.values().map(|(object, _)| *object).collect();
        let wanted: Vec<(ObjectId, Position)> = self
            .unread
            .objects
            .iter()
            // What is in a torn file is not what its records say.
            .filter(|(object, _)| !self.torn.contains(**object) && !self.retelling.contains(**object))
            .filter(|(object, _)| !reading.contains(*object))
            .filter(|(object, _)| !self.unread.later.contains_key(*object))
            .filter(|(object, _)| self.read_again.get(object).is_none_or(|at| *at <= ctx.now))
            .filter_map(|(object, rows)| Some((*object, *rows.last()?)))
            .take(READS.saturating_sub(self.reads.len()))
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
        let Some(newest) = self.unread.newest(object).filter(|_| !self.torn.contains(object)) else {
            return Ok(());
        };
        let Some(slot) = LogRow::get(ctx.store, newest)?.and_then(|row| row.slot) else { return Ok(()) };
        match result {
            ReadResult::Whole { hash, size, version, racy, inline } => {
                if let Some(bytes) = inline {
                    self.contents.insert(hash, bytes);
                }
                let (found, read_since) = (Stored { hash, size }, slot.latest < began_before);
                if !is_as_left(ctx, object, slot, version)? {
                    return self.moved_on(ctx, object, newest, read_since.then_some(found));
                }
                if read_since || !racy {
                    return self.found(ctx, object, newest, found);
                }
            }
            ReadResult::Unstable | ReadResult::Failed(_) => {
                if matches!(result, ReadResult::Unstable) {
                    self.let_pass(ctx, object, newest, slot)?;
                }
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
                self.end_wait(ctx, object, Until::durable(ctx.meta.last_read()), |_| None)?;
            }
        }
        Ok(())
    }

    /// The file is never quiet, and the log waits for it. After a while its older closes are told without a content, as soon
    /// as the newest is durable: that one waits in their place, and as long as the file changes there will be a newer one.
    fn let_pass(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        newest: Position,
        slot: Slot,
    ) -> Result<(), StoreError> {
        let older: Vec<Position> = self.unread.of(object).into_iter().filter(|at| *at < newest).collect();
        let Some(oldest) = older.first() else { return Ok(()) };
        let tries = self.unread.moved_on.entry(object).or_default();
        *tries = tries.saturating_add(1);
        if *tries < PATIENCE {
            return Ok(());
        }
        self.unread.moved_on.remove(&object);
        let found = |row: LogRow| match row.record.what {
            LogWhat::Operation(Operation { kind: OpKind::Close { before, .. }, .. }) => Some(before),
            _ => None,
        };
        let found = LogRow::get(ctx.store, *oldest)?.and_then(found);
        for at in older {
            self.tell(ctx, at, None, Until::durable(slot.latest))?;
            self.unread.pass(object, at);
        }
        if let (Some(mut row), Some(found)) = (LogRow::get(ctx.store, newest)?, found)
            && let LogWhat::Operation(Operation { kind: OpKind::Close { before, .. }, .. }) =
                &mut row.record.what
        {
            *before = found;
            row.put(ctx.store)?;
        }
        Ok(())
    }

    /// The file holds another content than its newest close left. The record of that is about to come, and it is read again
    /// then; but not on and on.
    fn moved_on(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        newest: Position,
        later: Option<Stored>,
    ) -> Result<(), StoreError> {
        let tries = self.unread.moved_on.entry(object).or_default();
        *tries = tries.saturating_add(1);
        let more = tries.checked_sub(PATIENCE);
        let pause = match later.zip(more) {
            None => AGAIN,
            Some((later, _)) if !self.must_retell(ctx, object, newest)? => {
                self.unread.later.insert(object, later);
                return Ok(());
            }
            Some((_, more)) => {
                // Only a record can tell it; if none comes, it was changed behind presto's back.
                ctx.doubtful.push((object, Vec::new()));
                let path = View::new(ctx.store, Which::Local).path(object)?;
                ctx.out.push(Output::Event(Event::Waiting(format!("{path}: is not what was closed"))));
                AGAIN.saturating_mul(1 << more.min(7)).min(AGAIN_MAX)
            }
        };
        self.read_again.insert(object, Millis(ctx.now.0.saturating_add(pause)));
        Ok(())
    }

    /// Takes later contents, unless a sync runs.
    fn take_later(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.syncing.is_running() {
            return Ok(());
        }
        while let Some((object, found)) = self.unread.later.pop_first() {
            if !self.torn.contains(object) {
                let until = Until { sync: self.unread.syncs + 1, ..Until::default() };
                self.fill(ctx, object, found, until)?;
            }
        }
        Ok(())
    }

    /// The content of an object's log rows is known.
    pub(super) fn fill(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        found: Stored,
        until: Until,
    ) -> Result<(), StoreError> {
        let slot = self.end_wait(ctx, object, until, |_| Some(found))?;
        let mut tree = Tree::new(ctx.store, Which::Local);
        if let Some(mut state) = tree.view().object(object)?
            && state.content.is_none()
            && slot.is_some_and(|slot| slot.file == state.file)
        {
            state.content = Some(found);
            tree.set_object(object, Some(&state))?;
        }
        Ok(())
    }

    /// The object's rows of the log wait no longer: each gets the content that is found for it; where there is none, it was
    /// nobody's update. They are told when their newest close is durable, and what `until` says. The file of the newest.
    pub(super) fn end_wait(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        until: Until,
        found: impl Fn(Position) -> Option<Stored>,
    ) -> Result<Option<Slot>, StoreError> {
        let rows = self.unread.of(object);
        let newest = rows.last().map(|at| LogRow::get(ctx.store, *at)).transpose()?.flatten();
        let slot = newest.and_then(|row| row.slot);
        let until = slot.map_or(until, |slot| until.and(slot.latest));
        for at in rows {
            self.tell(ctx, at, found(at), until)?;
        }
        self.unread.remove(&object);
        self.read_again.remove(&object);
        promise::end(ctx.store, object)?;
        Ok(slot)
    }

    /// A row of the log has its content, or none, and is told from then on.
    fn tell(
        &mut self,
        ctx: &mut Context<'_>,
        at: Position,
        found: Option<Stored>,
        until: Until,
    ) -> Result<(), StoreError> {
        let Some(mut row) = LogRow::get(ctx.store, at)? else { return Ok(()) };
        row.slot = None;
        match (&mut row.record.what, found) {
            (LogWhat::Operation(op), Some(Stored { hash, size })) => {
                fill_content(op, Content { hash, size, inline: None });
                self.ledger.fill(at, size);
            }
            (what, _) => *what = LogWhat::Verdict(Verdict::Accepted(None)),
        }
        row.put(ctx.store)?;
        if until.record > self.durable || until.sync > self.unread.synced {
            self.unread.held.insert(at, until);
        }
        Ok(())
    }
}

/// Whether a file of this version holds what its newest close left. Records of names move its ctime and do not say so.
fn is_as_left(ctx: &Context<'_>, object: ObjectId, slot: Slot, version: Version) -> Result<bool, StoreError> {
    let row = View::new(ctx.store, Which::Local).object(object)?.filter(|row| row.file == slot.file);
    let left = row.map_or(slot.version, |row| row.version);
    Ok((left.mtime, left.size) == (version.mtime, version.size))
}
