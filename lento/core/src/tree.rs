//! A tree of replicated objects in the store, with an optional overlay of what is planned but not confirmed.
//!
//! *Local* is what the lower tree holds as of the last KML record read; *base* is the server's truth at this node's
//! position. The overlay lies over local while replays are under way. `apply.rs` says what an operation does to a tree.

use crate::facet::Facet;
use crate::missing;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Attributes;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Recno;
use crate::types::Version;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// One object of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Attributes that travel.
    pub attributes: Attributes,
    /// Symbolic link's target.
    pub symlink: Vec<u8>,
    /// Content of a regular file; `None`: written by a user and not read yet (local tree only).
    pub content: Option<Stored>,
    /// Extended attributes, sorted by name.
    pub xattrs: BTreeMap<Name, Vec<u8>>,
    /// Local tree: its lower identity.
    pub file: FileId,
    /// Local tree: its version on disk.
    pub version: Version,
    /// Local tree: the record that made it here.
    pub made: Recno,
    /// Local tree: the newest record that changed its content.
    pub written: Recno,
    /// Local tree: it no longer has the name it was made with.
    pub moved: bool,
    /// Local tree: the file stands for its content, which is not here.
    pub missing: bool,
}

/// A content by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// blake3.
    pub hash: Hash,
    /// Bytes.
    pub size: u64,
}

impl Stored {
    /// No bytes.
    pub fn empty() -> Stored {
        Stored { hash: Hash::empty(), size: 0 }
    }
}

/// Which tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// What the lower tree holds.
    Local,
    /// The server's truth.
    Base,
}

impl Which {
    fn objects(self) -> Table {
        match self {
            Which::Local => Table::LocalObject,
            Which::Base => Table::BaseObject,
        }
    }
    fn entries(self) -> Table {
        match self {
            Which::Local => Table::LocalEntry,
            Which::Base => Table::BaseEntry,
        }
    }
    fn names(self) -> Table {
        match self {
            Which::Local => Table::LocalName,
            Which::Base => Table::BaseName,
        }
    }
}

/// Planned changes over a tree. Empty = nothing is under way.
#[derive(Debug, Default)]
pub struct Overlay {
    objects: BTreeMap<ObjectId, Option<Object>>,
    entries: BTreeMap<(ObjectId, Name), Option<ObjectId>>,
    /// Names added to and taken from each object.
    names: BTreeMap<ObjectId, BTreeMap<(ObjectId, Name), Presence>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Added,
    Taken,
}

impl Overlay {
    /// Forgets all plans.
    pub fn clear(&mut self) {
        self.objects.clear();
        self.entries.clear();
        self.names.clear();
    }

    /// An object's row is this from now on.
    pub fn set_object(&mut self, id: ObjectId, object: Option<Object>) {
        self.objects.insert(id, object);
    }

    /// A name that stood for `before` stands for `object`; both know it among their names.
    pub fn set_entry(&mut self, entry: (ObjectId, Name), before: Option<ObjectId>, object: Option<ObjectId>) {
        if let Some(before) = before {
            self.names.entry(before).or_default().insert(entry.clone(), Presence::Taken);
        }
        if let Some(object) = object {
            self.names.entry(object).or_default().insert(entry.clone(), Presence::Added);
        }
        self.entries.insert(entry, object);
    }

    /// Whether something is planned for this facet.
    pub fn covers(&self, facet: &Facet) -> bool {
        match facet {
            Facet::Entry(dir, name) => self.entries.contains_key(&(*dir, name.clone())),
            Facet::Object(object) => self.objects.contains_key(object) || self.names.contains_key(object),
        }
    }

    /// Number of planned rows: a bound for memory.
    pub fn len(&self) -> usize {
        self.objects.len() + self.entries.len()
    }
}

/// Names that are looked at first.
const FEW: usize = 2;

/// A tree to read.
pub struct View<'a> {
    store: &'a dyn Store,
    which: Which,
    overlay: Option<&'a Overlay>,
}

impl<'a> View<'a> {
    /// The stored tree.
    pub fn new(store: &'a dyn Store, which: Which) -> View<'a> {
        View { store, which, overlay: None }
    }

    /// The local tree as it will be when everything under way has happened.
    pub fn planned(store: &'a dyn Store, overlay: &'a Overlay) -> View<'a> {
        View { store, which: Which::Local, overlay: Some(overlay) }
    }

    /// One object.
    pub fn object(&self, id: ObjectId) -> Result<Option<Object>, StoreError> {
        if let Some(planned) = self.overlay.and_then(|o| o.objects.get(&id)) {
            return Ok(planned.clone());
        }
        table::get(self.store, self.which.objects(), &table::object_key(id))
    }

    /// What stands at a name.
    pub fn entry(&self, dir: ObjectId, name: &[u8]) -> Result<Option<ObjectId>, StoreError> {
        if let Some(planned) = self.overlay.and_then(|o| o.entries.get(&(dir, name.to_vec()))) {
            return Ok(*planned);
        }
        table::get(self.store, self.which.entries(), &table::entry_key(dir, name))
    }

    /// What stands at a name, with its row.
    pub fn at(&self, dir: ObjectId, name: &[u8]) -> Result<Option<(ObjectId, Object)>, StoreError> {
        let Some(object) = self.entry(dir, name)? else { return Ok(None) };
        Ok(self.object(object)?.map(|row| (object, row)))
    }

    /// All names of an object.
    pub fn names(&self, id: ObjectId) -> Result<BTreeSet<(ObjectId, Name)>, StoreError> {
        let mut names = BTreeSet::new();
        let prefix = table::object_key(id);
        table::each_with_prefix(self.store, self.which.names(), &prefix, |key, _| {
            if let Some((_, rest)) = table::tag_from_key(key)
                && let Some((dir, name)) = table::tag_from_key(rest)
            {
                names.insert((ObjectId(dir), name.to_vec()));
            }
            Ok(())
        })?;
        for (name, presence) in self.overlay.and_then(|o| o.names.get(&id)).into_iter().flatten() {
            match presence {
                Presence::Added => names.insert(name.clone()),
                Presence::Taken => names.remove(name),
            };
        }
        Ok(names)
    }

    /// One of its names, without looking at all of them.
    pub fn any_name(&self, id: ObjectId) -> Result<Option<(ObjectId, Name)>, StoreError> {
        let planned = self.overlay.and_then(|o| o.names.get(&id));
        let added = planned.into_iter().flatten().find(|(_, presence)| **presence == Presence::Added);
        if let Some((name, _)) = added {
            return Ok(Some(name.clone()));
        }
        let taken =
            |name: &(ObjectId, Name)| planned.is_some_and(|names| names.get(name) == Some(&Presence::Taken));
        let prefix = table::object_key(id);
        for (key, _) in self.store.scan(self.which.names(), &prefix, FEW)? {
            if let Some(rest) = key.strip_prefix(prefix.as_slice())
                && let Some((dir, name)) = table::tag_from_key(rest)
                && !taken(&(ObjectId(dir), name.to_vec()))
            {
                return Ok(Some((ObjectId(dir), name.to_vec())));
            }
        }
        // Those few were taken, or there is none.
        if planned.is_some() { Ok(self.names(id)?.into_iter().next()) } else { Ok(None) }
    }

    /// Up to `limit` names in a directory; for `limit` 1: whether it has any.
    pub fn children(&self, dir: ObjectId, limit: usize) -> Result<BTreeMap<Name, ObjectId>, StoreError> {
        let mut found = BTreeMap::new();
        let start = (dir, Name::new());
        if let Some(overlay) = self.overlay {
            for ((_, name), object) in overlay.entries.range(start..).take_while(|((d, _), _)| *d == dir) {
                if let Some(object) = object {
                    found.insert(name.clone(), *object);
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
        }
        let prefix = table::object_key(dir);
        let mut from = prefix.clone();
        loop {
            let rows = self.store.scan(self.which.entries(), &from, 64)?;
            for (key, value) in &rows {
                let Some(name) = key.strip_prefix(prefix.as_slice()) else { return Ok(found) };
                let hidden = self.overlay.is_some_and(|o| o.entries.contains_key(&(dir, name.to_vec())));
                if !hidden {
                    found.insert(name.to_vec(), table::decode(self.which.entries(), value)?);
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
            let Some((last, _)) = rows.last().filter(|_| rows.len() == 64) else { return Ok(found) };
            from.clone_from(last);
            from.push(0);
        }
    }

    /// Whether `object` is `dir` or one of its ancestors.
    pub fn is_within(&self, dir: ObjectId, object: ObjectId) -> Result<bool, StoreError> {
        let mut at = dir;
        for _ in 0..4096 {
            if at == object {
                return Ok(true);
            }
            let Some((parent, _)) = self.any_name(at)? else { return Ok(false) };
            at = parent;
        }
        Ok(true)
    }

    /// A path for people: one of the object's names, or its id where it has none.
    pub fn path(&self, id: ObjectId) -> Result<String, StoreError> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != ObjectId::ROOT && parts.len() < 256 {
            let Some((parent, name)) = self.names(at)?.into_iter().next() else {
                parts.push(format!("<{at}>"));
                break;
            };
            parts.push(String::from_utf8_lossy(&name).into_owned());
            at = parent;
        }
        parts.reverse();
        Ok(format!("/{}", parts.join("/")))
    }

    /// A path for people: a name in a directory.
    pub fn path_in(&self, dir: ObjectId, name: &[u8]) -> Result<String, StoreError> {
        let dir = self.path(dir)?;
        let name = String::from_utf8_lossy(name);
        Ok(if dir == "/" { format!("/{name}") } else { format!("{dir}/{name}") })
    }
}

/// A tree to change.
pub struct Tree<'a> {
    store: &'a mut dyn Store,
    which: Which,
    overlay: Option<&'a mut Overlay>,
}

impl<'a> Tree<'a> {
    /// The stored tree.
    pub fn new(store: &'a mut dyn Store, which: Which) -> Tree<'a> {
        Tree { store, which, overlay: None }
    }

    /// Plans over the local tree; the store is only read.
    pub fn planned(store: &'a mut dyn Store, overlay: &'a mut Overlay) -> Tree<'a> {
        Tree { store, which: Which::Local, overlay: Some(overlay) }
    }

    /// To read.
    pub fn view(&self) -> View<'_> {
        View { store: self.store, which: self.which, overlay: self.overlay.as_deref() }
    }

    /// Inserts, replaces or removes an object's row; its names are not touched.
    pub fn set_object(&mut self, id: ObjectId, object: Option<&Object>) -> Result<(), StoreError> {
        if let Some(overlay) = &mut self.overlay {
            overlay.set_object(id, object.cloned());
            return Ok(());
        }
        if self.which == Which::Local {
            missing::note(self.store, id, object)?;
        }
        match object {
            Some(object) => table::put(self.store, self.which.objects(), &table::object_key(id), object),
            None => self.store.delete(self.which.objects(), &table::object_key(id)),
        }
    }

    /// Points a name at an object or at nothing; keeps the list of names of both objects right.
    pub fn set_entry(
        &mut self,
        dir: ObjectId,
        name: &[u8],
        object: Option<ObjectId>,
    ) -> Result<(), StoreError> {
        let before = self.view().entry(dir, name)?;
        if before == object {
            return Ok(());
        }
        if let Some(overlay) = &mut self.overlay {
            overlay.set_entry((dir, name.to_vec()), before, object);
            return Ok(());
        }
        if let Some(before) = before {
            self.store.delete(self.which.names(), &table::name_key(before, dir, name))?;
        }
        let key = table::entry_key(dir, name);
        match object {
            Some(object) => {
                self.store.put(self.which.names(), &table::name_key(object, dir, name), &[])?;
                table::put(self.store, self.which.entries(), &key, &object)
            }
            None => self.store.delete(self.which.entries(), &key),
        }
    }
}

/// Lower identity -> object.
pub mod handle {
    use super::FileId;
    use super::ObjectId;
    use super::Store;
    use super::StoreError;
    use super::Table;
    use super::table;

    /// The object that has this lower identity.
    pub fn get(store: &dyn Store, file: FileId) -> Result<Option<ObjectId>, StoreError> {
        table::get(store, Table::Handle, &table::file_key(file))
    }

    /// Notes it.
    pub fn put(store: &mut dyn Store, file: FileId, object: ObjectId) -> Result<(), StoreError> {
        table::put(store, Table::Handle, &table::file_key(file), &object)
    }

    /// Forgets it.
    pub fn delete(store: &mut dyn Store, file: FileId) -> Result<(), StoreError> {
        store.delete(Table::Handle, &table::file_key(file))
    }
}
