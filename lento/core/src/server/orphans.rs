//! What writers left in files that a client's record had replaced under them: each is kept as a Conflict, then presto may
//! forget it.
//!
//! Owns the server's rows in [`Table::Limbo`], by the record of the writer's close.

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
use crate::types::Recno;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;

/// How long after a failure it is tried again, in milliseconds.
const AGAIN: u64 = 1000;

/// One that is not safe yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Where presto keeps it.
    pub file: FileId,
    /// The name of its Conflict.
    pub record: OpId,
}

/// Notes one.
pub fn put(store: &mut dyn Store, recno: Recno, orphan: &Orphan) -> Result<(), StoreError> {
    table::put(store, Table::Limbo, &table::number_key(recno.0), orphan)
}

/// All of them.
pub fn all(store: &dyn Store) -> Result<Vec<(Recno, Orphan)>, StoreError> {
    let mut found = Vec::new();
    table::each_with_prefix(store, Table::Limbo, &[], |key, value| {
        if let Some(recno) = table::recno_from_key(key) {
            found.push((recno, table::decode(Table::Limbo, value)?));
        }
        Ok(())
    })?;
    Ok(found)
}

impl Server {
    /// Asks for what is not safe yet and not asked for.
    pub(super) fn keep_orphans(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.keep_again.take_if(|at| *at <= ctx.now).is_some() {
            let rows = all(ctx.store)?.into_iter().map(|(recno, _)| recno);
            self.orphans = rows.filter(|recno| !self.is_keeping(*recno)).collect();
        }
        if !ctx.presto {
            return Ok(());
        }
        let read = ctx.meta.last_read();
        if self.limbo_end.take_if(|end| read >= *end).is_some() {
            let files = all(ctx.store)?.into_iter().map(|(_, orphan)| orphan.file).collect();
            ctx.out.push(Output::RetainLimbo { files, upto: read });
        }
        for recno in std::mem::take(&mut self.orphans) {
            let key = table::number_key(recno.0);
            let Some(orphan) = table::get::<Orphan>(ctx.store, Table::Limbo, &key)? else { continue };
            let ticket = ctx.ticket();
            self.keeps.insert(ticket, Keeping::Orphan(recno));
            let content = KeepContent::File(orphan.file);
            ctx.out.push(Output::Keep { ticket, record: orphan.record, content });
        }
        Ok(())
    }

    fn is_keeping(&self, recno: Recno) -> bool {
        self.keeps.values().any(|keeping| matches!(keeping, Keeping::Orphan(at) if *at == recno))
    }

    /// It is safe, or could not be kept.
    pub(super) fn orphan_kept(
        &mut self,
        ctx: &mut Context<'_>,
        recno: Recno,
        result: Result<(), String>,
    ) -> Result<(), StoreError> {
        if let Err(why) = result {
            ctx.out.push(Output::Event(Event::Waiting(format!("cannot keep what a writer left: {why}"))));
            self.keep_again = Some(Millis(ctx.now.0.saturating_add(AGAIN)));
            return Ok(());
        }
        let key = table::number_key(recno.0);
        let Some(orphan) = table::get::<Orphan>(ctx.store, Table::Limbo, &key)? else { return Ok(()) };
        ctx.store.delete(Table::Limbo, &key)?;
        // A later record about the same file: its content is still to be read.
        if all(ctx.store)?.iter().all(|(_, other)| other.file != orphan.file) {
            ctx.out.push(Output::ReleaseLimbo { files: vec![orphan.file], upto: recno });
        }
        Ok(())
    }
}
