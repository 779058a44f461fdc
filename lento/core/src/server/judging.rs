//! From a client's record to a replay: verdict, planned effect, one item.

use super::InFlight;
use super::Keeping;
use super::Server;
use super::conflicts;
use super::offers::Offer;
use super::removals::Removal;
use super::removals::is_removal;
use super::restoring::Restore;
use super::session::Session;
use super::session::SessionState;
use super::session::judged;
use super::verdict_code;
use super::verdicts;
use crate::apply;
use crate::cml::before_of;
use crate::cml::content_of;
use crate::cml::content_part;
use crate::context::Context;
use crate::io::Busy;
use crate::io::KeepContent;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReplayContent;
use crate::io::ReplayItem;
use crate::io::ReplayOp;
use crate::judge::Decision;
use crate::judge::alias;
use crate::judge::judge;
use crate::local::UNKNOWN;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Attributes;
use crate::types::ConflictKind;
use crate::types::Content;
use crate::types::Hash;
use crate::types::INLINE_MAX;
use crate::types::Mask;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Time;

/// What happened to the first record of a queue.
enum Step {
    /// It is on its way, or was nothing new.
    Taken,
    /// It has to wait for something.
    Held,
}

impl Server {
    /// Judges what waits, in each client's order, clients by turns, as far as one batch goes.
    pub(super) fn judge_waiting(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if !self.replaying.may_plan(ctx) {
            return Ok(());
        }
        self.restore_torn(ctx)?;
        self.retell(ctx)?;
        self.plan_resolutions();
        let held =
            |session: &Session| session.refused.as_ref().is_some_and(|refused| refused.until > ctx.now);
        let free = self.sessions.iter().filter(|(_, session)| !held(session));
        let mut turn: Vec<NodeName> = free.map(|(node, _)| node.clone()).collect();
        while !turn.is_empty() && self.replaying.has_room() {
            let mut next = Vec::new();
            for node in turn {
                if !self.replaying.has_room() {
                    break;
                }
                if matches!(self.judge_first(ctx, &node)?, Step::Taken) {
                    next.push(node);
                }
            }
            turn = next;
        }
        self.replaying.flush(ctx);
        Ok(())
    }

    fn judge_first(&mut self, ctx: &mut Context<'_>, node: &NodeName) -> Result<Step, StoreError> {
        let Some(session) = self.sessions.get_mut(node) else { return Ok(Step::Held) };
        let offers = session.state == SessionState::Offering;
        if !(offers || session.state == SessionState::Welcomed) || session.keeping.is_some() {
            return Ok(Step::Held);
        }
        let Some(op) = session.inbox.front() else { return Ok(Step::Held) };
        let id = op.id;
        // What is offered has been judged before, by a server that has forgotten it; that its number is low says nothing.
        let judged = judged::last(ctx.store, id.0.replica, id.0.incarnation)?;
        let known = if offers { self.offers.knows(&id) } else { Recno(id.0.number) <= judged };
        if known || self.flying.contains(&id) {
            let content = content_of(op).map(|content| content.hash);
            session.take();
            if let Some(hash) = content.filter(|_| known) {
                self.staged.of(id, &hash);
                self.unstage(ctx, &id);
            }
            return Ok(Step::Taken);
        }
        let sent = op.clone();
        let mut op = op.clone();
        let kept = session.kept == Some(id);
        alias::map(ctx.store, &self.aliases, &mut op)?;
        let mut refused = false;
        if !offers && is_removal(&op) {
            match self.may_remove(ctx, node, &op)? {
                Removal::Go => {}
                Removal::Wait => return Ok(Step::Held),
                Removal::Refuse => refused = true,
            }
        }
        let Some(session) = self.sessions.get(node) else { return Ok(Step::Held) };
        let view = View::planned(ctx.store, &self.replaying.overlay);
        if offers {
            name_what_it_found(ctx, &view, &session.offer, &mut op)?;
        }
        if let Some(close) = over_nothing(&view, &op)? {
            op = close;
        }
        let torn = self.takes_from_torn(&view, &op)?;
        let is_overdue = torn.is_some() && self.torn.is_overdue(ctx.now);
        let is_unsafe = torn.is_some_and(|(object, _)| self.torn.is_unsafe(object));
        if !is_overdue && (is_unsafe || waits_for_content(&view, &op)?) {
            return Ok(Step::Held);
        }
        let mut decision = match unified_and_gone(&view, &sent, &op)?.filter(|_| !offers) {
            Some(decision) => decision,
            None => judge(ctx.store, &self.aliases, &view, &op)?,
        };
        if matches!(decision, Decision::Refuse(_))
            && let Some(seen) = self.over_what_was_left(ctx, &view, &op)?
        {
            decision = judge(ctx.store, &self.aliases, &view, &seen)?;
        }
        if kept && decision == Decision::Accept {
            // Decided once: its loser is kept already, and the client will learn exactly that.
            decision = Decision::Refuse(ConflictKind::StoreStore);
        }
        let is_close = matches!(op.kind, OpKind::Close { .. });
        if is_close && self.written.contains(&id) && decision == Decision::Accept {
            // Never wait for a writer (rule 15): what he has stays, and the other is kept.
            decision = Decision::Refuse(ConflictKind::StoreStore);
        }
        if let Some((_, kind)) = torn.filter(|_| is_unsafe && decision == Decision::Accept) {
            // Somebody writes to it on and on, and what is there cannot be kept: it stays, and the other is kept.
            decision = Decision::Refuse(kind);
        }
        if decision == Decision::Accept
            && !offers
            && let Some(kind) = self.conflicts.holds(&op)
        {
            decision = Decision::Refuse(kind);
        }
        if refused && !matches!(decision, Decision::Unify(_)) {
            decision = Decision::Refuse(ConflictKind::MassRemoval);
        }
        let mut won = 0;
        if let Decision::Refuse(kind) = decision
            && !(offers || kept || torn.is_some() || self.written.contains(&id))
        {
            let Some(win) = self.win(ctx, node, &sent, &mut op, kind)? else { return Ok(Step::Held) };
            (decision, won) = win;
        }
        match decision {
            Decision::Accept => {
                let Some(content) = self.content_for(ctx, node, &op) else { return Ok(Step::Held) };
                if won != 0 {
                    verdicts::plan(ctx.store, &sent)?;
                }
                let item = self.item(ctx, &op, content)?;
                self.plan(ctx, &op, ReplayItem { verdict: won, ..item })?;
            }
            Decision::Unify(target) => {
                if let Some(content) = content_of(&op) {
                    // It goes with the verdict.
                    self.staged.of(id, &content.hash);
                }
                let view = View::planned(ctx.store, &self.replaying.overlay);
                let is_there = view.object(target)?.is_some();
                verdicts::plan(ctx.store, &sent)?;
                let mut item = noop(&op, target, verdict_code::UNIFIED);
                if is_there {
                    // True only while nobody changes, moves or removes the target: a change of nothing carries that
                    // precondition.
                    let file = self.replaying.reference(ctx, target)?;
                    let (mask, attributes) = (Mask::default(), Attributes::default());
                    item.op = ReplayOp::SetAttr { file, mask, attributes };
                    self.replaying.changed(target);
                }
                if target != op.object {
                    self.aliases.insert(sent.object, target);
                }
                self.replaying.push(item);
            }
            Decision::Refuse(kind) => {
                if content_of(&op).is_some_and(|content| content.size > 0) && !kept {
                    return self.keep(ctx, node, &op);
                }
                let view = View::planned(ctx.store, &self.replaying.overlay);
                if let Some(object) = in_the_way(&view, &op, kind)? {
                    self.conflicts.hold_soon(object);
                }
                verdicts::plan(ctx.store, &sent)?;
                self.replaying.push(noop(&op, op.object, verdict_code::of(kind)));
            }
        }
        let Some(session) = self.sessions.get_mut(node) else { return Ok(Step::Held) };
        session.take();
        session.kept = None;
        let gave_way = session.gave_way.take().is_some();
        if offers {
            session.offer.judged(&op, decision);
        }
        self.written.remove(&id);
        let generation = session.generation;
        if gave_way && won == 0 {
            self.gave_no_way(ctx, id, !matches!(decision, Decision::Refuse(_)))?;
        }
        self.flying.insert(id);
        self.in_flight.push_back(InFlight { node: node.clone(), generation, op: sent });
        Ok(Step::Taken)
    }

    /// The losing content is safe before the verdict is.
    fn keep(&mut self, ctx: &mut Context<'_>, node: &NodeName, op: &Operation) -> Result<Step, StoreError> {
        let Some(content) = content_of(op) else { return Ok(Step::Held) };
        let content = match &content.inline {
            Some(bytes) => KeepContent::Inline(bytes.clone()),
            None => match self.staged.of(op.id, &content.hash) {
                Some((name, _)) => KeepContent::Staged(name),
                None => {
                    self.lost_stage(ctx, node, content);
                    return Ok(Step::Held);
                }
            },
        };
        let ticket = ctx.ticket();
        self.keeps.insert(ticket, Keeping::Refused(node.clone(), op.id));
        if let Some(session) = self.sessions.get_mut(node) {
            session.keeping = Some(ticket);
        }
        ctx.out.push(Output::Keep { ticket, record: op.id, content });
        Ok(Step::Held)
    }

    /// Bytes for an accepted record: `Some(None)` = it has none.
    fn content_for(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        op: &Operation,
    ) -> Option<Option<ReplayContent>> {
        let Some(content) = content_of(op) else { return Some(None) };
        if content.size == 0 {
            return Some(Some(ReplayContent::Inline(Vec::new())));
        }
        if let Some(bytes) = &content.inline {
            if content.size <= INLINE_MAX {
                self.contents.insert(content.hash, bytes.clone());
            }
            return Some(Some(ReplayContent::Inline(bytes.clone())));
        }
        match self.staged.of(op.id, &content.hash) {
            Some((name, size)) => Some(Some(ReplayContent::Staged(name, size))),
            None => {
                self.lost_stage(ctx, node, content);
                None
            }
        }
    }

    /// This node restarted since the content was staged: the client begins again and stages it once more.
    fn lost_stage(&mut self, ctx: &mut Context<'_>, node: &NodeName, content: &Content) {
        let reason = format!("the content {} is not staged here", content.hash);
        ctx.out.push(Output::Hangup(node.clone(), reason));
        self.sessions.remove(node);
    }

    fn plan(&mut self, ctx: &mut Context<'_>, op: &Operation, item: ReplayItem) -> Result<(), StoreError> {
        let changes_version = !matches!(op.kind, OpKind::Create { .. });
        self.replaying.push(item);
        apply::apply(
            &mut Tree::planned(ctx.store, &mut self.replaying.overlay),
            op,
            apply::LastName::ByTree,
        )?;
        if changes_version {
            self.replaying.changed(op.object);
        }
        if let OpKind::Rename { replaced, exchange, .. } = &op.kind {
            let partner = replaced.filter(|_| *exchange).map(|replaced| replaced.object);
            for object in [Some(op.object), partner].into_iter().flatten() {
                let mut tree = Tree::planned(ctx.store, &mut self.replaying.overlay);
                if let Some(mut state) = tree.view().object(object)? {
                    state.moved = true;
                    tree.set_object(object, Some(&state))?;
                }
            }
            if let Some(replaced) = replaced {
                self.replaying.changed(replaced.object);
            }
        }
        Ok(())
    }

    /// A replay that ends the state of a torn file.
    pub(super) fn plan_restore(
        &mut self,
        ctx: &mut Context<'_>,
        (object, id, time): (ObjectId, OpId, Time),
        row: &Object,
        restore: Restore,
    ) -> Result<(), StoreError> {
        let attributes = row.attributes;
        let (kind, content) = match restore {
            Restore::Install(bytes) => {
                let Some(good) = row.content else { return Ok(()) };
                let content = Content { hash: good.hash, size: good.size, inline: None };
                let kind = OpKind::Close { before: good.hash, content, mtime: attributes.mtime };
                (kind, Some(bytes))
            }
            Restore::Attributes => (OpKind::SetAttr { mask: Mask::ALL, attributes }, None),
            Restore::Take(left) => return self.plan_taking(ctx, (object, id), row, left),
        };
        let op = Operation { id, time, object, kind };
        let item = self.item(ctx, &op, content)?;
        self.plan(ctx, &op, item)
    }

    /// A change of nothing, which is done only while no record says that somebody has written: what is in the file is its
    /// content.
    pub(super) fn plan_taking(
        &mut self,
        ctx: &mut Context<'_>,
        (object, id): (ObjectId, OpId),
        row: &Object,
        content: Stored,
    ) -> Result<(), StoreError> {
        let kind = OpKind::SetAttr { mask: Mask::default(), attributes: row.attributes };
        let op = Operation { id, time: Time::default(), object, kind };
        let item = self.item(ctx, &op, None)?;
        let item = ReplayItem { hash: Some(content.hash), verdict: verdict_code::TAKEN, ..item };
        self.plan(ctx, &op, item)
    }

    /// The record as it would be had its maker seen what a power cut left of the content that he saw: nobody would have kept
    /// that for its own sake. `None`: what is there is something else.
    fn over_what_was_left(
        &self,
        ctx: &Context<'_>,
        view: &View<'_>,
        op: &Operation,
    ) -> Result<Option<Operation>, StoreError> {
        let mut op = op.clone();
        let Some((before, object)) = before_of(&mut op) else { return Ok(None) };
        let Some(present) = view.object(object)?.and_then(|row| row.content) else { return Ok(None) };
        let own = ctx.meta.replica;
        if !self.conflicts.is_left_of(ctx.store, own, object, *before, present.hash)? {
            return Ok(None);
        }
        *before = present.hash;
        Ok(Some(op))
    }

    /// The torn file whose content a record would take away, and what it is if it may not.
    fn takes_from_torn(
        &self,
        view: &View<'_>,
        op: &Operation,
    ) -> Result<Option<(ObjectId, ConflictKind)>, StoreError> {
        if self.torn.is_empty() {
            return Ok(None);
        }
        let taken = match &op.kind {
            OpKind::Close { .. } => Some((op.object, ConflictKind::StoreStore)),
            OpKind::Remove { .. } => Some((op.object, ConflictKind::RemoveUpdate)),
            OpKind::Rename { replaced: Some(replaced), .. } => {
                Some((replaced.object, ConflictKind::TargetTaken))
            }
            OpKind::Create { dir, name, .. } => {
                view.entry(*dir, name)?.map(|there| (there, ConflictKind::NameName))
            }
            OpKind::Rename { .. }
            | OpKind::Link { .. }
            | OpKind::SetAttr { .. }
            | OpKind::SetXattr { .. }
            | OpKind::DelXattr { .. } => None,
        };
        Ok(taken.filter(|(object, _)| self.torn.contains(*object)))
    }

    fn item(
        &self,
        ctx: &Context<'_>,
        op: &Operation,
        content: Option<ReplayContent>,
    ) -> Result<ReplayItem, StoreError> {
        let at = |object: ObjectId| self.replaying.reference(ctx, object);
        let version = |object: ObjectId| self.replaying.version(ctx, object);
        let busy = Busy::Decide;
        let mut times: (Option<Time>, Option<Time>) = (None, None);
        let replay = match &op.kind {
            OpKind::Create { dir, name, attributes, symlink, xattrs, dir_mtime, .. } => {
                times.0 = Some(*dir_mtime);
                ReplayOp::Make {
                    dir: at(*dir)?,
                    name: name.clone(),
                    attributes: *attributes,
                    symlink: symlink.clone(),
                    content,
                    xattrs: xattrs.clone(),
                }
            }
            OpKind::Link { dir, name, dir_mtime } => {
                times.0 = Some(*dir_mtime);
                ReplayOp::Link { file: at(op.object)?, dir: at(*dir)?, name: name.clone() }
            }
            OpKind::Remove { dir, name, dir_mtime, .. } => {
                times.0 = Some(*dir_mtime);
                ReplayOp::Remove {
                    dir: at(*dir)?,
                    name: name.clone(),
                    expect: at(op.object)?,
                    expect_version: self.file_version(ctx, op.object)?,
                    busy,
                }
            }
            OpKind::Rename { from, from_name, to, to_name, replaced, exchange, from_mtime, to_mtime } => {
                times = (Some(*from_mtime), Some(*to_mtime));
                ReplayOp::Rename {
                    from: at(*from)?,
                    from_name: from_name.clone(),
                    expect: at(op.object)?,
                    to: at(*to)?,
                    to_name: to_name.clone(),
                    replaced: replaced.map(|r| at(r.object)).transpose()?,
                    replaced_version: match replaced.filter(|_| !exchange) {
                        Some(replaced) => self.file_version(ctx, replaced.object)?,
                        None => None,
                    },
                    exchange: *exchange,
                    busy,
                }
            }
            OpKind::SetAttr { mask, attributes } => {
                ReplayOp::SetAttr { file: at(op.object)?, mask: *mask, attributes: *attributes }
            }
            OpKind::Close { content: named, mtime, .. } => {
                let view = View::planned(ctx.store, &self.replaying.overlay);
                let mut state = view.object(op.object)?.unwrap_or_default();
                let (dir, name) = view.names(op.object)?.into_iter().next().unwrap_or_default();
                state.attributes.mtime = *mtime;
                apply::drop_privileges(&mut state);
                ReplayOp::Install {
                    file: at(op.object)?,
                    expect_version: version(op.object)?,
                    content: content.unwrap_or(ReplayContent::Staged(named.hash.to_string(), named.size)),
                    attributes: state.attributes,
                    xattrs: state.xattrs.into_iter().collect(),
                    dir: at(dir)?,
                    name,
                    busy,
                }
            }
            OpKind::SetXattr { name, value } => {
                ReplayOp::SetXattr { file: at(op.object)?, name: name.clone(), value: value.clone() }
            }
            OpKind::DelXattr { name } => ReplayOp::DelXattr { file: at(op.object)?, name: name.clone() },
        };
        Ok(ReplayItem {
            record: op.id,
            object: op.object,
            hash: content_of(op).map(|content| content.hash),
            verdict: 0,
            parent_mtime: times.0,
            target_parent_mtime: times.1,
            op: replay,
        })
    }

    fn file_version(
        &self,
        ctx: &Context<'_>,
        object: ObjectId,
    ) -> Result<Option<crate::types::Version>, StoreError> {
        let state = View::planned(ctx.store, &self.replaying.overlay).object(object)?;
        if state.is_some_and(|state| state.attributes.is_file()) {
            return self.replaying.version(ctx, object);
        }
        Ok(None)
    }
}

/// A content of the server's own users that has no hash yet cannot be compared.
fn waits_for_content(view: &View<'_>, op: &Operation) -> Result<bool, StoreError> {
    let unread = |object: ObjectId| -> Result<bool, StoreError> {
        Ok(view.object(object)?.is_some_and(|state| state.attributes.is_file() && state.content.is_none()))
    };
    match &op.kind {
        OpKind::Close { .. } | OpKind::Remove { .. } => unread(op.object),
        OpKind::Rename { replaced: Some(replaced), .. } => unread(replaced.object),
        OpKind::Create { dir, name, .. } => match view.entry(*dir, name)? {
            Some(there) => unread(there),
            None => Ok(false),
        },
        OpKind::Rename { .. }
        | OpKind::Link { .. }
        | OpKind::SetAttr { .. }
        | OpKind::SetXattr { .. }
        | OpKind::DelXattr { .. } => Ok(false),
    }
}

/// A creation whose object is here, with another content: somebody who did not have the content had to make it empty
/// (`client/offer.rs`), or it has gone on since.
fn over_nothing(view: &View<'_>, op: &Operation) -> Result<Option<Operation>, StoreError> {
    let OpKind::Create { content: Some(content), .. } = &op.kind else { return Ok(None) };
    let Some(there) = view.object(op.object)?.filter(|there| there.attributes.is_file()) else {
        return Ok(None);
    };
    let is_same = there.content.is_some_and(|there| there.hash == content.hash);
    Ok(if content.size == 0 || is_same { None } else { content_part(op, Hash::empty()) })
}

/// A creation whose object was unified with one that has been removed since: its maker has lost the verdict, and what was
/// removed does not come back. What he has filled it with meanwhile is kept.
fn unified_and_gone(
    view: &View<'_>,
    sent: &Operation,
    mapped: &Operation,
) -> Result<Option<Decision>, StoreError> {
    let is_creation = matches!(sent.kind, OpKind::Create { .. });
    if !is_creation || sent.object == mapped.object || view.object(mapped.object)?.is_some() {
        return Ok(None);
    }
    let is_filled = content_of(sent).is_some_and(|content| content.size > 0);
    let refused = Decision::Refuse(ConflictKind::StoreRemove);
    Ok(Some(if is_filled { refused } else { Decision::Unify(mapped.object) }))
}

/// A record that is brought back may have found a content that nobody had read: no hash says so. Where that content stands
/// here since before the fork, or was left by a record brought back before it, it is the one; what anybody else has left,
/// also only in plans, is not.
fn name_what_it_found(
    ctx: &Context<'_>,
    view: &View<'_>,
    offer: &Offer,
    op: &mut Operation,
) -> Result<(), StoreError> {
    let Some((before, object)) = before_of(op).filter(|(before, _)| **before == UNKNOWN) else {
        return Ok(());
    };
    let Some(there) = view.object(object)?.and_then(|row| row.content) else { return Ok(()) };
    let is_as_it_was = || -> Result<bool, StoreError> {
        let row = View::new(ctx.store, Which::Local).object(object)?;
        Ok(row.is_some_and(|row| offer.is_shared(row.written) && row.content == Some(there)))
    };
    if offer.has_left(object, there.hash) || is_as_it_was()? {
        *before = there.hash;
    }
    Ok(())
}

/// What stands here in the way of a refused record.
pub(super) fn in_the_way(
    view: &View<'_>,
    op: &Operation,
    kind: ConflictKind,
) -> Result<Option<ObjectId>, StoreError> {
    let there = match (&op.kind, kind) {
        (_, ConflictKind::NameName | ConflictKind::TargetTaken) => match conflicts::place(op) {
            Some((dir, name)) => view.entry(dir, name)?,
            None => None,
        },
        (_, ConflictKind::StoreStore | ConflictKind::RemoveUpdate) => Some(op.object),
        _ => None,
    };
    match there {
        Some(object) => Ok(view.object(object)?.map(|_| object)),
        None => Ok(None),
    }
}

fn noop(op: &Operation, object: ObjectId, verdict: u8) -> ReplayItem {
    ReplayItem {
        record: op.id,
        object,
        hash: content_of(op).map(|content| content.hash),
        verdict,
        parent_mtime: None,
        target_parent_mtime: None,
        op: ReplayOp::Noop,
    }
}
