//! `Cml::process_*`: one for each kind of record. Mostly it is appended; the rest is special treatment.

use super::Cml;
use super::Row;
use super::Slot;
use super::left_by;
use crate::acl;
use crate::apply;
use crate::facet::pending;
use crate::io::Output;
use crate::local::Absorbed;
use crate::local::TORN;
use crate::local::Unread;
use crate::promise;
use crate::store::Store;
use crate::store::StoreError;
use crate::types::Attributes;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Time;

impl Cml {
    /// Takes in what `Journal::pass_to_cml` found in record `recno`.
    pub fn process(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        absorbed: Absorbed,
        out: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        if let Some((file, object)) = absorbed.limbo {
            Cml::note_limbo(store, file, object)?;
        }
        let Some(op) = absorbed.operation else { return Ok(()) };
        match &op.kind {
            OpKind::Create { .. } => self.process_create(store, recno, op)?,
            OpKind::Link { .. } => self.process_link(store, recno, op)?,
            OpKind::Remove { last: true, .. } => self.process_remove_last(store, recno, op)?,
            OpKind::Remove { .. } => self.process_remove(store, recno, op)?,
            OpKind::Rename { .. } => self.process_rename(store, recno, op)?,
            OpKind::SetAttr { mask, attributes } => {
                let (mask, attributes) = (*mask, *attributes);
                self.process_setattr(store, recno, op, mask, attributes)?;
            }
            OpKind::Close { .. } => {
                if absorbed.promised {
                    promise::note(store, op.object, recno)?;
                }
                self.process_close(store, recno, op, absorbed.unread)?;
            }
            OpKind::SetXattr { name, value } => {
                let (name, value) = (name.clone(), Some(value.clone()));
                self.process_xattr(store, recno, op, &name, value)?;
            }
            OpKind::DelXattr { name } => {
                let name = name.clone();
                self.process_xattr(store, recno, op, &name, None)?;
            }
        }
        if let Some((_, object)) = absorbed.limbo {
            self.release_limbo(store, object, recno, out)?;
        }
        Ok(())
    }

    fn process_create(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
    ) -> Result<(), StoreError> {
        self.append(store, recno, op, None)
    }

    fn process_link(&mut self, store: &mut dyn Store, recno: Recno, op: Operation) -> Result<(), StoreError> {
        self.append(store, recno, op, None)
    }

    fn process_remove(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
    ) -> Result<(), StoreError> {
        self.append(store, recno, op, None)
    }

    fn process_rename(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
    ) -> Result<(), StoreError> {
        self.append(store, recno, op, None)
    }

    /// The last name goes. If the server never heard of the object, it need not hear of it at all; what remains is that
    /// the directory's modification time moved.
    fn process_remove_last(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
    ) -> Result<(), StoreError> {
        let OpKind::Remove { dir, name, dir_mtime, .. } = &op.kind else { return Ok(()) };
        // Others' records about it (an entry in it, a name taken from it) stand for something that must be told.
        let rows = self.own_rows(store, op.object)?;
        let made_here = rows.first().filter(|(_, row)| {
            matches!(&row.op.kind, OpKind::Create { dir: d, name: n, .. } if d == dir && n == name)
        });
        let plain = rows.iter().all(|(_, row)| {
            !matches!(row.op.kind, OpKind::Rename { .. } | OpKind::Link { .. } | OpKind::Remove { .. })
        });
        let alone = match made_here {
            Some((made, _)) if plain => !pending::touched_after(store, op.object, *made)?,
            _ => false,
        };
        if !alone {
            return self.append(store, recno, op, None);
        }
        for (at, row) in &rows {
            self.discard(store, *at, row)?;
        }
        let attributes = Attributes { mtime: *dir_mtime, ..Attributes::default() };
        self.touch_time(store, recno, op.id, op.time, *dir, attributes)
    }

    /// Attributes go into the object's unsent creation, or into its newest record where that can carry them.
    fn process_setattr(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
        mask: Mask,
        new: Attributes,
    ) -> Result<(), StoreError> {
        // What happens in a directory moves its time as well, so its time may not be told any earlier than that.
        let mut rows = self.own_rows(store, op.object)?;
        if mask.has(Mask::MTIME) {
            let mut late = Vec::new();
            for (at, row) in rows.into_iter().rev() {
                if pending::touched_after(store, op.object, at)? {
                    break;
                }
                late.insert(0, (at, row));
            }
            rows = late;
        }
        if let Some((at, mut row)) = creation(&rows) {
            // A later record that tells the time as well would put an older one in its place.
            let timed = rows.iter().rfind(|(later, row)| *later > at && tells_time(&row.op.kind)).cloned();
            if let OpKind::Create { attributes, xattrs, .. } = &mut row.op.kind {
                let mask = if timed.is_some() { mask.without(Mask::MTIME) } else { mask };
                fold_attributes(attributes, xattrs, mask, &new);
            }
            if let Some((later, mut timed)) = timed.filter(|_| mask.has(Mask::MTIME)) {
                set_time(&mut timed.op.kind, new.mtime);
                Cml::write(store, later, &timed)?;
            }
            return Cml::write(store, at, &row);
        }
        if let Some((at, mut row)) = rows.last().cloned() {
            match &mut row.op.kind {
                OpKind::SetAttr { mask: earlier, attributes } => {
                    let merged = earlier.with(mask);
                    // chmod, then chown: the kernel took bits from the mode in between.
                    let mtime = if mask.has(Mask::MTIME) { new.mtime } else { attributes.mtime };
                    let mode = if new.mode == 0 { attributes.mode } else { new.mode };
                    *attributes = if mask == Mask::MTIME {
                        Attributes { mtime, ..*attributes }
                    } else {
                        Attributes { mtime, mode, ..new }
                    };
                    *earlier = merged;
                    return Cml::write(store, at, &row);
                }
                OpKind::Close { mtime, .. } if mask == Mask::MTIME => {
                    *mtime = new.mtime;
                    return Cml::write(store, at, &row);
                }
                _ => {}
            }
        }
        self.append(store, recno, op, None)
    }

    /// The newest content takes the place of the oldest unsent record that stands for a content of this object. Any others
    /// go: what they stood for is older, and would come after it.
    fn process_close(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
        unread: Option<Unread>,
    ) -> Result<(), StoreError> {
        let slot = unread.map(|unread| Slot::new(unread, recno));
        let own = self.own_rows(store, op.object)?;
        let mut earlier = own.into_iter().filter(|(_, row)| left_by(&row.op).is_some());
        let Some((at, mut row)) = earlier.next() else { return self.append(store, recno, op, slot) };
        for (older, row) in earlier {
            self.discard(store, older, &row)?;
        }
        let before = row.bytes();
        row.slot = slot;
        row.forget_content();
        self.count_bytes(before, row.bytes());
        match (&mut row.op.kind, &op.kind) {
            (OpKind::Create { attributes, xattrs, .. }, _) => drop_privileges(attributes, xattrs),
            (OpKind::Close { before, .. }, OpKind::Close { before: TORN, .. })
                if !Cml::is_promised(store, op.object, at)? =>
            {
                *before = TORN
            }
            _ => {}
        }
        Cml::write(store, at, &row)?;
        self.ready.remove(&at);
        self.look_again(at);
        let OpKind::Close { mtime, .. } = op.kind else { return Ok(()) };
        let attributes = Attributes { mtime, ..Attributes::default() };
        self.touch_time(store, recno, op.id, op.time, op.object, attributes)
    }

    fn process_xattr(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        op: Operation,
        name: &Name,
        value: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let rows = self.own_rows(store, op.object)?;
        if let Some((at, mut row)) = creation(&rows) {
            if let OpKind::Create { attributes, xattrs, .. } = &mut row.op.kind {
                xattrs.retain(|(n, _)| n != name);
                if let Some(value) = value {
                    if name == acl::ACCESS {
                        attributes.mode = acl::mode_with(attributes.mode, &value);
                    }
                    xattrs.push((name.clone(), value));
                }
            }
            return Cml::write(store, at, &row);
        }
        if let Some((at, mut row)) = rows.last().cloned() {
            let same = match &row.op.kind {
                OpKind::SetXattr { name: n, .. } | OpKind::DelXattr { name: n } => n == name,
                _ => false,
            };
            if same {
                row.op.kind = op.kind;
                return Cml::write(store, at, &row);
            }
        }
        self.append(store, recno, op, None)
    }

    fn touch_time(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        id: crate::types::OpId,
        time: Time,
        object: ObjectId,
        attributes: Attributes,
    ) -> Result<(), StoreError> {
        let kind = OpKind::SetAttr { mask: Mask::MTIME, attributes };
        let op = Operation { id, time, object, kind };
        self.process_setattr(store, recno, op, Mask::MTIME, attributes)
    }

    /// The records about the object itself that may still be treated, oldest first.
    fn own_rows(&self, store: &dyn Store, object: ObjectId) -> Result<Vec<(Recno, Row)>, StoreError> {
        let mut rows = Vec::new();
        let mut at = self.frozen;
        while let Some(recno) = pending::own_after(store, object, at)? {
            rows.extend(Cml::row(store, recno)?.map(|row| (recno, row)));
            at = recno;
        }
        Ok(rows)
    }
}

/// The record among these that makes the object.
fn creation(rows: &[(Recno, Row)]) -> Option<(Recno, Row)> {
    rows.iter().find(|(_, row)| matches!(row.op.kind, OpKind::Create { .. })).cloned()
}

fn tells_time(kind: &OpKind) -> bool {
    match kind {
        OpKind::SetAttr { mask, .. } => mask.has(Mask::MTIME),
        OpKind::Close { .. } => true,
        _ => false,
    }
}

fn set_time(kind: &mut OpKind, time: Time) {
    match kind {
        OpKind::SetAttr { attributes, .. } => attributes.mtime = time,
        OpKind::Close { mtime, .. } => *mtime = time,
        _ => {}
    }
}

fn fold_attributes(
    attributes: &mut Attributes,
    xattrs: &mut Vec<(Name, Vec<u8>)>,
    mask: Mask,
    new: &Attributes,
) {
    with_object(attributes, xattrs, |object| apply::set_attributes(object, mask, new));
}

fn drop_privileges(attributes: &mut Attributes, xattrs: &mut Vec<(Name, Vec<u8>)>) {
    with_object(attributes, xattrs, apply::drop_privileges);
}

fn with_object(
    attributes: &mut Attributes,
    xattrs: &mut Vec<(Name, Vec<u8>)>,
    change: impl FnOnce(&mut crate::tree::Object),
) {
    let mut object = crate::tree::Object {
        attributes: *attributes,
        xattrs: std::mem::take(xattrs).into_iter().collect(),
        ..crate::tree::Object::default()
    };
    change(&mut object);
    *attributes = object.attributes;
    *xattrs = object.xattrs.into_iter().collect();
}
