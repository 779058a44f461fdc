//! The table of conflicts: what was refused or has given way, by the position of its verdict.
//!
//! Owns what is known of each beside its row (who decides, what is kept, which others belong to it), how many there are,
//! and which store of each client over which file was refused last: what the client then stores over that loser is the same
//! conflict, further on. Whoever wrote it had seen the earlier one, so one row is enough for people.

mod groups;
mod standing;

pub use groups::Groups;
pub use groups::place;
pub use standing::Kept;
pub use standing::Standing;
pub use standing::State;

use super::ConflictRow;
use crate::io::ConflictOptions;
use crate::io::Policy;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::ConflictKind;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// What is kept in memory of them.
#[derive(Debug, Default)]
pub struct Conflicts {
    /// What their owner wants.
    pub options: ConflictOptions,
    rows: BTreeMap<Recno, Known>,
    newest: Recno,
    /// By the client's replica and the file.
    stores: BTreeMap<(u64, ObjectId), (Recno, Hash)>,
    records: BTreeMap<OpId, Recno>,
    groups: Groups,
    /// Objects that no other node's update may change, and about how many conflicts.
    held: BTreeMap<ObjectId, u64>,
    /// Those of conflicts whose verdicts are on their way.
    held_soon: BTreeSet<ObjectId>,
    /// What a policy has decided, without what belongs to these.
    decided: BTreeSet<Recno>,
    tally: Tally,
}

/// One row.
#[derive(Clone, Debug)]
struct Known {
    record: OpId,
    standing: Standing,
    store: Option<(u64, ObjectId)>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// They wait for a person; a group is one.
    pub open: u64,
    /// A policy has decided; a group is one.
    pub decided: u64,
    /// Bytes kept for those that wait.
    pub open_bytes: u64,
    /// Bytes kept for those that are decided.
    pub decided_bytes: u64,
}

impl Conflicts {
    /// Reads the tables.
    pub fn load(store: &dyn Store) -> Result<Conflicts, StoreError> {
        let mut conflicts = Conflicts::default();
        let mut rows = Vec::new();
        table::each_with_prefix(store, Table::Conflict, &[], |key, value| {
            let row: ConflictRow = table::decode(Table::Conflict, value)?;
            rows.push((Recno(table::number_from_key(key).unwrap_or_default()), row));
            Ok(())
        })?;
        for (recno, row) in rows {
            let standing = Standing::get(store, recno)?;
            conflicts.note(recno, &row, standing);
        }
        Ok(conflicts)
    }

    /// Adds one, in the place of the one that it goes on with.
    pub fn add(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        row: &ConflictRow,
        mut standing: Standing,
    ) -> Result<(), StoreError> {
        if let State::Held(object) = standing.state {
            self.held_soon.remove(&object);
        }
        if let Some(earlier) = self.continued(row).filter(|earlier| *earlier != recno)
            && let Some(known) = self.rows.get(&earlier).cloned()
        {
            standing.group = known.standing.group;
            standing.earlier = known.standing.earlier;
            standing.earlier.push(known.record);
            self.forget(store, earlier)?;
        }
        if standing.group.is_none() {
            let head = self.groups.head_for(row).filter(|head| *head != recno);
            standing.group = head.filter(|head| self.goes_with(*head, &standing));
        }
        standing.put(store, recno)?;
        self.note(recno, row, standing);
        table::put(store, Table::Conflict, &table::number_key(recno.0), row)
    }

    /// What a policy has decided goes after a while, what waits for a person does not: they are never one.
    fn goes_with(&self, head: Recno, standing: &Standing) -> bool {
        let is_decided = |standing: &Standing| standing.state == State::Decided;
        self.rows.get(&head).is_some_and(|known| is_decided(&known.standing) == is_decided(standing))
    }

    /// The loser of one that is listed has changed.
    pub fn change(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        row: &ConflictRow,
    ) -> Result<(), StoreError> {
        let standing = match self.rows.get(&recno) {
            Some(known) => known.standing.clone(),
            // Resolved, and more was left since: that is news.
            None => Standing::default(),
        };
        self.note(recno, row, standing);
        table::put(store, Table::Conflict, &table::number_key(recno.0), row)
    }

    /// It is resolved: the records whose contents can go. `None`: there is no such conflict.
    pub fn strike(
        &mut self,
        store: &mut dyn Store,
        record: OpId,
    ) -> Result<Option<(Recno, Vec<OpId>)>, StoreError> {
        let Some(recno) = self.records.get(&record).copied() else { return Ok(None) };
        let Some(known) = self.forget(store, recno)? else { return Ok(None) };
        let mut records = known.standing.earlier;
        records.push(known.record);
        Ok(Some((recno, records)))
    }

    /// Where the verdict about a record stands.
    pub fn position_of(&self, record: OpId) -> Option<Recno> {
        self.records.get(&record).copied()
    }

    /// The one at this position and those that belong to it, the one that they belong to last.
    pub fn with_members(&self, position: Recno) -> Vec<(Recno, OpId)> {
        let Some(known) = self.rows.get(&position) else { return Vec::new() };
        let head = known.standing.group.unwrap_or(position);
        let all = self.groups.members(head).chain([head]);
        all.filter_map(|recno| Some((recno, self.rows.get(&recno)?.record))).collect()
    }

    /// What has been kept for too long, or is too much, oldest first, without those in `leaving`.
    pub fn expired(&self, clock: u64, leaving: impl Fn(Recno) -> bool) -> Vec<Expired> {
        let is_due = |standing: &Standing| clock.saturating_sub(standing.since) >= self.options.keep_for;
        let mut found = Vec::new();
        let mut bytes = self.tally.decided_bytes;
        for recno in &self.decided {
            let Some(known) = self.rows.get(recno) else { continue };
            let is_old = is_due(&known.standing);
            if !is_old && bytes <= self.options.keep_bytes {
                break;
            }
            let members = self.groups.members(*recno).filter_map(|member| self.rows.get(&member));
            let all: u64 = members.map(|known| known.standing.size).sum();
            bytes = bytes.saturating_sub(all.saturating_add(known.standing.size));
            if !leaving(*recno) {
                found.push(Expired { position: *recno, is_old });
            }
        }
        found
    }

    /// When the oldest of what is decided has been kept for long enough, on the same clock.
    pub fn next_expiry(&self) -> Option<u64> {
        let oldest = self.rows.get(self.decided.first()?)?;
        Some(oldest.standing.since.saturating_add(self.options.keep_for))
    }

    /// Whether `present` is what a power cut of this server has left of the content `before`, and nobody had a better one.
    pub fn is_left_of(
        &self,
        store: &dyn Store,
        own: u64,
        object: ObjectId,
        before: Hash,
        present: Hash,
    ) -> Result<bool, StoreError> {
        let Some((recno, hash)) = self.stores.get(&(own, object)) else { return Ok(false) };
        if *hash != present {
            return Ok(false);
        }
        let row: Option<ConflictRow> = table::get(store, Table::Conflict, &table::number_key(recno.0))?;
        Ok(row.as_ref().and_then(stored).is_some_and(|(_, torn, _)| torn == before))
    }

    /// A verdict about this object is on its way, after which it is held.
    pub fn hold_soon(&mut self, object: ObjectId) {
        if self.options.policy == Policy::Manual {
            self.held_soon.insert(object);
        }
    }

    /// What was on its way is planned anew.
    pub fn replan(&mut self) {
        self.held_soon.clear();
    }

    /// What an update of another node would change although a person has to decide first: `None`, it may.
    pub fn holds(&self, op: &Operation) -> Option<ConflictKind> {
        if self.options.policy != Policy::Manual {
            return None;
        }
        let (object, kind) = match &op.kind {
            OpKind::Close { .. } => (op.object, ConflictKind::StoreStore),
            OpKind::Remove { .. } => (op.object, ConflictKind::RemoveUpdate),
            OpKind::Rename { replaced: Some(replaced), exchange: false, .. } => {
                (replaced.object, ConflictKind::TargetTaken)
            }
            OpKind::Rename { .. }
            | OpKind::Create { .. }
            | OpKind::Link { .. }
            | OpKind::SetAttr { .. }
            | OpKind::SetXattr { .. }
            | OpKind::DelXattr { .. } => return None,
        };
        (self.held.contains_key(&object) || self.held_soon.contains(&object)).then_some(kind)
    }

    /// What belongs to what.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// How many there are.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Position of the newest.
    pub fn newest(&self) -> Recno {
        self.newest
    }

    fn forget(&mut self, store: &mut dyn Store, recno: Recno) -> Result<Option<Known>, StoreError> {
        let key = table::number_key(recno.0);
        store.delete(Table::Conflict, &key)?;
        store.delete(Table::Standing, &key)?;
        let known = self.unlist(recno);
        if let Some(key) = known.as_ref().and_then(|known| known.store)
            && self.stores.get(&key).is_some_and(|(at, _)| *at == recno)
        {
            self.stores.remove(&key);
        }
        Ok(known)
    }

    fn unlist(&mut self, recno: Recno) -> Option<Known> {
        let known = self.rows.remove(&recno)?;
        self.records.remove(&known.record);
        self.decided.remove(&recno);
        self.groups.leave(recno, known.standing.group);
        if let State::Held(object) = known.standing.state
            && let Some(count) = self.held.get_mut(&object)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.held.remove(&object);
            }
        }
        self.tally.count(&known.standing, |sum, by| sum.saturating_sub(by));
        Some(known)
    }

    fn note(&mut self, recno: Recno, row: &ConflictRow, standing: Standing) {
        self.unlist(recno);
        self.newest = self.newest.max(recno);
        self.tally.count(&standing, u64::saturating_add);
        if let State::Held(object) = standing.state {
            *self.held.entry(object).or_default() += 1;
        }
        self.groups.join(recno, standing.group, row);
        self.records.insert(row.record, recno);
        if standing.is_decided_head() {
            self.decided.insert(recno);
        }
        let store = stored(row);
        if let Some((key, _, hash)) = store {
            self.stores.insert(key, (recno, hash));
        }
        let store = store.map(|(key, ..)| key);
        self.rows.insert(recno, Known { record: row.record, standing, store });
    }

    fn continued(&self, row: &ConflictRow) -> Option<Recno> {
        let (key, before, hash) = stored(row)?;
        let (recno, loser) = self.stores.get(&key)?;
        (*loser == before || *loser == hash).then_some(*recno)
    }
}

/// What retention takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Which.
    pub position: Recno,
    /// It has been kept for long enough; else there is too much.
    pub is_old: bool,
}

impl Tally {
    fn count(&mut self, standing: &Standing, change: fn(u64, u64) -> u64) {
        let (count, bytes) = match standing.state {
            State::Decided => (&mut self.decided, &mut self.decided_bytes),
            State::Open | State::Held(_) => (&mut self.open, &mut self.open_bytes),
        };
        *count = change(*count, u64::from(standing.group.is_none()));
        *bytes = change(*bytes, standing.size);
    }
}

/// Whose store over which file, over what, and with what.
fn stored(row: &ConflictRow) -> Option<((u64, ObjectId), Hash, Hash)> {
    let op = row.op.as_ref()?;
    let OpKind::Close { before, .. } = op.kind else { return None };
    Some(((row.record.0.replica, op.object), before, row.hash?))
}
