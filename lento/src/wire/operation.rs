//! Operations, log records and verdicts.

use super::WireError;
use super::need;
use super::words::attribute_name;
use super::words::attribute_value;
use super::words::attributes;
use super::words::attributes_back;
use super::words::content;
use super::words::content_back;
use super::words::entry_name;
use super::words::hash;
use super::words::hash_bytes;
use super::words::is_possible;
use super::words::maybe_hash;
use super::words::maybe_hash_bytes;
use super::words::object_id;
use super::words::symlink;
use super::words::tag;
use super::words::tag_back;
use super::words::time;
use super::words::time_back;
use super::words::xattrs;
use super::words::xattrs_back;
use intermezzo_proto::v1;
use intermezzo_proto::v1::log_record::What;
use intermezzo_proto::v1::operation::Kind;
use lento_core::types::ConflictKind;
use lento_core::types::LogRecord;
use lento_core::types::LogWhat;
use lento_core::types::Mask;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::OpKind;
use lento_core::types::Operation;
use lento_core::types::Position;
use lento_core::types::Replaced;
use lento_core::types::Verdict;

pub(super) fn operation(operation: &Operation) -> v1::Operation {
    v1::Operation {
        id: Some(tag(operation.id.0)),
        time: time(operation.time),
        object: Some(tag(operation.object.0)),
        kind: Some(kind(&operation.kind)),
    }
}

pub(super) fn operation_back(operation: v1::Operation) -> Result<Operation, WireError> {
    let operation = Operation {
        id: OpId(tag_back("operation.id", operation.id)?),
        time: time_back("operation.time", operation.time)?,
        object: object_id("operation.object", operation.object)?,
        kind: kind_back(need("operation.kind", operation.kind)?)?,
    };
    match impossible(&operation) {
        None => Ok(operation),
        Some(reason) => Err(WireError::Wrong { field: "operation", reason }),
    }
}

/// What no kernel would have let a program do, so that no replay could ever do it either.
fn impossible(operation: &Operation) -> Option<&'static str> {
    let object = operation.object;
    match &operation.kind {
        OpKind::SetAttr { .. } | OpKind::SetXattr { .. } | OpKind::DelXattr { .. } => None,
        _ if object == ObjectId::ROOT => Some("the root has no name and no content"),
        OpKind::Create { dir, .. } | OpKind::Link { dir, .. } | OpKind::Remove { dir, .. }
            if *dir == object =>
        {
            Some("an object in itself")
        }
        OpKind::Rename { from, to, .. } if *from == object || *to == object => Some("an object in itself"),
        OpKind::Rename { from, from_name, to, to_name, .. } if (from, from_name) == (to, to_name) => {
            Some("a name moved to itself")
        }
        OpKind::Rename { replaced: None, exchange: true, .. } => Some("an exchange with nothing"),
        OpKind::Rename { replaced: Some(replaced), .. }
            if [object, ObjectId::ROOT].contains(&replaced.object) =>
        {
            Some("something that cannot be replaced by it")
        }
        _ => None,
    }
}

fn kind(kind: &OpKind) -> Kind {
    match kind {
        OpKind::Create { dir, name, attributes: a, symlink, content: c, xattrs: x, dir_mtime, seen } => {
            Kind::Create(v1::Create {
                dir: Some(tag(dir.0)),
                name: name.clone().into(),
                attributes: attributes(a),
                symlink: symlink.clone().into(),
                content: c.as_ref().map(content),
                xattrs: xattrs(x),
                dir_mtime: time(*dir_mtime),
                seen: seen.0,
            })
        }
        OpKind::Link { dir, name, dir_mtime } => Kind::Link(v1::Link {
            dir: Some(tag(dir.0)),
            name: name.clone().into(),
            dir_mtime: time(*dir_mtime),
        }),
        OpKind::Remove { dir, name, last, before, dir_mtime } => Kind::Remove(v1::Remove {
            dir: Some(tag(dir.0)),
            name: name.clone().into(),
            last: *last,
            before: maybe_hash_bytes(*before),
            dir_mtime: time(*dir_mtime),
        }),
        OpKind::Rename { from, from_name, to, to_name, replaced, exchange, from_mtime, to_mtime } => {
            Kind::Rename(v1::Rename {
                from: Some(tag(from.0)),
                from_name: from_name.clone().into(),
                to: Some(tag(to.0)),
                to_name: to_name.clone().into(),
                replaced: replaced.map(|replaced| tag(replaced.object.0)),
                replaced_last: replaced.is_some_and(|replaced| replaced.last),
                replaced_before: maybe_hash_bytes(replaced.and_then(|replaced| replaced.before)),
                exchange: *exchange,
                from_mtime: time(*from_mtime),
                to_mtime: time(*to_mtime),
            })
        }
        OpKind::SetAttr { mask, attributes: a } => {
            Kind::SetAttr(v1::SetAttr { mask: mask.0, attributes: attributes(a) })
        }
        OpKind::Close { before, content: c, mtime } => Kind::Close(v1::Close {
            before: hash_bytes(*before),
            content: Some(content(c)),
            mtime: time(*mtime),
        }),
        OpKind::SetXattr { name, value } => {
            Kind::SetXattr(v1::SetXattr { name: name.clone().into(), value: value.clone().into() })
        }
        OpKind::DelXattr { name } => Kind::DelXattr(v1::DelXattr { name: name.clone().into() }),
    }
}

fn kind_back(kind: Kind) -> Result<OpKind, WireError> {
    Ok(match kind {
        Kind::Create(create) => {
            let attributes = attributes_back("create.attributes", create.attributes)?;
            let symlink = symlink("create.symlink", &create.symlink)?;
            is_possible("create", &attributes, &symlink, create.content.is_some())?;
            OpKind::Create {
                dir: object_id("create.dir", create.dir)?,
                name: entry_name("create.name", &create.name)?,
                attributes,
                symlink,
                content: create.content.as_ref().map(content_back).transpose()?,
                xattrs: xattrs_back(&create.xattrs)?,
                dir_mtime: time_back("create.dir_mtime", create.dir_mtime)?,
                seen: Position(create.seen),
            }
        }
        Kind::Link(link) => OpKind::Link {
            dir: object_id("link.dir", link.dir)?,
            name: entry_name("link.name", &link.name)?,
            dir_mtime: time_back("link.dir_mtime", link.dir_mtime)?,
        },
        Kind::Remove(remove) => OpKind::Remove {
            dir: object_id("remove.dir", remove.dir)?,
            name: entry_name("remove.name", &remove.name)?,
            last: remove.last,
            before: maybe_hash("remove.before", &remove.before)?,
            dir_mtime: time_back("remove.dir_mtime", remove.dir_mtime)?,
        },
        Kind::Rename(rename) => OpKind::Rename {
            from: object_id("rename.from", rename.from)?,
            from_name: entry_name("rename.from_name", &rename.from_name)?,
            to: object_id("rename.to", rename.to)?,
            to_name: entry_name("rename.to_name", &rename.to_name)?,
            replaced: match rename.replaced {
                None => None,
                Some(object) => Some(Replaced {
                    object: object_id("rename.replaced", Some(object))?,
                    last: rename.replaced_last,
                    before: maybe_hash("rename.replaced_before", &rename.replaced_before)?,
                }),
            },
            exchange: rename.exchange,
            from_mtime: time_back("rename.from_mtime", rename.from_mtime)?,
            to_mtime: time_back("rename.to_mtime", rename.to_mtime)?,
        },
        Kind::SetAttr(set) => OpKind::SetAttr {
            mask: mask(set.mask)?,
            attributes: attributes_back("set_attr.attributes", set.attributes)?,
        },
        Kind::Close(close) => OpKind::Close {
            before: hash("close.before", &close.before)?,
            content: content_back(&need("close.content", close.content)?)?,
            mtime: time_back("close.mtime", close.mtime)?,
        },
        Kind::SetXattr(set) => OpKind::SetXattr {
            name: attribute_name("set_xattr.name", &set.name)?,
            value: attribute_value("set_xattr.value", &set.value)?,
        },
        Kind::DelXattr(del) => OpKind::DelXattr { name: attribute_name("del_xattr.name", &del.name)? },
    })
}

fn mask(mask: u32) -> Result<Mask, WireError> {
    if mask & !Mask::ALL.0 != 0 {
        return Err(WireError::Unknown { field: "set_attr.mask", value: i64::from(mask) });
    }
    Ok(Mask(mask))
}

pub(super) fn log_record(record: &LogRecord) -> v1::LogRecord {
    v1::LogRecord {
        position: record.position.0,
        origin: Some(tag(record.origin.0)),
        what: Some(match &record.what {
            LogWhat::Operation(o) => What::Operation(operation(o)),
            LogWhat::Verdict(v) => What::Verdict(verdict(v)),
        }),
    }
}

pub(super) fn log_record_back(record: v1::LogRecord) -> Result<LogRecord, WireError> {
    Ok(LogRecord {
        position: Position(record.position),
        origin: OpId(tag_back("record.origin", record.origin)?),
        what: match need("record.what", record.what)? {
            What::Operation(o) => LogWhat::Operation(operation_back(o)?),
            What::Verdict(v) => LogWhat::Verdict(verdict_back(&v)?),
        },
    })
}

fn verdict(verdict: &Verdict) -> v1::Verdict {
    let mut wire = v1::Verdict::default();
    match verdict {
        Verdict::Accepted(hash) => {
            wire.set_kind(v1::verdict::Kind::Accepted);
            wire.hash = maybe_hash_bytes(*hash);
        }
        Verdict::Unified(object) => {
            wire.set_kind(v1::verdict::Kind::Unified);
            wire.object = Some(tag(object.0));
        }
        Verdict::Conflict(kind, hash) => {
            wire.set_kind(v1::verdict::Kind::Conflict);
            wire.set_conflict(conflict(*kind));
            wire.hash = maybe_hash_bytes(*hash);
        }
        Verdict::Resolved(position) => {
            wire.set_kind(v1::verdict::Kind::Resolved);
            wire.position = position.0;
        }
    }
    wire
}

fn verdict_back(verdict: &v1::Verdict) -> Result<Verdict, WireError> {
    use v1::verdict::Kind;
    let unknown = || WireError::Unknown { field: "verdict.kind", value: i64::from(verdict.kind) };
    match Kind::try_from(verdict.kind).map_err(|_| unknown())? {
        Kind::Unspecified => Err(WireError::Missing("verdict.kind")),
        Kind::Accepted => Ok(Verdict::Accepted(maybe_hash("verdict.hash", &verdict.hash)?)),
        Kind::Unified => match object_id("verdict.object", verdict.object)? {
            ObjectId::ROOT => Err(WireError::Wrong { field: "verdict.object", reason: "the root" }),
            object => Ok(Verdict::Unified(object)),
        },
        Kind::Resolved if verdict.position == 0 => Err(WireError::Missing("verdict.position")),
        Kind::Resolved => Ok(Verdict::Resolved(Position(verdict.position))),
        Kind::Conflict => Ok(Verdict::Conflict(
            conflict_back(verdict.conflict)?,
            maybe_hash("verdict.hash", &verdict.hash)?,
        )),
    }
}

fn conflict(kind: ConflictKind) -> v1::ConflictKind {
    match kind {
        ConflictKind::StoreStore => v1::ConflictKind::StoreStore,
        ConflictKind::StoreRemove => v1::ConflictKind::StoreRemove,
        ConflictKind::RemoveUpdate => v1::ConflictKind::RemoveUpdate,
        ConflictKind::NameName => v1::ConflictKind::NameName,
        ConflictKind::ParentGone => v1::ConflictKind::ParentGone,
        ConflictKind::TargetTaken => v1::ConflictKind::TargetTaken,
        ConflictKind::RenameCycle => v1::ConflictKind::RenameCycle,
        ConflictKind::UpdateRemove => v1::ConflictKind::UpdateRemove,
        ConflictKind::Orphan => v1::ConflictKind::Orphan,
        ConflictKind::MassRemoval => v1::ConflictKind::MassRemoval,
    }
}

fn conflict_back(kind: i32) -> Result<ConflictKind, WireError> {
    let unknown = WireError::Unknown { field: "verdict.conflict", value: i64::from(kind) };
    Ok(match v1::ConflictKind::try_from(kind).map_err(|_| unknown)? {
        v1::ConflictKind::Unspecified => return Err(WireError::Missing("verdict.conflict")),
        v1::ConflictKind::StoreStore => ConflictKind::StoreStore,
        v1::ConflictKind::StoreRemove => ConflictKind::StoreRemove,
        v1::ConflictKind::RemoveUpdate => ConflictKind::RemoveUpdate,
        v1::ConflictKind::NameName => ConflictKind::NameName,
        v1::ConflictKind::ParentGone => ConflictKind::ParentGone,
        v1::ConflictKind::TargetTaken => ConflictKind::TargetTaken,
        v1::ConflictKind::RenameCycle => ConflictKind::RenameCycle,
        v1::ConflictKind::UpdateRemove => ConflictKind::UpdateRemove,
        v1::ConflictKind::Orphan => ConflictKind::Orphan,
        v1::ConflictKind::MassRemoval => ConflictKind::MassRemoval,
    })
}
