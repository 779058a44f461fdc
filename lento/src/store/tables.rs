//! The core's tables inside one redb transaction. Each is opened when first used and stays open until the end.

use super::failed;
use super::redo::Changes;
use lento_core::store::Row;
use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::store::Table;
use redb::ReadTransaction;
use redb::ReadableTable;
use redb::ReadableTableMetadata;
use redb::TableDefinition;
use redb::TableError;
use redb::WriteTransaction;
use std::cell::RefCell;
use std::path::Path;

type Bytes = &'static [u8];
type Definition = TableDefinition<'static, Bytes, Bytes>;

/// Name of a table on disk.
fn definition(table: Table) -> Definition {
    TableDefinition::new(match table {
        Table::Meta => "meta",
        Table::LocalObject => "local-object",
        Table::LocalEntry => "local-entry",
        Table::LocalName => "local-name",
        Table::Handle => "handle",
        Table::BaseObject => "base-object",
        Table::BaseEntry => "base-entry",
        Table::BaseName => "base-name",
        Table::Pending => "pending",
        Table::PendingFacet => "pending-facet",
        Table::Dirty => "dirty",
        Table::Log => "log",
        Table::Replicator => "replicator",
        Table::Judged => "judged",
        Table::Alias => "alias",
        Table::Conflict => "conflict",
        Table::Limbo => "limbo",
        Table::Verdict => "verdict",
        Table::Tail => "tail",
        Table::Torn => "torn",
        Table::Standing => "standing",
        Table::Held => "held",
        Table::Missing => "missing",
        Table::History => "history",
    })
}

fn get_from(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
) -> Result<Option<Vec<u8>>, redb::StorageError> {
    Ok(table.get(key)?.map(|value| value.value().to_vec()))
}

fn scan_from(
    table: &impl ReadableTable<Bytes, Bytes>,
    from: &[u8],
    limit: usize,
) -> Result<Vec<Row>, redb::StorageError> {
    let mut rows = Vec::new();
    for row in table.range::<&[u8]>(from..)?.take(limit) {
        let (key, value) = row?;
        rows.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(rows)
}

fn before_in(
    table: &impl ReadableTable<Bytes, Bytes>,
    before: &[u8],
) -> Result<Option<Row>, redb::StorageError> {
    let row = table.range::<&[u8]>(..before)?.next_back().transpose()?;
    Ok(row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
}

/// One slot for each table, by its number.
struct Slots<T>([RefCell<Option<T>>; Table::ALL.len()]);

impl<T> Slots<T> {
    fn new() -> Slots<T> {
        Slots(std::array::from_fn(|_| RefCell::new(None)))
    }

    fn of(&self, table: Table) -> Result<&RefCell<Option<T>>, StoreError> {
        self.0.get(table as usize).ok_or_else(|| StoreError(format!("no table {table:?}")))
    }
}

/// Tables of a write transaction.
pub(super) struct WriteTables<'txn, 'path> {
    transaction: &'txn WriteTransaction,
    path: &'path Path,
    open: Slots<redb::Table<'txn, Bytes, Bytes>>,
    /// What was written, where somebody wants to know.
    changes: Option<Changes>,
}

impl<'txn, 'path> WriteTables<'txn, 'path> {
    pub(super) fn new(transaction: &'txn WriteTransaction, path: &'path Path) -> Self {
        WriteTables { transaction, path, open: Slots::new(), changes: Some(Changes::default()) }
    }

    /// For what is written down already.
    pub(super) fn unnoted(transaction: &'txn WriteTransaction, path: &'path Path) -> Self {
        WriteTables { changes: None, ..WriteTables::new(transaction, path) }
    }

    /// What was written.
    pub(super) fn into_changes(self) -> Changes {
        self.changes.unwrap_or_default()
    }

    fn with<R, E: std::fmt::Display>(
        &self,
        table: Table,
        run: impl FnOnce(&mut redb::Table<'txn, Bytes, Bytes>) -> Result<R, E>,
    ) -> Result<R, StoreError> {
        let mut slot = self.open.of(table)?.borrow_mut();
        let open = match slot.as_mut() {
            Some(open) => open,
            None => slot.insert(
                self.transaction.open_table(definition(table)).map_err(|error| failed(self.path, error))?,
            ),
        };
        run(open).map_err(|error| failed(self.path, error))
    }
}

impl Store for WriteTables<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(table, |open| get_from(open, key))
    }

    fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.with(table, |open| scan_from(open, from, limit))
    }

    fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError> {
        self.with(table, |open| before_in(open, before))
    }

    fn len(&self, table: Table) -> Result<u64, StoreError> {
        self.with(table, |open| open.len())
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if let Some(changes) = &mut self.changes {
            changes.put(table, key, value);
        }
        self.with(table, |open| open.insert(key, value).map(drop))
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        if let Some(changes) = &mut self.changes {
            changes.delete(table, key);
        }
        self.with(table, |open| open.remove(key).map(drop))
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        if let Some(changes) = &mut self.changes {
            changes.clear(table);
        }
        // An open table cannot be deleted; the next use makes it anew.
        self.open.of(table)?.borrow_mut().take();
        self.transaction.delete_table(definition(table)).map(drop).map_err(|error| failed(self.path, error))
    }
}

/// Tables of a read transaction. A table that was never written is empty.
pub(super) struct ReadTables<'txn, 'path> {
    transaction: &'txn ReadTransaction,
    path: &'path Path,
    open: Slots<redb::ReadOnlyTable<Bytes, Bytes>>,
}

impl<'txn, 'path> ReadTables<'txn, 'path> {
    pub(super) fn new(transaction: &'txn ReadTransaction, path: &'path Path) -> Self {
        ReadTables { transaction, path, open: Slots::new() }
    }

    fn with<R: Default>(
        &self,
        table: Table,
        run: impl FnOnce(&redb::ReadOnlyTable<Bytes, Bytes>) -> Result<R, redb::StorageError>,
    ) -> Result<R, StoreError> {
        let mut slot = self.open.of(table)?.borrow_mut();
        let open = match slot.as_mut() {
            Some(open) => open,
            None => match self.transaction.open_table(definition(table)) {
                Ok(open) => slot.insert(open),
                Err(TableError::TableDoesNotExist(_)) => return Ok(R::default()),
                Err(error) => return Err(failed(self.path, error)),
            },
        };
        run(open).map_err(|error| failed(self.path, error))
    }

    fn read_only(&self) -> StoreError {
        failed(self.path, "a read transaction was asked to write")
    }
}

impl Store for ReadTables<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(table, |open| get_from(open, key))
    }

    fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.with(table, |open| scan_from(open, from, limit))
    }

    fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError> {
        self.with(table, |open| before_in(open, before))
    }

    fn len(&self, table: Table) -> Result<u64, StoreError> {
        self.with(table, |open| open.len())
    }

    fn put(&mut self, _: Table, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        Err(self.read_only())
    }

    fn delete(&mut self, _: Table, _: &[u8]) -> Result<(), StoreError> {
        Err(self.read_only())
    }

    fn clear(&mut self, _: Table) -> Result<(), StoreError> {
        Err(self.read_only())
    }
}
