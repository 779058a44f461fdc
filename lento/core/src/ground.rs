//! The old content that a new one is built upon where it travels: the object's own, or where somebody saves by renaming a
//! new file over an old one, that one's.

use crate::server::torn;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::View;
use crate::tree::Which;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Version;
use crate::volume::Fault;

/// A content on this node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The lower file.
    pub file: FileId,
    /// Its version when it had the content.
    pub version: Version,
    /// What the content was, if that is known.
    pub hash: Option<Hash>,
}

/// What a new content of `object` is built upon here: its own present one; where that has less than `enough` bytes, the
/// one of `over`, or of what stands where base puts the object. `None`: there is nothing.
///
/// # Errors
/// The store's.
pub fn of(
    store: &dyn Store,
    object: ObjectId,
    over: Option<ObjectId>,
    enough: u64,
) -> Result<Option<Ground>, Fault> {
    let local = View::new(store, Which::Local);
    let ground = |state: Object, is_torn: bool| Ground {
        file: state.file,
        version: state.version,
        hash: state.content.filter(|_| !is_torn).map(|content| content.hash),
    };
    let candidates = [Some(object), over].into_iter().flatten();
    for object in candidates.chain(instead(store, object, Which::Base, Which::Local)?) {
        let state = local.object(object)?.filter(|state| state.attributes.is_file() && !state.missing);
        if let Some(state) = state.filter(|state| state.version.size >= enough) {
            return Ok(Some(ground(state, torn::is_torn(store, object)?)));
        }
    }
    Ok(None)
}

/// What the server can build a content upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtServer {
    /// The object's own.
    Own,
    /// The one of what it has where the object stands here.
    Other(ObjectId),
    /// Nothing.
    Nothing,
}

/// What base has of `object`, if that is at least `enough` bytes, or in its place.
///
/// # Errors
/// The store's.
pub fn at_server(store: &dyn Store, object: ObjectId, enough: u64) -> Result<AtServer, Fault> {
    let base = View::new(store, Which::Base);
    let has_enough = |object| -> Result<bool, StoreError> {
        let content = base.object(object)?.and_then(|state| state.content);
        Ok(content.is_some_and(|content| content.size >= enough))
    };
    if has_enough(object)? {
        return Ok(AtServer::Own);
    }
    for other in instead(store, object, Which::Local, Which::Base)? {
        if has_enough(other)? {
            return Ok(AtServer::Other(other));
        }
    }
    Ok(AtServer::Nothing)
}

/// What the names of an object in one tree mean in another, the object itself left out.
fn instead(
    store: &dyn Store,
    object: ObjectId,
    named: Which,
    meant: Which,
) -> Result<Vec<ObjectId>, StoreError> {
    let meant = View::new(store, meant);
    let mut found = Vec::new();
    for (dir, name) in View::new(store, named).names(object)? {
        for name in likely(&name) {
            found.extend(meant.entry(dir, &name)?.filter(|other| *other != object));
        }
    }
    Ok(found)
}

/// Names that an older version of `name` may have. Editors put it aside under its name and a tilde before they write the
/// new one; `.name.Xy12z`, `name.part` and the like are new ones that will be renamed.
fn likely(name: &[u8]) -> Vec<Name> {
    let mut names = vec![name.to_vec(), [name, b"~"].concat()];
    let mut stem = name.strip_prefix(b".").unwrap_or(name);
    while let Some(dot) = stem.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0) {
        stem = stem.get(..dot).unwrap_or_default();
        names.push(stem.to_vec());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Row;
    use crate::store::Table;
    use crate::tree::Stored;
    use crate::tree::Tree;
    use crate::types::Attributes;
    use crate::types::Tag;
    use crate::types::mode;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct MemoryStore(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

    impl Store for MemoryStore {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.0.get(&(table, key.to_vec())).cloned())
        }

        fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
            let rows = self.0.range((table, from.to_vec())..).take_while(|((of, _), _)| *of == table);
            Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
        }

        fn before(&self, table: Table, before: &[u8]) -> Result<Option<Row>, StoreError> {
            let last = self.0.range(..(table, before.to_vec())).next_back();
            Ok(last.filter(|((of, _), _)| *of == table).map(|((_, key), value)| (key.clone(), value.clone())))
        }

        fn len(&self, table: Table) -> Result<u64, StoreError> {
            Ok(self.scan(table, &[], usize::MAX)?.len() as u64)
        }

        fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
            self.0.insert((table, key.to_vec()), value.to_vec());
            Ok(())
        }

        fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
            self.0.remove(&(table, key.to_vec()));
            Ok(())
        }

        fn clear(&mut self, table: Table) -> Result<(), StoreError> {
            self.0.retain(|(of, _), _| *of != table);
            Ok(())
        }
    }

    fn object(number: u64) -> ObjectId {
        ObjectId(Tag { replica: 1, incarnation: 0, number })
    }

    fn put(store: &mut MemoryStore, which: Which, number: u64, name: &[u8], size: u64) {
        let hash = Hash::of(&number.to_le_bytes());
        let state = Object {
            attributes: Attributes { mode: mode::FILE | 0o644, ..Attributes::default() },
            content: Some(Stored { hash, size }),
            file: FileId { ino: number, generation: 0 },
            version: Version { size, ..Version::default() },
            ..Object::default()
        };
        let mut tree = Tree::new(store, which);
        tree.set_object(object(number), Some(&state)).unwrap();
        tree.set_entry(ObjectId::ROOT, name, Some(object(number))).unwrap();
    }

    fn file(ground: Option<Ground>) -> Option<u64> {
        ground.map(|ground| ground.file.ino)
    }

    #[test]
    fn the_own_content_comes_first_then_what_the_name_meant() {
        let mut store = MemoryStore::default();
        put(&mut store, Which::Local, 1, b"f", 1000);
        put(&mut store, Which::Base, 2, b"f", 1010);
        assert_eq!(file(of(&store, object(2), None, 100).unwrap()), Some(1), "renamed over it");
        assert_eq!(of(&store, object(2), None, 2000).unwrap(), None, "too little");
        put(&mut store, Which::Local, 3, b"g", 1000);
        assert_eq!(file(of(&store, object(2), Some(object(3)), 100).unwrap()), Some(3), "the peer says so");
        put(&mut store, Which::Local, 2, b".f.new", 1000);
        assert_eq!(file(of(&store, object(2), Some(object(3)), 100).unwrap()), Some(2));
        put(&mut store, Which::Local, 2, b".f.new", 10);
        assert_eq!(file(of(&store, object(2), None, 100).unwrap()), Some(1), "its own is but a beginning");
    }

    #[test]
    fn the_server_is_told_what_it_has_under_the_name_or_aside() {
        let mut store = MemoryStore::default();
        put(&mut store, Which::Base, 1, b"f", 1000);
        put(&mut store, Which::Local, 2, b"4913", 1000);
        assert_eq!(at_server(&store, object(2), 100).unwrap(), AtServer::Nothing);
        put(&mut store, Which::Local, 2, b"f", 1000);
        assert_eq!(at_server(&store, object(2), 100).unwrap(), AtServer::Other(object(1)));
        assert_eq!(at_server(&store, object(2), 2000).unwrap(), AtServer::Nothing);
        assert_eq!(at_server(&store, object(1), 100).unwrap(), AtServer::Own);
        let mut store = MemoryStore::default();
        put(&mut store, Which::Base, 1, b"f~", 1000);
        put(&mut store, Which::Local, 2, b"f", 1000);
        assert_eq!(at_server(&store, object(2), 100).unwrap(), AtServer::Other(object(1)));
    }

    #[test]
    fn names_of_files_that_will_be_renamed_tell_what_they_replace() {
        let guess =
            |name: &[u8]| likely(name).split_off(2).into_iter().map(|name| String::from_utf8(name).unwrap());
        let guess = |name| guess(name).collect::<Vec<_>>();
        assert_eq!(guess(b".disk.img.Xy12z"), ["disk.img", "disk"]);
        assert_eq!(guess(b"disk.part"), ["disk"]);
        assert!(guess(b"disk").is_empty() && guess(b".disk").is_empty() && guess(b"..").is_empty());
    }
}
