//! A record has its verdict: what of it remains to be done on this node.
//!
//! Mostly nothing. But the server says what *it* has, and the file here may hold something else: after a power cut an older
//! content than was sent, after a backup of the server a newer one. What is not known to be safe stays pending.

use super::Cml;
use super::Row;
use super::Slot;
use super::before_of;
use super::content_of;
use super::fill_content;
use super::left_by;
use crate::facet::Facet;
use crate::facet::pending;
use crate::local::TORN;
use crate::local::UNKNOWN;
use crate::store::Store;
use crate::store::StoreError;
use crate::types::Content;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Time;
use crate::types::Version;

/// What became of a record with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing of it is pending any more.
    Whole,
    /// What is in its file is not known to be safe, and still pending.
    ButContent,
}

impl Row {
    /// Whether what is in its file is what the server has, now that the server has told its verdict.
    fn is_safe(&self, told: Option<Hash>) -> bool {
        self.slot.is_none() || self.sent_with().is_some_and(|sent| told.is_none_or(|told| told == sent))
    }
}

impl Row {
    /// The version that the newest close on record left, where another one was sent: the close that left that one is
    /// about to come, or a power cut has taken both back.
    fn fell_back_to(&self, store: &dyn Store) -> Result<Option<(Slot, Version)>, StoreError> {
        let Some(slot) = self.slot.filter(|_| self.sent_with().is_some()) else { return Ok(None) };
        let left = slot.left(store, self.op.object)?;
        let differs = |left: &Version| (left.mtime, left.size) != (slot.version.mtime, slot.version.size);
        Ok(left.filter(differs).map(|left| (slot, left)))
    }
}

impl Cml {
    /// A power cut has taken the end of the journal, and all that is left of it is read: what was sent of a content that
    /// is gone says nothing of what is there. What is pending may be in limbo by a removal that no record tells any more.
    pub fn fall_back(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let mut next = Recno(0);
        while let Some((recno, mut row)) = Cml::next(store, next)? {
            next = recno;
            if let Some(slot) = row.slot {
                Cml::note_limbo(store, slot.file, row.op.object)?;
            }
            let Some((slot, left)) = row.fell_back_to(store)? else { continue };
            self.count_bytes(slot.version.size, left.size);
            row.slot = Some(Slot { version: left, ..slot });
            row.forget_content();
            leave_at(&mut row.op, left.mtime);
            Cml::write(store, recno, &row)?;
        }
        Ok(())
    }

    /// Takes a record out because it has its verdict. `hash`: the content that the server knows it by, if it says.
    pub fn settle(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        hash: Option<Hash>,
    ) -> Result<Settled, StoreError> {
        let Some(row) = Cml::row(store, recno)? else { return Ok(Settled::Whole) };
        let is_safe = row.is_safe(hash);
        // What was synced here is at least as good as what the server has got of it, which may be older.
        let is_promised = !is_safe && Cml::is_promised(store, row.op.object, recno)?;
        if !is_safe && !Cml::has_content(store, row.op.object, recno)? {
            let found = if is_promised { hash.unwrap_or(TORN) } else { TORN };
            self.keep_content(store, recno, row, found)?;
            return Ok(Settled::ButContent);
        }
        self.discard(store, recno, &row)?;
        Cml::end_promise(store, recno, &row)?;
        if let Some(left) = left_by(&row.op) {
            let is_known = is_safe || is_promised || row.sent_with().is_some();
            let found = if is_known { hash.unwrap_or(left) } else { TORN };
            Cml::hand_on(store, recno, row.op.object, found)?;
        }
        Ok(Settled::Whole)
    }

    /// What is in the file may be another content than the server has: after a power cut an older one, after a backup
    /// of the server a newer one. It is told once more, as one that takes the place of no other, unless it was synced here.
    fn keep_content(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut row: Row,
        before: Hash,
    ) -> Result<(), StoreError> {
        pending::remove(store, recno, &row.op)?;
        self.ready.remove(&recno);
        let arrived = self.under_way.remove(&recno).unwrap_or_default();
        self.under_way_bytes = self.under_way_bytes.saturating_sub(arrived);
        let mtime = left_at(&row.op).unwrap_or(row.op.time);
        let content = Content { hash: UNKNOWN, size: row.bytes(), inline: None };
        row.op.kind = OpKind::Close { before, content, mtime };
        pending::insert(store, recno, &row.op)?;
        self.look_again(recno);
        Cml::write(store, recno, &row)
    }

    /// A record that came back whole after a power cut, and whose content has been written over since: that it is the
    /// same content, its time and size say, as they do for Presto's recovery. It may have travelled with a later one.
    pub fn recognise(
        store: &mut dyn Store,
        recno: Recno,
        row: &mut Row,
        told: &Operation,
    ) -> Result<(), StoreError> {
        if row.slot.is_none() {
            return Cml::part_from(store, recno, row, told);
        }
        let Some(slot) = row.slot.filter(|_| row.sent_with().is_none()) else { return Ok(()) };
        let same = |content: &&Content| {
            let at = left_at(told);
            content.size == slot.version.size && (at == left_at(&row.op) || at == Some(slot.version.mtime))
        };
        let Some(content) = content_of(told).filter(same) else { return Ok(()) };
        if !Cml::has_content(store, row.op.object, recno)? {
            return Ok(());
        }
        fill_content(&mut row.op, Content { inline: None, ..content.clone() });
        Cml::write(store, recno, row)
    }

    /// The content that came with it may have been a later one, whose record the power cut has taken: then it is not what
    /// the next record here was made over.
    fn part_from(store: &mut dyn Store, recno: Recno, row: &Row, told: &Operation) -> Result<(), StoreError> {
        let Some(content) = content_of(told).filter(|content| left_by(&row.op) != Some(content.hash)) else {
            return Ok(());
        };
        let mut after = recno;
        while let Some(later) = pending::own_after(store, row.op.object, after)? {
            after = later;
            let Some(Row { op, slot: Some(slot) }) = Cml::row(store, later)? else { continue };
            let at = left_at(told);
            let is_it = at == left_at(&op) || at == Some(slot.version.mtime);
            if is_it && slot.version.size == content.size {
                return Ok(());
            }
        }
        Cml::hand_on(store, recno, row.op.object, TORN)
    }

    /// Record `recno` is no predecessor any more: those that had it found this content.
    pub(super) fn hand_on(
        store: &mut dyn Store,
        recno: Recno,
        object: ObjectId,
        left: Hash,
    ) -> Result<(), StoreError> {
        let mut after = recno;
        while let Some(later) = pending::after(store, &Facet::Object(object), after)? {
            after = later;
            let Some(mut row) = Cml::row(store, later)? else { continue };
            if let Some((before, found)) = before_of(&mut row.op)
                && found == object
                && *before == UNKNOWN
            {
                *before = left;
                Cml::write(store, later, &row)?;
            }
            if row.op.object == object && left_by(&row.op).is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The time of the content that a record leaves.
fn left_at(op: &Operation) -> Option<Time> {
    match &op.kind {
        OpKind::Create { attributes, .. } => Some(attributes.mtime),
        OpKind::Close { mtime, .. } => Some(*mtime),
        _ => None,
    }
}

/// The content that it carries was left at this time.
pub(super) fn leave_at(op: &mut Operation, time: Time) {
    match &mut op.kind {
        OpKind::Create { attributes, .. } => attributes.mtime = time,
        OpKind::Close { mtime, .. } => *mtime = time,
        _ => {}
    }
}

/// The part of a record that is about content alone: what is left of a creation whose object is there already.
pub fn content_part(op: &Operation, before: Hash) -> Option<Operation> {
    let (content, mtime) = match &op.kind {
        OpKind::Create { content: Some(content), attributes, .. } => (content.clone(), attributes.mtime),
        OpKind::Close { content, mtime, .. } => (content.clone(), *mtime),
        _ => return None,
    };
    Some(Operation { kind: OpKind::Close { before, content, mtime }, ..*op })
}
