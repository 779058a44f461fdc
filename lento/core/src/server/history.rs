//! The rows of the history: one for each record that changes the tree, while the volume wants them, and for as long.
//!
//! Rows are written and removed with the records in one transaction, so a crash leaves both or neither. What goes, goes from
//! the oldest on, some at a time; presto is told from where on contents are still needed.

use super::Server;
use crate::context::Context;
use crate::history::Before;
use crate::history::Deed;
use crate::history::Extent;
use crate::history::HistoryOptions;
use crate::history::Row;
use crate::io::Output;
use crate::local::Absorbed;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;

/// Rows removed in one go.
const STEP: usize = 512;
/// Rows looked at in one go, where there are not too many.
const LOOK: usize = 32;
/// How long until the next, in milliseconds.
const PAUSE: u64 = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    extent: Option<Extent>,
    /// It is not yet in the store.
    changed: bool,
    options: Option<HistoryOptions>,
    /// The volume's owner has said what he wants.
    knows_wish: bool,
    /// When the oldest row was made, once it was looked at.
    oldest: Option<u64>,
    /// There is more to remove.
    more: bool,
    /// When to go on with that.
    again: Millis,
    told: Position,
}

impl History {
    pub fn load(store: &dyn Store) -> Result<History, StoreError> {
        Ok(History { extent: Extent::load(store)?, ..History::default() })
    }

    /// Whether records are to be noted.
    pub fn is_on(&self) -> bool {
        self.extent.is_some_and(|extent| !extent.ended)
    }

    /// Rows up to this position are needed by nobody.
    fn begin_after(&mut self, position: Position) {
        if let Some(extent) = &mut self.extent
            && extent.from < position
        {
            extent.from = position;
            self.changed = true;
            self.more = true;
        }
    }

    /// Soon, but not at once: others have something to do as well.
    fn go_on(&mut self, now: Millis) {
        self.more = true;
        self.again = Millis(now.0.saturating_add(PAUSE));
    }

    /// The presto that is there now knows nothing of what an earlier one was told.
    pub fn presto_up(&mut self) {
        self.told = Position(0);
    }
}

impl Server {
    /// The volume's owner wants so much of it kept.
    pub fn set_history(&mut self, ctx: &Context<'_>, options: Option<HistoryOptions>) {
        let newest = Position(ctx.meta.last_read().0);
        let history = &mut self.history;
        (history.options, history.knows_wish, history.oldest) = (options, true, None);
        match (options.is_some(), history.extent) {
            (true, None) => {
                history.extent = Some(Extent { from: newest, ..Extent::default() });
                history.changed = true;
            }
            (wanted, Some(extent)) if wanted == extent.ended => {
                history.extent = Some(Extent { ended: !wanted, ..extent });
                history.changed = true;
                history.begin_after(newest);
            }
            _ => {}
        }
    }

    /// Where it begins and what its rows take; `None`: none is kept.
    pub fn history(&self) -> Option<Extent> {
        self.history.extent.filter(|extent| !extent.ended)
    }

    /// A record has changed the tree.
    pub(super) fn note_history(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        absorbed: &Absorbed,
        before: Vec<Before>,
    ) -> Result<(), StoreError> {
        let clock = self.conflict_clock(ctx);
        let Some(extent) = self.history.extent.as_mut().filter(|_| !before.is_empty()) else { return Ok(()) };
        let op = absorbed.operation.as_ref();
        let row = Row {
            time: record.time,
            clock,
            origin: match record.origin {
                KmlOrigin::User => ctx.own(record.recno.0),
                KmlOrigin::Replay { record, .. } => record,
            },
            made: op.map_or(record.time, |op| op.time),
            object: op.map(|op| op.object).unwrap_or_default(),
            deed: op.map_or(Deed::Aside, Deed::of),
            before,
        };
        let bytes = table::put_sized(ctx.store, Table::History, &table::number_key(record.recno.0), &row)?;
        extent.bytes = extent.bytes.saturating_add(bytes);
        self.history.changed = true;
        Ok(())
    }

    /// Lets go what is too old or too much, and writes down what there is.
    pub(super) fn age_history(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.history.extent.is_none() {
            return Ok(());
        }
        if self.history.knows_wish {
            // What is still there of an earlier look would count.
            self.remove_rows(ctx)?;
            if !self.history.more && self.find_old_rows(ctx)? {
                self.history.go_on(ctx.now);
            }
        }
        let history = &mut self.history;
        if let Some(extent) = &history.extent
            && extent.from > history.told
            && ctx.presto
        {
            history.told = extent.from;
            ctx.out.push(Output::HistoryFloor(Recno(extent.from.0.saturating_add(1))));
        }
        if std::mem::take(&mut history.changed) {
            Extent::save(history.extent.as_ref(), ctx.store)?;
        }
        Ok(())
    }

    /// Says whether there is more to do: rows to remove, or the oldest that stays was not found.
    fn find_old_rows(&mut self, ctx: &Context<'_>) -> Result<bool, StoreError> {
        let clock = self.conflict_clock(ctx);
        let (Some(extent), Some(options)) = (self.history.extent, self.history.options) else {
            return Ok(false);
        };
        let is_much = extent.bytes > options.row_bytes;
        let is_old = |made: u64| clock.saturating_sub(made) >= options.keep_for;
        if !is_much && self.history.oldest.is_some_and(|oldest| !is_old(oldest)) {
            return Ok(false);
        }
        // Somewhat less than is allowed, so that this is not done again for the next record.
        let mut bytes = extent.bytes;
        let wanted =
            if is_much { options.row_bytes.saturating_sub(options.row_bytes / 16) } else { u64::MAX };
        let from = table::number_key(extent.from.0.saturating_add(1));
        self.history.oldest = None;
        let most = if is_much { STEP } else { LOOK };
        let rows = ctx.store.scan(Table::History, &from, most)?;
        let was_all = rows.len() < most;
        for (key, value) in rows {
            let row: Row = table::decode(Table::History, &value)?;
            if bytes <= wanted && !is_old(row.clock) {
                self.history.oldest = Some(row.clock);
                return Ok(self.history.more);
            }
            bytes = bytes.saturating_sub(value.len() as u64);
            self.history.begin_after(Position(table::number_from_key(&key).unwrap_or_default()));
        }
        Ok(self.history.more || !was_all)
    }

    /// Those that the history no longer reaches back to.
    fn remove_rows(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let history = &mut self.history;
        let Some(extent) = &mut history.extent else { return Ok(()) };
        if !history.more && !extent.ended {
            return Ok(());
        }
        history.more = false;
        let rows = ctx.store.scan(Table::History, &[], STEP)?;
        let is_all = rows.len() < STEP;
        let ended = extent.ended;
        for (key, value) in rows {
            if table::number_from_key(&key).is_some_and(|at| at > extent.from.0) {
                return Ok(());
            }
            ctx.store.delete(Table::History, &key)?;
            extent.bytes = extent.bytes.saturating_sub(value.len() as u64);
            history.changed = true;
        }
        if !is_all {
            history.go_on(ctx.now);
        }
        if is_all && ended {
            history.extent = None;
            history.changed = true;
        }
        Ok(())
    }

    /// When to look again.
    pub(super) fn history_wake(&self) -> Option<Millis> {
        let history = &self.history;
        if history.more {
            return Some(history.again);
        }
        let options = history.options.filter(|_| history.extent.is_some())?;
        let due = history.oldest?.saturating_add(options.keep_for);
        Some(self.when_clock_says(due))
    }
}
