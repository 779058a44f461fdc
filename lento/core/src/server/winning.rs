//! `ClientWins`: a client's record that would be refused is done all the same, where what stands in its way is a file whose
//! content can be kept aside.
//!
//! What stands there is in the conflict store before the record is planned, and the replay says which version it takes away:
//! a user who writes meanwhile begins it anew. The KML record carries a number that says that something gave way; what that
//! was is noted in the store, as with other verdicts.

use super::ConflictRow;
use super::Keeping;
use super::Server;
use super::conflicts::Kept;
use super::conflicts::Standing;
use super::conflicts::State;
use super::verdict_code;
use crate::cml::content_part;
use crate::context::Context;
use crate::io::KeepContent;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::Policy;
use crate::judge::Decision;
use crate::judge::alias;
use crate::local::TORN;
use crate::record::KmlRecord;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Stored;
use crate::tree::View;
use crate::types::ConflictKind;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Replaced;

/// How a record may be done that was about to be refused.
#[derive(Clone, Debug, PartialEq)]
enum Way {
    /// It, as it is over what stands here.
    Over {
        /// The record.
        op: Box<Operation>,
        /// What gives way, and has to be kept first. `None`: nothing is lost by it.
        loser: Option<(ObjectId, Stored)>,
    },
    /// An empty file says nothing: it is the one that stands here.
    Same(ObjectId),
}

/// How a record would go over what stands here; `None`: nothing here gives way to it.
fn over(view: &View<'_>, op: &Operation, kind: ConflictKind) -> Result<Option<Way>, StoreError> {
    let file = |object: ObjectId| -> Result<Option<Stored>, StoreError> {
        Ok(view.object(object)?.filter(|row| row.attributes.is_file()).and_then(|row| row.content))
    };
    let mut op = op.clone();
    let loser = match (&mut op.kind, kind) {
        (OpKind::Close { before, .. }, ConflictKind::StoreStore) if *before != TORN => {
            let Some(there) = file(op.object)? else { return Ok(None) };
            *before = there.hash;
            Some((op.object, there))
        }
        (OpKind::Remove { dir, name, last, before, .. }, ConflictKind::RemoveUpdate)
            if *before != Some(TORN) =>
        {
            if view.entry(*dir, name)? != Some(op.object) || view.names(op.object)?.len() > 1 {
                return Ok(None);
            }
            let Some(there) = file(op.object)? else { return Ok(None) };
            (*last, *before) = (true, Some(there.hash));
            Some((op.object, there))
        }
        (OpKind::Rename { to, to_name, replaced, exchange: false, .. }, ConflictKind::TargetTaken) => {
            if view.object(op.object)?.is_none_or(|row| row.attributes.is_dir()) {
                return Ok(None);
            }
            let there = view.entry(*to, to_name)?;
            if there == Some(op.object) {
                return Ok(None);
            }
            let Some(there) = there else {
                *replaced = None;
                return Ok(Some(Way::Over { op: Box::new(op), loser: None }));
            };
            let Some(content) = file(there)? else { return Ok(None) };
            let last = view.names(there)?.len() <= 1;
            *replaced = Some(Replaced { object: there, last, before: Some(content.hash) });
            last.then_some((there, content))
        }
        (OpKind::Create { dir, name, content, attributes, .. }, ConflictKind::NameName)
            if attributes.is_file() =>
        {
            let Some(there) = view.entry(*dir, name)? else { return Ok(None) };
            let Some(present) = file(there)? else { return Ok(None) };
            if content.as_ref().is_none_or(|content| content.size == 0) {
                return Ok(Some(Way::Same(there)));
            }
            let Some(close) = content_part(&op, present.hash) else { return Ok(None) };
            op = Operation { object: there, ..close };
            Some((there, present))
        }
        _ => return Ok(None),
    };
    let loser = loser.filter(|(_, content)| content.size > 0);
    Ok(Some(Way::Over { op: Box::new(op), loser }))
}

/// What gave way to a record that is on its way into the KML.
mod note {
    use super::OpId;
    use super::Store;
    use super::StoreError;
    use super::Stored;
    use super::Table;
    use super::table;

    fn key(id: OpId) -> Vec<u8> {
        let mut key = table::tag_key(id.0);
        key.extend_from_slice(b"over");
        key
    }

    pub fn put(store: &mut dyn Store, id: OpId, there: Stored) -> Result<(), StoreError> {
        table::put(store, Table::Verdict, &key(id), &there)
    }

    pub fn take(store: &mut dyn Store, id: OpId) -> Result<Option<Stored>, StoreError> {
        let there = table::get(store, Table::Verdict, &key(id))?;
        if there.is_some() {
            store.delete(Table::Verdict, &key(id))?;
        }
        Ok(there)
    }
}

impl Server {
    /// What becomes of a record that was about to be refused, and the number that goes with it into the KML; it is changed to
    /// what is done. `None`: what gives way has to be kept first.
    pub(super) fn win(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        sent: &Operation,
        op: &mut Operation,
        kind: ConflictKind,
    ) -> Result<Option<(Decision, u8)>, StoreError> {
        if self.conflicts.options.policy != Policy::ClientWins {
            return Ok(Some((Decision::Refuse(kind), 0)));
        }
        let way = over(&View::planned(ctx.store, &self.replaying.overlay), op, kind)?;
        let one_with = match &way {
            Some(Way::Over { op: over, .. }) => Some(over.object).filter(|object| *object != op.object),
            Some(Way::Same(there)) => Some(*there),
            None => None,
        };
        if let Some(there) = one_with {
            // To this client the two may be different things that it has made itself (rule 9).
            let replica = sent.id.0.replica;
            if there.0.replica == replica || alias::is_target(ctx.store, &self.aliases, replica, there)? {
                return Ok(Some((Decision::Refuse(kind), 0)));
            }
        }
        let (over, loser) = match way {
            Some(Way::Over { op, loser }) => (*op, loser),
            Some(Way::Same(there)) => return Ok(Some((Decision::Unify(there), 0))),
            None => return Ok(Some((Decision::Refuse(kind), 0))),
        };
        if loser.is_some_and(|(object, _)| self.torn.contains(object)) {
            // What lies there is not the content that would be kept of it.
            return Ok(Some((Decision::Refuse(kind), 0)));
        }
        let is_other = over.object != op.object;
        if let Some(loser) = loser {
            if !self.is_kept(ctx, node, sent.id, loser)? {
                return Ok(None);
            }
        } else if is_other {
            note::put(ctx.store, sent.id, Stored::empty())?;
        }
        if is_other {
            self.aliases.insert(sent.object, over.object);
        }
        *op = over;
        // The number says as well that the two objects are one.
        let code = if loser.is_some() || is_other { verdict_code::won(kind) } else { None };
        Ok(Some((Decision::Accept, code.unwrap_or_default())))
    }

    /// Whether what gives way is kept. If not, it is about to be.
    pub(super) fn is_kept(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        id: OpId,
        (object, there): (ObjectId, Stored),
    ) -> Result<bool, StoreError> {
        let view = View::planned(ctx.store, &self.replaying.overlay);
        let Some(row) = view.object(object)? else { return Ok(false) };
        let Some(session) = self.sessions.get_mut(node) else { return Ok(false) };
        if session.gave_way == Some((id, there.hash)) {
            note::put(ctx.store, id, there)?;
            return Ok(true);
        }
        // What is on its way into the file comes first: it has no lower file that could be copied.
        if row.file.ino == 0 || self.replaying.overlay.covers(&crate::facet::Facet::Object(object)) {
            return Ok(false);
        }
        let ticket = ctx.ticket();
        self.keeps.insert(ticket, Keeping::Tree { node: node.clone(), record: id, hash: there.hash });
        session.keeping = Some(ticket);
        ctx.out.push(Output::Keep { ticket, record: id, content: KeepContent::File(row.file) });
        Ok(false)
    }

    /// The record is done, or refused, without taking anything away after all.
    pub(super) fn gave_no_way(
        &self,
        ctx: &mut Context<'_>,
        id: OpId,
        is_done: bool,
    ) -> Result<(), StoreError> {
        if note::take(ctx.store, id)?.is_some() && is_done {
            ctx.out.push(Output::Forget(id));
        }
        Ok(())
    }

    /// What gives way is in the conflict store, or cannot be kept.
    pub(super) fn tree_kept(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: crate::types::Ticket,
        (node, record, hash): (NodeName, OpId, Hash),
        result: Result<(), String>,
    ) {
        match result {
            Ok(()) => {
                if let Some(session) = self.sessions.get_mut(&node)
                    && session.keeping == Some(ticket)
                {
                    session.keeping = None;
                    session.gave_way = Some((record, hash));
                }
            }
            Err(why) => self.cannot_keep(ctx, node, &why),
        }
    }

    /// A record that won is in the KML: what gave way to it is listed.
    pub(super) fn has_won(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        (id, kind): (OpId, ConflictKind),
        op: Option<&Operation>,
    ) -> Result<(), StoreError> {
        let there = note::take(ctx.store, id)?;
        if there.is_some_and(|there| there.size == 0) {
            return Ok(());
        }
        let path = op.map(|op| self.conflict_path(ctx.store, op)).transpose()?.unwrap_or_default();
        let hash = there.map(|there| there.hash);
        let standing = Standing {
            state: State::Decided,
            kept: Kept::Tree,
            size: there.map_or(0, |there| there.size),
            ..Standing::default()
        };
        let row = ConflictRow { record: id, kind, op: None, path, time: record.time, hash };
        self.conflict(ctx, Recno(record.recno.0), row, standing)
    }
}
