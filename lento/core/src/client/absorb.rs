//! Each record of this node's KML as a client reads it: a user's becomes pending, a replay's is a confirmation.

use super::Client;
use crate::context::Context;
use crate::facet;
use crate::facet::Facet;
use crate::facet::pending;
use crate::io::Output;
use crate::local;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::record::Left;
use crate::record::Update;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use std::collections::BTreeSet;

impl Client {
    /// Reads one record of this node's KML.
    pub fn absorb(&mut self, ctx: &mut Context<'_>, record: &KmlRecord) -> Result<(), StoreError> {
        self.look_after_fallback(ctx)?;
        let me = (ctx.meta.replica, ctx.meta.incarnation);
        let mut absorbed = local::absorb(ctx.store, me, record)?;
        ctx.unknown(record, absorbed.unknown)?;
        ctx.note_moved(&absorbed);
        if let Some(op) = &absorbed.aside {
            // Where it belongs, base says.
            let touched = facet::touched(op);
            self.replaying.disturbed(&touched);
            return self.confirmed(ctx, touched);
        }
        match record.origin {
            KmlOrigin::User => {
                self.permits.door.note_use(ctx.now);
                if let Some((file, _)) = absorbed.orphan {
                    ctx.out.push(Output::ReleaseLimbo { files: vec![file], upto: record.recno });
                }
                let touched: BTreeSet<Facet> = absorbed.operation.iter().flat_map(facet::touched).collect();
                self.replaying.disturbed(&touched);
                if is_emptied(ctx, record, absorbed.operation.as_ref())? {
                    // Base has it.
                    return self.look_at(ctx, touched);
                }
                if let Some(OpKind::Create { dir, name, seen, .. }) =
                    absorbed.operation.as_mut().map(|op| &mut op.kind)
                {
                    *seen = seen_at(ctx, *dir, name)?;
                }
                self.cml.process(ctx.store, record.recno, absorbed, ctx.out)?;
                // A treatment may have left no record behind, so that base is right again.
                self.look_at(ctx, touched)
            }
            KmlOrigin::Replay { .. } => {
                let touched: BTreeSet<Facet> = absorbed.operation.iter().flat_map(facet::touched).collect();
                self.confirmed(ctx, touched)
            }
        }
    }
}

/// Up to where the maker of a name had seen the server's objects: all of base, unless base has something there that
/// never was in the lower tree.
fn seen_at(ctx: &Context<'_>, dir: ObjectId, name: &Name) -> Result<Position, StoreError> {
    let there = View::new(ctx.store, Which::Base).entry(dir, name)?;
    let new = match there {
        Some(object) => View::new(ctx.store, Which::Local).object(object)?.is_none(),
        None => false,
    };
    Ok(if new { Position(0) } else { ctx.meta.position })
}

/// A power cut has left nothing in the file, and nothing of this node's waits for its content: there is nothing to keep.
fn is_emptied(ctx: &Context<'_>, record: &KmlRecord, op: Option<&Operation>) -> Result<bool, StoreError> {
    match (&record.update, op) {
        (Update::Close { left: Left::Unvouched, after, .. }, Some(op)) if after.version.size == 0 => {
            let known = View::new(ctx.store, Which::Base).object(op.object)?.is_some();
            Ok(known && !pending::any(ctx.store, &Facet::Object(op.object))?)
        }
        _ => Ok(false),
    }
}
