//! The whole tree, for a replica that is new or too far behind: object by object, while the log goes on.
//!
//! Each object comes as it is when it is sent, and every record from the beginning of the snapshot on is applied as well.
//! Operations set states, so that those that an object has seen already do no harm, and base is the server's tree once
//! the log has come to where the last object was sent. Then it is compared with what is here, facet by facet: what was
//! here and the snapshot has not was deleted; what is pending stays and gets its verdict.

use super::Client;
use crate::cml::Cml;
use crate::context::Context;
use crate::context::Snapshot;
use crate::facet::Facet;
use crate::io::Output;
use crate::message::Ack;
use crate::message::Message;
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

/// Rows compared at a time.
const PAGE: usize = 4096;

impl Client {
    /// Base is void: another tree comes, which may be that of a smaller position.
    pub(super) fn await_tree(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        for table in [Table::BaseObject, Table::BaseEntry, Table::BaseName, Table::Tail] {
            ctx.store.clear(table)?;
        }
        ctx.meta.position = Position(0);
        ctx.meta.tail_from = Position(0);
        ctx.meta.snapshot = Some(Snapshot::default());
        // Nothing of it is durable here.
        self.durable = (Position(0), Position(0));
        self.acked = Ack::default();
        self.syncing.void();
        Ok(())
    }

    pub(super) fn snapshot_begin(
        &mut self,
        ctx: &mut Context<'_>,
        position: Position,
        total: u64,
    ) -> Result<(), StoreError> {
        self.await_tree(ctx)?;
        ctx.meta.snapshot = Some(Snapshot { total, ..Snapshot::default() });
        ctx.meta.position = position;
        // What came before the snapshot has no records here.
        ctx.meta.tail_from = position;
        Ok(())
    }

    pub(super) fn snapshot_chunk(
        &mut self,
        ctx: &mut Context<'_>,
        objects: Vec<SnapshotObject>,
    ) -> Result<(), StoreError> {
        let Some(snapshot) = &mut ctx.meta.snapshot else { return Ok(()) };
        let Some(last) = objects.last().map(|object| object.object) else { return Ok(()) };
        snapshot.objects += objects.len() as u64;
        snapshot.upto = snapshot.upto.max(last);
        let mut tree = Tree::new(ctx.store, Which::Base);
        for object in objects {
            let content = match object.hash {
                Some(hash) => Some(Stored { hash, size: object.size }),
                // A file whose content is not known yet gets it from the log; others have none.
                None => (!object.attributes.is_file()).then(Stored::empty),
            };
            let state = Object {
                attributes: object.attributes,
                symlink: object.symlink,
                content,
                xattrs: object.xattrs.into_iter().collect(),
                ..Object::default()
            };
            tree.set_object(object.object, Some(&state))?;
            for (dir, name) in object.entries {
                tree.set_entry(dir, &name, Some(object.object))?;
            }
        }
        ctx.out.push(Output::Send(self.server.clone(), Message::SnapshotStored(last)));
        Ok(())
    }

    pub(super) fn snapshot_end(
        &mut self,
        ctx: &mut Context<'_>,
        position: Position,
    ) -> Result<(), StoreError> {
        if let Some(snapshot) = &mut ctx.meta.snapshot {
            snapshot.end = Some(position);
        }
        self.finish_snapshot(ctx)
    }

    /// Base is whole once the log has come as far as the last object.
    pub(super) fn finish_snapshot(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let end = ctx.meta.snapshot.and_then(|snapshot| snapshot.end);
        if end.is_none_or(|end| ctx.meta.position < end) {
            return Ok(());
        }
        ctx.meta.snapshot = None;
        // What the server had received has its verdict, and the snapshot shows what came of it.
        let received = self.received();
        for (recno, row) in
            Cml::rows(ctx.store, Recno(0), usize::MAX)?.iter().take_while(|(recno, _)| *recno <= received)
        {
            self.cml.settle(ctx.store, *recno, None)?;
            self.cml.release_limbo(ctx.store, row.op.object, ctx.meta.last_read(), ctx.out)?;
        }
        for table in [Table::BaseEntry, Table::LocalEntry] {
            self.compare(ctx, table, |dir, name| Facet::Entry(dir, Name::from(name)))?;
        }
        for table in [Table::BaseObject, Table::LocalObject] {
            self.compare(ctx, table, |object, _| Facet::Object(object))?;
        }
        // What was dirty before may wait for something that this tree never heard of.
        self.work.requeue_all();
        Ok(())
    }

    /// Looks at the facet of each row of a table.
    fn compare(
        &mut self,
        ctx: &mut Context<'_>,
        table: Table,
        facet: impl Fn(ObjectId, &[u8]) -> Facet,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let rows = ctx.store.scan(table, &from, PAGE)?;
            let facets: BTreeSet<Facet> = rows
                .iter()
                .filter_map(|(key, _)| table::tag_from_key(key).map(|(tag, rest)| facet(ObjectId(tag), rest)))
                .collect();
            self.look_at(ctx, facets)?;
            let Some((last, _)) = rows.last().filter(|_| rows.len() == PAGE) else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
        }
    }
}
