//! How torn files end: the good content, or what is left where nobody has a better one, by a replay of the server's own. Each
//! end that changes a content has a position of its own, since an earlier life may have told another one than this.

use super::Server;
use super::torn::AGAIN;
use super::torn::Torn;
use super::unread::Until;
use crate::context::Context;
use crate::io::Event;
use crate::io::Output;
use crate::io::ReplayContent;
use crate::message::Stored;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::store::StoreError;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::volume::Millis;

/// Replays that restore have numbers that no journal has, and no made up record of an offer.
const RESTORES: u64 = 1 << 61;

/// How one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Restore {
    /// It has the good content, and only its time and mode are others.
    Attributes,
    /// The good content, by a replay.
    Install(ReplayContent),
    /// Nobody has a better one.
    Take(Stored),
}

/// The record of the replay that ends it.
fn restore_id(ctx: &Context<'_>, torn: &Torn) -> OpId {
    ctx.own(RESTORES | torn.record.0.number)
}

impl Server {
    /// Somebody remembers what the content was.
    pub(super) fn named(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        good: Stored,
    ) -> Result<(), StoreError> {
        let Some(torn) = self.torn.rows.get(&object).copied() else { return Ok(()) };
        let Some(mut state) = View::new(ctx.store, Which::Local).object(object)? else { return Ok(()) };
        if state.content.is_some() {
            return Ok(());
        }
        // What is left of it is nobody's update.
        self.end_wait(ctx, object, Until::durable(ctx.meta.last_read()), |at| {
            (at.0 < torn.record.0.number).then_some(good)
        })?;
        state.content = Some(good);
        Tree::new(ctx.store, Which::Local).set_object(object, Some(&state))?;
        self.torn.look_at(object);
        Ok(())
    }

    /// A record is in the local tree: what it replaced or removed is torn no longer.
    pub(super) fn torn_after(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        op: Option<&Operation>,
    ) -> Result<(), StoreError> {
        let Some(op) = op.filter(|_| !self.torn.is_empty()) else { return Ok(()) };
        let replaced = match &op.kind {
            OpKind::Rename { replaced, .. } => replaced.map(|replaced| replaced.object),
            _ => None,
        };
        for object in [Some(op.object), replaced].into_iter().flatten() {
            let Some(torn) = self.torn.rows.get(&object).copied() else { continue };
            let is_replay = record.origin != KmlOrigin::User;
            let restored =
                is_replay && (op.id == restore_id(ctx, &torn) || matches!(op.kind, OpKind::Close { .. }));
            let gone = View::new(ctx.store, Which::Local).object(object)?.is_none();
            if restored && !gone {
                let path = View::new(ctx.store, Which::Local).path(object)?;
                ctx.out.push(Output::Event(Event::Restored { path }));
            }
            if restored || gone {
                self.torn.end(ctx.store, object)?;
            }
        }
        Ok(())
    }

    /// Plans what is decided, as far as one batch goes.
    pub(super) fn restore_torn(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        while self.replaying.has_room() {
            let Some((object, restore)) = self.torn.ready.pop_first() else { return Ok(()) };
            let Some(torn) = self.torn.rows.get(&object).copied() else { continue };
            self.torn.planned.insert(object);
            let row = View::new(ctx.store, Which::Local).object(object)?;
            let planned = View::planned(ctx.store, &self.replaying.overlay).object(object)?;
            let (Some(row), Some(planned)) = (row, planned) else { continue };
            if row.content != planned.content {
                // A client's record replaces it.
                continue;
            }
            self.plan_restore(ctx, (object, restore_id(ctx, &torn), torn.time), &row, restore)?;
        }
        Ok(())
    }

    /// Whether a replay that stopped was to restore a file; that one waits a little, the others go on.
    pub(super) fn restore_stopped(&mut self, now: Millis, object: ObjectId, record: OpId) {
        if record.0.number & RESTORES != 0 && self.torn.contains(object) && self.torn.planned.remove(&object)
        {
            self.torn.look_again(object, Millis(now.0.saturating_add(AGAIN)));
        }
    }
}
