//! Which facets still differ from base, and what each of them waits for.
//!
//! Owns the dirty set: durable in the store, with queues in memory. `repair.rs` plans the replays.

use super::Client;
use super::repair::Repair;
use super::repair::Same;
use super::repair::same_state;
use crate::context::Context;
use crate::facet;
use crate::facet::Facet;
use crate::facet::pending;
use crate::io::FetchItem;
use crate::io::Output;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::Operation;
use crate::types::Position;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

/// Contents asked for in one fetch.
const FETCH_ITEMS: usize = 256;
/// Bytes asked for in one fetch.
const FETCH_BYTES: u64 = 8 << 20;
/// Fetches under way.
const FETCHES: usize = 4;
/// How often a file that is open for writing is looked at again, in milliseconds.
const BUSY_PAUSE: u64 = 250;

/// The dirty set.
#[derive(Debug, Default)]
pub struct Work {
    /// Dirty facets with the position that made them so.
    dirty: BTreeMap<Facet, Position>,
    since: BTreeMap<Position, u64>,
    todo: VecDeque<Facet>,
    queued: BTreeSet<Facet>,
    /// Facets that can go on when something else happens (a verdict, a confirmation).
    blocked: BTreeSet<Facet>,
    /// Something did; they are looked at once for all that happened.
    stirred: bool,
    /// Facets whose replays are under way; looked at again when everything is confirmed.
    planned: BTreeSet<Facet>,
    /// Facets that wait for their directory to exist here.
    for_dir: BTreeMap<ObjectId, BTreeSet<Facet>>,
    /// Facets that wait for a content, and what to ask for.
    for_content: BTreeMap<Hash, BTreeSet<Facet>>,
    wanted: BTreeMap<(Hash, ObjectId), FetchItem>,
    later: BTreeSet<Hash>,
    busy: BTreeMap<ObjectId, (Millis, String)>,
}

impl Work {
    /// Reads the durable part.
    pub fn load(store: &dyn Store) -> Result<Work, StoreError> {
        let mut work = Work::default();
        table::each_with_prefix(store, Table::Dirty, &[], |key, value| {
            if let Some(facet) = Facet::from_key(key) {
                work.note(facet, table::decode(Table::Dirty, value)?);
            }
            Ok(())
        })?;
        Ok(work)
    }

    fn note(&mut self, facet: Facet, position: Position) {
        if !self.dirty.contains_key(&facet) {
            *self.since.entry(position).or_default() += 1;
            self.dirty.insert(facet.clone(), position);
        }
        self.queue(facet);
    }

    fn queue(&mut self, facet: Facet) {
        if self.queued.insert(facet.clone()) {
            self.todo.push_back(facet);
        }
    }

    fn clean(&mut self, facet: &Facet) -> bool {
        let Some(position) = self.dirty.remove(facet) else { return false };
        if let Some(count) = self.since.get_mut(&position) {
            *count -= 1;
            if *count == 0 {
                self.since.remove(&position);
            }
        }
        true
    }

    /// Everything up to here is in the tree.
    pub fn applied(&self, position: Position) -> Position {
        match self.since.first_key_value() {
            Some((first, _)) => position.min(Position(first.0.saturating_sub(1))),
            None => position,
        }
    }

    /// Whether everything up to here is in the tree but what users keep out, who have files open for writing.
    pub fn is_visible_to(&self, position: Position) -> bool {
        let rests = self.todo.is_empty() && self.planned.is_empty() && self.for_content.is_empty();
        self.applied(position) >= position || rests && !self.busy.is_empty()
    }

    /// Number of dirty facets.
    pub fn len(&self) -> u64 {
        self.dirty.len() as u64
    }

    /// Looks at everything again.
    pub fn requeue_all(&mut self) {
        let all: Vec<Facet> = self.dirty.keys().cloned().collect();
        self.blocked.clear();
        self.for_dir.clear();
        for facet in all {
            self.queue(facet);
        }
    }

    fn stir(&mut self) {
        self.stirred = true;
    }

    fn unblock(&mut self) {
        if !std::mem::take(&mut self.stirred) {
            return;
        }
        for facet in std::mem::take(&mut self.blocked) {
            self.queue(facet);
        }
    }

    fn all_confirmed(&mut self) {
        for facet in std::mem::take(&mut self.planned) {
            if self.dirty.contains_key(&facet) {
                self.queue(facet);
            }
        }
    }

    fn waits_for_dirs(&self) -> bool {
        !self.for_dir.is_empty()
    }

    /// What waited for this directory may go on.
    pub(super) fn dir_made(&mut self, dir: ObjectId) {
        for facet in self.for_dir.remove(&dir).into_iter().flatten() {
            self.queue(facet);
        }
    }

    /// A content is at hand.
    pub fn content_came(&mut self, hash: &Hash) {
        for facet in self.for_content.remove(hash).into_iter().flatten() {
            self.queue(facet);
        }
    }

    /// A content cannot be had just now.
    pub fn content_later(&mut self, hash: &Hash) {
        self.later.insert(*hash);
    }

    /// An object is open for writing.
    pub fn busy(&mut self, now: Millis, object: ObjectId, path: String) {
        self.busy.insert(object, (Millis(now.0.saturating_add(BUSY_PAUSE)), path));
    }

    /// Whether an object was found open for writing a moment ago.
    pub(super) fn is_busy(&self, object: ObjectId) -> bool {
        self.busy.contains_key(&object)
    }

    /// When busy files are looked at again.
    pub fn wake(&self) -> Option<Millis> {
        self.busy.values().map(|(at, _)| *at).min()
    }

    /// For people.
    pub fn waiting(&self, store: &dyn Store) -> Result<Vec<String>, StoreError> {
        let mut list: Vec<String> =
            self.busy.values().map(|(_, path)| format!("{path}: open for writing here")).collect();
        if !self.for_content.is_empty() {
            list.push(format!("{} contents to be fetched", self.for_content.len()));
        }
        let waits = |facets: &BTreeSet<Facet>| facets.iter().any(|facet| self.dirty.contains_key(facet));
        for (dir, _) in self.for_dir.iter().filter(|(_, facets)| waits(facets)).take(3) {
            list.push(format!("{}: waits for this directory", View::new(store, Which::Base).path(*dir)?));
        }
        for facet in self.blocked.iter().take(3) {
            let path = match facet {
                Facet::Entry(dir, name) => View::new(store, Which::Base).path_in(*dir, name)?,
                Facet::Object(object) => View::new(store, Which::Base).path(*object)?,
            };
            list.push(format!("{path}: waits for a verdict or another change"));
        }
        Ok(list)
    }
}

impl Client {
    /// These facets may have changed: those that differ and are nobody's pending record are dirty.
    pub(super) fn look_at(
        &mut self,
        ctx: &mut Context<'_>,
        facets: BTreeSet<Facet>,
    ) -> Result<(), StoreError> {
        for facet in facets {
            if self.work.dirty.contains_key(&facet) {
                self.work.queue(facet);
            } else if !pending::any(ctx.store, &facet)? {
                self.mark(ctx, facet)?;
            }
        }
        self.work.stir();
        Ok(())
    }

    /// Somebody else's operation moved base. What a pending record touches is dirty as well, so that it does not count
    /// as visible before the verdict; but not a directory's time alone, which moves with every record in it.
    pub(super) fn base_moved(&mut self, ctx: &mut Context<'_>, op: &Operation) -> Result<(), StoreError> {
        let (times, facets): (BTreeSet<Facet>, BTreeSet<Facet>) = facet::touched(op)
            .into_iter()
            .partition(|facet| matches!(facet, Facet::Object(object) if *object != op.object));
        for facet in facets {
            self.mark(ctx, facet)?;
        }
        self.look_at(ctx, times)
    }

    fn mark(&mut self, ctx: &mut Context<'_>, facet: Facet) -> Result<(), StoreError> {
        if self.work.dirty.contains_key(&facet) {
            self.work.queue(facet);
        } else if differs(ctx.store, &facet)? {
            table::put(ctx.store, Table::Dirty, &facet.key(), &ctx.meta.position)?;
            self.work.note(facet, ctx.meta.position);
        }
        Ok(())
    }

    /// A replay is in the KML.
    pub(super) fn confirmed(
        &mut self,
        ctx: &mut Context<'_>,
        facets: BTreeSet<Facet>,
    ) -> Result<(), StoreError> {
        for facet in facets {
            // Nobody may look at this facet again, and others wait for the directory that it brought.
            if let Facet::Entry(dir, name) = &facet
                && self.work.waits_for_dirs()
                && let Some(object) = View::new(ctx.store, Which::Local).entry(*dir, name)?
            {
                self.work.dir_made(object);
            }
            if differs(ctx.store, &facet)? {
                // Half way (staging), or base moved on meanwhile.
                self.mark(ctx, facet)?;
            } else if self.work.clean(&facet) {
                ctx.store.delete(Table::Dirty, &facet.key())?;
            }
        }
        self.work.stir();
        Ok(())
    }

    /// Plans replays for what is dirty, as far as one batch goes, and asks for the contents they need.
    pub(super) fn materialise(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.replaying.may_plan(ctx) {
            // First, since users wait; base may be half.
            self.plan_fills(ctx)?;
        }
        if ctx.meta.snapshot.is_some() {
            self.replaying.flush(ctx);
            return Ok(());
        }
        let due: Vec<ObjectId> =
            self.work.busy.iter().filter(|(_, (at, _))| *at <= ctx.now).map(|(id, _)| *id).collect();
        for object in due {
            self.work.busy.remove(&object);
            self.work.stir();
        }
        if self.fetch_again.is_due(ctx.now) {
            for hash in std::mem::take(&mut self.work.later) {
                // Base may have moved on: the facets say anew what they need.
                self.work.content_came(&hash);
            }
        }
        if self.replaying.may_plan(ctx) {
            if self.replaying.is_idle(ctx) {
                self.work.all_confirmed();
            }
            self.work.unblock();
            while !self.held_back && self.replaying.has_room() {
                let Some(facet) = self.work.todo.pop_front() else { break };
                self.work.queued.remove(&facet);
                if self.work.dirty.contains_key(&facet) {
                    self.repair_one(ctx, facet)?;
                }
            }
            self.replaying.flush(ctx);
        }
        self.fetch_wanted(ctx);
        Ok(())
    }

    fn repair_one(&mut self, ctx: &mut Context<'_>, facet: Facet) -> Result<(), StoreError> {
        match self.repair(ctx, &facet)? {
            // Clean now, or clean as soon as what is under way is confirmed.
            Repair::Planned | Repair::Equal => {
                if differs(ctx.store, &facet)? {
                    self.work.planned.insert(facet.clone());
                } else if self.work.clean(&facet) {
                    ctx.store.delete(Table::Dirty, &facet.key())?;
                }
                if let Facet::Entry(dir, name) = &facet
                    && let Some(object) =
                        View::planned(ctx.store, &self.replaying.overlay).entry(*dir, name)?
                {
                    self.work.dir_made(object);
                }
            }
            Repair::Blocked => {
                self.work.blocked.insert(facet);
            }
            Repair::NeedsDir(dir) => {
                self.work.for_dir.entry(dir).or_default().insert(facet);
            }
            Repair::NeedsContent(item) => {
                self.work.for_content.entry(item.hash).or_default().insert(facet);
                self.work.wanted.insert((item.hash, item.object), item);
            }
        }
        Ok(())
    }

    fn fetch_wanted(&mut self, ctx: &mut Context<'_>) {
        if !self.is_connected() {
            return;
        }
        while self.fetching.len() < FETCHES && !self.work.wanted.is_empty() {
            let mut items = Vec::new();
            let mut bytes = 0;
            while let Some((wanted, item)) = self.work.wanted.pop_first() {
                if self.fetching.values().flatten().any(|item| *item == wanted)
                    || self.work.later.contains(&item.hash)
                {
                    continue;
                }
                bytes += item.size;
                items.push(item);
                if items.len() >= FETCH_ITEMS || bytes >= FETCH_BYTES {
                    break;
                }
            }
            if items.is_empty() {
                return;
            }
            let ticket = ctx.ticket();
            self.fetching.insert(ticket, items.iter().map(|item| (item.hash, item.object)).collect());
            ctx.out.push(Output::Fetch { ticket, items });
        }
    }
}

/// Whether local and base disagree about a facet.
fn differs(store: &dyn Store, facet: &Facet) -> Result<bool, StoreError> {
    let local = View::new(store, Which::Local);
    let base = View::new(store, Which::Base);
    Ok(match facet {
        Facet::Entry(dir, name) => local.entry(*dir, name)? != base.entry(*dir, name)?,
        Facet::Object(id) => match (local.object(*id)?, base.object(*id)?) {
            (Some(here), Some(there)) => same_state(&here, &there) != Same::All,
            // Its entries bring or take it.
            (None, _) | (_, None) => false,
        },
    })
}
