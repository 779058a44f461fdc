//! Conflicts that are one to people: what a client made in a directory that was removed meanwhile, or in something else of
//! its own that was refused, and what it then did to that.
//!
//! Owns which refused objects there are and to which conflict each belongs. It is rebuilt from the rows.

use super::ConflictRow;
use crate::types::ConflictKind;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// See the module.
#[derive(Debug, Default)]
pub struct Groups {
    /// Objects whose creation was refused: the conflict that they belong to, and where they would be.
    made: BTreeMap<ObjectId, (Recno, String)>,
    /// Directories that were gone when this replica made something in them.
    gone: BTreeMap<(u64, ObjectId), Recno>,
    members: BTreeMap<Recno, BTreeSet<Recno>>,
}

impl Groups {
    /// The conflict that a new row is a part of.
    pub fn head_for(&self, row: &ConflictRow) -> Option<Recno> {
        let op = row.op.as_ref()?;
        let of = |object: ObjectId| self.made.get(&object).map(|(head, _)| *head);
        let dir = place(op).map(|(dir, _)| dir);
        let gone = || {
            let dir = dir.filter(|_| row.kind == ConflictKind::ParentGone)?;
            self.gone.get(&(row.record.0.replica, dir)).copied()
        };
        dir.and_then(of).or_else(gone).or_else(|| of(op.object))
    }

    /// Where a refused object would be.
    pub fn path(&self, object: ObjectId) -> Option<&str> {
        self.made.get(&object).map(|(_, path)| path.as_str())
    }

    /// Those that belong to this one, oldest first.
    pub fn members(&self, head: Recno) -> impl Iterator<Item = Recno> + '_ {
        self.members.get(&head).into_iter().flatten().copied()
    }

    pub(super) fn join(&mut self, recno: Recno, group: Option<Recno>, row: &ConflictRow) {
        let head = group.unwrap_or(recno);
        if head != recno {
            self.members.entry(head).or_default().insert(recno);
        }
        let Some(op) = &row.op else { return };
        if matches!(op.kind, OpKind::Create { .. }) {
            self.made.insert(op.object, (head, row.path.clone()));
        }
        if row.kind == ConflictKind::ParentGone
            && let Some((dir, _)) = place(op)
        {
            self.gone.entry((row.record.0.replica, dir)).or_insert(head);
        }
    }

    pub(super) fn leave(&mut self, recno: Recno, group: Option<Recno>) {
        let head = group.unwrap_or(recno);
        let members = self.members.get_mut(&head);
        let is_empty = members.is_none_or(|members| {
            members.remove(&recno);
            members.is_empty()
        });
        if is_empty {
            self.members.remove(&head);
        }
        if head == recno {
            self.made.retain(|_, (of, _)| *of != head);
            self.gone.retain(|_, of| *of != head);
        }
    }
}

/// The directory and the name under which an operation puts something, or from which it takes something.
pub fn place(op: &Operation) -> Option<(ObjectId, &Name)> {
    match &op.kind {
        OpKind::Create { dir, name, .. }
        | OpKind::Link { dir, name, .. }
        | OpKind::Remove { dir, name, .. } => Some((*dir, name)),
        OpKind::Rename { to, to_name, .. } => Some((*to, to_name)),
        OpKind::SetAttr { .. } | OpKind::Close { .. } | OpKind::SetXattr { .. } | OpKind::DelXattr { .. } => {
            None
        }
    }
}
