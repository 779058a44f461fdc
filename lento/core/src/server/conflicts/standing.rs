//! Where a conflict stands: who has to decide, what is kept, since when. A row of its own, beside the conflict's.

use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Recno;
use serde::Deserialize;
use serde::Serialize;

/// What is known of a conflict beside its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whether anybody has to decide.
    pub state: State,
    /// Which of the two is kept aside.
    pub kept: Kept,
    /// The conflict that it is a part of.
    pub group: Option<Recno>,
    /// Time of this server's running when it was found, in milliseconds.
    pub since: u64,
    /// Bytes that are kept, without those of `earlier`.
    pub size: u64,
    /// Records that it goes on with; what is kept of them goes with it.
    pub earlier: Vec<OpId>,
}

/// Whether anybody has to decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A person.
    #[default]
    Open,
    /// A person; until then no other node's update changes this object.
    Held(ObjectId),
    /// The volume's policy has decided: it is kept for a while.
    Decided,
}

/// Which of the two is kept aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    /// The update: the tree is as the server had it.
    #[default]
    Update,
    /// What the tree had: the update is in it.
    Tree,
}

impl Standing {
    /// Reads it; a conflict of an older release waits for a person.
    pub fn get(store: &dyn Store, recno: Recno) -> Result<Standing, StoreError> {
        Ok(table::get(store, Table::Standing, &table::number_key(recno.0))?.unwrap_or_default())
    }

    pub(super) fn put(&self, store: &mut dyn Store, recno: Recno) -> Result<(), StoreError> {
        table::put(store, Table::Standing, &table::number_key(recno.0), self)
    }

    /// It is no part of another one, and decided.
    pub(super) fn is_decided_head(&self) -> bool {
        self.group.is_none() && self.state == State::Decided
    }
}
