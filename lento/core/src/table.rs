//! Typed rows over the byte tables of the [`Store`]: keys that sort as wanted, values by postcard.
//!
//! Owns the encoding of keys. Knows nothing of what rows mean.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::types::FileId;
use crate::types::ObjectId;
use crate::types::Recno;
use crate::types::Tag;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads one row.
pub fn get<T: DeserializeOwned>(
    store: &dyn Store,
    table: Table,
    key: &[u8],
) -> Result<Option<T>, StoreError> {
    store.get(table, key)?.map(|bytes| decode(table, &bytes)).transpose()
}

/// Writes one row.
pub fn put<T: Serialize>(
    store: &mut dyn Store,
    table: Table,
    key: &[u8],
    value: &T,
) -> Result<(), StoreError> {
    put_sized(store, table, key, value).map(drop)
}

/// The same; says how many bytes the value takes.
pub fn put_sized<T: Serialize>(
    store: &mut dyn Store,
    table: Table,
    key: &[u8],
    value: &T,
) -> Result<u64, StoreError> {
    let bytes =
        postcard::to_stdvec(value).map_err(|e| StoreError(format!("encoding a row of {table:?}: {e}")))?;
    store.put(table, key, &bytes)?;
    Ok(bytes.len() as u64)
}

/// Decodes a row's value.
pub fn decode<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|e| StoreError(format!("a row of {table:?} cannot be read: {e}")))
}

/// Whether any row's key begins with `prefix`.
pub fn any_with_prefix(store: &dyn Store, table: Table, prefix: &[u8]) -> Result<bool, StoreError> {
    Ok(store.scan(table, prefix, 1)?.first().is_some_and(|(key, _)| key.starts_with(prefix)))
}

/// Calls `row` for every row whose key begins with `prefix`, in key order.
pub fn each_with_prefix(
    store: &dyn Store,
    table: Table,
    prefix: &[u8],
    mut row: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from = prefix.to_vec();
    loop {
        let rows = store.scan(table, &from, 256)?;
        let full = rows.len() == 256;
        for (key, value) in &rows {
            if !key.starts_with(prefix) {
                return Ok(());
            }
            row(key, value)?;
        }
        match rows.last() {
            Some((last, _)) if full => {
                from.clone_from(last);
                from.push(0);
            }
            _ => return Ok(()),
        }
    }
}

/// 20 bytes, sorted by replica, incarnation, number.
pub fn tag_key(tag: Tag) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    key.extend_from_slice(&tag.replica.to_be_bytes());
    key.extend_from_slice(&tag.incarnation.to_be_bytes());
    key.extend_from_slice(&tag.number.to_be_bytes());
    key
}

/// Reads back the first 20 bytes of a key.
pub fn tag_from_key(key: &[u8]) -> Option<(Tag, &[u8])> {
    let (replica, rest) = key.split_first_chunk::<8>()?;
    let (incarnation, rest) = rest.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let tag = Tag {
        replica: u64::from_be_bytes(*replica),
        incarnation: u32::from_be_bytes(*incarnation),
        number: u64::from_be_bytes(*number),
    };
    Some((tag, rest))
}

/// Key of an object.
pub fn object_key(object: ObjectId) -> Vec<u8> {
    tag_key(object.0)
}

/// Key of an entry: its directory, then its name.
pub fn entry_key(dir: ObjectId, name: &[u8]) -> Vec<u8> {
    let mut key = tag_key(dir.0);
    key.extend_from_slice(name);
    key
}

/// Key of one name of an object: the object, then the entry.
pub fn name_key(object: ObjectId, dir: ObjectId, name: &[u8]) -> Vec<u8> {
    let mut key = tag_key(object.0);
    key.extend_from_slice(&tag_key(dir.0));
    key.extend_from_slice(name);
    key
}

/// Key of a lower file.
pub fn file_key(file: FileId) -> Vec<u8> {
    let mut key = file.ino.to_be_bytes().to_vec();
    key.extend_from_slice(&file.generation.to_be_bytes());
    key
}

/// Reads the key of a lower file.
pub fn file_from_key(key: &[u8]) -> Option<FileId> {
    let (ino, generation) = key.split_first_chunk::<8>()?;
    let generation = <[u8; 8]>::try_from(generation).ok()?;
    Some(FileId { ino: u64::from_be_bytes(*ino), generation: u64::from_be_bytes(generation) })
}

/// Key of a number (recno, position).
pub fn number_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// Reads a number key.
pub fn number_from_key(key: &[u8]) -> Option<u64> {
    <[u8; 8]>::try_from(key).ok().map(u64::from_be_bytes)
}

/// Reads a recno key.
pub fn recno_from_key(key: &[u8]) -> Option<Recno> {
    number_from_key(key).map(Recno)
}
