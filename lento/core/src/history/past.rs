//! The tree of an earlier position: the present one, with what the rows since then have changed put back.

use super::Before;
use super::Extent;
use super::HistoryError;
use super::Row;
use crate::context::Meta;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::Overlay;
use crate::tree::View;
use crate::types::Attributes;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Position;
use crate::types::Time;

/// Positions that are looked at in one go.
const WINDOW: u64 = 512;
/// No path has more parts.
const DEEP: usize = 4096;
/// Objects and names that may differ from the present: a bound for memory, some hundred megabytes.
const DIFFERENCES: usize = 1_000_000;

/// An earlier tree over the present one.
pub struct Past<'a> {
    store: &'a dyn Store,
    overlay: Overlay,
    /// Rows up to here are not put back.
    at: Position,
}

impl<'a> Past<'a> {
    /// The present, to go back from.
    ///
    /// # Errors
    /// No history is kept.
    pub fn present(store: &'a dyn Store) -> Result<Past<'a>, HistoryError> {
        let (_, newest) = reach(store)?;
        Ok(Past { store, overlay: Overlay::default(), at: newest })
    }

    /// The tree as it was at `position`.
    ///
    /// # Errors
    /// The history does not hold it.
    pub fn at(store: &'a dyn Store, position: Position) -> Result<Past<'a>, HistoryError> {
        let (from, newest) = reach(store)?;
        if position < from {
            return Err(HistoryError::TooOld { from, asked: position });
        }
        if position > newest {
            return Err(HistoryError::NotYet { newest, asked: position });
        }
        let mut past = Past::present(store)?;
        let mut rows = Back::new(store, newest, position);
        while let Some((_, row)) = rows.next()? {
            past.undo(&row)?;
        }
        past.at = position;
        Ok(past)
    }

    /// Which position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    pub(super) fn view(&self) -> View<'_> {
        View::planned(self.store, &self.overlay)
    }

    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Takes back the newest row that is still in it.
    ///
    /// # Errors
    /// Too much is different by now, or the store's.
    pub(super) fn undo(&mut self, row: &Row) -> Result<(), HistoryError> {
        if self.overlay.len() > DIFFERENCES {
            return Err(HistoryError::TooFar { most: DIFFERENCES });
        }
        for before in row.before.iter().rev() {
            match before {
                Before::Object(id, before) => {
                    let now = self.view().object(*id)?;
                    let before = before.clone().map(|before| as_found(before, now.as_ref()));
                    self.overlay.set_object(*id, before);
                }
                Before::Time(id, time) => {
                    if let Some(now) = self.view().object(*id)? {
                        let attributes = Attributes { mtime: *time, ..now.attributes };
                        self.overlay.set_object(*id, Some(Object { attributes, ..now }));
                    }
                }
                Before::Entry(dir, name, object) => {
                    let now = self.view().entry(*dir, name)?;
                    self.overlay.set_entry((*dir, name.clone()), now, *object);
                }
            }
        }
        Ok(())
    }

    /// What a path leads to; no symbolic link is followed.
    pub(super) fn find(&self, path: &[Name]) -> Result<Option<ObjectId>, StoreError> {
        let view = self.view();
        let mut at = ObjectId::ROOT;
        for name in path {
            let Some(next) = view.entry(at, name)? else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }

    /// One of an object's paths; `None`: it has none.
    pub(super) fn path_of(&self, object: ObjectId) -> Result<Option<Vec<Name>>, StoreError> {
        let view = self.view();
        let mut path = Vec::new();
        let mut at = object;
        while at != ObjectId::ROOT {
            let Some((dir, name)) = view.any_name(at)?.filter(|_| path.len() < DEEP) else {
                return Ok(None);
            };
            path.push(name);
            at = dir;
        }
        path.reverse();
        Ok(Some(path))
    }
}

/// A later row may say more of a content than the one that ended it: its hash, and the time that its file has by now.
fn as_found(before: Object, now: Option<&Object>) -> Object {
    match now {
        Some(now) if now.written == before.written && before.attributes.is_file() => {
            Object { file: now.file, version: now.version, content: now.content.or(before.content), ..before }
        }
        _ => before,
    }
}

/// Where the history begins and the newest position.
fn reach(store: &dyn Store) -> Result<(Position, Position), HistoryError> {
    let extent = Extent::load(store)?.filter(|extent| !extent.ended).ok_or(HistoryError::Off)?;
    let newest = Meta::load(store)?.map(|meta| Position(meta.last_read().0)).unwrap_or_default();
    Ok((extent.from, newest))
}

/// The last position that was there at this time, by the server's clock.
///
/// # Errors
/// The history does not reach back so far.
pub fn position_at(store: &dyn Store, time: Time) -> Result<Position, HistoryError> {
    let (from, newest) = reach(store)?;
    let mut rows = Back::new(store, newest, from);
    let mut after = newest;
    while let Some((position, row)) = rows.next()? {
        if row.time <= time {
            return Ok(after);
        }
        after = Position(position.0.saturating_sub(1));
    }
    Err(HistoryError::BeforeAll(from))
}

/// Rows from the newest on backwards, those with `floor` < position <= `newest`.
pub(super) struct Back<'a> {
    store: &'a dyn Store,
    /// Not looked at yet.
    below: u64,
    floor: u64,
    rows: Vec<(Position, Row)>,
}

impl<'a> Back<'a> {
    pub(super) fn new(store: &'a dyn Store, newest: Position, floor: Position) -> Back<'a> {
        Back { store, below: newest.0.saturating_add(1), floor: floor.0, rows: Vec::new() }
    }

    /// All that are kept.
    pub(super) fn all(store: &'a dyn Store) -> Result<Back<'a>, HistoryError> {
        let (from, newest) = reach(store)?;
        Ok(Back::new(store, newest, from))
    }

    pub(super) fn next(&mut self) -> Result<Option<(Position, Row)>, StoreError> {
        while self.rows.is_empty() && self.below > self.floor.saturating_add(1) {
            let lowest = self.below.saturating_sub(WINDOW).max(self.floor.saturating_add(1));
            for (key, value) in
                self.store.scan(Table::History, &table::number_key(lowest), WINDOW as usize)?
            {
                let position = table::number_from_key(&key).unwrap_or(u64::MAX);
                if position >= self.below {
                    break;
                }
                self.rows.push((Position(position), table::decode(Table::History, &value)?));
            }
            self.below = lowest;
        }
        Ok(self.rows.pop())
    }
}
