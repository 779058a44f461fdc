//! A part of an earlier tree, name by name, compared with what stands there now.

use super::Condition;
use super::Past;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Name;
use crate::types::ObjectId;

/// One name of an earlier tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Names from the one that was asked for on; none: that one itself.
    pub path: Vec<Name>,
    /// The object: names with the same one are one file.
    pub object: ObjectId,
    /// What it was like.
    pub condition: Condition,
    /// It stands there now with the same content.
    pub is_there: bool,
}

/// The object at a path, and what was in it so many names deep, each directory before what is in it. Nothing: nothing stood
/// there.
///
/// # Errors
/// The store's, or what `each` says.
pub fn subtree<E: From<StoreError>>(
    past: &Past<'_>,
    path: &[Name],
    depth: usize,
    mut each: impl FnMut(Node) -> Result<(), E>,
) -> Result<(), E> {
    let Some(root) = past.find(path)? else { return Ok(()) };
    let now = View::new(past.store(), Which::Local);
    let mut present = Some(ObjectId::ROOT);
    for name in path {
        present = present.map(|dir| now.entry(dir, name)).transpose()?.flatten();
    }
    let mut todo = vec![(Vec::new(), root, present)];
    while let Some((path, object, present)) = todo.pop() {
        let Some(state) = past.view().object(object)? else { continue };
        let there = present.map(|present| now.object(present)).transpose()?.flatten();
        if state.attributes.is_dir() && path.len() < depth {
            let children = past.view().children(object, usize::MAX)?;
            for (name, child) in children.into_iter().rev() {
                let present = present.map(|dir| now.entry(dir, &name)).transpose()?.flatten();
                let mut path = path.clone();
                path.push(name);
                todo.push((path, child, present));
            }
        }
        let is_there = there.is_some_and(|there| has_same_content(&state, &there, present == Some(object)));
        each(Node { path, object, condition: Condition::of(&state), is_there })?;
    }
    Ok(())
}

fn has_same_content(then: &Object, now: &Object, is_same: bool) -> bool {
    let same_hash = then.content.is_some() && then.content == now.content;
    let same_kind =
        then.attributes.mode & crate::types::mode::TYPE == now.attributes.mode & crate::types::mode::TYPE;
    let same_file = !then.attributes.is_file() || same_hash || is_same && then.written == now.written;
    same_kind && same_file && then.symlink == now.symlink && then.attributes.rdev == now.attributes.rdev
}
