//! The server lost a content to a power cut and asks whether this node has it.
//!
//! Bytes come from the lower tree, where it has exactly that content, or from memory; a large one goes to the server's
//! stage first, as those of records do. What nobody wrote down at the server, base says.

use super::Client;
use super::Stream;
use crate::context::Context;
use crate::io::Output;
use crate::io::ReadResult;
use crate::message::Holds;
use crate::message::Message;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::Ticket;
use std::collections::BTreeMap;

impl Client {
    /// The server asks for a content.
    pub(super) fn backfetch(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        hash: Option<Hash>,
    ) -> Result<(), StoreError> {
        if !matches!(self.stream, Stream::Up(_)) {
            return Ok(());
        }
        let base = View::new(ctx.store, Which::Base).object(object)?;
        let base = base.filter(|row| row.attributes.is_file()).and_then(|row| row.content);
        let local = View::new(ctx.store, Which::Local).object(object)?;
        // What is not here can be named all the same.
        let here = local.as_ref().and_then(|row| row.content);
        let local = local.filter(|row| !row.missing);
        let of = |hash: Hash| [here, base].into_iter().flatten().find(|stored| stored.hash == hash);
        let wanted = match hash {
            Some(hash) => of(hash),
            None => base.filter(|_| ctx.meta.snapshot.is_none()),
        };
        let lack = wanted.map_or(Holds::Nothing, Holds::Named);
        let Some(hash) = hash.or(wanted.map(|wanted| wanted.hash)) else {
            self.answer(ctx, object, lack);
            return Ok(());
        };
        let bytes = if hash == Hash::empty() { Some(Vec::new()) } else { self.contents.get(&hash).cloned() };
        if let Some(bytes) = bytes {
            let content = Content { hash, size: bytes.len() as u64, inline: Some(bytes) };
            self.answer(ctx, object, Holds::Whole(content));
            return Ok(());
        }
        // What a record left here and nobody has read since the last start may be that very content.
        let local = local.filter(|row| row.attributes.is_file());
        let local = local.filter(|row| row.content.is_none_or(|content| content.hash == hash));
        match local {
            Some(_) if !ctx.presto => self.answer(ctx, object, Holds::NotNow),
            Some(row) => {
                let ticket = ctx.ticket();
                self.backfetches.insert(ticket, Backfetch { object, hash, lack });
                let stage_at = Some(self.server.clone());
                ctx.out.push(Output::ReadContent { ticket, file: row.file, stage_at });
                if let Some(wanted) = wanted {
                    self.answer(ctx, object, Holds::Coming(wanted));
                }
            }
            // It came and has no place yet: the file is open for writing here.
            None if self.staged.contains_key(&(hash, object)) => self.answer(ctx, object, Holds::NotNow),
            None => self.answer(ctx, object, lack),
        }
        Ok(())
    }

    fn answer(&self, ctx: &mut Context<'_>, object: ObjectId, holds: Holds) {
        ctx.out.push(Output::Send(self.server.clone(), Message::Backfetched { object, holds }));
    }

    /// A content was read for the server; `Some`: it was not.
    pub(super) fn backfetch_read(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: ReadResult,
    ) -> Option<ReadResult> {
        let Some(Backfetch { object, hash, lack }) = self.backfetches.remove(&ticket) else {
            return Some(result);
        };
        let holds = match result {
            ReadResult::Whole { hash: found, size, inline, .. } if found == hash => {
                Holds::Whole(Content { hash, size, inline })
            }
            // A user has stored something else.
            ReadResult::Whole { .. } | ReadResult::Gone => lack,
            ReadResult::Unstable | ReadResult::Failed(_) => Holds::NotNow,
        };
        self.answer(ctx, object, holds);
        None
    }
}

/// A read for the server.
#[derive(Debug)]
pub(super) struct Backfetch {
    object: ObjectId,
    hash: Hash,
    /// What to answer where it is not that.
    lack: Holds,
}

/// Those under way.
pub(super) type Backfetches = BTreeMap<Ticket, Backfetch>;
