//! A facet is the unit in which trees are compared and repaired: one entry, or one object's state.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use std::collections::BTreeSet;

/// What may differ between two trees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Facet {
    /// Which object a name in a directory stands for.
    Entry(ObjectId, Name),
    /// An object's content, attributes and extended attributes.
    Object(ObjectId),
}

impl Facet {
    /// Sorted key, also a prefix for rows that add to it.
    pub fn key(&self) -> Vec<u8> {
        match self {
            Facet::Entry(dir, name) => {
                let mut key = vec![0];
                key.extend_from_slice(&table::entry_key(*dir, name));
                // Names hold no NUL, so this ends the name and keeps `a` from being a prefix of `ab`.
                key.push(0);
                key
            }
            Facet::Object(object) => {
                let mut key = vec![1];
                key.extend_from_slice(&table::object_key(*object));
                key
            }
        }
    }

    /// Reads back a key of the dirty table.
    pub fn from_key(key: &[u8]) -> Option<Facet> {
        let (kind, rest) = key.split_first()?;
        let (tag, rest) = table::tag_from_key(rest)?;
        match kind {
            0 => Some(Facet::Entry(ObjectId(tag), rest.strip_suffix(&[0])?.to_vec())),
            1 => Some(Facet::Object(ObjectId(tag))),
            _ => None,
        }
    }
}

/// The facets an operation changes. Directories are named because their modification time moves.
pub fn touched(op: &Operation) -> BTreeSet<Facet> {
    let mut set = BTreeSet::new();
    match &op.kind {
        OpKind::Create { dir, name, .. }
        | OpKind::Link { dir, name, .. }
        | OpKind::Remove { dir, name, .. } => {
            set.insert(Facet::Entry(*dir, name.clone()));
            set.insert(Facet::Object(*dir));
            set.insert(Facet::Object(op.object));
        }
        OpKind::Rename { from, from_name, to, to_name, replaced, .. } => {
            set.insert(Facet::Entry(*from, from_name.clone()));
            set.insert(Facet::Entry(*to, to_name.clone()));
            set.insert(Facet::Object(*from));
            set.insert(Facet::Object(*to));
            set.insert(Facet::Object(op.object));
            if let Some(replaced) = replaced {
                set.insert(Facet::Object(replaced.object));
            }
        }
        OpKind::SetAttr { .. } | OpKind::Close { .. } | OpKind::SetXattr { .. } | OpKind::DelXattr { .. } => {
            set.insert(Facet::Object(op.object));
        }
    }
    set
}

/// The names that an operation carries.
pub fn names(op: &Operation) -> impl Iterator<Item = &Name> {
    let (one, two) = match &op.kind {
        OpKind::Create { name, .. }
        | OpKind::Link { name, .. }
        | OpKind::Remove { name, .. }
        | OpKind::SetXattr { name, .. }
        | OpKind::DelXattr { name } => (Some(name), None),
        OpKind::Rename { from_name, to_name, .. } => (Some(from_name), Some(to_name)),
        OpKind::SetAttr { .. } | OpKind::Close { .. } => (None, None),
    };
    one.into_iter().chain(two)
}

/// Which pending records touch which facets.
pub mod pending {
    use super::Facet;
    use super::ObjectId;
    use super::Operation;
    use super::Recno;
    use super::Store;
    use super::StoreError;
    use super::Table;
    use super::table;
    use super::touched;

    fn key(facet: &Facet, recno: Recno) -> Vec<u8> {
        let mut key = facet.key();
        key.extend_from_slice(&table::number_key(recno.0));
        key
    }

    /// Beside the facets: the records about an object itself. A directory is touched by every record in it, and must
    /// not make those few hard to find.
    fn own_prefix(object: ObjectId) -> Vec<u8> {
        let mut key = vec![2];
        key.extend_from_slice(&table::object_key(object));
        key
    }

    fn own_key(object: ObjectId, recno: Recno) -> Vec<u8> {
        let mut key = own_prefix(object);
        key.extend_from_slice(&table::number_key(recno.0));
        key
    }

    /// Notes a pending record.
    pub fn insert(store: &mut dyn Store, recno: Recno, op: &Operation) -> Result<(), StoreError> {
        for facet in touched(op) {
            store.put(Table::PendingFacet, &key(&facet, recno), &[])?;
        }
        store.put(Table::PendingFacet, &own_key(op.object, recno), &[])
    }

    /// Forgets it.
    pub fn remove(store: &mut dyn Store, recno: Recno, op: &Operation) -> Result<(), StoreError> {
        for facet in touched(op) {
            store.delete(Table::PendingFacet, &key(&facet, recno))?;
        }
        store.delete(Table::PendingFacet, &own_key(op.object, recno))
    }

    /// Whether any pending record touches it.
    pub fn any(store: &dyn Store, facet: &Facet) -> Result<bool, StoreError> {
        table::any_with_prefix(store, Table::PendingFacet, &facet.key())
    }

    /// The pending records that touch it, oldest first.
    pub fn list(store: &dyn Store, facet: &Facet) -> Result<Vec<Recno>, StoreError> {
        with_prefix(store, &facet.key())
    }

    /// The first that touches it after this one.
    pub fn after(store: &dyn Store, facet: &Facet, after: Recno) -> Result<Option<Recno>, StoreError> {
        first_after(store, &facet.key(), after)
    }

    /// The first about this object itself after this one.
    pub fn own_after(store: &dyn Store, object: ObjectId, after: Recno) -> Result<Option<Recno>, StoreError> {
        first_after(store, &own_prefix(object), after)
    }

    /// The last about this object itself before this one.
    pub fn own_before(
        store: &dyn Store,
        object: ObjectId,
        before: Recno,
    ) -> Result<Option<Recno>, StoreError> {
        let found = store.before(Table::PendingFacet, &own_key(object, before))?;
        Ok(found
            .and_then(|(key, _)| key.strip_prefix(&own_prefix(object)[..]).and_then(table::recno_from_key)))
    }

    /// Whether a record about something else touches the object after `after`: for a directory, whether its time moved.
    pub fn touched_after(store: &dyn Store, object: ObjectId, after: Recno) -> Result<bool, StoreError> {
        let mut at = after;
        while let Some(recno) = self::after(store, &Facet::Object(object), at)? {
            if store.get(Table::PendingFacet, &own_key(object, recno))?.is_none() {
                return Ok(true);
            }
            at = recno;
        }
        Ok(false)
    }

    fn first_after(store: &dyn Store, prefix: &[u8], after: Recno) -> Result<Option<Recno>, StoreError> {
        let mut from = prefix.to_vec();
        from.extend_from_slice(&table::number_key(after.0.saturating_add(1)));
        let found = store.scan(Table::PendingFacet, &from, 1)?.pop();
        Ok(found.and_then(|(key, _)| key.strip_prefix(prefix).and_then(table::recno_from_key)))
    }

    fn with_prefix(store: &dyn Store, prefix: &[u8]) -> Result<Vec<Recno>, StoreError> {
        let mut found = Vec::new();
        table::each_with_prefix(store, Table::PendingFacet, prefix, |key, _| {
            found.extend(key.strip_prefix(prefix).and_then(table::recno_from_key));
            Ok(())
        })?;
        Ok(found)
    }
}
