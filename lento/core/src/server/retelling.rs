//! Places of the log that an earlier life may have told otherwise: they had no content when this era began, and who has
//! come as far may know another one, or none, since what left that is lost with the end of the log. Whatever is found is
//! told at a position of its own, by a replay that changes nothing; its record is all that has to survive.

use super::Server;
use super::unread::Until;
use crate::apply;
use crate::context::Context;
use crate::io::Event;
use crate::io::Output;
use crate::local::UNKNOWN;
use crate::record::KmlRecord;
use crate::store::StoreError;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::Hash;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::volume::Millis;
use std::collections::BTreeMap;

/// Such replays have numbers that no journal has, none that restores a torn file, and no made up record of an offer.
const RETELLS: u64 = 1 << 60;
/// The first pause before one that presto did not do is tried again, in milliseconds; doubled each time, up to a minute.
const PAUSE: u64 = 250;
const PAUSE_MAX: u64 = 60_000;

/// Contents that are found and not told.
#[derive(Debug, Default)]
pub(super) struct Retelling {
    found: BTreeMap<ObjectId, Found>,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    content: Stored,
    /// The newest place that waits for it.
    newest: Position,
    is_planned: bool,
    /// How often presto did not do it, and when it is tried again.
    stopped: u32,
    not_before: Millis,
}

impl Retelling {
    /// Whether this object's content is about to be told.
    pub fn contains(&self, object: ObjectId) -> bool {
        self.found.contains_key(&object)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// It is told, or another one.
    pub fn forget(&mut self, object: ObjectId) {
        self.found.remove(&object);
    }

    /// When to look again.
    pub fn wake(&self) -> impl Iterator<Item = Millis> {
        self.found.values().filter(|found| found.stopped > 0).map(|found| found.not_before)
    }

    /// Plans went wrong, or nobody knows how far they got.
    pub fn replan(&mut self) {
        self.found.values_mut().for_each(|found| found.is_planned = false);
    }
}

impl Server {
    /// Whether all places that wait for this object's content may have been told with another one. What has no name any
    /// more is shown to nobody.
    pub(super) fn must_retell(
        &self,
        ctx: &Context<'_>,
        object: ObjectId,
        newest: Position,
    ) -> Result<bool, StoreError> {
        let by_earlier_lives = ctx.meta.lineage.eras().last().map_or(Position(0), |era| era.from);
        Ok(newest <= by_earlier_lives && View::new(ctx.store, Which::Local).object(object)?.is_some())
    }

    /// What the newest close left is known.
    pub(super) fn found(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        newest: Position,
        content: Stored,
    ) -> Result<(), StoreError> {
        if self.must_retell(ctx, object, newest)? {
            let (is_planned, stopped, not_before) = (false, 0, Millis::default());
            let found = Found { content, newest, is_planned, stopped, not_before };
            self.retelling.found.insert(object, found);
            return Ok(());
        }
        self.fill(ctx, object, content, Until::default())
    }

    /// Presto did not do one of these replays. That one waits ever longer, so that the others need not.
    pub(super) fn retell_stopped(&mut self, now: Millis, object: ObjectId, record: OpId) {
        let Some(found) = self.retelling.found.get_mut(&object) else { return };
        if record.0.number & RETELLS != 0 {
            let pause = PAUSE.saturating_mul(1 << found.stopped.min(8)).min(PAUSE_MAX);
            found.not_before = Millis(now.0.saturating_add(pause));
            found.stopped = found.stopped.saturating_add(1);
        }
    }

    /// Plans what is found, as far as half a batch goes: the rest of it is for clients.
    pub(super) fn retell(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let may = |found: &Found| !found.is_planned && found.not_before <= ctx.now;
        let todo = self.retelling.found.iter().filter(|(_, found)| may(found));
        let todo: Vec<(ObjectId, Found)> = todo.map(|(object, found)| (*object, *found)).collect();
        for (object, found) in todo {
            if self.replaying.is_half_full() {
                break;
            }
            let row = View::new(ctx.store, Which::Local).object(object)?;
            let Some(row) = row.filter(|_| !self.torn.contains(object)) else {
                // It is read again, for those who are behind.
                self.retelling.forget(object);
                self.read_again.insert(object, Millis(ctx.now.0.saturating_add(1)));
                continue;
            };
            self.retelling.found.insert(object, Found { is_planned: true, ..found });
            let id = ctx.own(RETELLS | found.newest.0);
            self.plan_taking(ctx, (object, id), &row, found.content)?;
        }
        Ok(())
    }

    /// The replay that takes what is in a file for its content is in the KML.
    pub(super) fn taken(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        id: OpId,
        object: ObjectId,
        hash: Option<Hash>,
    ) -> Result<(), StoreError> {
        let (Some(hash), Some(mut row)) = (hash, View::new(ctx.store, Which::Local).object(object)?) else {
            return Ok(());
        };
        self.retelling.forget(object);
        let before = row.content.map_or(UNKNOWN, |content| content.hash);
        let size = row.version.size;
        let content = Stored { hash, size };
        // An earlier life may have told the places that waited something else: this position tells everybody.
        self.fill(ctx, object, content, Until::durable(record.recno))?;
        row.content = Some(content);
        row.attributes.mtime = row.version.mtime;
        if self.torn.contains(object) {
            row.written = record.recno;
        }
        let as_it_was = row.clone();
        apply::drop_privileges(&mut row);
        if row != as_it_was {
            // Those who hear of a content drop these; here they are still there.
            ctx.doubtful.push((object, Vec::new()));
        }
        Tree::new(ctx.store, Which::Local).set_object(object, Some(&row))?;
        if self.torn.contains(object) {
            self.torn.end(ctx.store, object)?;
            let path = View::new(ctx.store, Which::Local).path(object)?;
            ctx.out.push(Output::Event(Event::TornTaken { path, left: Some(hash) }));
        }
        let content = Content { hash, size, inline: None };
        let kind = OpKind::Close { before, content, mtime: row.attributes.mtime };
        let op = Operation { id, time: record.time, object, kind };
        self.log(ctx, Position(record.recno.0), id, LogWhat::Operation(op), None)
    }
}
