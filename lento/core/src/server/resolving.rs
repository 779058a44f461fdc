//! Conflicts that leave the list, because a person has resolved them or because what a policy decided has been kept for long
//! enough.
//!
//! Each goes by a record of the KML, so that it is durable, has a place in the order, and is told to all: a client that
//! remembers its own loser, to tell it once more to a server that falls back to a backup, forgets it. Only when the record
//! is durable is the content removed.

use super::ConflictRow;
use super::Held;
use super::Server;
use super::Tally;
use super::verdict_code;
use crate::context::Context;
use crate::io::ConflictOptions;
use crate::io::Event;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReplayItem;
use crate::io::ReplayOp;
use crate::record::KmlRecord;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Verdict;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// How often the time that this server has run is written down, in milliseconds.
const TICK: u64 = 600_000;
/// Where.
const CLOCK: &[u8] = b"conflict-clock";

/// Why one leaves the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A person has resolved it.
    Person,
    /// It has been kept for as long as the volume wants.
    Age,
    /// There is more than the volume wants to be kept.
    Bytes,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Resolving {
    queue: BTreeMap<Recno, (OpId, Why)>,
    flying: BTreeSet<OpId>,
    /// What can go when this position is durable.
    forget: BTreeMap<Position, Vec<OpId>>,
    clock: Clock,
    /// More is kept than the volume wants, and a person has to decide about it: said once.
    is_much: bool,
    /// The volume's owner has said how long what lost is kept.
    knows_wish: bool,
}

/// Time in which this server runs: what is kept does not age while it is off, and no wrong clock makes it old.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// Up to `at`.
    before: u64,
    at: Option<Millis>,
}

impl Clock {
    fn now(&self, now: Millis) -> u64 {
        let since = self.at.map_or(0, |at| now.0.saturating_sub(at.0));
        self.before.saturating_add(since)
    }
}

impl Resolving {
    /// What was on its way is planned anew.
    pub fn replan(&mut self) {
        self.flying.clear();
    }
}

impl Server {
    /// A person has resolved a conflict: all that belongs to it goes.
    pub fn resolved(&mut self, position: Position) {
        for (recno, record) in self.conflicts.with_members(Recno(position.0)) {
            self.resolving.queue.insert(recno, (record, Why::Person));
        }
    }

    /// Writes down how long this server has run, and lets go what has been kept for long enough.
    pub(super) fn age_conflicts(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let clock = &mut self.resolving.clock;
        let Some(at) = clock.at else {
            clock.before = table::get(ctx.store, Table::Meta, CLOCK)?.unwrap_or_default();
            clock.at = Some(ctx.now);
            return Ok(());
        };
        if ctx.now.0.saturating_sub(at.0) >= TICK {
            clock.before = clock.now(ctx.now);
            clock.at = Some(ctx.now);
            table::put(ctx.store, Table::Meta, CLOCK, &clock.before)?;
        }
        if !self.resolving.knows_wish {
            return Ok(()); // Its owner may want to keep more than anybody would by himself.
        }
        let now = self.resolving.clock.now(ctx.now);
        let queue = &self.resolving.queue;
        for expired in self.conflicts.expired(now, |recno| queue.contains_key(&recno)) {
            let why = if expired.is_old { Why::Age } else { Why::Bytes };
            for (recno, record) in self.conflicts.with_members(expired.position) {
                self.resolving.queue.insert(recno, (record, why));
            }
        }
        let (tally, limit) = (self.conflicts.tally(), self.conflicts.options.keep_bytes);
        let is_much = tally.open_bytes > limit;
        if is_much && !self.resolving.is_much {
            let (count, bytes) = (tally.open, tally.open_bytes);
            ctx.out.push(Output::Event(Event::ConflictsLarge { count, bytes, limit }));
        }
        self.resolving.is_much = is_much;
        Ok(())
    }

    /// When to look again.
    pub(super) fn conflicts_wake(&self) -> Option<Millis> {
        let at = self.resolving.clock.at?;
        let tick = Millis(at.0.saturating_add(TICK));
        let Some(due) = self.conflicts.next_expiry().filter(|_| self.resolving.knows_wish) else {
            return Some(tick);
        };
        Some(tick.min(self.when_clock_says(due)))
    }

    /// When the clock by which things grow old will say this.
    pub(super) fn when_clock_says(&self, due: u64) -> Millis {
        let clock = &self.resolving.clock;
        let in_ms = due.saturating_sub(clock.before);
        Millis(clock.at.unwrap_or_default().0.saturating_add(in_ms))
    }

    /// The time that conflicts are measured by.
    pub(super) fn conflict_clock(&self, ctx: &Context<'_>) -> u64 {
        self.resolving.clock.now(ctx.now)
    }

    /// Plans the records of those that leave the list.
    pub(super) fn plan_resolutions(&mut self) {
        for (record, _) in self.resolving.queue.values() {
            if !self.replaying.has_room() {
                return;
            }
            if !self.resolving.flying.insert(*record) {
                continue;
            }
            self.replaying.push(ReplayItem {
                record: *record,
                object: ObjectId(record.0),
                hash: None,
                verdict: verdict_code::RESOLVED,
                parent_mtime: None,
                target_parent_mtime: None,
                op: ReplayOp::Noop,
            });
        }
    }

    /// One that leaves the list is in the KML.
    pub(super) fn struck(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        id: OpId,
    ) -> Result<(), StoreError> {
        self.resolving.flying.remove(&id);
        let position = Position(record.recno.0);
        let path = self.path_of_conflict(ctx, id)?;
        let Some((recno, records)) = self.conflicts.strike(ctx.store, id)? else {
            // It goes on as another one by now.
            self.resolving.queue.retain(|_, (record, _)| *record != id);
            return Ok(());
        };
        if let Some((_, why)) = self.resolving.queue.remove(&recno)
            && why != Why::Person
        {
            let is_old = why == Why::Age;
            ctx.out.push(Output::Event(Event::ConflictDropped { record: id, path, is_old }));
            self.dropped = self.dropped.saturating_add(1);
        }
        self.resolving.forget.entry(position).or_default().extend(records);
        let what = LogWhat::Verdict(Verdict::Resolved(Position(recno.0)));
        self.log(ctx, position, id, what, None)
    }

    fn path_of_conflict(&self, ctx: &Context<'_>, id: OpId) -> Result<String, StoreError> {
        let Some(recno) = self.conflicts.position_of(id) else { return Ok(String::new()) };
        let row: Option<ConflictRow> = table::get(ctx.store, Table::Conflict, &table::number_key(recno.0))?;
        Ok(row.map(|row| row.path).unwrap_or_default())
    }

    /// What becomes of updates that exclude each other from now on.
    pub fn set_conflict_options(&mut self, options: ConflictOptions) {
        self.conflicts.options = options;
        self.resolving.knows_wish = true;
    }

    /// Conflicts kept.
    pub fn conflicts(&self) -> Tally {
        self.conflicts.tally()
    }

    /// Removals that wait for a person.
    pub fn held(&self) -> impl Iterator<Item = (&NodeName, &Held)> {
        self.removals.held()
    }

    /// Conflicts that were dropped because they had been kept for long enough, since the volume was opened.
    pub fn conflicts_dropped(&self) -> u64 {
        self.dropped
    }

    /// Contents of those whose records are durable go.
    pub(super) fn forget_resolved(&mut self, ctx: &mut Context<'_>) {
        let durable = self.durable;
        while let Some(entry) = self.resolving.forget.first_entry().filter(|entry| *entry.key() <= durable) {
            ctx.out.extend(entry.remove().into_iter().map(Output::Forget));
        }
    }
}
