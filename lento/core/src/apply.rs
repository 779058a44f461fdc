//! What an operation does to a tree. State-setting: doing it twice is doing it once.

use crate::acl;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::types::Attributes;
use crate::types::Mask;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Time;
use crate::types::mode;

const CAPABILITY: &[u8] = b"security.capability";

/// Who knows whether a name that goes was an object's last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastName {
    /// The tree, which has all its names.
    ByTree,
    /// The operation as well: in half a snapshot an object may be without the name that it has later.
    BySender,
}

/// Applies `op` to `tree`. Objects that the tree does not have are left alone (their removal came first).
pub fn apply(tree: &mut Tree<'_>, op: &Operation, last_name: LastName) -> Result<(), StoreError> {
    let may_go = |last: bool| last || last_name == LastName::ByTree;
    match &op.kind {
        OpKind::Create { dir, name, attributes, symlink, content, xattrs, dir_mtime, .. } => {
            let mut object = tree.view().object(op.object)?.unwrap_or_default();
            object.attributes = *attributes;
            object.symlink.clone_from(symlink);
            object.content =
                Some(content.as_ref().map_or(Stored::empty(), |c| Stored { hash: c.hash, size: c.size }));
            object.xattrs = xattrs.iter().cloned().collect();
            tree.set_object(op.object, Some(&object))?;
            tree.set_entry(*dir, name, Some(op.object))?;
            set_mtime(tree, *dir, *dir_mtime)
        }
        OpKind::Link { dir, name, dir_mtime } => {
            tree.set_entry(*dir, name, Some(op.object))?;
            set_mtime(tree, *dir, *dir_mtime)
        }
        OpKind::Remove { dir, name, dir_mtime, last, .. } => {
            tree.set_entry(*dir, name, None)?;
            if may_go(*last) {
                bury(tree, op.object)?;
            }
            set_mtime(tree, *dir, *dir_mtime)
        }
        OpKind::Rename { from, from_name, to, to_name, replaced, exchange, from_mtime, to_mtime } => {
            let partner = replaced.filter(|_| *exchange).map(|r| r.object);
            tree.set_entry(*to, to_name, Some(op.object))?;
            tree.set_entry(*from, from_name, partner)?;
            if let Some(replaced) = replaced.filter(|replaced| !*exchange && may_go(replaced.last)) {
                bury(tree, replaced.object)?;
            }
            set_mtime(tree, *from, *from_mtime)?;
            set_mtime(tree, *to, *to_mtime)
        }
        OpKind::SetAttr { mask, attributes } => change(tree, op.object, |object| {
            set_attributes(object, *mask, attributes);
        }),
        OpKind::Close { content, mtime, .. } => change(tree, op.object, |object| {
            object.content = Some(Stored { hash: content.hash, size: content.size });
            object.attributes.mtime = *mtime;
            drop_privileges(object);
        }),
        OpKind::SetXattr { name, value } => change(tree, op.object, |object| {
            if name == acl::ACCESS {
                object.attributes.mode = acl::mode_with(object.attributes.mode, value);
            }
            object.xattrs.insert(name.clone(), value.clone());
        }),
        OpKind::DelXattr { name } => change(tree, op.object, |object| {
            object.xattrs.remove(name);
        }),
    }
}

/// Sets the masked attributes and what the kernel changes with them.
pub fn set_attributes(object: &mut Object, mask: Mask, new: &Attributes) {
    let attributes = &mut object.attributes;
    if mask.has(Mask::UID) {
        attributes.uid = new.uid;
    }
    if mask.has(Mask::GID) {
        attributes.gid = new.gid;
    }
    if mask.has(Mask::MODE) {
        attributes.mode = attributes.mode & !0o7777 | new.mode & 0o7777;
        if let Some(value) = object.xattrs.get_mut(acl::ACCESS) {
            *value = acl::value_with(value, new.mode);
        }
    }
    if mask.has(Mask::MTIME) {
        attributes.mtime = new.mtime;
    }
    if (mask.has(Mask::UID) || mask.has(Mask::GID)) && !mask.has(Mask::MODE) {
        drop_privileges(object);
    }
}

/// What the kernel takes from a file that is written or changes its owner (`file_remove_privs`, `chown_common`).
pub fn drop_privileges(object: &mut Object) {
    let mode = &mut object.attributes.mode;
    if *mode & mode::TYPE == mode::DIR {
        return;
    }
    *mode &= !0o4000;
    if *mode & 0o010 != 0 {
        *mode &= !0o2000;
    }
    object.xattrs.remove(CAPABILITY);
}

fn change(tree: &mut Tree<'_>, id: ObjectId, change: impl FnOnce(&mut Object)) -> Result<(), StoreError> {
    let Some(mut object) = tree.view().object(id)? else { return Ok(()) };
    change(&mut object);
    tree.set_object(id, Some(&object))
}

fn set_mtime(tree: &mut Tree<'_>, dir: ObjectId, mtime: Time) -> Result<(), StoreError> {
    change(tree, dir, |object| object.attributes.mtime = mtime)
}

/// Removes an object that has no name left.
pub fn bury(tree: &mut Tree<'_>, id: ObjectId) -> Result<(), StoreError> {
    if tree.view().names(id)?.is_empty() { tree.set_object(id, None) } else { Ok(()) }
}
