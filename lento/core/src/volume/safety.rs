//! Where what a program wrote is safe: the answer for one file.

use crate::facet::Facet;
use crate::facet::pending;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::FileId;
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

    /// What is known of a lower file, of which record `newest` is the last; 0: one that has been forgotten because it is in
    /// the durable store. A client knows of the server only.
    pub fn safety(&self, store: &dyn Store, file: FileId, newest: Recno) -> Result<Safety, StoreError> {
        if self.meta.last_read() < newest {
            return Ok(Safety::Local);
        }
        let Some(object) = handle::get(store, file)? else { return Ok(Safety::Local) };
        match &self.part {
            Part::Client(_) if pending::any(store, &Facet::Object(object))? => Ok(Safety::Local),
            Part::Client(_) => Ok(Safety::Server),
            Part::Server(server) => {
                let row = View::new(store, Which::Local).object(object)?;
                let known = row.map_or(newest, |row| newest.max(row.made).max(row.written));
                server.safety(store, known, newest == Recno(0))
            }
        }
    }
}
