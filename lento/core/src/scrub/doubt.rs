//! What must be looked through and has not been yet, whatever happens meanwhile.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;

/// A row of the store: the tree has to be looked through, and has not been yet.
const DOUBT: &[u8] = b"doubt";
/// What it says where a record names what no record made. Since a power cut it says nothing, which is more.
pub(super) const UNKNOWN: &[u8] = b"unknown";

/// The tree may be ahead of what is durable of the journal.
pub fn doubt_tree(store: &mut dyn Store) -> Result<(), StoreError> {
    store.put(Table::Meta, DOUBT, &[])
}

/// A record is left out, since it names what no record made: whatever happens, the tree is looked through.
pub fn note_unknown(store: &mut dyn Store) -> Result<(), StoreError> {
    match store.get(Table::Meta, DOUBT)? {
        Some(_) => Ok(()),
        None => store.put(Table::Meta, DOUBT, UNKNOWN),
    }
}

/// Why it has to be, if it has.
pub(super) fn get(store: &dyn Store) -> Result<Option<Vec<u8>>, StoreError> {
    store.get(Table::Meta, DOUBT)
}

/// It has been.
pub(super) fn end(store: &mut dyn Store) -> Result<(), StoreError> {
    store.delete(Table::Meta, DOUBT)
}
