//! Base told as records, for a server whose log forked where no tail reaches.
//!
//! An object is made under its first name, directories before what is in them. Whatever stands for more than the record
//! that once made it goes under a made-up name, so that it is not skipped where that record is known.

use super::was_refused;
use crate::context::Context;
use crate::context::Meta;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Stored;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use std::collections::BTreeSet;
use std::collections::VecDeque;

/// Names for records that nobody made like that.
#[derive(Debug)]
pub(super) struct Names {
    replica: u64,
    incarnation: u32,
    made_up: u64,
}

impl Names {
    /// For this node, in this incarnation.
    pub fn new(meta: &Meta) -> Names {
        Names { replica: meta.replica, incarnation: meta.incarnation, made_up: 0 }
    }

    /// Another one.
    pub fn make_up(&mut self) -> OpId {
        self.made_up += 1;
        OpId::made_up(self.replica, self.incarnation, self.made_up)
    }
}

/// Base, directories before what is in them.
#[derive(Debug, Default)]
pub(super) struct TreeWalk {
    dirs: VecDeque<ObjectId>,
    records: VecDeque<Operation>,
    /// Objects of several names that were told.
    told: BTreeSet<ObjectId>,
    /// Of the tail, what was refused up to here.
    refused: Position,
}

impl TreeWalk {
    /// From the root on.
    pub fn new() -> TreeWalk {
        TreeWalk { dirs: VecDeque::from([ObjectId::ROOT]), ..TreeWalk::default() }
    }

    /// The next record.
    pub fn next(&mut self, ctx: &Context<'_>, names: &mut Names) -> Result<Option<Operation>, StoreError> {
        loop {
            if let Some(op) = self.records.pop_front() {
                return Ok(Some(op));
            }
            let Some(dir) = self.dirs.pop_front() else { return Ok(None) };
            for (name, object) in View::new(ctx.store, Which::Base).children(dir, usize::MAX)? {
                self.tell(ctx, names, dir, name, object)?;
            }
        }
    }

    /// After the tree: what the server's conflict store had, as far as that is known.
    pub fn next_refused(&mut self, ctx: &Context<'_>) -> Result<Option<Operation>, StoreError> {
        loop {
            // Behind the largest number there is nothing, whoever has used that one.
            let Some(next) = self.refused.0.checked_add(1).map(table::number_key) else { return Ok(None) };
            let Some((key, value)) = ctx.store.scan(Table::Tail, &next, 1)?.pop() else { return Ok(None) };
            self.refused = Position(table::number_from_key(&key).unwrap_or(u64::MAX));
            let op: Operation = table::decode(Table::Tail, &value)?;
            if was_refused(&op) {
                return Ok(Some(op));
            }
        }
    }

    /// One name as records: an object is made under its first name, by the record that once made it.
    fn tell(
        &mut self,
        ctx: &Context<'_>,
        names: &mut Names,
        dir: ObjectId,
        name: Name,
        object: ObjectId,
    ) -> Result<(), StoreError> {
        let view = View::new(ctx.store, Which::Base);
        let Some(state) = view.object(object)? else { return Ok(()) };
        let dir_mtime = view.object(dir)?.unwrap_or_default().attributes.mtime;
        let several = view.names(object)?.len() > 1;
        if several && !self.told.insert(object) {
            let id = names.make_up();
            let kind = OpKind::Link { dir, name, dir_mtime };
            self.records.push_back(Operation { id, time: dir_mtime, object, kind });
            return Ok(());
        }
        let mtime = state.attributes.mtime;
        let content = state.content.filter(|_| state.attributes.is_file());
        let content = content.map(|Stored { hash, size }| Content { hash, size, inline: None });
        let kind = OpKind::Create {
            dir,
            name,
            attributes: state.attributes,
            symlink: state.symlink,
            content: content.clone(),
            xattrs: state.xattrs.into_iter().collect(),
            dir_mtime,
            seen: Position(0),
        };
        let op = Operation { id: OpId(object.0), time: mtime, object, kind };
        if content.is_some() {
            // What the file was made with, base does not say: its content goes on under a name of ours, and the record that
            // made it is done.
            self.records.push_back(Operation { id: names.make_up(), ..op.clone() });
            self.records.push_back(Operation::done(op.id, &op));
        } else {
            self.records.push_back(op);
        }
        if state.attributes.is_dir() {
            self.dirs.push_back(object);
        }
        Ok(())
    }
}
