//! What happened to a path, newest first: to the file that stood there at each time, or to all that was in a directory.
//!
//! It is the path that is followed, since programs save by making a new file and renaming it over the old one. Where nothing
//! stood at it before, the object that came there by a rename is followed to where it came from.

use super::Condition;
use super::Deed;
use super::HistoryError;
use super::Row;
use super::past::Back;
use super::past::Past;
use crate::history::Before;
use crate::store::Store;
use crate::store::StoreError;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Time;
use std::collections::BTreeMap;

/// Seconds within which a program makes a file and writes it.
const STEP: i64 = 2;

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Names from the root on.
    pub path: Vec<Name>,
    /// Changes of attributes are told as well.
    pub attributes: Mentioned,
    /// So many lines at most.
    pub limit: usize,
    /// Only what happened before this position.
    pub before: Option<Position>,
}

/// Whether something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mentioned {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Where in the order.
    pub position: Position,
    /// When, by the server's clock.
    pub time: Time,
    /// When it was done on the node it comes from.
    pub made: Time,
    /// The record that it comes from.
    pub origin: OpId,
    /// One word.
    pub what: &'static str,
    /// The path it is about.
    pub path: Vec<Name>,
    /// Where it came from (renames).
    pub from: Option<Vec<Name>>,
    /// What the object is like afterwards; `None`: it has gone.
    pub after: Option<Condition>,
    object: ObjectId,
}

/// Tells it.
///
/// # Errors
/// No history is kept, or the store's.
pub fn story(store: &dyn Store, wanted: &Wanted) -> Result<Vec<Line>, HistoryError> {
    let mut rows = Back::all(store)?;
    let mut past = Past::present(store)?;
    let subject = past.find(&wanted.path)?;
    let mut trail = Trail { path: wanted.path.clone(), subject, left: Vec::new() };
    let mut lines: Vec<Line> = Vec::new();
    let mut newest = BTreeMap::new();
    while let Some((position, row)) = rows.next()? {
        let about = concerns(&past, &row, trail.subject)?;
        let line = tell(&past, position, &row)?;
        past.undo(&row)?;
        let Trail { path, subject, .. } = &trail;
        let stood = if may_move(&row, path, *subject) { past.find(path)? } else { *subject };
        let changed = stood != *subject;
        let is_asked = wanted.before.is_none_or(|before| position < before);
        let is_quiet = wanted.attributes == Mentioned::No && !changed && is_about_attributes(&row);
        if (about || changed) && is_asked && !is_quiet && row.deed != Deed::Aside {
            if wanted.attributes == Mentioned::No && is_step(&mut lines, &newest, &line) {
                trail.go_back(stood, &past, &row)?;
                continue;
            }
            if lines.len() >= wanted.limit {
                break;
            }
            newest.insert(line.object, lines.len());
            lines.push(line);
        }
        trail.go_back(stood, &past, &row)?;
    }
    Ok(lines)
}

/// What is followed.
struct Trail {
    path: Vec<Name>,
    /// What stands there.
    subject: Option<ObjectId>,
    /// Paths to which it was moved from the present one: before it was made, something else may have stood there.
    left: Vec<Vec<Name>>,
}

impl Trail {
    /// One row further, before which this stood at the path.
    fn go_back(&mut self, stood: Option<ObjectId>, past: &Past<'_>, row: &Row) -> Result<(), StoreError> {
        let was_there = self.subject;
        self.subject = stood;
        if stood.is_some() || was_there.is_none() {
            return Ok(());
        }
        if let Deed::Rename { from, from_name, .. } = &row.deed
            && was_there == Some(row.object)
            && let Some(dir) = past.path_of(*from)?
        {
            self.subject = was_there;
            self.left.push(std::mem::replace(&mut self.path, dir));
            self.path.push(from_name.clone());
        } else if let Some(path) = self.left.pop() {
            self.path = path;
            self.subject = past.find(&self.path)?;
        }
        Ok(())
    }
}

/// Whether a line tells only of a step on the way to the one after it about the same file: programs make or empty a file
/// and then write it.
fn is_step(lines: &mut [Line], newest: &BTreeMap<ObjectId, usize>, line: &Line) -> bool {
    let is_empty =
        line.after.as_ref().and_then(|after| after.content).is_some_and(|content| content.size == 0);
    let later = newest.get(&line.object).and_then(|at| lines.get_mut(*at));
    let Some(later) = later.filter(|later| is_empty && later.what == "written") else { return false };
    let is_same = later.origin.0.replica == line.origin.0.replica && later.path == line.path;
    if !is_same || later.time.sec.saturating_sub(line.time.sec) > STEP {
        return false;
    }
    if line.what == "made" {
        later.what = "made";
    }
    matches!(line.what, "made" | "written")
}

fn is_about_attributes(row: &Row) -> bool {
    matches!(row.deed, Deed::Attributes(_) | Deed::Xattr(_))
}

/// Whether what stands at the path may be another object before this row.
fn may_move(row: &Row, path: &[Name], subject: Option<ObjectId>) -> bool {
    row.before.iter().any(|before| match before {
        Before::Entry(_, name, _) => subject.is_none() || path.contains(name),
        Before::Object(..) | Before::Time(..) => false,
    })
}

/// Whether a row is about the subject or something in it, in the tree that it left.
fn concerns(past: &Past<'_>, row: &Row, subject: Option<ObjectId>) -> Result<bool, StoreError> {
    let Some(subject) = subject else { return Ok(false) };
    if row.object == subject {
        return Ok(true);
    }
    let view = past.view();
    if !view.object(subject)?.is_some_and(|object| object.attributes.is_dir()) {
        return Ok(false);
    }
    let within = |dir: ObjectId| view.is_within(dir, subject);
    match &row.deed {
        Deed::Make { dir, .. } | Deed::Link { dir, .. } | Deed::Remove { dir, .. } => within(*dir),
        Deed::Rename { from, to, .. } => Ok(within(*to)? || within(*from)?),
        Deed::Attributes(mask) if *mask == Mask::default() => Ok(false),
        Deed::Write | Deed::Attributes(_) | Deed::Xattr(_) => {
            for (dir, _) in view.names(row.object)? {
                if within(dir)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Deed::Aside => Ok(false),
    }
}

/// In words, from the tree that the row left.
fn tell(past: &Past<'_>, position: Position, row: &Row) -> Result<Line, StoreError> {
    let place = |dir: ObjectId, name: &Name| -> Result<Vec<Name>, StoreError> {
        let mut path = past.path_of(dir)?.unwrap_or_default();
        path.push(name.clone());
        Ok(path)
    };
    let (what, path, from) = match &row.deed {
        Deed::Make { dir, name } => ("made", place(*dir, name)?, None),
        Deed::Link { dir, name } => ("linked", place(*dir, name)?, None),
        Deed::Remove { dir, name } => ("removed", place(*dir, name)?, None),
        Deed::Rename { from, from_name, to, to_name } => {
            ("renamed", place(*to, to_name)?, Some(place(*from, from_name)?))
        }
        Deed::Write => ("written", past.path_of(row.object)?.unwrap_or_default(), None),
        Deed::Attributes(_) => ("attributes", past.path_of(row.object)?.unwrap_or_default(), None),
        Deed::Xattr(_) => ("xattr", past.path_of(row.object)?.unwrap_or_default(), None),
        Deed::Aside => ("", Vec::new(), None),
    };
    let after = match &row.deed {
        Deed::Remove { .. } => None,
        _ => past.view().object(row.object)?.as_ref().map(Condition::of),
    };
    let (time, made, origin) = (row.time, row.made, row.origin);
    Ok(Line { position, time, made, origin, what, path, from, after, object: row.object })
}
