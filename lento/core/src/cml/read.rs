//! Reading contents for records that are about to be sent.

use super::Cml;
use super::Row;
use super::Slot;
use super::fill_content;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReadResult;
use crate::local::UNKNOWN;
use crate::promise;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::Hash;
use crate::types::Mask;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Tag;
use crate::types::Ticket;

/// Attempts before what was read is taken although the file has moved on; the rest follows in a record of its own.
const PATIENCE: u32 = 3;
/// Attempts at a file that changes each time while it is read, before it lets the records behind it pass.
const RESTLESS: u32 = 10;

/// What to do after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRead {
    /// The record is ready, or gone.
    GoOn,
    /// Try again at once.
    Again,
    /// Try again a little later, and tell people why.
    Later,
}

impl Cml {
    /// Begins to read the content of a record unless that is under way or done.
    pub fn want_content(
        &mut self,
        recno: Recno,
        slot: Slot,
        next_recno: Recno,
        server: &NodeName,
        ticket: impl FnOnce() -> Ticket,
        out: &mut Vec<Output>,
    ) {
        if self.ready.contains_key(&recno) || self.is_being_read(recno) {
            return;
        }
        let ticket = ticket();
        self.reads.insert(ticket, (recno, next_recno));
        out.push(Output::ReadContent { ticket, file: slot.file, stage_at: Some(server.clone()) });
    }

    /// Whether the content of this record is on its way.
    pub fn is_being_read(&self, recno: Recno) -> bool {
        self.reads.values().any(|(at, _)| *at == recno)
    }

    /// Number of reads under way.
    pub fn reading(&self) -> usize {
        self.reads.len()
    }

    /// Number of contents read for records that were not sent yet.
    pub fn at_hand(&self) -> usize {
        self.ready.len()
    }

    /// A content was read.
    pub fn content_read(
        &mut self,
        store: &mut dyn Store,
        ticket: Ticket,
        result: ReadResult,
    ) -> Result<AfterRead, StoreError> {
        let Some((recno, began_before)) = self.reads.remove(&ticket) else { return Ok(AfterRead::GoOn) };
        let after = self.content_of(store, recno, began_before, result)?;
        if !self.ready.contains_key(&recno) {
            self.look_again(recno);
        }
        Ok(after)
    }

    fn content_of(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        began_before: Recno,
        result: ReadResult,
    ) -> Result<AfterRead, StoreError> {
        let Some(row) = Cml::row(store, recno)? else { return Ok(AfterRead::GoOn) };
        let Some(slot) = row.slot else { return Ok(AfterRead::GoOn) };
        let (hash, size, version, racy, inline) = match result {
            ReadResult::Whole { hash, size, version, racy, inline } => (hash, size, version, racy, inline),
            ReadResult::Failed(_) => return Ok(AfterRead::Later),
            ReadResult::Unstable => {
                if self.tried(recno) < RESTLESS {
                    return Ok(AfterRead::Later);
                }
                if is_removed(store, row.op.object)? {
                    // Removed while somebody writes: no close of it comes any more, and nobody has to see this content.
                    self.without_content(store, recno, row)?;
                    return Ok(AfterRead::GoOn);
                }
                self.let_pass(store, recno, row, slot)?;
                return Ok(AfterRead::Later);
            }
            // Its content is in another file by now.
            ReadResult::Gone if slot.latest >= began_before => return Ok(AfterRead::Again),
            ReadResult::Gone => {
                self.without_content(store, recno, row)?;
                return Ok(AfterRead::GoOn);
            }
        };
        let covers = slot.latest < began_before || (version == slot.version && !racy);
        if !covers {
            if self.tried(recno) < PATIENCE {
                return Ok(AfterRead::Again);
            }
            if !self.split(store, recno, row.clone(), slot)? {
                return Ok(AfterRead::Later);
            }
        }
        self.troubled.remove(&recno);
        if covers && is_told(&row.op, hash) && is_removed(store, row.op.object)? {
            self.without_content(store, recno, row)?;
            return Ok(AfterRead::GoOn);
        }
        self.ready.insert(recno, (Content { hash, size, inline }, version));
        if covers
            && let Some(mut object) = Tree::new(store, Which::Local).view().object(row.op.object)?
            && object.written == slot.latest
        {
            object.content = Some(Stored { hash, size });
            Tree::new(store, Which::Local).set_object(row.op.object, Some(&object))?;
        }
        Ok(AfterRead::GoOn)
    }

    /// Objects whose content cannot be sent since they are never quiet, a few of them.
    pub fn restless(&self, store: &dyn Store) -> Result<Vec<ObjectId>, StoreError> {
        let records = self.troubled.iter().filter(|(_, tries)| **tries >= PATIENCE).take(3);
        records
            .map(|(recno, _)| Ok(Cml::row(store, *recno)?.map(|row| row.op.object)))
            .filter_map(Result::transpose)
            .collect()
    }

    /// How often the content of this record was read in vain by now.
    fn tried(&mut self, recno: Recno) -> u32 {
        let tries = self.troubled.entry(recno).or_default();
        *tries = tries.saturating_add(1);
        *tries
    }

    /// The file moved on while it was read: what was read goes now, the newest close gets its record back. `false`: that
    /// record stands for something else by now.
    fn split(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut row: Row,
        slot: Slot,
    ) -> Result<bool, StoreError> {
        if !self.make_room(store, row.op.object, slot.latest)? {
            return Ok(false);
        }
        // What was sent of it may have been another version.
        let left = slot.left(store, row.op.object)?;
        let slot = Slot { version: left.unwrap_or(slot.version), ..slot };
        let later = newest_close(&row, slot, UNKNOWN);
        row.slot = Some(Slot { latest: recno, ..slot });
        Cml::write(store, recno, &row)?;
        self.append(store, slot.latest, later, Some(slot))?;
        Ok(true)
    }

    /// The file is never quiet, and others' records wait for this one: its newest close gets a record of its own, with all
    /// that this one stood for. There is one as long as the file changes, so it gets behind what waits now. A new file goes
    /// empty meanwhile, since what is done with it needs its creation.
    fn let_pass(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut row: Row,
        slot: Slot,
    ) -> Result<(), StoreError> {
        if slot.latest <= recno
            || recno <= self.frozen
            || !self.make_room(store, row.op.object, slot.latest)?
        {
            return Ok(());
        }
        let object = row.op.object;
        let later = if let OpKind::Close { before, .. } = row.op.kind {
            self.discard(store, recno, &row)?;
            newest_close(&row, slot, before)
        } else {
            self.count_bytes(row.bytes(), 0);
            row.slot = None;
            row.forget_content();
            Cml::write(store, recno, &row)?;
            self.troubled.remove(&recno);
            newest_close(&row, slot, UNKNOWN)
        };
        // What an fsync has promised is in the file, or something later.
        if promise::of(store, object)?.is_some_and(|promise| recno <= promise && promise < slot.latest) {
            promise::note(store, object, slot.latest)?;
        }
        self.troubled.insert(slot.latest, PATIENCE);
        self.append(store, slot.latest, later, Some(slot))
    }

    /// Takes what a folded close has left under its number: the file's new time. `false`: there is something else.
    fn make_room(
        &mut self,
        store: &mut dyn Store,
        object: ObjectId,
        recno: Recno,
    ) -> Result<bool, StoreError> {
        let Some(time) = Cml::row(store, recno)? else { return Ok(true) };
        let is_time = matches!(time.op.kind, OpKind::SetAttr { mask: Mask::MTIME, .. });
        if !is_time || time.op.object != object {
            return Ok(false);
        }
        self.discard(store, recno, &time)?;
        Ok(true)
    }

    /// The file no longer exists anywhere: a creation goes empty, a close means nothing any more.
    fn without_content(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut row: Row,
    ) -> Result<(), StoreError> {
        if let OpKind::Close { before, .. } = row.op.kind {
            self.discard(store, recno, &row)?;
            return if before == UNKNOWN {
                Ok(())
            } else {
                Cml::hand_on(store, recno, row.op.object, before)
            };
        }
        self.count_bytes(row.bytes(), 0);
        row.slot = None;
        fill_content(&mut row.op, Content { hash: Hash::empty(), size: 0, inline: Some(Vec::new()) });
        Cml::write(store, recno, &row)
    }
}

/// A close that a power cut has left without the note that the server knows this very content.
fn is_told(op: &Operation, hash: Hash) -> bool {
    matches!(op.kind, OpKind::Close { before, .. } if before == hash)
}

/// Its removal tells all that is left to tell.
fn is_removed(store: &dyn Store, object: ObjectId) -> Result<bool, StoreError> {
    Ok(View::new(store, Which::Local).names(object)?.is_empty())
}

/// The newest close that a row stands for, as a record of its own.
fn newest_close(row: &Row, slot: Slot, before: Hash) -> Operation {
    let id = OpId(Tag { number: slot.latest.0, ..row.op.id.0 });
    let content = Content { hash: UNKNOWN, size: slot.version.size, inline: None };
    let kind = OpKind::Close { before, content, mtime: slot.version.mtime };
    Operation { id, time: row.op.time, object: row.op.object, kind }
}
