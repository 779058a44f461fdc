//! What a program was told is durable (fsync), while nobody but this node has it: what is in the file is the best there is of
//! that, torn by a later store or not.
//!
//! A client keeps a promise until the server has the content, a server until its hash is known: from then on the log says
//! what the content is.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::ObjectId;
use crate::types::Recno;

/// What this record left was durable for a program by then.
pub fn note(store: &mut dyn Store, object: ObjectId, recno: Recno) -> Result<(), StoreError> {
    table::put(store, Table::Meta, &key(object), &recno)
}

/// The newest such record about the object.
pub fn of(store: &dyn Store, object: ObjectId) -> Result<Option<Recno>, StoreError> {
    table::get(store, Table::Meta, &key(object))
}

/// It is kept.
pub fn end(store: &mut dyn Store, object: ObjectId) -> Result<(), StoreError> {
    store.delete(Table::Meta, &key(object))
}

fn key(object: ObjectId) -> Vec<u8> {
    [b"promise".as_slice(), &table::object_key(object)].concat()
}
