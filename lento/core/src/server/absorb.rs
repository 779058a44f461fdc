//! The server reads its own KML: every record that changed something becomes a position of the volume's log.

use super::LogRow;
use super::Server;
use super::conflicts::Standing;
use super::conflicts::State;
use super::judging::in_the_way;
use super::session::judged;
use super::verdict_code;
use super::verdicts;
use crate::cml::Slot;
use crate::cml::content_of;
use crate::context::Context;
use crate::facet;
use crate::history::Recording;
use crate::io::Event;
use crate::io::Output;
use crate::io::Policy;
use crate::judge::alias;
use crate::local;
use crate::promise;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::record::Update;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::Attributes;
use crate::types::ConflictKind;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::LogRecord;
use crate::types::LogWhat;
use crate::types::Mask;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Time;
use crate::types::Verdict;
use serde::Deserialize;
use serde::Serialize;

/// A conflict, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConflictRow {
    /// The refused record.
    pub record: OpId,
    /// What clashed.
    pub kind: ConflictKind,
    /// What it wanted to do; `None` where only its verdict survived a crash.
    pub op: Option<Operation>,
    /// Path, as far as known.
    pub path: String,
    /// When the verdict was given (server's clock).
    pub time: Time,
    /// The losing content, kept in the conflict store.
    pub hash: Option<Hash>,
}

impl Server {
    /// Takes one record of the server's KML.
    pub fn absorb(&mut self, ctx: &mut Context<'_>, record: &KmlRecord) -> Result<(), StoreError> {
        let position = Position(record.recno.0);
        let me = (ctx.meta.replica, ctx.meta.incarnation);
        if self.is_about_torn(ctx, record)? {
            return Ok(());
        }
        let absorbed = if self.history.is_on() {
            let mut recording = Recording::new(ctx.store);
            let absorbed = local::absorb(&mut recording, me, record)?;
            let before = recording.into_before()?;
            self.note_history(ctx, record, &absorbed, before)?;
            absorbed
        } else {
            local::absorb(ctx.store, me, record)?
        };
        ctx.unknown(record, absorbed.unknown)?;
        ctx.note_moved(&absorbed);
        self.torn_after(ctx, record, absorbed.operation.as_ref())?;
        let origin = match record.origin {
            KmlOrigin::Replay { verdict: 0, .. } if record.update == Update::Nothing => return Ok(()),
            KmlOrigin::Replay { record: id, verdict: verdict_code::RESOLVED, .. } => {
                return self.struck(ctx, record, id);
            }
            KmlOrigin::Replay { record: id, object, hash, verdict } => {
                let object = as_read(ctx, record, object)?;
                judged::note(ctx.store, id)?;
                self.offers.note(id);
                if verdict == verdict_code::TAKEN {
                    return self.taken(ctx, record, id, object, hash);
                }
                self.flying.remove(&id);
                self.unstage(ctx, &id);
                if let Some(at) = self.in_flight.iter().position(|flight| flight.op.id == id)
                    && let Some(done) = self.in_flight.remove(at)
                {
                    if let Some(session) = self.sessions.get_mut(&done.node) {
                        session.refused = None;
                    }
                    self.greet_again(ctx, &done.node, id);
                }
                let op = verdicts::take(ctx.store, id)?;
                self.count_verdict(verdict);
                if let Some(kind) = verdict_code::winner(verdict) {
                    self.unify_winner(ctx, id, kind, object, op.as_ref())?;
                    self.has_won(ctx, record, (id, kind), op.as_ref())?;
                } else if verdict != 0 {
                    return self.verdict_given(ctx, record, id, object, hash, verdict, op);
                }
                id
            }
            KmlOrigin::User => {
                self.permits.door.note_use(ctx.now);
                let touched = absorbed.operation.as_ref().map(facet::touched).unwrap_or_default();
                self.replaying.disturbed(&touched);
                ctx.own(record.recno.0)
            }
        };
        if let Some((file, object)) = absorbed.orphan {
            return self.orphan(ctx, record, file, object);
        }
        if let Some((file, _)) = absorbed.limbo {
            // What a user of the server removes is gone: nobody had seen it, and nobody else decides here.
            ctx.out.push(Output::ReleaseLimbo { files: vec![file], upto: record.recno });
        }
        let Some(op) = absorbed.operation else { return Ok(()) };
        self.gone.note(&op);
        let slot = absorbed.unread.map(|unread| Slot {
            file: unread.file,
            version: unread.version,
            latest: record.recno,
        });
        if absorbed.promised && slot.is_some() {
            promise::note(ctx.store, op.object, record.recno)?;
        }
        match slot {
            Some(slot) => self.log_unread(ctx, position, op, slot),
            None => self.log(ctx, position, origin, LogWhat::Operation(op), None),
        }
    }

    pub(super) fn log(
        &mut self,
        ctx: &mut Context<'_>,
        position: Position,
        origin: OpId,
        what: LogWhat,
        slot: Option<Slot>,
    ) -> Result<(), StoreError> {
        let row = LogRow { record: LogRecord { position, origin, what }, slot };
        row.note(&mut self.ledger);
        row.put(ctx.store)
    }

    fn count_verdict(&mut self, code: u8) {
        match code {
            verdict_code::UNIFIED => self.judged.unified += 1,
            _ if code == 0 || verdict_code::winner(code).is_some() => self.judged.accepted += 1,
            _ => self.judged.conflicts += 1,
        }
    }

    /// A content that has no hash yet holds up the log; a later one of the same object takes its place. Where a fallback may
    /// part the two, the later one is told at its own place as well: an earlier life may have told the first with another
    /// content, and whoever has both can bring back what lies behind the fallback only.
    fn log_unread(
        &mut self,
        ctx: &mut Context<'_>,
        position: Position,
        op: Operation,
        slot: Slot,
    ) -> Result<(), StoreError> {
        let (origin, object) = (op.id, op.object);
        self.read_again.remove(&object);
        self.retelling.forget(object);
        if let Some(newest) = self.unread.newest(object).filter(|newest| *newest > self.asked)
            && let Some(mut row) = LogRow::get(ctx.store, newest)?
        {
            row.slot = Some(slot);
            row.put(ctx.store)?;
            let OpKind::Close { mtime, .. } = op.kind else { return Ok(()) };
            let attributes = Attributes { mtime, ..Attributes::default() };
            let kind = OpKind::SetAttr { mask: Mask::MTIME, attributes };
            return self.log(ctx, position, origin, LogWhat::Operation(Operation { kind, ..op }), None);
        }
        self.unread.insert(object, position);
        self.log(ctx, position, origin, LogWhat::Operation(op), Some(slot))
    }

    #[allow(clippy::too_many_arguments)]
    fn verdict_given(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        id: OpId,
        object: ObjectId,
        hash: Option<Hash>,
        code: u8,
        op: Option<Operation>,
    ) -> Result<(), StoreError> {
        let position = Position(record.recno.0);
        let Some(kind) = verdict_code::conflict(code) else {
            let mine = op.map_or(ObjectId(id.0), |op| op.object);
            alias::put(ctx.store, mine, object)?;
            self.aliases.remove(&mine);
            return self.log(ctx, position, id, LogWhat::Verdict(Verdict::Unified(object)), None);
        };
        if kind == ConflictKind::MassRemoval {
            // Nothing is lost, and a person knows.
            return self.log(ctx, position, id, LogWhat::Verdict(Verdict::Conflict(kind, None)), None);
        }
        let mut op = op;
        if let Some(op) = &mut op {
            alias::map(ctx.store, &self.aliases, op)?;
        }
        let path = op.as_ref().map(|op| self.conflict_path(ctx.store, op)).transpose()?.unwrap_or_default();
        let standing = self.standing_of(ctx, op.as_ref(), kind)?;
        let row = ConflictRow { record: id, kind, op, path, time: record.time, hash };
        self.conflict(ctx, record.recno, row, standing)?;
        self.log(ctx, position, id, LogWhat::Verdict(Verdict::Conflict(kind, hash)), None)
    }

    /// A writer's file had been replaced under it: what it left is kept, the tree stays.
    fn orphan(
        &mut self,
        ctx: &mut Context<'_>,
        record: &KmlRecord,
        file: FileId,
        object: ObjectId,
    ) -> Result<(), StoreError> {
        let id = ctx.own(record.recno.0);
        if !self.orphans.left(ctx.store, file, record.recno, id)? {
            return Ok(());
        }
        let path = View::new(ctx.store, Which::Local).path(object)?;
        let kind = ConflictKind::Orphan;
        self.conflict(
            ctx,
            record.recno,
            ConflictRow { record: id, kind, op: None, path, time: record.time, hash: None },
            Standing::default(),
        )
    }

    pub(super) fn conflict(
        &mut self,
        ctx: &mut Context<'_>,
        recno: Recno,
        row: ConflictRow,
        standing: Standing,
    ) -> Result<(), StoreError> {
        let ConflictRow { record, kind, path, .. } = &row;
        ctx.out.push(Output::Event(Event::Conflict { record: *record, kind: *kind, path: path.clone() }));
        let standing = Standing { since: self.conflict_clock(ctx), ..standing };
        self.conflicts.add(ctx.store, recno, &row, standing)
    }

    /// Who decides about a refused record.
    fn standing_of(
        &self,
        ctx: &Context<'_>,
        op: Option<&Operation>,
        kind: ConflictKind,
    ) -> Result<Standing, StoreError> {
        let in_the_way = match op {
            Some(op) => in_the_way(&View::new(ctx.store, Which::Local), op, kind)?,
            None => None,
        };
        let state = match (self.conflicts.options.policy, in_the_way) {
            (Policy::ServerWins, _) => State::Decided,
            (Policy::Manual, Some(object)) => State::Held(object),
            // What there is nothing to win over waits for a person.
            (Policy::KeepBoth | Policy::ClientWins | Policy::Manual, _) => State::Open,
        };
        let size = op.and_then(content_of).map_or(0, |content| content.size);
        Ok(Standing { state, size, ..Standing::default() })
    }

    /// A file that a client made is the one that stood there.
    fn unify_winner(
        &mut self,
        ctx: &mut Context<'_>,
        id: OpId,
        kind: ConflictKind,
        object: ObjectId,
        op: Option<&Operation>,
    ) -> Result<(), StoreError> {
        if kind != ConflictKind::NameName {
            return Ok(());
        }
        let mine = op.map_or(ObjectId(id.0), |op| op.object);
        self.aliases.remove(&mine);
        alias::put(ctx.store, mine, object)
    }
}

/// The object that a replay without an effect is about. It was named in the life that asked for it; after a power cut the
/// journal may know more than the store, and what a user had made by then is read once more, under another name.
fn as_read(ctx: &Context<'_>, record: &KmlRecord, object: ObjectId) -> Result<ObjectId, StoreError> {
    let Update::SetAttr { file, mask: Mask(0), .. } = &record.update else { return Ok(object) };
    Ok(handle::get(ctx.store, *file)?.unwrap_or(object))
}
