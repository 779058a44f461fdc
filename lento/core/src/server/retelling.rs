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
use std::collections::BTreeMap;

/// Such replays have numbers that no journal has, none that restores a torn file, and no made up record of an offer.
const RETELLS: u64 = 1 << 60;

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
}

impl Retelling {
    /// Whether this object's content is about to be told.
    pub fn contains(&self, object: ObjectId) -> bool {
        self.found.contains_key(&object)
    }

    /// It is told, or another one.
    pub fn forget(&mut self, object: ObjectId) {
        self.found.remove(&object);
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
            self.retelling.found.insert(object, Found { content, newest, is_planned: false });
            return Ok(());
        }
        self.fill(ctx, object, content, Until::default())
    }

    /// Plans what is found, as far as one batch goes.
    pub(super) fn retell(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let todo = self.retelling.found.iter().filter(|(_, found)| !found.is_planned);
        let todo: Vec<(ObjectId, Found)> = todo.map(|(object, found)| (*object, *found)).collect();
        for (object, found) in todo {
            if !self.replaying.has_room() {
                break;
            }
            let row = View::new(ctx.store, Which::Local).object(object)?;
            let Some(row) = row.filter(|_| !self.torn.contains(object)) else {
                // It is read again, for those who are behind.
                self.retelling.forget(object);
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
