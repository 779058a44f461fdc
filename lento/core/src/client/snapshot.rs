//! The whole tree at once, for a replica that is new or too far behind: base is replaced, then compared with what is
//! here, facet by facet. What base had and the snapshot has not was deleted; what is pending stays and gets its verdict.

use super::Client;
use crate::cml::Cml;
use crate::context::Context;
use crate::facet::Facet;
use crate::message::SnapshotObject;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::Which;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Position;
use crate::types::Recno;
use std::collections::BTreeSet;

impl Client {
    pub(super) fn snapshot_begin(
        &mut self,
        ctx: &mut Context<'_>,
        position: Position,
    ) -> Result<(), StoreError> {
        ctx.meta.partial = true;
        ctx.meta.position = position;
        for table in [Table::BaseObject, Table::BaseEntry, Table::BaseName] {
            ctx.store.clear(table)?;
        }
        Ok(())
    }

    pub(super) fn snapshot_chunk(
        &mut self,
        ctx: &mut Context<'_>,
        objects: Vec<SnapshotObject>,
    ) -> Result<(), StoreError> {
        let mut tree = Tree::new(ctx.store, Which::Base);
        for object in objects {
            let state = Object {
                attributes: object.attributes,
                symlink: object.symlink,
                content: Some(object.hash.map_or(Stored::empty(), |hash| Stored { hash, size: object.size })),
                xattrs: object.xattrs.into_iter().collect(),
                ..Object::default()
            };
            tree.set_object(object.object, Some(&state))?;
            for (dir, name) in object.entries {
                tree.set_entry(dir, &name, Some(object.object))?;
            }
        }
        Ok(())
    }

    pub(super) fn snapshot_end(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        ctx.meta.partial = false;
        let mut facets = BTreeSet::new();
        for (entries, objects) in
            [(Table::BaseEntry, Table::BaseObject), (Table::LocalEntry, Table::LocalObject)]
        {
            table::each_with_prefix(ctx.store, entries, &[], |key, _| {
                if let Some((dir, name)) = table::tag_from_key(key) {
                    facets.insert(Facet::Entry(ObjectId(dir), Name::from(name)));
                }
                Ok(())
            })?;
            table::each_with_prefix(ctx.store, objects, &[], |key, _| {
                if let Some((object, _)) = table::tag_from_key(key) {
                    facets.insert(Facet::Object(ObjectId(object)));
                }
                Ok(())
            })?;
        }
        // What the server had received has its verdict, and the snapshot shows what came of it.
        let received = self.received();
        for (recno, _) in
            Cml::rows(ctx.store, Recno(0), usize::MAX)?.iter().take_while(|(recno, _)| *recno <= received)
        {
            self.cml.settle(ctx.store, *recno, None)?;
        }
        // What was dirty before may wait for something that this tree never heard of.
        self.work.requeue_all();
        self.look_at(ctx, facets)
    }
}
