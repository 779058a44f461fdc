//! A store that remembers what stood in the local tree where somebody writes.

use super::Before;
use crate::store::Row;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::types::Attributes;
use crate::types::ObjectId;
use std::collections::BTreeSet;

type Found = (Table, Vec<u8>, Option<Vec<u8>>);

/// Lies over the transaction while one record is read.
pub struct Recording<'a> {
    store: &'a mut dyn Store,
    found: Vec<Found>,
    seen: BTreeSet<(Table, Vec<u8>)>,
}

impl<'a> Recording<'a> {
    pub fn new(store: &'a mut dyn Store) -> Recording<'a> {
        Recording { store, found: Vec::new(), seen: BTreeSet::new() }
    }

    fn note(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        if matches!(table, Table::LocalObject | Table::LocalEntry) && self.seen.insert((table, key.to_vec()))
        {
            self.found.push((table, key.to_vec(), self.store.get(table, key)?));
        }
        Ok(())
    }

    /// What is no longer as it was.
    pub fn into_before(self) -> Result<Vec<Before>, StoreError> {
        let mut list = Vec::new();
        for (table, key, found) in self.found {
            let now = self.store.get(table, &key)?;
            if found != now {
                list.extend(before(table, &key, found.as_deref(), now.as_deref())?);
            }
        }
        Ok(list)
    }
}

fn before(
    table: Table,
    key: &[u8],
    found: Option<&[u8]>,
    now: Option<&[u8]>,
) -> Result<Option<Before>, StoreError> {
    let Some((tag, name)) = table::tag_from_key(key) else {
        return Err(StoreError(format!("a key of {table:?} cannot be read")));
    };
    let id = ObjectId(tag);
    if table == Table::LocalEntry {
        let object = found.map(|value| table::decode(table, value)).transpose()?;
        return Ok(Some(Before::Entry(id, name.to_vec(), object)));
    }
    let decode = |value: Option<&[u8]>| value.map(|value| table::decode::<Object>(table, value)).transpose();
    let (found, now) = (decode(found)?, decode(now)?);
    if let (Some(found), Some(now)) = (&found, now)
        && found.attributes.is_dir()
    {
        let time = found.attributes.mtime;
        let attributes = Attributes { mtime: time, ..now.attributes };
        if (Object { attributes, version: found.version, ..now }) == *found {
            return Ok(Some(Before::Time(id, time)));
        }
    }
    Ok(Some(Before::Object(id, found)))
}

impl Store for Recording<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.store.scan(table, from, limit)
    }

    fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError> {
        self.store.before(table, before)
    }

    fn len(&self, table: Table) -> Result<u64, StoreError> {
        self.store.len(table)
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.note(table, key)?;
        self.store.put(table, key, value)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.note(table, key)?;
        self.store.delete(table, key)
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        self.store.clear(table)
    }
}
