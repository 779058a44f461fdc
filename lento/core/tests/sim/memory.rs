//! The store as a map, with what a crash would leave.

use lento_core::store::Row;
use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::store::Table;
use std::collections::BTreeMap;
use std::ops::Bound;

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Committed at once; durable only when told.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    rows: Rows,
    durable: Rows,
}

impl Memory {
    pub fn make_durable(&mut self) {
        self.durable = self.rows.clone();
    }

    pub fn crash(&mut self) {
        self.rows = self.durable.clone();
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

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.rows.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.rows.remove(&(table, key.to_vec()));
        Ok(())
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        self.rows.retain(|(t, _), _| *t != table);
        Ok(())
    }
}
