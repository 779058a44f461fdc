//! Files of the server's own tree that a power cut may have torn (rule 10). The volume's content of such a file stays what
//! it was, the file on the disk differs from it, and nobody is given that. What is left there is kept as a Conflict, then
//! the good content comes back from a Replicator (`backfetch.rs`) and is installed by a replay.
//!
//! Owns [`Table::Torn`]. A torn file's row of the local tree says what the volume has (content, attributes) and what is on
//! the disk (file, version). Where the hash of the content went with the power, its rows of the log wait for it.

use super::Keeping;
use super::LogRow;
use super::Server;
use super::backfetch::Backfetching;
use super::backfetch::Found;
use super::backfetch::Sought;
use super::conflicts::Standing;
use super::restoring::Restore;
use crate::cml::Slot;
use crate::context::Context;
use crate::facet::Facet;
use crate::io::Event;
use crate::io::KeepContent;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReadResult;
use crate::local::TORN;
use crate::local::UNKNOWN;
use crate::message::Stored;
use crate::promise;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::record::Left;
use crate::record::Update;
use crate::server::ConflictRow;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::Object;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::ConflictKind;
use crate::types::Content;
use crate::types::Hash;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::types::Time;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Reads under way.
const READS: usize = 16;
/// How long after a failure it is tried again, in milliseconds.
pub(super) const AGAIN: u64 = 1000;
/// How long clients wait until what is left is safe, in milliseconds; then it stays, and what they bring is a conflict.
const HOLD: u64 = 10_000;

/// One torn file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Torn {
    /// The first close that said so: the name of its Conflict.
    pub(super) record: OpId,
    /// When that was.
    pub(super) time: Time,
    /// What others may have been told of it.
    told: Told,
    /// The newest close. What is written over a torn file joins its Conflict.
    newest: Recno,
    /// What is there now.
    left: Option<Stored>,
    /// It has its row among the conflicts.
    listed: bool,
    /// What is there now is safe in the conflict store, or is the good content.
    safe: bool,
}

/// What others may know of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    /// What its row in the local tree says.
    ByRow,
    /// Whoever has the log up to here knows it; its hash went with the power.
    At(Position),
    /// This one; what closes had made of it since then was told to nobody.
    Before(Hash),
}

/// What is kept in memory of them.
#[derive(Debug, Default)]
pub struct TornFiles {
    pub(super) rows: BTreeMap<ObjectId, Torn>,
    /// To look at.
    todo: BTreeSet<ObjectId>,
    /// When to look at some again.
    alarms: BTreeSet<(Millis, ObjectId)>,
    /// Reads under way, with the record that was next when each began.
    reads: BTreeMap<Ticket, (ObjectId, Recno)>,
    /// What is decided about, to be planned.
    pub(super) ready: BTreeMap<ObjectId, Restore>,
    /// What is planned and not confirmed.
    pub(super) planned: BTreeSet<ObjectId>,
    pub(super) backfetching: Backfetching,
}

/// Whether the object's file is torn.
pub fn is_torn(store: &dyn Store, object: ObjectId) -> Result<bool, StoreError> {
    Ok(store.get(Table::Torn, &table::object_key(object))?.is_some())
}

impl TornFiles {
    /// Rebuilds it.
    pub fn load(store: &dyn Store) -> Result<TornFiles, StoreError> {
        let mut files = TornFiles::default();
        table::each_with_prefix(store, Table::Torn, &[], |key, value| {
            if let Some((tag, _)) = table::tag_from_key(key) {
                files.rows.insert(ObjectId(tag), table::decode(Table::Torn, value)?);
            }
            Ok(())
        })?;
        files.stir();
        Ok(files)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether this file is one.
    pub fn contains(&self, object: ObjectId) -> bool {
        self.rows.contains_key(&object)
    }

    /// What is left of it is kept nowhere else yet.
    pub fn is_unsafe(&self, object: ObjectId) -> bool {
        self.rows.get(&object).is_some_and(|torn| !torn.safe)
    }

    /// Clients need not wait any longer for what is left to be safe.
    pub fn is_overdue(&self, now: Millis) -> bool {
        self.backfetching.since().is_some_and(|since| now.0 >= since.0.saturating_add(HOLD))
    }

    /// Everything up to here is as it should be.
    pub fn safe(&self) -> Position {
        let first = self.rows.values().map(|torn| torn.record.0.number).min();
        Position(first.map_or(u64::MAX, |first| first.saturating_sub(1)))
    }

    /// When to look again.
    pub fn wake(&self) -> Option<Millis> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// A node comes, begins anew or goes.
    pub fn peer_changed(&mut self, node: &NodeName) {
        self.backfetching.forget(node);
        self.stir();
    }

    /// Looks at all of them again.
    pub fn stir(&mut self) {
        self.todo.extend(self.rows.keys());
    }

    pub(super) fn look_at(&mut self, object: ObjectId) {
        if self.contains(object) {
            self.todo.insert(object);
        }
    }

    pub(super) fn look_again(&mut self, object: ObjectId, at: Millis) {
        self.alarms.insert((at, object));
    }

    /// Plans went wrong, or nobody knows how far they got.
    pub fn replan(&mut self) {
        let planned = std::mem::take(&mut self.planned);
        self.todo.extend(planned.into_iter().filter(|object| self.rows.contains_key(object)));
    }

    /// Presto is another one: what it was asked is not answered.
    pub fn presto_changed(&mut self) {
        self.reads.clear();
        self.planned.clear();
        self.stir();
    }

    fn put(&mut self, store: &mut dyn Store, object: ObjectId, torn: Torn) -> Result<(), StoreError> {
        self.rows.insert(object, torn);
        self.todo.insert(object);
        table::put(store, Table::Torn, &table::object_key(object), &torn)
    }

    /// The object's file is torn no longer, or no longer there.
    pub fn end(&mut self, store: &mut dyn Store, object: ObjectId) -> Result<(), StoreError> {
        self.rows.remove(&object);
        self.todo.remove(&object);
        self.ready.remove(&object);
        self.planned.remove(&object);
        self.backfetching.end(object);
        store.delete(Table::Torn, &table::object_key(object))
    }
}

/// What to ask for.
fn sought(torn: &Torn, row: &Object) -> Sought {
    match (row.content, torn.told) {
        (Some(content), _) => Sought::Content(content.hash),
        (None, Told::Before(hash)) => Sought::Name(hash),
        (None, Told::At(position)) => Sought::Unknown(position),
        (None, Told::ByRow) => Sought::Unknown(Position(row.written.0)),
    }
}

impl Server {
    /// Whether a user's record says that a file is torn, or is about the content of one that is: then it is no update.
    pub(super) fn is_about_torn(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
    ) -> Result<bool, StoreError> {
        let (file, before, after, left, emptied) = match &record.update {
            Update::Close { left: Left::Orphan, .. } => return Ok(false),
            Update::Close { file, replaces, after, left } => {
                (*file, replaces.unwrap_or(*file), after, *left, false)
            }
            Update::SetAttr { file, truncated: true, after, .. } => {
                (*file, *file, after, Left::Whole, after.version.size == 0)
            }
            _ => return Ok(false),
        };
        if record.origin != KmlOrigin::User || (left != Left::Unvouched && self.torn.is_empty()) {
            return Ok(false);
        }
        let Some(object) = handle::get(ctx.store, before)? else { return Ok(false) };
        let Some(mut row) = View::new(ctx.store, Which::Local).object(object)? else { return Ok(false) };
        let earlier = self.torn.rows.get(&object).copied();
        if earlier.is_none() && left != Left::Unvouched {
            return Ok(false);
        }
        self.replaying.disturbed(&BTreeSet::from([Facet::Object(object)]));
        if emptied {
            // Whoever empties it first builds upon nothing that was torn.
            self.torn.end(ctx.store, object)?;
            return Ok(false);
        }
        let path = View::new(ctx.store, Which::Local).path(object)?;
        let told = self.told(ctx, object, &row)?;
        let Some(told) = earlier.map_or(told, |earlier| Some(earlier.told)) else {
            ctx.out.push(Output::Event(Event::TornTaken { path, left: None }));
            return Ok(false);
        };
        let mut torn = earlier.unwrap_or(Torn {
            record: ctx.own(record.recno.0),
            time: record.time,
            told,
            newest: record.recno,
            left: None,
            listed: false,
            safe: false,
        });
        (torn.newest, torn.left, torn.safe) = (record.recno, None, false);
        self.torn.put(ctx.store, object, torn)?;
        self.torn.ready.remove(&object);
        handle::put(ctx.store, file, object)?;
        (row.file, row.version) = (file, after.version);
        Tree::new(ctx.store, Which::Local).set_object(object, Some(&row))?;
        if row.content.is_none() {
            let slot = Slot { file, version: after.version, latest: record.recno };
            self.wait_for_name(ctx, object, &torn, slot)?;
        }
        if earlier.is_none() {
            ctx.out.push(Output::Event(Event::Torn { path }));
        }
        Ok(true)
    }

    /// `None`: nobody can have been told anything.
    fn told(&self, ctx: &Context<'_>, object: ObjectId, row: &Object) -> Result<Option<Told>, StoreError> {
        let by_earlier_lives = ctx.meta.lineage.eras().last().map_or(Position(0), |era| era.from);
        if let Some(content) = row.content {
            let is_new = content == Stored::empty() && Position(row.written.0) > by_earlier_lives;
            return Ok(Some(Told::ByRow).filter(|_| !is_new));
        }
        if promise::of(ctx.store, object)?.is_some_and(|promise| Position(promise.0) > by_earlier_lives) {
            return Ok(None);
        }
        // A hash that went with the power was told, if at all, at the places that wait for it again.
        let waiting = self.unread.of(object);
        if let Some(at) = waiting.iter().rfind(|at| **at <= by_earlier_lives) {
            return Ok(Some(Told::At(*at)));
        }
        self.told_before(ctx, object)
    }

    /// What the first place that waits found, unless a program was promised something since then.
    fn told_before(&self, ctx: &Context<'_>, object: ObjectId) -> Result<Option<Told>, StoreError> {
        let Some(first) = self.unread.of(object).first().copied() else { return Ok(None) };
        if promise::of(ctx.store, object)?.is_some_and(|promise| Position(promise.0) >= first) {
            return Ok(None);
        }
        Ok(match LogRow::get(ctx.store, first)?.map(|row| row.record.what) {
            Some(LogWhat::Operation(Operation { kind: OpKind::Close { before, .. }, .. }))
                if ![UNKNOWN, TORN].contains(&before) =>
            {
                Some(Told::Before(before))
            }
            _ => None,
        })
    }

    /// Nobody has come as far as this place: what was told at the one before it, or before all of them. What a program was
    /// promised since then is better, whatever is left of it.
    fn told_earlier(
        &self,
        ctx: &Context<'_>,
        object: ObjectId,
        sought: Sought,
    ) -> Result<Option<Told>, StoreError> {
        let Sought::Unknown(position) = sought else { return Ok(None) };
        let promise = promise::of(ctx.store, object)?.map(|promise| Position(promise.0));
        match self.unread.of(object).into_iter().rfind(|at| *at < position) {
            Some(at) if promise.is_some_and(|promise| promise > at) => Ok(None),
            Some(at) => Ok(Some(Told::At(at))),
            None => self.told_before(ctx, object),
        }
    }

    /// Nobody here knows what the content was: its rows wait, and one more for what is left if nobody else knows either.
    fn wait_for_name(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        torn: &Torn,
        slot: Slot,
    ) -> Result<(), StoreError> {
        let position = Position(torn.record.0.number);
        let mtime = slot.version.mtime;
        let content = Content { hash: UNKNOWN, size: slot.version.size, inline: None };
        let kind = OpKind::Close { before: UNKNOWN, content, mtime };
        if Position(torn.newest.0) == position {
            let op = Operation { id: torn.record, time: torn.time, object, kind };
            self.unread.insert(object, position);
            return self.log(ctx, position, torn.record, LogWhat::Operation(op), Some(slot));
        }
        for at in self.unread.of(object) {
            let Some(mut row) = LogRow::get(ctx.store, at)? else { continue };
            row.slot = Some(slot);
            if at == position
                && let LogWhat::Operation(op) = &mut row.record.what
            {
                op.kind = kind.clone();
            }
            row.put(ctx.store)?;
        }
        Ok(())
    }

    /// Everything about torn files that may go on.
    pub(super) fn tend_torn(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.torn.is_empty() || !ctx.presto || !self.knows_replist {
            return Ok(());
        }
        while let Some((at, object)) = self.torn.alarms.first().copied().filter(|(at, _)| *at <= ctx.now) {
            self.torn.alarms.remove(&(at, object));
            self.torn.look_at(object);
        }
        while let Some(object) = self.torn.todo.pop_first() {
            let Some(torn) = self.torn.rows.get(&object).copied() else { continue };
            self.tend(ctx, object, torn)?;
        }
        Ok(())
    }

    fn tend(&mut self, ctx: &mut Context<'_>, object: ObjectId, torn: Torn) -> Result<(), StoreError> {
        let Some(row) = View::new(ctx.store, Which::Local).object(object)? else {
            return self.torn.end(ctx.store, object);
        };
        let since = self.torn.backfetching.begin(ctx.now);
        if !self.torn.is_overdue(ctx.now) {
            self.torn.look_again(object, Millis(since.0.saturating_add(HOLD)));
        }
        let Some(left) = torn.left else { return self.read_torn(ctx, object, &row) };
        let good = row.content.map(|content| content.hash);
        let sought = sought(&torn, &row);
        if good == Some(left.hash) {
            self.torn.put_safe(ctx.store, object)?;
            self.torn.ready.insert(object, Restore::Attributes);
            return Ok(());
        }
        let found = self.backfetch(ctx, object, sought)?;
        if found == Found::Nowhere
            && let Some(told) = self.told_earlier(ctx, object, sought)?
        {
            self.torn.backfetching.end(object);
            return self.torn.put(ctx.store, object, Torn { told, ..torn });
        }
        if good.is_none() && found == Found::NotYet {
            return Ok(());
        }
        self.keep_torn(ctx, object, torn, left)?;
        let is_safe = !self.torn.is_unsafe(object);
        match found {
            Found::NotYet => {}
            Found::Here(content) if is_safe => {
                drop(self.torn.ready.insert(object, Restore::Install(content)))
            }
            // It stays where it is, so nothing is lost before its copy is made.
            Found::Nowhere => drop(self.torn.ready.insert(object, Restore::Take(left))),
            Found::Here(_) => {}
        }
        Ok(())
    }

    fn read_torn(&mut self, ctx: &mut Context<'_>, object: ObjectId, row: &Object) -> Result<(), StoreError> {
        if self.torn.reads.values().any(|(reading, _)| *reading == object) {
            return Ok(());
        }
        if self.torn.reads.len() >= READS {
            self.torn.look_again(object, Millis(ctx.now.0.saturating_add(10)));
            return Ok(());
        }
        let ticket = ctx.ticket();
        self.torn.reads.insert(ticket, (object, ctx.meta.next_recno));
        ctx.out.push(Output::ReadContent { ticket, file: row.file, stage_at: None });
        Ok(())
    }

    /// What is left of a torn file was read; `Some`: it was something else.
    pub(super) fn torn_read(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: ReadResult,
    ) -> Result<Option<ReadResult>, StoreError> {
        let Some((object, began_before)) = self.torn.reads.remove(&ticket) else { return Ok(Some(result)) };
        let Some(mut torn) = self.torn.rows.get(&object).copied() else { return Ok(None) };
        let Some(row) = View::new(ctx.store, Which::Local).object(object)? else { return Ok(None) };
        match result {
            ReadResult::Whole { hash, size, version, racy, .. }
                if torn.newest < began_before || version == row.version && !racy =>
            {
                torn.left = Some(Stored { hash, size });
                self.torn.put(ctx.store, object, torn)?;
            }
            ReadResult::Failed(why) => self.torn_later(ctx, object, &why)?,
            ReadResult::Whole { .. } | ReadResult::Unstable => {
                self.torn_later(ctx, object, "changes while it is read")?;
            }
            // Its removal is a record on its way.
            ReadResult::Gone => self.torn_later(ctx, object, "it is gone")?,
        }
        Ok(None)
    }

    fn torn_later(&mut self, ctx: &mut Context<'_>, object: ObjectId, why: &str) -> Result<(), StoreError> {
        let path = View::new(ctx.store, Which::Local).path(object)?;
        ctx.out.push(Output::Event(Event::Waiting(format!("{path}, torn by a power cut: {why}"))));
        self.torn.look_again(object, Millis(ctx.now.0.saturating_add(AGAIN)));
        Ok(())
    }

    /// What is left is listed as a Conflict and goes to the conflict store.
    fn keep_torn(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        mut torn: Torn,
        left: Stored,
    ) -> Result<(), StoreError> {
        if torn.safe || self.keeps.values().any(|keeping| keeping.is_torn(object)) {
            return Ok(());
        }
        let Some(row) = View::new(ctx.store, Which::Local).object(object)? else { return Ok(()) };
        let content = Content { hash: left.hash, size: left.size, inline: None };
        let before = row.content.map_or(UNKNOWN, |content| content.hash);
        let kind = OpKind::Close { before, content, mtime: row.version.mtime };
        let conflict = ConflictRow {
            record: torn.record,
            kind: ConflictKind::StoreStore,
            op: Some(Operation { id: torn.record, time: torn.time, object, kind }),
            path: View::new(ctx.store, Which::Local).path(object)?,
            time: torn.time,
            hash: Some(left.hash),
        };
        let recno = Recno(torn.record.0.number);
        if torn.listed {
            self.conflicts.change(ctx.store, recno, &conflict)?;
        } else {
            let standing = Standing { size: left.size, ..Standing::default() };
            self.conflict(ctx, recno, conflict, standing)?;
            torn.listed = true;
            self.torn.rows.insert(object, torn);
            table::put(ctx.store, Table::Torn, &table::object_key(object), &torn)?;
        }
        let ticket = ctx.ticket();
        self.keeps.insert(ticket, Keeping::Torn { object, upto: ctx.meta.last_read() });
        ctx.out.push(Output::Keep { ticket, record: torn.record, content: KeepContent::File(row.file) });
        Ok(())
    }

    /// What was left up to record `upto` is safe, or could not be kept.
    pub(super) fn torn_kept(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        upto: Recno,
        result: Result<(), String>,
    ) -> Result<(), StoreError> {
        let Some(torn) = self.torn.rows.get(&object).copied() else { return Ok(()) };
        match result {
            Err(why) => self.torn_later(ctx, object, &format!("it cannot be kept: {why}")),
            // Written meanwhile: the next copy has it.
            Ok(()) if torn.newest > upto || torn.left.is_none() => {
                self.torn.look_at(object);
                Ok(())
            }
            Ok(()) => {
                self.torn.put_safe(ctx.store, object)?;
                self.torn.look_at(object);
                Ok(())
            }
        }
    }

    /// For people.
    pub(super) fn torn_waiting(&self, store: &dyn Store, list: &mut Vec<String>) -> Result<(), StoreError> {
        for (object, torn) in self.torn.rows.iter().take(3) {
            let path = View::new(store, Which::Local).path(*object)?;
            let row = View::new(store, Which::Local).object(*object)?.unwrap_or_default();
            let why = self.backfetching_status(store, *object, sought(torn, &row))?;
            list.push(format!("{path}: torn by a power cut and not given to anybody: {why}"));
        }
        let more = self.torn.rows.len().saturating_sub(3);
        if more > 0 {
            list.push(format!("{more} more files that a power cut tore"));
        }
        Ok(())
    }
}

impl TornFiles {
    fn put_safe(&mut self, store: &mut dyn Store, object: ObjectId) -> Result<(), StoreError> {
        let Some(torn) = self.rows.get_mut(&object) else { return Ok(()) };
        torn.safe = true;
        table::put(store, Table::Torn, &table::object_key(object), torn)
    }
}
