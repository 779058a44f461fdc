//! The table of conflicts: what was refused, by the position of its verdict.
//!
//! Owns how many there are, and which store of each client over which file was refused last: what the client then stores over
//! that loser is the same conflict, further on. Whoever wrote it had seen the earlier one, so one row is enough for people.

use super::ConflictRow;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Recno;
use std::collections::BTreeMap;

/// What is kept in memory of them.
#[derive(Debug, Default)]
pub struct Conflicts {
    count: u64,
    newest: Recno,
    /// By the client's replica and the file.
    stores: BTreeMap<(u64, ObjectId), (Recno, Hash)>,
}

impl Conflicts {
    /// Reads the table.
    pub fn load(store: &dyn Store) -> Result<Conflicts, StoreError> {
        let mut conflicts = Conflicts::default();
        table::each_with_prefix(store, Table::Conflict, &[], |key, value| {
            let row: ConflictRow = table::decode(Table::Conflict, value)?;
            conflicts.note(Recno(table::number_from_key(key).unwrap_or_default()), &row);
            Ok(())
        })?;
        Ok(conflicts)
    }

    /// Adds one, in the place of the one that it goes on with.
    pub fn add(&mut self, store: &mut dyn Store, recno: Recno, row: &ConflictRow) -> Result<(), StoreError> {
        if let Some(earlier) = self.continued(row).filter(|earlier| *earlier != recno) {
            store.delete(Table::Conflict, &table::number_key(earlier.0))?;
            self.count = self.count.saturating_sub(1);
        }
        self.note(recno, row);
        table::put(store, Table::Conflict, &table::number_key(recno.0), row)
    }

    /// The loser of one that is listed has changed.
    pub fn change(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        row: &ConflictRow,
    ) -> Result<(), StoreError> {
        let key = table::number_key(recno.0);
        if store.get(Table::Conflict, &key)?.is_none() {
            // Resolved, and more was left since: that is news.
            self.note(recno, row);
        } else if let Some((key, _, hash)) = stored(row) {
            self.stores.insert(key, (recno, hash));
        }
        table::put(store, Table::Conflict, &key, row)
    }

    /// Somebody has resolved it: its record, whose content can go. `None`: there is no such conflict.
    pub fn resolve(&mut self, store: &mut dyn Store, recno: Recno) -> Result<Option<OpId>, StoreError> {
        let key = table::number_key(recno.0);
        let Some(row) = table::get::<ConflictRow>(store, Table::Conflict, &key)? else { return Ok(None) };
        self.count = self.count.saturating_sub(1);
        self.stores.retain(|_, (at, _)| *at != recno);
        store.delete(Table::Conflict, &key)?;
        Ok(Some(row.record))
    }

    /// Whether `present` is what a power cut of this server has left of the content `before`, and nobody had a better one.
    pub fn is_left_of(
        &self,
        store: &dyn Store,
        own: u64,
        object: ObjectId,
        before: Hash,
        present: Hash,
    ) -> Result<bool, StoreError> {
        let Some((recno, hash)) = self.stores.get(&(own, object)) else { return Ok(false) };
        if *hash != present {
            return Ok(false);
        }
        let row: Option<ConflictRow> = table::get(store, Table::Conflict, &table::number_key(recno.0))?;
        Ok(row.as_ref().and_then(stored).is_some_and(|(_, torn, _)| torn == before))
    }

    /// Rows.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Position of the newest.
    pub fn newest(&self) -> Recno {
        self.newest
    }

    fn note(&mut self, recno: Recno, row: &ConflictRow) {
        self.count = self.count.saturating_add(1);
        self.newest = self.newest.max(recno);
        if let Some(((replica, object), _, hash)) = stored(row) {
            self.stores.insert((replica, object), (recno, hash));
        }
    }

    fn continued(&self, row: &ConflictRow) -> Option<Recno> {
        let (key, before, hash) = stored(row)?;
        let (recno, loser) = self.stores.get(&key)?;
        (*loser == before || *loser == hash).then_some(*recno)
    }
}

/// Whose store over which file, over what, and with what.
fn stored(row: &ConflictRow) -> Option<((u64, ObjectId), Hash, Hash)> {
    let op = row.op.as_ref()?;
    let OpKind::Close { before, .. } = op.kind else { return None };
    Some(((row.record.0.replica, op.object), before, row.hash?))
}
