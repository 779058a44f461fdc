//! The tree, object by object, for those whom the log cannot help. It goes on beside the log, which is kept for them from
//! the beginning of the snapshot on; `client/snapshot.rs` says why that is enough. All that is remembered of one is the
//! client's last object: after a cut it goes on there.

use super::Server;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::message::Message;
use crate::message::SnapshotObject;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::View;
use crate::tree::Which;
use crate::types::ObjectId;
use crate::types::Position;
use std::collections::VecDeque;

/// Messages on their way to one client.
const WINDOW: usize = 4;

/// A snapshot that a client is being sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Sending {
    /// The last object sent.
    upto: ObjectId,
    /// The last objects of the messages that the client has not stored.
    on_the_way: VecDeque<ObjectId>,
}

impl Sending {
    /// The client has the objects up to this one.
    pub fn from(upto: ObjectId) -> Sending {
        Sending { upto, on_the_way: VecDeque::new() }
    }

    pub fn stored(&mut self, upto: ObjectId) {
        self.on_the_way.retain(|last| *last > upto);
    }
}

impl Server {
    /// The client gets everything anew, and the log from what may be forwarded now on.
    pub(super) fn begin_snapshot(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
    ) -> Result<(), StoreError> {
        let position = self.forwardable();
        let objects = ctx.store.len(Table::LocalObject)?;
        let Some(session) = self.sessions.get_mut(node) else { return Ok(()) };
        session.sent = position;
        session.began = position;
        session.snapshot = Some(Sending::default());
        ctx.out.push(Output::Send(node.clone(), Message::SnapshotBegin { position, objects }));
        Ok(())
    }

    /// As much as may be on its way.
    pub(super) fn send_snapshots(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        for (node, session) in &mut self.sessions {
            let Some(sending) = &mut session.snapshot else { continue };
            while sending.on_the_way.len() < WINDOW {
                let mut after = table::object_key(sending.upto);
                after.push(0);
                let rows = ctx.store.scan(Table::LocalObject, &after, self.snapshot_chunk)?;
                let objects =
                    rows.iter().map(|(key, value)| object(ctx, key, value)).collect::<Result<Vec<_>, _>>()?;
                let Some(last) = objects.last().map(|object| object.object) else {
                    let end = Position(ctx.meta.last_read().0);
                    ctx.out.push(Output::Send(node.clone(), Message::SnapshotEnd(end)));
                    session.snapshot = None;
                    break;
                };
                sending.upto = last;
                sending.on_the_way.push_back(last);
                ctx.out.push(Output::Send(node.clone(), Message::SnapshotChunk(objects)));
            }
        }
        Ok(())
    }
}

fn object(ctx: &Context<'_>, key: &[u8], value: &[u8]) -> Result<SnapshotObject, StoreError> {
    let Some((tag, _)) = table::tag_from_key(key) else {
        return Err(StoreError("an object of the local tree has no id".to_owned()));
    };
    let state: Object = table::decode(Table::LocalObject, value)?;
    let names = View::new(ctx.store, Which::Local).names(ObjectId(tag))?;
    Ok(SnapshotObject {
        object: ObjectId(tag),
        attributes: state.attributes,
        symlink: state.symlink,
        hash: state.content.filter(|_| state.attributes.is_file()).map(|content| content.hash),
        size: state.content.map_or(0, |content| content.size),
        xattrs: state.xattrs.into_iter().collect(),
        entries: names.into_iter().filter(|(dir, _)| *dir != ObjectId::STAGING).collect(),
    })
}
