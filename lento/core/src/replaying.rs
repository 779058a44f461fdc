//! Replays under way: what was asked of presto, what it answered, what the KML has confirmed.
//!
//! Owns the overlay (the local tree as it will be) and the rule that one batch runs at a time. An item counts as done
//! only when its record is read from the KML; answers only say where to look.

use crate::context::Context;
use crate::facet::Facet;
use crate::io::Output;
use crate::io::Ref;
use crate::io::ReplayItem;
use crate::io::ReplayOutcome;
use crate::store::StoreError;
use crate::tree::Overlay;
use crate::tree::View;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Recno;
use crate::types::Ticket;
use crate::types::Version;
use crate::volume::Millis;
use std::collections::BTreeSet;

/// Most items in one batch.
const BATCH_ITEMS: usize = 512;
/// Most inline bytes in one batch.
const BATCH_BYTES: usize = 1 << 20;
/// Most planned rows before everything has to be confirmed once.
const OVERLAY_MAX: usize = 50_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Replaying {
    /// The local tree as it will be.
    pub overlay: Overlay,
    /// Objects whose lower identity is not confirmed.
    fresh: BTreeSet<ObjectId>,
    items: Vec<ReplayItem>,
    bytes: usize,
    batch: Option<Ticket>,
    /// What the batch under way is about.
    sent: Vec<Sent>,
    /// Newest record that an answer named: plans made before it is read may be wrong or unconfirmed.
    told: Recno,
    /// Plans went wrong: make no new ones before `told` is read.
    stale: bool,
    not_before: Millis,
    /// Consecutive failures without progress.
    failures: u32,
}

/// What an item under way is about.
#[derive(Clone, Debug)]
struct Sent {
    object: ObjectId,
    record: OpId,
    dirs: Vec<Ref>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum BatchEnd {
    /// Not ours, or all well.
    Fine,
    /// This item (and those after it) did not happen.
    Stopped {
        /// The object it was for.
        object: ObjectId,
        /// The record.
        record: OpId,
        /// The directories in which it names something.
        dirs: Vec<Ref>,
        /// Why.
        why: ReplayOutcome,
    },
    /// Nobody knows how far it got; the KML will say.
    Unknown,
}

impl Replaying {
    /// Whether new items may be planned now. Forgets the overlay when everything in it is confirmed.
    pub fn may_plan(&mut self, ctx: &Context<'_>) -> bool {
        if !ctx.presto || ctx.scrubbing || self.batch.is_some() || ctx.now < self.not_before {
            return false;
        }
        let confirmed = ctx.meta.last_read() >= self.told;
        if confirmed && self.items.is_empty() {
            self.overlay.clear();
            self.fresh.clear();
            self.stale = false;
        }
        !self.stale && self.overlay.len() < OVERLAY_MAX
    }

    /// Everything asked for is done and confirmed.
    pub fn is_idle(&self, ctx: &Context<'_>) -> bool {
        self.batch.is_none() && self.items.is_empty() && ctx.meta.last_read() >= self.told
    }

    /// Every record that an answer or presto's start named is read.
    pub fn has_read_all(&self, ctx: &Context<'_>) -> bool {
        ctx.meta.last_read() >= self.told
    }

    /// Room in the batch being planned.
    pub fn has_room(&self) -> bool {
        self.items.len() < BATCH_ITEMS && self.bytes < BATCH_BYTES && self.overlay.len() < OVERLAY_MAX
    }

    /// What may wait leaves the rest to others.
    pub fn is_half_full(&self) -> bool {
        self.items.len() >= BATCH_ITEMS / 2 || !self.has_room()
    }

    /// Adds an item; its effect must be put into the overlay by the caller.
    pub fn push(&mut self, item: ReplayItem) {
        use crate::io::ReplayContent;
        use crate::io::ReplayOp;
        match &item.op {
            ReplayOp::Make { content, .. } => {
                self.fresh.insert(item.object);
                if let Some(ReplayContent::Inline(bytes)) = content {
                    self.bytes += bytes.len();
                }
            }
            ReplayOp::Install { content, .. } => {
                self.fresh.insert(item.object);
                if let ReplayContent::Inline(bytes) = content {
                    self.bytes += bytes.len();
                }
            }
            // Presto copies them.
            ReplayOp::Fill { content, .. } => {
                let bytes = match content {
                    ReplayContent::Inline(bytes) => bytes.len(),
                    ReplayContent::Staged(_, size) => usize::try_from(*size).unwrap_or(usize::MAX),
                    ReplayContent::Missing(_) => 0,
                };
                self.bytes = self.bytes.saturating_add(bytes);
            }
            ReplayOp::Link { .. }
            | ReplayOp::Remove { .. }
            | ReplayOp::Rename { .. }
            | ReplayOp::SetAttr { .. }
            | ReplayOp::SetXattr { .. }
            | ReplayOp::DelXattr { .. }
            | ReplayOp::Noop => {}
        }
        self.items.push(item);
    }

    /// An object whose version on disk is not what the local tree says any more.
    pub fn changed(&mut self, object: ObjectId) {
        self.fresh.insert(object);
    }

    /// Sends what was planned.
    pub fn flush(&mut self, ctx: &mut Context<'_>) {
        if self.items.is_empty() || self.batch.is_some() {
            return;
        }
        let ticket = ctx.ticket();
        self.batch = Some(ticket);
        let items = std::mem::take(&mut self.items);
        self.bytes = 0;
        let sent =
            |item: &ReplayItem| Sent { object: item.object, record: item.record, dirs: item.op.dirs() };
        self.sent = items.iter().map(sent).collect();
        ctx.out.push(Output::Replay { ticket, items, untouched_since: ctx.meta.last_read() });
    }

    /// Presto's answer.
    pub fn answered(
        &mut self,
        now: Millis,
        ticket: Ticket,
        outcomes: &[ReplayOutcome],
        last_read: Recno,
    ) -> BatchEnd {
        if self.batch != Some(ticket) {
            return BatchEnd::Fine;
        }
        self.batch = None;
        let sent = std::mem::take(&mut self.sent);
        let mut end = BatchEnd::Fine;
        for (index, outcome) in outcomes.iter().enumerate() {
            match outcome {
                ReplayOutcome::Applied { recno, .. } => {
                    self.told = self.told.max(*recno);
                    self.failures = 0;
                }
                ReplayOutcome::Stale { recno } => {
                    let news = recno.filter(|r| *r > last_read);
                    self.told = self.told.max(news.unwrap_or_default());
                    self.fail(now, news.is_none());
                    end = stopped(&sent, index, outcome);
                    break;
                }
                ReplayOutcome::Busy => {
                    self.stale = true;
                    end = stopped(&sent, index, outcome);
                    break;
                }
                ReplayOutcome::Refused { .. } => {
                    self.fail(now, true);
                    end = stopped(&sent, index, outcome);
                    break;
                }
            }
        }
        if outcomes.len() < sent.len() && matches!(end, BatchEnd::Fine) {
            self.fail(now, true);
            end = BatchEnd::Unknown;
        }
        end
    }

    fn fail(&mut self, now: Millis, wait: bool) {
        self.stale = true;
        if wait {
            self.failures = (self.failures + 1).min(8);
            self.not_before = Millis(now.0 + (5 << self.failures));
        }
    }

    /// A user changed something: plans over the same facets no longer say what is on disk.
    pub fn disturbed(&mut self, facets: &BTreeSet<Facet>) {
        if facets.iter().any(|facet| self.overlay.covers(facet)) {
            self.stale = true;
        }
    }

    /// When planning may go on, if it waits for the clock.
    pub fn wake(&self) -> Option<Millis> {
        (self.not_before.0 > 0).then_some(self.not_before)
    }

    /// Presto went away; how far it got, the KML will say.
    pub fn presto_down(&mut self) {
        self.stale = true;
        self.batch = None;
        self.sent.clear();
        self.items.clear();
        self.bytes = 0;
    }

    /// Presto is back; its newest record is `last`.
    pub fn presto_up(&mut self, last: Recno) {
        self.presto_down();
        self.told = self.told.max(last);
        self.not_before = Millis(0);
    }

    /// How an item names an object.
    pub fn reference(&self, ctx: &Context<'_>, object: ObjectId) -> Result<Ref, StoreError> {
        if let Some(file) = ctx.fixed_file(object) {
            return Ok(Ref::File(file));
        }
        if self.fresh.contains(&object) {
            return Ok(Ref::Object(object));
        }
        let row = View::planned(ctx.store, &self.overlay).object(object)?;
        Ok(row.filter(|row| row.file.ino != 0).map_or(Ref::Object(object), |row| Ref::File(row.file)))
    }

    /// The version an item should find, where that is known.
    pub fn version(&self, ctx: &Context<'_>, object: ObjectId) -> Result<Option<Version>, StoreError> {
        if self.fresh.contains(&object) {
            return Ok(None);
        }
        let row = View::planned(ctx.store, &self.overlay).object(object)?;
        Ok(row.map(|row| row.version).filter(|version| *version != Version::default()))
    }
}

fn stopped(sent: &[Sent], index: usize, why: &ReplayOutcome) -> BatchEnd {
    match sent.get(index).cloned() {
        Some(Sent { object, record, dirs }) => BatchEnd::Stopped { object, record, dirs, why: why.clone() },
        None => BatchEnd::Unknown,
    }
}
