//! The store as a map, with what a crash would leave.

use lento_core::store::Row;
use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::store::Table;
use std::collections::BTreeMap;
use std::ops::Bound;

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// One transaction after another; durable only when told.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    rows: Rows,
    durable: Rows,
    /// What the transaction found where it wrote.
    found: Vec<((Table, Vec<u8>), Option<Vec<u8>>)>,
}

impl Memory {
    pub fn commit(&mut self) {
        self.found.clear();
    }

    pub fn abort(&mut self) {
        for (key, found) in self.found.drain(..).rev() {
            match found {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    pub fn make_durable(&mut self) {
        self.durable = self.rows.clone();
    }

    pub fn crash(&mut self) {
        self.rows = self.durable.clone();
        self.found.clear();
    }
}

impl Store for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let range = (Bound::Included((table, from.to_vec())), Bound::Unbounded);
        Ok(self
            .rows
            .range(range)
            .take_while(|((t, _), _)| *t == table)
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError> {
        let last = self.rows.range(..(table, before.to_vec())).next_back();
        Ok(last.filter(|((t, _), _)| *t == table).map(|((_, key), value)| (key.clone(), value.clone())))
    }

    fn len(&self, table: Table) -> Result<u64, StoreError> {
        Ok(self.rows.keys().filter(|(t, _)| *t == table).count() as u64)
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let key = (table, key.to_vec());
        let found = self.rows.insert(key.clone(), value.to_vec());
        self.found.push((key, found));
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        let key = (table, key.to_vec());
        let found = self.rows.remove(&key);
        self.found.push((key, found));
        Ok(())
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        let gone = self.rows.extract_if(.., |(t, _), _| *t == table);
        self.found.extend(gone.map(|(key, value)| (key, Some(value))));
        Ok(())
    }
}
