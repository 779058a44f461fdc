//! The server's log arrives: base moves, own records get their verdicts, what changed is looked at.

use super::Client;
use crate::apply;
use crate::apply::LastName;
use crate::cml::Cml;
use crate::cml::Row;
use crate::cml::Settled;
use crate::cml::content_of;
use crate::cml::content_part;
use crate::cml::fill_content;
use crate::cml::left_by;
use crate::context::Context;
use crate::facet;
use crate::facet::Facet;
use crate::facet::pending;
use crate::io::Output;
use crate::judge::alias;
use crate::store::StoreError;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::Content;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Replaced;
use crate::types::Verdict;

impl Client {
    pub(super) fn records(
        &mut self,
        ctx: &mut Context<'_>,
        records: Vec<LogRecord>,
        upto: Position,
    ) -> Result<(), StoreError> {
        for record in records {
            if record.position <= ctx.meta.position {
                continue;
            }
            if let LogWhat::Verdict(Verdict::Resolved(at)) = record.what {
                ctx.meta.position = record.position;
                Client::forget_refused(ctx, at, record.origin)?;
                continue;
            }
            let own = self.own_row(ctx, &record)?;
            if own.is_none()
                && record.origin.0.replica == ctx.meta.replica
                && matches!(record.what, LogWhat::Verdict(Verdict::Accepted(_)))
            {
                let why = format!("accepts record {}, which is not pending here", record.origin);
                ctx.out.push(Output::Hangup(self.server.clone(), why));
                return Ok(());
            }
            ctx.meta.position = record.position;
            self.record(ctx, record, own)?;
        }
        ctx.meta.position = ctx.meta.position.max(upto);
        self.fetch_again.news();
        Ok(())
    }

    fn record(
        &mut self,
        ctx: &mut Context<'_>,
        record: LogRecord,
        own: Option<(Recno, Row)>,
    ) -> Result<(), StoreError> {
        let origin = record.origin;
        let last_name = if ctx.meta.snapshot.is_some() { LastName::BySender } else { LastName::ByTree };
        match (record.what, own) {
            (LogWhat::Operation(mut op), own) => {
                if let Some(content) = content_of(&op).cloned()
                    && let Some(bytes) = content.inline.clone()
                {
                    if Hash::of(&bytes) != content.hash {
                        ctx.out.push(Output::Hangup(self.server.clone(), "content with a wrong hash".into()));
                    } else if own.is_none() {
                        self.contents.insert(content.hash, bytes);
                    }
                    fill_content(&mut op, Content { inline: None, ..content });
                }
                apply::apply(&mut Tree::new(ctx.store, Which::Base), &op, last_name)?;
                self.keep_tail(ctx, record.position, &op, origin)?;
                if own.is_none() && origin.0.replica == ctx.meta.replica {
                    self.was_removed_here(ctx, &op)?;
                }
                if let Some((recno, mut row)) = own {
                    let hash = left_by(&op);
                    Cml::recognise(ctx.store, recno, &mut row, &op)?;
                    let here = row.op.object;
                    // The server may have taken a file made here for one that it had, with another content.
                    let made = matches!(row.op.kind, OpKind::Create { .. });
                    self.settle(ctx, recno, row, hash)?;
                    if made && here != op.object {
                        self.unify(ctx, here, op.object)?;
                    }
                }
                self.base_moved(ctx, &op)?;
            }
            (LogWhat::Verdict(Verdict::Accepted(hash)), Some((recno, mut row))) => {
                if let (Some(hash), Some(content)) = (hash, content_of(&row.op)) {
                    let content = Content { hash, ..content.clone() };
                    fill_content(&mut row.op, content);
                }
                let mut op = row.op.clone();
                over_what_stood_there(&View::new(ctx.store, Which::Base), &mut op)?;
                if matches!(op.kind, OpKind::Create { .. })
                    && View::new(ctx.store, Which::Base).object(op.object)?.is_some()
                {
                    // It was there already: the server took the content, and nothing else.
                    op = content_part(&op, Hash::empty()).unwrap_or(op);
                }
                apply::apply(&mut Tree::new(ctx.store, Which::Base), &op, last_name)?;
                self.keep_tail(ctx, record.position, &op, origin)?;
                self.settle(ctx, recno, row, hash)?;
            }
            (LogWhat::Verdict(Verdict::Unified(target)), Some((recno, row))) => {
                let object = row.op.object;
                self.settle(ctx, recno, row, None)?;
                if object != target {
                    self.unify(ctx, object, target)?;
                }
            }
            (LogWhat::Verdict(Verdict::Conflict(_, hash)), Some((recno, row))) => {
                if let Some(hash) = hash {
                    self.keep_refused(ctx, record.position, &row.op, origin, hash)?;
                }
                self.settle(ctx, recno, row, hash)?;
            }
            // Somebody else's, or a position without effect.
            (LogWhat::Verdict(_), None) | (LogWhat::Verdict(Verdict::Resolved(_)), Some(_)) => {}
        }
        Ok(())
    }

    /// The pending record that this one means. Recnos may come back after a power cut, incarnations tell them apart;
    /// but a record that survived the cut and was not in the durable store yet was read once more, under the new
    /// incarnation: that it is the same one, its content says.
    fn own_row(&self, ctx: &Context<'_>, record: &LogRecord) -> Result<Option<(Recno, Row)>, StoreError> {
        let tag = record.origin.0;
        if tag.replica != ctx.meta.replica {
            return Ok(None);
        }
        let recno = Recno(tag.number);
        let same = |row: &Row| match &record.what {
            LogWhat::Operation(op) => is_same(op, &row.op),
            LogWhat::Verdict(_) => false,
        };
        let row = Cml::row(ctx.store, recno)?;
        Ok(row.filter(|row| row.op.id.0.incarnation <= tag.incarnation || same(row)).map(|row| (recno, row)))
    }

    /// One of our records has its verdict. What it left on disk has this hash (or the one that was sent), and the server
    /// has that content safe.
    fn settle(
        &mut self,
        ctx: &mut Context<'_>,
        recno: Recno,
        row: Row,
        hash: Option<Hash>,
    ) -> Result<(), StoreError> {
        let object = row.op.object;
        let touched = facet::touched(&row.op);
        let settled = self.cml.settle(ctx.store, recno, hash)?;
        let sent = content_of(&row.op).map(|content| Stored { hash: content.hash, size: content.size });
        if settled == Settled::ButContent {
            self.tell_again = true;
        } else if let (Some(stored), Some(slot)) = (sent, row.slot) {
            let mut tree = Tree::new(ctx.store, Which::Local);
            if let Some(mut state) = tree.view().object(object)?
                && state.written == slot.latest
            {
                state.content = Some(stored);
                tree.set_object(object, Some(&state))?;
            }
        }
        self.cml.release_limbo(ctx.store, object, ctx.meta.last_read(), ctx.out)?;
        self.look_at(ctx, touched)
    }

    /// A record of this node's that a power cut took comes back: if it removed an object, what is left of that is nobody's
    /// update.
    fn was_removed_here(&mut self, ctx: &mut Context<'_>, op: &Operation) -> Result<(), StoreError> {
        let removed = match &op.kind {
            OpKind::Remove { .. } => op.object,
            OpKind::Rename { replaced: Some(replaced), exchange: false, .. } => replaced.object,
            _ => return Ok(()),
        };
        if View::new(ctx.store, Which::Base).object(removed)?.is_some() {
            return Ok(());
        }
        self.cml.give_up_torn(ctx.store, removed)?;
        self.cml.release_limbo(ctx.store, removed, ctx.meta.last_read(), ctx.out)?;
        self.look_at(ctx, std::collections::BTreeSet::from([Facet::Object(removed)]))
    }

    /// Our object and the server's are one: everything here takes the server's name.
    fn unify(&mut self, ctx: &mut Context<'_>, object: ObjectId, target: ObjectId) -> Result<(), StoreError> {
        let mut touched = std::collections::BTreeSet::from([Facet::Object(target)]);
        // What is under way counts: its replay may have happened already.
        let there = View::planned(ctx.store, &self.replaying.overlay).object(target)?.is_some();
        let mut tree = Tree::new(ctx.store, Which::Local);
        if there {
            // It came here by another way: one object has one lower file, so this one's names and children go there.
            touched.extend(tree.view().names(object)?.into_iter().map(|(dir, name)| Facet::Entry(dir, name)));
            let children = tree.view().children(object, usize::MAX)?;
            touched.extend(children.into_keys().map(|name| Facet::Entry(object, name)));
        } else if let Some(state) = tree.view().object(object)? {
            for (dir, name) in tree.view().names(object)? {
                tree.set_entry(dir, &name, Some(target))?;
            }
            for (name, child) in tree.view().children(object, usize::MAX)? {
                tree.set_entry(object, &name, None)?;
                tree.set_entry(target, &name, Some(child))?;
            }
            tree.set_object(object, None)?;
            tree.set_object(target, Some(&state))?;
            handle::put(ctx.store, state.file, target)?;
            ctx.renamed.push((object, target));
        }
        for recno in pending::list(ctx.store, &Facet::Object(object))? {
            let Some(row) = Cml::row(ctx.store, recno)? else { continue };
            if there && row.slot.is_some() {
                // Its content is in the file that goes: under this name it waits for the verdict. The server knows both.
                continue;
            }
            let mut op = row.op.clone();
            alias::substitute(&mut op, object, target)?;
            if matches!(op.kind, OpKind::Create { .. }) {
                // Its verdict is lost, and nobody makes another one's object.
                op.object = row.op.object;
            }
            if op != row.op {
                pending::remove(ctx.store, recno, &row.op)?;
                pending::insert(ctx.store, recno, &op)?;
                Cml::write(ctx.store, recno, &Row { op, ..row })?;
            }
        }
        // A creation that stays may still be to be read from there.
        if !Cml::has_content(ctx.store, object, Recno(0))? {
            Cml::rename_limbo(ctx.store, object, target)?;
            self.cml.release_limbo(ctx.store, target, ctx.meta.last_read(), ctx.out)?;
        }
        let base = Tree::new(ctx.store, Which::Base);
        for (name, _) in base.view().children(target, usize::MAX)? {
            touched.insert(Facet::Entry(target, name));
        }
        for (dir, name) in base.view().names(target)? {
            touched.insert(Facet::Entry(dir, name));
        }
        self.work.dir_made(target);
        self.look_at(ctx, touched)
    }
}

/// A rename of this node's went over what stood there by then, which need not be what was here.
fn over_what_stood_there(base: &View<'_>, op: &mut Operation) -> Result<(), StoreError> {
    let object = op.object;
    let OpKind::Rename { to, to_name, replaced, exchange: false, .. } = &mut op.kind else { return Ok(()) };
    let there = base.entry(*to, to_name)?.filter(|there| *there != object);
    if there == replaced.map(|replaced| replaced.object) {
        return Ok(());
    }
    *replaced = match there {
        Some(object) => {
            let row = base.object(object)?.filter(|row| row.attributes.is_file());
            let before = row.and_then(|row| row.content).map(|content| content.hash);
            Some(Replaced { object, last: base.names(object)?.len() <= 1, before })
        }
        None => None,
    };
    Ok(())
}

/// Whether both are one record of this node, read in two incarnations: the times it left on its directories are as good
/// as a number. For others it makes no difference: setting the same state twice is setting it once.
fn is_same(sent: &Operation, read: &Operation) -> bool {
    match (&sent.kind, &read.kind) {
        (OpKind::Create { name: a, dir_mtime: at, .. }, OpKind::Create { name: b, dir_mtime: then, .. })
        | (OpKind::Link { name: a, dir_mtime: at, .. }, OpKind::Link { name: b, dir_mtime: then, .. })
        | (OpKind::Remove { name: a, dir_mtime: at, .. }, OpKind::Remove { name: b, dir_mtime: then, .. })
        | (
            OpKind::Rename { to_name: a, to_mtime: at, .. },
            OpKind::Rename { to_name: b, to_mtime: then, .. },
        ) => a == b && at == then,
        // Two stores of one file have one number only by being one, or else the one that went with the power came first. What
        // was sent may have been a later content than the close had left.
        (OpKind::Close { mtime: at, .. }, OpKind::Close { mtime: then, .. }) => {
            sent.object == read.object && at >= then
        }
        _ => false,
    }
}
