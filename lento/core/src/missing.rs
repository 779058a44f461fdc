//! Which files of the local tree lack their content: an index beside the tree, and its sum.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::types::ObjectId;

/// Where the sum stands.
const SUM: &[u8] = b"missing bytes";

/// How much lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Files.
    pub files: u64,
    /// What is not here of them.
    pub bytes: u64,
}

/// An object of the local tree is like this now.
pub(crate) fn note(store: &mut dyn Store, id: ObjectId, object: Option<&Object>) -> Result<(), StoreError> {
    let now = object.filter(|object| object.missing).map(|object| object.version.size);
    if now.is_none() && store.len(Table::Missing)? == 0 {
        return Ok(());
    }
    let key = table::object_key(id);
    let before: Option<u64> = table::get(store, Table::Missing, &key)?;
    if now == before {
        return Ok(());
    }
    match &now {
        Some(size) => table::put(store, Table::Missing, &key, size)?,
        None => store.delete(Table::Missing, &key)?,
    }
    let sum: Option<u64> = table::get(store, Table::Meta, SUM)?;
    let sum = sum.unwrap_or(0).saturating_sub(before.unwrap_or(0)).saturating_add(now.unwrap_or(0));
    table::put(store, Table::Meta, SUM, &sum)
}

/// The sum.
pub(crate) fn sum(store: &dyn Store) -> Result<Missing, StoreError> {
    let bytes: Option<u64> = table::get(store, Table::Meta, SUM)?;
    Ok(Missing { files: store.len(Table::Missing)?, bytes: bytes.unwrap_or(0) })
}

/// Some of them, behind this one.
pub(crate) fn page(
    store: &dyn Store,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<ObjectId>, StoreError> {
    let mut from = after.map(table::object_key).unwrap_or_default();
    from.push(0);
    let from = if after.is_some() { from } else { Vec::new() };
    let rows = store.scan(Table::Missing, &from, limit)?;
    Ok(rows.iter().filter_map(|(key, _)| table::tag_from_key(key).map(|(tag, _)| ObjectId(tag))).collect())
}
