//! What writers left in files that a client's record had replaced under them: each is kept as a Conflict, then presto may
//! forget it.
//!
//! Owns the server's rows in [`Table::Limbo`]: one for each such file, however often its writer closes it, and one
//! Conflict with it, which holds what was left last.

use super::Keeping;
use super::Server;
use crate::context::Context;
use crate::io::Event;
use crate::io::KeepContent;
use crate::io::Output;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::FileId;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;

/// How long after a failure it is tried again, in milliseconds.
const AGAIN: u64 = 1000;
/// A writer that goes on and on is copied this often, in milliseconds.
const PAUSE: u64 = 2000;

/// One such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The record of its writer's first close: the name of its Conflict.
    pub record: OpId,
    /// The oldest close whose content is not safe.
    pub unsafe_since: Option<Recno>,
}

/// When a file may go from limbo.
#[derive(Clone, Copy, Debug)]
struct Release {
    /// Unless a later record than this one tells of it; `None`: it was safe before this life, and its row goes as well.
    upto: Option<Recno>,
    /// After this sync.
    sync: u64,
}

/// What is kept in memory of them.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Files with a content that is not safe: the close that left it.
    waiting: BTreeMap<FileId, Recno>,
    /// The newest close of each, in this life.
    newest: BTreeMap<FileId, Recno>,
    /// When a file may be copied.
    not_before: BTreeMap<FileId, Millis>,
    /// Files whose contents are safe, until that is durable: a power cut may take the note of it, and with it the name of the
    /// Conflict, and then the file is all there is.
    safe: BTreeMap<FileId, Release>,
    /// Newest record when presto came up, until presto was told what to keep in limbo.
    pub limbo_end: Option<Recno>,
}

impl Orphans {
    /// Rebuilds it.
    pub fn load(store: &dyn Store) -> Result<Orphans, StoreError> {
        let mut orphans = Orphans::default();
        for (file, row) in all(store)? {
            match row.unsafe_since {
                Some(since) => drop(orphans.waiting.insert(file, since)),
                None => drop(orphans.safe.insert(file, Release { upto: None, sync: 1 })),
            }
        }
        Ok(orphans)
    }

    /// Whether a file goes from limbo after the next sync, whatever is durable.
    pub fn wait_for_sync(&self) -> bool {
        !self.safe.is_empty()
    }

    /// What writers left up to here is safe.
    pub fn safe(&self) -> Position {
        self.waiting.values().min().map_or(Position(u64::MAX), |first| Position(first.0.saturating_sub(1)))
    }

    /// When to look again.
    pub fn wake(&self) -> Option<Millis> {
        self.waiting.keys().filter_map(|file| self.not_before.get(file)).min().copied()
    }

    /// For people.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A writer left something; whether that is the first time.
    pub fn left(
        &mut self,
        store: &mut dyn Store,
        file: FileId,
        recno: Recno,
        record: OpId,
    ) -> Result<bool, StoreError> {
        let row = row(store, file)?;
        let since = row.and_then(|row| row.unsafe_since).unwrap_or(recno);
        let first = row.map_or(record, |row| row.record);
        put(store, file, &Orphan { record: first, unsafe_since: Some(since) })?;
        self.waiting.insert(file, since);
        self.safe.remove(&file);
        self.newest.insert(file, recno);
        Ok(row.is_none())
    }
}

fn row(store: &dyn Store, file: FileId) -> Result<Option<Orphan>, StoreError> {
    table::get(store, Table::Limbo, &table::file_key(file))
}

fn put(store: &mut dyn Store, file: FileId, orphan: &Orphan) -> Result<(), StoreError> {
    table::put(store, Table::Limbo, &table::file_key(file), orphan)
}

fn all(store: &dyn Store) -> Result<Vec<(FileId, Orphan)>, StoreError> {
    let mut found = Vec::new();
    table::each_with_prefix(store, Table::Limbo, &[], |key, value| {
        if let Some(file) = table::file_from_key(key) {
            found.push((file, table::decode(Table::Limbo, value)?));
        }
        Ok(())
    })?;
    Ok(found)
}

impl Server {
    /// Asks for what is not safe yet and not asked for.
    pub(super) fn keep_orphans(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if !ctx.presto {
            return Ok(());
        }
        self.retain_limbo(ctx)?;
        let due: Vec<FileId> = self
            .orphans
            .waiting
            .keys()
            .filter(|file| self.orphans.not_before.get(file).is_none_or(|at| *at <= ctx.now))
            .filter(|file| !self.keeps.values().any(|keeping| keeping.is_of(**file)))
            .copied()
            .collect();
        for file in due {
            let Some(orphan) = row(ctx.store, file)? else { continue };
            let ticket = ctx.ticket();
            self.keeps.insert(ticket, Keeping::Orphan { file, upto: ctx.meta.last_read() });
            let content = KeepContent::File(file);
            ctx.out.push(Output::Keep { ticket, record: orphan.record, content });
        }
        Ok(())
    }

    /// At the beginning of presto's life, and of ours: files that are safe need no row any more, and no place in limbo.
    fn retain_limbo(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let upto = ctx.meta.last_read();
        if self.orphans.limbo_end.take_if(|end| upto >= *end).is_none() {
            return Ok(());
        }
        let mut files = Vec::new();
        for (file, orphan) in all(ctx.store)? {
            if orphan.unsafe_since.is_some() || self.orphans.safe.contains_key(&file) {
                files.push(file);
            } else {
                ctx.store.delete(Table::Limbo, &table::file_key(file))?;
            }
        }
        ctx.out.push(Output::RetainLimbo { files, upto });
        Ok(())
    }

    /// What was left up to record `upto` is safe, or could not be kept.
    pub(super) fn orphan_kept(
        &mut self,
        ctx: &mut Context<'_>,
        file: FileId,
        upto: Recno,
        result: Result<(), String>,
    ) -> Result<(), StoreError> {
        let pause = if result.is_ok() { PAUSE } else { AGAIN };
        self.orphans.not_before.insert(file, Millis(ctx.now.0.saturating_add(pause)));
        if let Err(why) = result {
            ctx.out.push(Output::Event(Event::Waiting(format!("cannot keep what a writer left: {why}"))));
            return Ok(());
        }
        let Some(orphan) = row(ctx.store, file)? else { return Ok(()) };
        if self.orphans.newest.get(&file).is_some_and(|newest| *newest > upto) {
            // Left meanwhile: the next copy has it.
            let since = Recno(upto.0.saturating_add(1));
            self.orphans.waiting.insert(file, since);
            return put(ctx.store, file, &Orphan { unsafe_since: Some(since), ..orphan });
        }
        self.orphans.waiting.remove(&file);
        self.orphans.safe.insert(file, Release { upto: Some(upto), sync: self.unread.next_sync() });
        put(ctx.store, file, &Orphan { unsafe_since: None, ..orphan })
    }

    /// Another sync is done.
    pub(super) fn release_orphans(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let synced = self.unread.synced();
        let due: Vec<_> = self.orphans.safe.extract_if(.., |_, release| release.sync <= synced).collect();
        for (file, Release { upto, .. }) in due {
            if upto.is_none() {
                ctx.store.delete(Table::Limbo, &table::file_key(file))?;
            }
            let upto = upto.unwrap_or(ctx.meta.last_read());
            ctx.out.push(Output::ReleaseLimbo { files: vec![file], upto });
        }
        Ok(())
    }
}
