//! Verdicts: what the server decides about one record of a client, against its own state and nothing else.
//!
//! A record carries what was on the client's disk before it (rule 6), so the question is always the same: is that what
//! stands here? Conflicts leave the server's state as it is.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::View;
use crate::types::ConflictKind;
use crate::types::Content;
use crate::types::Hash;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Replaced;
use crate::types::Time;

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do it.
    Accept,
    /// It is so already; its object and this one are the same.
    Unify(ObjectId),
    /// Keep the loser, leave the tree.
    Refuse(ConflictKind),
}

/// Judges `op`, whose objects are already those of the server (`alias::map`), against the tree as it will be when
/// everything under way has happened.
pub fn judge(
    store: &dyn Store,
    under_way: &alias::UnderWay,
    view: &View<'_>,
    op: &Operation,
) -> Result<Decision, StoreError> {
    match &op.kind {
        OpKind::Create { dir, name, attributes, symlink, content, seen, .. } => {
            let asked = Asked { op, attributes, symlink, content: content.as_ref(), seen: *seen, under_way };
            judge_create(store, view, &asked, *dir, name)
        }
        OpKind::Link { dir, name, .. } => judge_link(view, op.object, *dir, name),
        OpKind::Remove { dir, name, last, before, .. } => {
            judge_remove(view, op.object, *dir, name, *last, *before)
        }
        OpKind::Rename { from, from_name, to, to_name, replaced, exchange, .. } => {
            let moved = Moved { object: op.object, replaced: *replaced, exchange: *exchange };
            judge_rename(view, &moved, (*from, from_name), (*to, to_name))
        }
        OpKind::Close { before, content, mtime } => judge_close(view, op.object, *before, content, *mtime),
        OpKind::SetAttr { .. } if op.is_done() => Ok(Decision::Unify(op.object)),
        OpKind::SetAttr { .. } | OpKind::SetXattr { .. } | OpKind::DelXattr { .. } => {
            Ok(match view.object(op.object)? {
                Some(_) => Decision::Accept,
                None => Decision::Refuse(ConflictKind::UpdateRemove),
            })
        }
    }
}

struct Asked<'a> {
    op: &'a Operation,
    attributes: &'a crate::types::Attributes,
    symlink: &'a [u8],
    content: Option<&'a Content>,
    seen: Position,
    under_way: &'a alias::UnderWay,
}

fn judge_create(
    store: &dyn Store,
    view: &View<'_>,
    asked: &Asked<'_>,
    dir: ObjectId,
    name: &Name,
) -> Result<Decision, StoreError> {
    if view.object(asked.op.object)?.is_some() {
        // Sent in an earlier incarnation, and the verdict was lost with it.
        return Ok(Decision::Unify(asked.op.object));
    }
    if !is_live_dir(view, dir)? {
        return Ok(Decision::Refuse(ConflictKind::ParentGone));
    }
    let Some(there) = view.entry(dir, name)? else { return Ok(Decision::Accept) };
    let Some(object) = view.object(there)? else { return Ok(Decision::Accept) };
    let same = if asked.attributes.is_dir() {
        object.attributes.is_dir() && may_unify_directory(store, asked, there, &object)?
    } else {
        same_thing(asked, &object)
    };
    Ok(if same { Decision::Unify(there) } else { Decision::Refuse(ConflictKind::NameName) })
}

/// Two directories become one only if both are new to each other (rule 9).
fn may_unify_directory(
    store: &dyn Store,
    asked: &Asked<'_>,
    there: ObjectId,
    object: &Object,
) -> Result<bool, StoreError> {
    let replica = asked.op.id.0.replica;
    let unseen = object.made.0 > asked.seen.0;
    Ok(unseen
        && !object.moved
        && there.0.replica != replica
        && !alias::is_target(store, asked.under_way, replica, there)?)
}

/// The same content made twice under one name is no conflict.
fn same_thing(asked: &Asked<'_>, object: &Object) -> bool {
    let content = asked.content.map_or(Stored::empty(), |c| Stored { hash: c.hash, size: c.size });
    let attributes = object.attributes;
    attributes.mode == asked.attributes.mode
        && attributes.rdev == asked.attributes.rdev
        && object.symlink == asked.symlink
        && !(attributes.is_file() && object.content != Some(content))
        // An empty file says nothing yet: whoever fills it next would do so over a stranger's.
        && !(attributes.is_file() && content.size == 0)
}

fn judge_link(view: &View<'_>, object: ObjectId, dir: ObjectId, name: &Name) -> Result<Decision, StoreError> {
    // A directory has one name.
    if view.object(object)?.is_none_or(|object| object.attributes.is_dir()) {
        return Ok(Decision::Refuse(ConflictKind::UpdateRemove));
    }
    if !is_live_dir(view, dir)? {
        return Ok(Decision::Refuse(ConflictKind::ParentGone));
    }
    Ok(match view.entry(dir, name)? {
        None => Decision::Accept,
        Some(there) if there == object => Decision::Unify(object),
        Some(_) => Decision::Refuse(ConflictKind::NameName),
    })
}

fn judge_remove(
    view: &View<'_>,
    object: ObjectId,
    dir: ObjectId,
    name: &Name,
    last: bool,
    before: Option<Hash>,
) -> Result<Decision, StoreError> {
    let Some(state) = view.object(object)? else { return Ok(Decision::Unify(object)) };
    if view.entry(dir, name)? != Some(object) {
        // Moved by somebody else: the remover meant the object, not this name.
        return Ok(Decision::Refuse(ConflictKind::RemoveUpdate));
    }
    Ok(match may_lose_name(view, object, &state, last, before)? {
        true => Decision::Accept,
        false => Decision::Refuse(ConflictKind::RemoveUpdate),
    })
}

/// Whether taking one name from an object destroys nothing that the remover had not seen (rule 8).
fn may_lose_name(
    view: &View<'_>,
    object: ObjectId,
    state: &Object,
    last: bool,
    before: Option<Hash>,
) -> Result<bool, StoreError> {
    if state.attributes.is_dir() {
        return Ok(view.children(object, 1)?.is_empty());
    }
    if view.names(object)?.len() > 1 {
        return Ok(true);
    }
    let seen = !state.attributes.is_file() || before == state.content.map(|content| content.hash);
    Ok(last && seen)
}

struct Moved {
    object: ObjectId,
    replaced: Option<Replaced>,
    exchange: bool,
}

fn judge_rename(
    view: &View<'_>,
    moved: &Moved,
    from: (ObjectId, &Name),
    to: (ObjectId, &Name),
) -> Result<Decision, StoreError> {
    let Some(state) = view.object(moved.object)? else {
        return Ok(Decision::Refuse(ConflictKind::UpdateRemove));
    };
    if view.entry(from.0, from.1)? != Some(moved.object) {
        let there = view.entry(to.0, to.1)? == Some(moved.object) && !moved.exchange;
        return Ok(if there {
            Decision::Unify(moved.object)
        } else {
            Decision::Refuse(ConflictKind::UpdateRemove)
        });
    }
    if !is_live_dir(view, to.0)? {
        return Ok(Decision::Refuse(ConflictKind::ParentGone));
    }
    if state.attributes.is_dir() && view.is_within(to.0, moved.object)? {
        return Ok(Decision::Refuse(ConflictKind::RenameCycle));
    }
    let target = view.entry(to.0, to.1)?;
    if target != moved.replaced.map(|r| r.object) {
        return Ok(Decision::Refuse(ConflictKind::TargetTaken));
    }
    let Some(replaced) = moved.replaced else { return Ok(Decision::Accept) };
    let Some(there) = view.object(replaced.object)? else {
        return Ok(Decision::Refuse(ConflictKind::TargetTaken));
    };
    if moved.exchange {
        let cycle = there.attributes.is_dir() && view.is_within(from.0, replaced.object)?;
        return Ok(if cycle { Decision::Refuse(ConflictKind::RenameCycle) } else { Decision::Accept });
    }
    let replaceable = there.attributes.is_dir() == state.attributes.is_dir()
        && may_lose_name(view, replaced.object, &there, replaced.last, replaced.before)?;
    Ok(if replaceable { Decision::Accept } else { Decision::Refuse(ConflictKind::TargetTaken) })
}

fn judge_close(
    view: &View<'_>,
    object: ObjectId,
    before: Hash,
    content: &Content,
    mtime: Time,
) -> Result<Decision, StoreError> {
    let Some(state) = view.object(object)? else { return Ok(Decision::Refuse(ConflictKind::StoreRemove)) };
    if !state.attributes.is_file() {
        return Ok(Decision::Refuse(ConflictKind::StoreStore));
    }
    let here = state.content.map(|stored| stored.hash);
    Ok(if here == Some(content.hash) && state.attributes.mtime == mtime {
        Decision::Unify(object)
    } else if here == Some(before) || here == Some(content.hash) {
        // The same content stored later is news as well: its time.
        Decision::Accept
    } else {
        Decision::Refuse(ConflictKind::StoreStore)
    })
}

fn is_live_dir(view: &View<'_>, dir: ObjectId) -> Result<bool, StoreError> {
    Ok(view.object(dir)?.is_some_and(|object| object.attributes.is_dir()))
}

/// Objects of a client that turned out to be one with the server's. Kept for good: old records may still name them.
pub mod alias {
    use super::ObjectId;
    use super::OpKind;
    use super::Operation;
    use super::Store;
    use super::StoreError;
    use super::Table;
    use super::table;
    use std::collections::BTreeMap;

    /// Verdicts `Unified` whose records are planned and not in the KML yet: object of the client -> the server's.
    pub type UnderWay = BTreeMap<ObjectId, ObjectId>;

    /// Notes that the client's `object` is the server's `target`.
    pub fn put(store: &mut dyn Store, object: ObjectId, target: ObjectId) -> Result<(), StoreError> {
        if object == target {
            return Ok(());
        }
        store.put(Table::Alias, &back_key(object.0.replica, target), &[])?;
        table::put(store, Table::Alias, &table::object_key(object), &target)
    }

    /// Whether some object of this replica was unified with `target`.
    pub fn is_target(
        store: &dyn Store,
        under_way: &UnderWay,
        replica: u64,
        target: ObjectId,
    ) -> Result<bool, StoreError> {
        let planned = under_way.iter().any(|(object, to)| object.0.replica == replica && *to == target);
        Ok(planned || store.get(Table::Alias, &back_key(replica, target))?.is_some())
    }

    /// Whether anything was unified with `target`.
    pub fn has_any(store: &dyn Store, target: ObjectId) -> Result<bool, StoreError> {
        let key = table::object_key(target);
        let rows = store.scan(Table::Alias, &key, 2)?;
        Ok(rows.iter().any(|(found, _)| found.len() > key.len() && found.starts_with(&key)))
    }

    /// Longer than an object's key: the same table, read the other way round.
    fn back_key(replica: u64, target: ObjectId) -> Vec<u8> {
        let mut key = table::object_key(target);
        key.extend_from_slice(&replica.to_be_bytes());
        key
    }

    fn resolve(store: &dyn Store, under_way: &UnderWay, object: ObjectId) -> Result<ObjectId, StoreError> {
        if let Some(target) = under_way.get(&object) {
            return Ok(*target);
        }
        Ok(table::get(store, Table::Alias, &table::object_key(object))?.unwrap_or(object))
    }

    /// Renames every object of the record to the server's.
    pub fn map(store: &dyn Store, under_way: &UnderWay, op: &mut Operation) -> Result<(), StoreError> {
        op.object = resolve(store, under_way, op.object)?;
        rename(op, |object| resolve(store, under_way, object))
    }

    /// Replaces one object by another in a record.
    pub fn substitute(op: &mut Operation, from: ObjectId, to: ObjectId) -> Result<(), StoreError> {
        let swap = |object| Ok(if object == from { to } else { object });
        op.object = swap(op.object)?;
        rename(op, swap)
    }

    fn rename(
        op: &mut Operation,
        swap: impl Fn(ObjectId) -> Result<ObjectId, StoreError>,
    ) -> Result<(), StoreError> {
        match &mut op.kind {
            OpKind::Create { dir, .. } | OpKind::Link { dir, .. } | OpKind::Remove { dir, .. } => {
                *dir = swap(*dir)?
            }
            OpKind::Rename { from, to, replaced, .. } => {
                *from = swap(*from)?;
                *to = swap(*to)?;
                if let Some(replaced) = replaced {
                    replaced.object = swap(replaced.object)?;
                }
            }
            OpKind::SetAttr { .. }
            | OpKind::Close { .. }
            | OpKind::SetXattr { .. }
            | OpKind::DelXattr { .. } => {}
        }
        Ok(())
    }
}
