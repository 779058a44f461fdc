//! Where what a program wrote is safe: the answer for one file.

use crate::facet::Facet;
use crate::facet::pending;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::FileId;
use crate::types::ObjectId;
use crate::types::Recno;

use super::Part;
use super::Volume;

/// Where a file as it is now would still be if this node burned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    /// Nowhere, as far as this node knows.
    Local,
    /// The server has it on stable storage.
    Server,
    /// So has every Replicator.
    Everywhere,
}

impl Volume {
    /// Whether the server can be told of updates now.
    #[must_use]
    pub fn reaches_server(&self) -> bool {
        match &self.part {
            Part::Client(client) => client.is_connected(),
            Part::Server(_) => true,
        }
    }

    /// What is known of a lower file, of which record `newest` is the last that matters; 0: one that has been forgotten because
    /// it is in the durable store. A client knows of the server only.
    pub fn safety(&self, store: &dyn Store, file: FileId, newest: Recno) -> Result<Safety, StoreError> {
        if self.meta.last_read() < newest {
            return Ok(Safety::Local);
        }
        let Some(object) = handle::get(store, file)? else { return Ok(Safety::Local) };
        match &self.part {
            Part::Client(_) if is_pending(store, object, newest)? => Ok(Safety::Local),
            Part::Client(_) => Ok(Safety::Server),
            Part::Server(server) => {
                let row = View::new(store, Which::Local).object(object)?;
                let known = row.map_or(newest, |row| newest.max(row.made).max(row.written));
                server.safety(store, known, newest == Recno(0))
            }
        }
    }
}

/// Whether a record about it waits for the server: of those up to `newest`, where that is known. What came later is not asked
/// about, or nobody could ever say so of a directory in which something is always going on.
fn is_pending(store: &dyn Store, object: ObjectId, newest: Recno) -> Result<bool, StoreError> {
    let first = pending::after(store, &Facet::Object(object), Recno(0))?;
    Ok(first.is_some_and(|first| newest == Recno(0) || first <= newest))
}
