//! What a client may not say, whatever its messages look like: another's records, records out of order, more than it may
//! have under way, another node's name. The wire has checked each message by itself; this is what takes a memory.

use super::session::ReplicatorRow;
use super::session::Session;
use crate::cml::content_of;
use crate::context::Context;
use crate::io::NodeName;
use crate::message::Hello;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Content;
use crate::types::Hash;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;

/// Most records of a client without a verdict: three times what a client sends.
const RECORDS: usize = 60_000;
/// Most bytes of them in memory: four times what a client sends.
const BYTES: usize = 128 << 20;
/// Most barriers of a client.
pub(super) const BARRIERS: usize = 1024;

/// Bytes that a record holds in memory, roughly.
pub(super) fn weight(op: &Operation) -> usize {
    let inline = content_of(op).and_then(|content| content.inline.as_ref()).map_or(0, Vec::len);
    let other = match &op.kind {
        OpKind::Create { xattrs, symlink, .. } => {
            symlink.len() + xattrs.iter().map(|(name, value)| 48 + name.len() + value.len()).sum::<usize>()
        }
        OpKind::SetXattr { value, .. } => value.len(),
        _ => 0,
    };
    400 + inline + other
}

/// Whether the content is not what its hash says.
pub(super) fn lies(op: &Operation) -> bool {
    content_of(op).is_some_and(is_false)
}

/// Whether these bytes are not what their hash says.
pub(super) fn is_false(content: &Content) -> bool {
    content.inline.as_ref().is_some_and(|bytes| Hash::of(bytes) != content.hash)
}

impl Session {
    /// Why these records cannot be this client's next ones.
    pub(super) fn objection(&self, hello: &Hello, operations: &[Operation]) -> Option<&'static str> {
        let mut last = self.submitted;
        for op in operations {
            let id = op.id.0;
            if (id.replica, id.incarnation) != (hello.replica, hello.incarnation) {
                return Some("records of another replica");
            }
            if Recno(id.number) <= last {
                return Some("records out of order");
            }
            last = Recno(id.number);
            if matches!(op.kind, OpKind::Create { .. }) && op.object.0.replica != id.replica {
                return Some("an object that another replica made");
            }
            if lies(op) {
                return Some("a content with a wrong hash");
            }
        }
        self.too_much(operations)
    }

    /// Why there is no room for more.
    pub(super) fn too_much(&self, operations: &[Operation]) -> Option<&'static str> {
        let bytes = operations.iter().map(weight).sum::<usize>();
        let much = self.inbox.len() + operations.len() > RECORDS || self.weight.saturating_add(bytes) > BYTES;
        much.then_some("more records than may be under way")
    }
}

/// Whose replica id it is, if not this client's. Two nodes with one id would take each other's records for their own.
pub(super) fn owner(
    ctx: &Context<'_>,
    node: &NodeName,
    replica: u64,
) -> Result<Option<NodeName>, StoreError> {
    if replica == ctx.meta.replica {
        return Ok(Some("the server".to_owned()));
    }
    let mut owner = None;
    table::each_with_prefix(ctx.store, Table::Replicator, &[], |key, value| {
        let row: ReplicatorRow = table::decode(Table::Replicator, value)?;
        if row.replica == replica && key != node.as_bytes() {
            owner = Some(format!("node {}", String::from_utf8_lossy(key)));
        }
        Ok(())
    })?;
    Ok(owner)
}
