//! A server that has lost the end of its log gets it back from those who have it (a restored backup, a disk that lied).
//!
//! Owns the *tail*: the newest records of the server's log, kept until they are durable at every Replicator, and some
//! more. Where the server's log and ours have forked, what lies behind the fork is offered, deletes included, each
//! record under its first origin, before anything of our own. Then base is void, and the server's tree comes anew.
//!
//! Only the newest content of an object is still here. It takes the place of the oldest that it supersedes; what nobody
//! here has any more is left out, and the records behind it are told what stands there instead. A record that comes with
//! another content than it had gets a name of this node's: its maker never saw that content, and may not take it for what
//! its own next record found.
//!
//! Where the tail does not reach back to the fork, base is offered as it stands: what the server lacks comes back,
//! contents that differ are kept as conflicts, names and removals since then are forgotten.

mod tree;

use super::Client;
use super::Stream;
use super::follow;
use crate::cml::Cml;
use crate::cml::Row;
use crate::cml::before_of;
use crate::cml::content_of;
use crate::cml::content_part;
use crate::cml::fill_content;
use crate::cml::left_by;
use crate::context::Context;
use crate::context::Meta;
use crate::facet::pending;
use crate::io::Event;
use crate::io::Output;
use crate::io::ReadResult;
use crate::local::TORN;
use crate::message::Message;
use crate::message::Welcome;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use tree::Names;
use tree::TreeWalk;

/// Records taken up and not sent.
const QUEUE: usize = 64;
/// Positions offered and not answered.
const WINDOW: u64 = 4096;
/// Records in one message.
const RECORDS: usize = 256;
/// Inline bytes in one message.
const BYTES: usize = 1 << 20;
/// Wait before an unstable file is read again, in milliseconds.
const UNSTABLE: u64 = 100;
/// Rows of the tail that go at a time.
const PAGE: usize = 2048;

/// An offer under way.
#[derive(Debug)]
pub(super) struct Offering {
    welcome: Welcome,
    source: Source,
    /// Taken up so far: a position of the tail, or a number of our own.
    taken: Position,
    /// Taken up and not sent, in their order.
    queue: VecDeque<Offered>,
    reads: BTreeMap<Ticket, Position>,
    /// Sent up to here.
    sent: Position,
    /// The server has answered up to here.
    answered: Position,
    read_again: Option<Millis>,
    made_over: BTreeMap<ObjectId, Seen>,
    /// Contents that the server will not find where a record says so.
    instead: BTreeMap<ObjectId, Instead>,
    /// Files that were offered without their contents.
    empty: BTreeSet<ObjectId>,
    names: Names,
}

#[derive(Clone, Copy, Debug)]
struct Instead {
    /// What the record behind found.
    believed: Hash,
    /// What stands there.
    there: Hash,
}

/// What is offered.
#[derive(Debug)]
enum Source {
    /// The records behind the fork.
    Tail,
    /// Base, as it stands.
    Tree(Box<TreeWalk>),
}

#[derive(Debug)]
struct Offered {
    position: Position,
    /// The record that it is, or stands for.
    origin: OpId,
    op: Operation,
    /// Where its content is still to be read.
    held: Option<Held>,
}

/// What a lower file is to a record.
#[derive(Clone, Copy, Debug)]
enum Held {
    /// Whatever is in it was made over the record's content.
    Newest(FileId),
    /// It has the record's content, or is nothing to it.
    Same(FileId),
}

/// What a user's pending content was made over.
#[derive(Debug)]
struct Seen {
    /// This content, whoever left it.
    before: Hash,
    /// And so over what older records of the tail left; 0: it came before the tail.
    upto: Position,
}

impl Offering {
    /// What lies behind the fork, or all there is.
    pub fn new(ctx: &Context<'_>, welcome: Welcome, fork: Position) -> Result<Offering, StoreError> {
        let meta = &ctx.meta;
        let (source, from) = if meta.tail_from <= fork {
            (Source::Tail, fork)
        } else {
            (Source::Tree(Box::new(TreeWalk::new())), Position(0))
        };
        Ok(Offering {
            welcome,
            source,
            made_over: Client::made_over(ctx, fork)?,
            taken: from,
            queue: VecDeque::new(),
            reads: BTreeMap::new(),
            sent: from,
            answered: from,
            read_again: None,
            instead: BTreeMap::new(),
            empty: BTreeSet::new(),
            names: Names::new(meta),
        })
    }

    /// When to go on, if it waits for the clock.
    pub fn wake(&self) -> Option<Millis> {
        self.read_again
    }

    /// For people.
    pub fn progress(&self, meta: &Meta) -> String {
        match &self.source {
            Source::Tail => format!("position {} of {}", self.answered, meta.position),
            Source::Tree(_) => format!("{} records of its tree", self.answered),
        }
    }

    /// Where there is no more to offer.
    fn end(&self, meta: &Meta) -> Position {
        match &self.source {
            Source::Tail => meta.position,
            Source::Tree(_) => Position(u64::MAX),
        }
    }

    /// The next record.
    fn next(&mut self, ctx: &Context<'_>) -> Result<Option<Offered>, StoreError> {
        let end = self.end(ctx.meta);
        match &mut self.source {
            Source::Tail => {
                let next = table::number_key(self.taken.0.saturating_add(1));
                let Some((key, value)) = ctx.store.scan(Table::Tail, &next, 1)?.pop() else {
                    return Ok(None);
                };
                let position = Position(table::number_from_key(&key).unwrap_or(end.0)).min(end);
                let op: Operation = table::decode(Table::Tail, &value)?;
                Ok(Some(Offered { position, origin: op.id, op, held: None }))
            }
            Source::Tree(walk) => {
                let op = match walk.next(ctx, &mut self.names)? {
                    Some(op) => Some(op),
                    None => walk.next_refused(ctx)?,
                };
                let position = Position(self.taken.0.saturating_add(1));
                Ok(op.map(|op| Offered { position, origin: op.id, op, held: None }))
            }
        }
    }

    /// What the server will find in place of the content that a record says it found.
    fn correct(&self, op: &mut Operation) {
        if let Some((before, object)) = before_of(op)
            && let Some(instead) = self.instead.get(&object).filter(|instead| instead.believed == *before)
        {
            *before = instead.there;
        }
    }

    /// A record's content is another one than it says, or stays away: `there` is what the server will have.
    fn changed(&mut self, object: ObjectId, believed: Hash, there: Hash) {
        if believed == there {
            self.instead.remove(&object);
        } else {
            self.instead.insert(object, Instead { believed, there });
        }
    }

    /// The content of a record is known.
    fn fill(&mut self, at: usize, new: Content) {
        let Some(offered) = self.queue.get_mut(at) else { return };
        offered.held = None;
        let (object, believed) = (offered.op.object, left_by(&offered.op));
        let there = new.hash;
        fill_content(&mut offered.op, new);
        if let Some(believed) = believed {
            if believed != there && !offered.op.id.is_made_up() {
                offered.op.id = self.names.make_up();
            }
            self.changed(object, believed, there);
        }
    }

    /// Nobody here has the content of a record: a file is born empty, a close says nothing. Who has it may still tell it
    /// under its first name.
    fn leave_out(&mut self, at: usize) {
        let Some(offered) = self.queue.get_mut(at) else { return };
        if matches!(offered.op.kind, OpKind::Create { .. }) {
            self.fill(at, Content { hash: Hash::empty(), size: 0, inline: Some(Vec::new()) });
            if let Some(offered) = self.queue.get_mut(at) {
                offered.origin = offered.op.id;
                self.empty.insert(offered.op.object);
            }
            return;
        }
        let Some(Offered { mut op, .. }) = self.queue.remove(at) else { return };
        let believed = left_by(&op).filter(|_| !was_refused(&op));
        if let (Some(believed), Some((before, object))) = (believed, before_of(&mut op)) {
            let there = *before;
            self.changed(object, believed, there);
        }
    }
}

impl Client {
    /// Keeps a record of the server's log.
    pub(super) fn keep_tail(
        &self,
        ctx: &mut Context<'_>,
        position: Position,
        op: &Operation,
        origin: OpId,
    ) -> Result<(), StoreError> {
        let mut op = Operation { id: origin, ..op.clone() };
        if let Some(content) = content_of(&op).cloned() {
            fill_content(&mut op, Content { inline: None, ..content });
        }
        table::put(ctx.store, Table::Tail, &table::number_key(position.0), &op)
    }

    /// The server keeps a content of ours as a conflict. As long as it is still here, that is told again as well: over
    /// nothing, so that it never becomes anything else.
    pub(super) fn keep_refused(
        &self,
        ctx: &mut Context<'_>,
        position: Position,
        op: &Operation,
        origin: OpId,
        hash: Hash,
    ) -> Result<(), StoreError> {
        let Some(mut refused) = content_part(op, TORN) else { return Ok(()) };
        if let OpKind::Close { content, .. } = &mut refused.kind {
            content.hash = hash;
        }
        self.keep_tail(ctx, position, &refused, origin)
    }

    /// The conflict about a content of ours, with its verdict at this position, is resolved: nobody needs it again.
    pub(super) fn forget_refused(
        ctx: &mut Context<'_>,
        position: Position,
        origin: OpId,
    ) -> Result<(), StoreError> {
        let key = table::number_key(position.0);
        let row: Option<Operation> = table::get(ctx.store, Table::Tail, &key)?;
        match row {
            Some(op) if op.id == origin && was_refused(&op) => ctx.store.delete(Table::Tail, &key),
            _ => Ok(()),
        }
    }

    /// Every Replicator has the log up to here on its disk. Some more is kept, because disks are not all that is lost.
    pub(super) fn trim_tail(&mut self, ctx: &mut Context<'_>, stable: Position) -> Result<(), StoreError> {
        let upto = stable.0.min(ctx.meta.position.0.saturating_sub(self.tail));
        if upto <= ctx.meta.tail_from.0 {
            return Ok(());
        }
        let rows = ctx.store.scan(Table::Tail, &[], PAGE)?;
        let mut all = rows.len() < PAGE;
        let mut last = ctx.meta.tail_from.0;
        for (key, _) in rows {
            let number = table::number_from_key(&key).unwrap_or_default();
            if number > upto {
                all = true;
                break;
            }
            last = number;
            ctx.store.delete(Table::Tail, &key)?;
        }
        ctx.meta.tail_from = Position(if all { upto } else { last });
        Ok(())
    }

    /// Goes on with an offer.
    pub(super) fn offer(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let Some(mut offering) = self.offering.take() else { return Ok(()) };
        if self.stream != Stream::Offering {
            return Ok(());
        }
        if self.go_on(ctx, &mut offering)? {
            return self.begin_anew(ctx, offering);
        }
        self.offering = Some(offering);
        Ok(())
    }

    /// Takes up, reads, sends. Says whether all that was offered is answered.
    fn go_on(&mut self, ctx: &mut Context<'_>, offering: &mut Offering) -> Result<bool, StoreError> {
        let end = offering.end(ctx.meta);
        if offering.answered >= end {
            return Ok(true);
        }
        // What a replay has just put into the tree is known to be here when its record is read.
        if !ctx.presto || !self.replaying.is_idle(ctx) || offering.read_again.is_some_and(|at| at > ctx.now) {
            return Ok(false);
        }
        offering.read_again = None;
        loop {
            self.take_up(ctx, offering)?;
            for at in 0..offering.queue.len() {
                let Some(Offered { position, held: Some(held), .. }) = offering.queue.get(at) else {
                    continue;
                };
                if offering.reads.values().any(|reading| reading == position) {
                    continue;
                }
                let ticket = ctx.ticket();
                offering.reads.insert(ticket, *position);
                let stage_at = Some(self.server.clone());
                let (Held::Newest(file) | Held::Same(file)) = *held;
                ctx.out.push(Output::ReadContent { ticket, file, stage_at });
            }
            let (mut records, mut bytes) = (Vec::new(), 0);
            while records.len() < RECORDS && bytes < BYTES {
                let Some(offered) = offering.queue.pop_front_if(|offered| offered.held.is_none()) else {
                    break;
                };
                let Offered { position, origin, op, .. } = offered;
                if op.is_done() && offering.empty.contains(&op.object) {
                    continue;
                }
                bytes += content_of(&op).and_then(|content| content.inline.as_ref()).map_or(0, Vec::len);
                records.push(LogRecord { position, origin, what: LogWhat::Operation(op) });
            }
            // Positions of which nothing is offered count as offered.
            let upto = match offering.queue.front() {
                Some(next) => Position(next.position.0.saturating_sub(1)),
                None => offering.taken,
            };
            if upto <= offering.sent && records.is_empty() {
                return Ok(false);
            }
            offering.sent = upto;
            ctx.out.push(Output::Send(self.server.clone(), Message::Offer { records, upto }));
        }
    }

    fn take_up(&self, ctx: &mut Context<'_>, offering: &mut Offering) -> Result<(), StoreError> {
        let end = offering.end(ctx.meta);
        while offering.queue.len() < QUEUE
            && offering.taken < end
            && offering.taken.0 < offering.answered.0.saturating_add(WINDOW)
        {
            let Some(mut offered) = offering.next(ctx)? else {
                offering.taken = end;
                return Ok(());
            };
            offering.taken = offered.position;
            offering.correct(&mut offered.op);
            if let OpKind::Create { seen, .. } = &mut offered.op.kind {
                // Said of the positions before the fork, it says nothing of the server's new ones.
                *seen = (*seen).min(offering.answered);
            }
            let carries = content_of(&offered.op).is_some_and(|content| content.hash != Hash::empty());
            if carries {
                offered.held = self.holds(ctx, offering, &offered)?;
            }
            let is_here = offered.held.is_some();
            offering.queue.push_back(offered);
            let at = offering.queue.len().saturating_sub(1);
            if carries && !is_here {
                offering.leave_out(at);
            }
        }
        Ok(())
    }

    /// The lower file that holds this record's content, or one that was made over it by somebody who saw it; `None`: it is
    /// not here, or gone.
    fn holds(
        &self,
        ctx: &Context<'_>,
        offering: &Offering,
        offered: &Offered,
    ) -> Result<Option<Held>, StoreError> {
        let op = &offered.op;
        let here = View::new(ctx.store, Which::Local).object(op.object)?.filter(|here| !here.missing);
        let Some(here) = here else { return Ok(None) };
        let there = View::new(ctx.store, Which::Base).object(op.object)?.and_then(|object| object.content);
        let is_newer = match (offering.made_over.get(&op.object), &offering.source) {
            _ if was_refused(op) => false,
            (Some(seen), Source::Tail) => offered.position <= seen.upto,
            (Some(seen), Source::Tree(_)) => left_by(op) == Some(seen.before),
            // A content that base has and the tree has not got yet: somebody else will have it.
            (None, _) => here.content == there,
        };
        let same = here.content.map(|content| content.hash) == left_by(op);
        Ok(match (is_newer, same) {
            (true, _) => Some(Held::Newest(here.file)),
            (false, true) => Some(Held::Same(here.file)),
            (false, false) => None,
        })
    }

    /// What users' pending contents were made over.
    fn made_over(ctx: &Context<'_>, fork: Position) -> Result<BTreeMap<ObjectId, Seen>, StoreError> {
        let mut made_over = BTreeMap::new();
        for (_, mut row) in Cml::rows(ctx.store, Recno(0), usize::MAX)? {
            if row.slot.is_some() {
                let before = before_of(&mut row.op).map_or(TORN, |(before, _)| *before);
                made_over.entry(row.op.object).or_insert(Seen { before, upto: Position(0) });
            }
        }
        if made_over.is_empty() {
            return Ok(made_over);
        }
        let mut from = fork;
        loop {
            let rows = ctx.store.scan(Table::Tail, &table::number_key(from.0.saturating_add(1)), PAGE)?;
            for (key, value) in &rows {
                from = Position(table::number_from_key(key).unwrap_or(u64::MAX));
                let op: Operation = table::decode(Table::Tail, value)?;
                if let Some(seen) = made_over.get_mut(&op.object)
                    && seen.upto == Position(0)
                    && left_by(&op) == Some(seen.before)
                    // Where the server refused it, another content stood, which its user never saw.
                    && !was_refused(&op)
                {
                    seen.upto = from;
                }
            }
            if rows.len() < PAGE {
                return Ok(made_over);
            }
        }
    }

    /// A content was read for an offer; `Some`: it was not.
    pub(super) fn offer_read(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        result: ReadResult,
    ) -> Result<Option<ReadResult>, StoreError> {
        let Some(offering) = &mut self.offering else { return Ok(Some(result)) };
        let Some(position) = offering.reads.remove(&ticket) else { return Ok(Some(result)) };
        let Some(at) = offering.queue.iter().position(|offered| offered.position == position) else {
            return Ok(None);
        };
        let only = offering.queue.get(at).filter(|offered| matches!(offered.held, Some(Held::Same(_))));
        let only = only.and_then(|offered| left_by(&offered.op));
        match result {
            ReadResult::Whole { hash, .. } if only.is_some_and(|only| only != hash) => offering.leave_out(at),
            ReadResult::Whole { hash, size, inline, .. } => offering.fill(at, Content { hash, size, inline }),
            ReadResult::Gone => offering.leave_out(at),
            ReadResult::Unstable => offering.read_again = Some(Millis(ctx.now.0.saturating_add(UNSTABLE))),
            ReadResult::Failed(why) => {
                offering.read_again = Some(Millis(ctx.now.0.saturating_add(UNSTABLE)));
                if let Some(offered) = offering.queue.get(at) {
                    let path = View::new(ctx.store, Which::Local).path(offered.op.object)?;
                    ctx.out.push(Output::Event(Event::Waiting(format!("{path}: {why}"))));
                }
            }
        }
        Ok(None)
    }

    /// The server has taken, or refused and kept, what was offered up to here.
    pub(super) fn offered(&mut self, upto: Position) {
        if let Some(offering) = &mut self.offering {
            offering.answered = offering.answered.max(upto.min(offering.sent));
        }
    }

    /// The server has everything. From here on this node follows its log, and begins with its tree.
    fn begin_anew(&mut self, ctx: &mut Context<'_>, offering: Offering) -> Result<(), StoreError> {
        for (object, Instead { believed, there }) in &offering.instead {
            for recno in pending::list(ctx.store, &crate::facet::Facet::Object(*object))? {
                let Some(Row { mut op, slot }) = Cml::row(ctx.store, recno)? else { continue };
                if let Some((before, about)) = before_of(&mut op)
                    && about == *object
                    && before == believed
                {
                    *before = *there;
                    Cml::write(ctx.store, recno, &Row { op, slot })?;
                }
            }
        }
        ctx.store.clear(Table::Dirty)?;
        self.work = super::Work::default();
        follow(ctx, &offering.welcome.lineage)?;
        self.await_tree(ctx)?;
        self.greet_as_new(ctx);
        Ok(())
    }

    /// The server knows records of ours that it has no verdict for: they are told again, as those of another life.
    pub(super) fn greet_as_new(&mut self, ctx: &mut Context<'_>) {
        ctx.meta.incarnation = ctx.meta.incarnation.saturating_add(1);
        self.stream = Stream::Reading;
        self.cml.freeze(ctx.meta.last_read());
        self.frozen = true;
    }
}

/// A record that stands for nothing but a content which the server kept as a conflict.
fn was_refused(op: &Operation) -> bool {
    matches!(op.kind, OpKind::Close { before: TORN, .. })
}
