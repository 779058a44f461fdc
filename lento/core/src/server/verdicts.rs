//! Records whose verdict is on its way into the KML. A verdict's record there names only numbers; what the client's record
//! was about survives a kill here.

use crate::cml::content_of;
use crate::cml::fill_content;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Content;
use crate::types::OpId;
use crate::types::Operation;

/// Notes a record, as it came, that is about to get a verdict other than "accepted".
pub fn plan(store: &mut dyn Store, op: &Operation) -> Result<(), StoreError> {
    let mut op = op.clone();
    if let Some(content) = content_of(&op).cloned() {
        fill_content(&mut op, Content { inline: None, ..content });
    }
    table::put(store, Table::Verdict, &table::tag_key(op.id.0), &op)
}

/// The verdict of this record is in the KML: what the record was.
pub fn take(store: &mut dyn Store, id: OpId) -> Result<Option<Operation>, StoreError> {
    let key = table::tag_key(id.0);
    let op = table::get(store, Table::Verdict, &key)?;
    if op.is_some() {
        store.delete(Table::Verdict, &key)?;
    }
    Ok(op)
}
