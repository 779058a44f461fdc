//! Contents that are not here: users wait for some, others are brought without being asked for.
//!
//! A content comes into the very file that stands for it (`ReplayOp::Fill`), whatever is pending about that object, because the
//! only condition is that the file still lacks this content. What base has by now is another question: where it has moved on,
//! the server does not have the old content any more, and the file is replaced like any other.
//!
//! Owns who waits, what is fetched for them, and the search for contents that are to be here.

use super::Client;
use super::repair::Entry;
use super::repair::Need;
use crate::context::Context;
use crate::io::Demanded;
use crate::io::FetchItem;
use crate::io::FetchResult;
use crate::io::Output;
use crate::io::ReplayContent;
use crate::io::ReplayItem;
use crate::io::ReplayOp;
use crate::keeping::Keeping;
use crate::missing;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Tag;
use crate::types::Ticket;
use crate::volume::Millis;
use std::collections::BTreeMap;

/// How long a server that is away is waited for, in milliseconds.
const AWAY: u64 = 5_000;
/// Who waits is told after so long that he has not been forgotten.
const WORD: u64 = 10_000;
/// How long a content that cannot be had is asked for.
const PATIENCE: u64 = 60_000;
/// Longest pause before it is asked for again, and how long a full disk is left alone.
const PAUSE: u64 = 5_000;
/// Fetches for users, each of one content, so that nobody waits for another one's.
const FETCHES: usize = 32;
/// Others: how many, and what is in each.
const KEPT_FETCHES: usize = 2;
const KEPT_ITEMS: usize = 64;
const KEPT_BYTES: u64 = 8 << 20;
/// Contents that nobody waits for and that are under way.
const KEPT: usize = 256;
/// Rows looked at in one go.
const PAGE: usize = 256;
/// How often it is looked whether everything is here that should be.
const SEARCH: u64 = 30_000;
/// How often presto is asked whether a content is in its file.
const COPYING: u64 = 100;
/// How long it is remembered of a content that nobody waits for any more how it went: presto asks again after each word.
const GRACE: u64 = 5_000;
/// "No such file": what was staged has gone.
const ENOENT: i32 = 2;
/// "I/O error".
const EIO: i32 = 5;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Demands {
    keeping: Keeping,
    asks: BTreeMap<u64, Ask>,
    wanted: BTreeMap<ObjectId, Demand>,
    fetching: BTreeMap<Ticket, Vec<(ObjectId, Hash)>>,
    /// Since when the server cannot be asked.
    away: Option<Millis>,
    search: Search,
}

/// Somebody waits.
#[derive(Clone, Copy, Debug)]
struct Ask {
    file: FileId,
    since: Millis,
}

#[derive(Debug)]
struct Demand {
    hash: Hash,
    size: u64,
    urgency: Urgency,
    state: State,
    /// Since when nobody waits for it, and it is not to be here either.
    idle: Option<Millis>,
    /// When it was wanted, or came nearer.
    since: Millis,
    not_before: Millis,
    tries: u32,
    /// Why it is not here.
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// It should be here.
    Kept,
    /// Somebody waits.
    Asked,
}

#[derive(Debug)]
enum State {
    Wanted,
    Fetching(Ticket),
    Here(ReplayContent),
}

/// The search for what should be here.
#[derive(Debug, Default)]
enum Search {
    /// Nothing is to be found.
    #[default]
    Over,
    /// Behind this one; `None`: from the beginning.
    At(Option<ObjectId>),
    /// Once more then.
    Again(Millis),
}

/// What an ask has come to.
enum Found {
    Nothing,
    Gone,
    Here,
    Lacks(ObjectId, Box<Object>),
}

impl Demands {
    /// When to go on.
    pub fn wake(&self) -> Vec<Millis> {
        let after = |since: Millis, pause: u64| Millis(since.0.saturating_add(pause));
        let mut times = Vec::new();
        for ask in self.asks.values() {
            times.extend([AWAY, WORD].map(|pause| after(ask.since, pause)));
        }
        if !self.asks.is_empty() {
            times.extend(self.away.map(|since| after(since, AWAY)));
        }
        for demand in self.wanted.values() {
            times.extend([demand.not_before, after(demand.since, PATIENCE)]);
            times.extend(demand.idle.map(|since| after(since, GRACE)));
        }
        if let Search::Again(at) = self.search {
            times.push(at);
        }
        times
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.asks.len() as u64
    }

    /// For people.
    pub fn explain(&self, store: &dyn Store, list: &mut Vec<String>) -> Result<(), StoreError> {
        let slow = |demand: &&Demand| demand.urgency == Urgency::Asked && !demand.why.is_empty();
        for (object, demand) in self.wanted.iter().filter(|(_, demand)| slow(demand)).take(3) {
            let path = View::new(store, Which::Local).path(*object)?;
            list.push(format!("{path}: somebody waits for its content: {}", demand.why));
        }
        Ok(())
    }

    /// The content of this object is wanted, whatever becomes of others.
    fn is_asked(&self, object: ObjectId) -> bool {
        self.wanted.get(&object).is_some_and(|demand| demand.urgency == Urgency::Asked)
    }

    /// Presto copies this content into its file, and has to be asked until it has.
    pub fn is_being_put_in(&mut self, object: ObjectId, now: Millis) -> bool {
        let demand = self.wanted.get_mut(&object).filter(|demand| matches!(demand.state, State::Here(_)));
        let Some(demand) = demand else { return false };
        demand.not_before = Millis(now.0.saturating_add(COPYING));
        // It comes nearer.
        demand.since = now;
        true
    }

    fn later(demand: &mut Demand, now: Millis, why: String) {
        demand.state = State::Wanted;
        demand.tries = demand.tries.saturating_add(1);
        let pause = (100_u64 << demand.tries.min(10)).min(PAUSE);
        demand.not_before = Millis(now.0.saturating_add(pause));
        demand.why = why;
    }
}

impl Client {
    /// How much is to be kept here. What is here stays in any case.
    pub fn keep(&mut self, ctx: &Context<'_>, keeping: Keeping) -> Result<(), StoreError> {
        if self.demands.keeping != keeping {
            let before = self.is_partial(ctx)?;
            self.demands.keeping = keeping;
            self.demands.search = Search::At(None);
            if before != self.is_partial(ctx)? && self.is_connected() {
                // The server has to know.
                self.connected();
            }
        }
        Ok(())
    }

    /// Whether contents may lack here: this node is no copy of the volume.
    pub(super) fn is_partial(&self, ctx: &Context<'_>) -> Result<bool, StoreError> {
        Ok(self.demands.keeping != Keeping::All || missing::sum(ctx.store)?.files > 0)
    }

    /// What of an object has to be here, for it to stand under this name.
    pub(super) fn need(&self, ctx: &Context<'_>, object: ObjectId, at: &Entry) -> Result<Need, StoreError> {
        if self.demands.keeping == Keeping::All || self.demands.is_asked(object) {
            return Ok(Need::Content);
        }
        let path = View::new(ctx.store, Which::Base).path_in(at.0, &at.1)?;
        Ok(if self.demands.keeping.keeps(|| path) { Need::Content } else { Need::Tree })
    }

    /// Somebody opens a file that lacks its content.
    pub fn demand(&mut self, ctx: &Context<'_>, id: u64, file: FileId) {
        self.demands.asks.insert(id, Ask { file, since: ctx.now });
    }

    /// Nobody waits any more.
    pub fn undemand(&mut self, id: u64) {
        self.demands.asks.remove(&id);
    }

    /// Presto has gone, and who has asked it asks the next one.
    pub(super) fn forget_asks(&mut self) {
        self.demands.asks.clear();
    }

    /// Answers who waits, fetches, looks for what should be here.
    pub(super) fn bring_missing(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if self.is_connected() {
            self.demands.away = None;
        } else {
            self.demands.away.get_or_insert(ctx.now);
        }
        self.answer_asks(ctx)?;
        self.search(ctx)?;
        self.drop_done(ctx)?;
        self.fetch_demanded(ctx);
        Ok(())
    }

    fn answer_asks(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        for demand in self.demands.wanted.values_mut() {
            demand.urgency = Urgency::Kept;
        }
        let asks: Vec<(u64, Ask)> = self.demands.asks.iter().map(|(id, ask)| (*id, *ask)).collect();
        for (id, ask) in asks {
            let waited = ctx.now.0.saturating_sub(ask.since.0);
            let answer = match self.find_asked(ctx, ask.file)? {
                Found::Gone => Some(Demanded::Gone),
                Found::Here => Some(Demanded::Look),
                Found::Nothing => (waited >= WORD).then_some(Demanded::Look),
                Found::Lacks(object, row) => self.wait_for(ctx.now, object, &row, Urgency::Asked, waited),
            };
            if let Some(answer) = answer {
                self.demands.asks.remove(&id);
                ctx.out.push(Output::Demanded(id, answer));
            }
        }
        Ok(())
    }

    fn find_asked(&self, ctx: &Context<'_>, file: FileId) -> Result<Found, StoreError> {
        // What it says may have been overtaken by a record that is still to be read.
        let all_read = self.replaying.has_read_all(ctx);
        let object = handle::get(ctx.store, file)?;
        let row = match object {
            Some(object) => View::new(ctx.store, Which::Local).object(object)?.map(|row| (object, row)),
            None => None,
        };
        Ok(match row.filter(|(_, row)| row.file == file) {
            Some((object, row)) if row.missing => Found::Lacks(object, Box::new(row)),
            _ if !all_read => Found::Nothing,
            Some(_) => Found::Here,
            None => Found::Gone,
        })
    }

    /// `Some`: it is no use to wait longer now.
    fn wait_for(
        &mut self,
        now: Millis,
        object: ObjectId,
        row: &Object,
        urgency: Urgency,
        waited: u64,
    ) -> Option<Demanded> {
        let content = row.content?;
        let new = || Demand {
            hash: content.hash,
            size: content.size,
            urgency,
            state: State::Wanted,
            idle: None,
            since: now,
            not_before: Millis(0),
            tries: 0,
            why: String::new(),
        };
        let demand = self.demands.wanted.entry(object).or_insert_with(new);
        if demand.hash != content.hash {
            *demand = new();
        }
        demand.idle = None;
        if demand.urgency < urgency {
            // Whoever has just come need not wait for the end of a pause.
            demand.urgency = urgency;
            if waited == 0 {
                demand.not_before = Millis(0);
            }
        }
        let away = self.demands.away.map(|since| now.0.saturating_sub(since.0));
        if away.is_some_and(|away| away.min(waited) >= AWAY) && !matches!(demand.state, State::Here(_)) {
            return Some(Demanded::Unreachable);
        }
        let failing = matches!(demand.state, State::Wanted) && !demand.why.is_empty();
        if failing && now.0.saturating_sub(demand.since.0) >= PATIENCE {
            demand.since = now;
            return Some(Demanded::Failed { errno: EIO, why: demand.why.clone() });
        }
        (waited >= WORD).then_some(Demanded::Coming)
    }

    /// Goes through what lacks, and wants what is to be kept.
    fn search(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        if let Search::Again(at) = self.demands.search
            && at <= ctx.now
        {
            self.demands.search = Search::At(None);
        }
        let Search::At(after) = self.demands.search else { return Ok(()) };
        if self.demands.keeping == (Keeping::OnDemand { pins: Vec::new() }) {
            self.demands.search = Search::Over;
            return Ok(());
        }
        if self.demands.wanted.len() >= KEPT {
            return Ok(());
        }
        let page = missing::page(ctx.store, after, PAGE)?;
        self.demands.search = match page.last() {
            Some(last) if page.len() == PAGE => Search::At(Some(*last)),
            // Names move, and what could not be had may be there later.
            _ if missing::sum(ctx.store)?.files > 0 => {
                Search::Again(Millis(ctx.now.0.saturating_add(SEARCH)))
            }
            _ => Search::Over,
        };
        for object in page {
            let view = View::new(ctx.store, Which::Local);
            let Some(row) = view.object(object)? else { continue };
            let path = view.path(object)?;
            if self.demands.keeping.keeps(|| path) {
                let _ = self.wait_for(ctx.now, object, &row, Urgency::Kept, 0);
            }
        }
        Ok(())
    }

    /// What is here, or is another content by now, and what nobody wants any more.
    fn drop_done(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let local = View::new(ctx.store, Which::Local);
        let keeping = &self.demands.keeping;
        let mut done = Vec::new();
        for (object, demand) in &mut self.demands.wanted {
            let row = local.object(*object)?.filter(|row| row.missing);
            let lacks = row.and_then(|row| row.content).is_some_and(|content| content.hash == demand.hash);
            let is_kept = || -> Result<bool, StoreError> {
                let path = local.path(*object)?;
                Ok(keeping.keeps(|| path))
            };
            if !lacks {
                done.push(*object);
            } else if demand.urgency == Urgency::Kept && !is_kept()? {
                let since = *demand.idle.get_or_insert(ctx.now);
                if ctx.now.0.saturating_sub(since.0) >= GRACE {
                    done.push(*object);
                }
            }
        }
        for object in done {
            let demand = self.demands.wanted.remove(&object);
            if let Some(Demand { state: State::Here(ReplayContent::Staged(name, _)), .. }) = demand {
                // Where it has come into the file, presto has dropped it already.
                ctx.out.push(Output::DropStage(vec![name]));
            }
        }
        Ok(())
    }

    fn fetch_demanded(&mut self, ctx: &mut Context<'_>) {
        if !self.is_connected() {
            return;
        }
        let Demands { wanted, fetching, .. } = &mut self.demands;
        let mut kept = Vec::new();
        let mut kept_bytes = 0;
        let single = fetching.values().filter(|items| items.len() == 1).count();
        let mut free = FETCHES.saturating_sub(single);
        let mut free_kept = KEPT_FETCHES.saturating_sub(fetching.len().saturating_sub(single));
        let mut tickets = Vec::new();
        let due = wanted.iter_mut().filter(|(_, demand)| {
            matches!(demand.state, State::Wanted) && demand.idle.is_none() && demand.not_before <= ctx.now
        });
        for (object, demand) in due {
            let item = FetchItem { object: *object, hash: demand.hash, size: demand.size };
            match demand.urgency {
                Urgency::Asked if free > 0 => {
                    free -= 1;
                    tickets.push(vec![item]);
                }
                Urgency::Kept if free_kept > 0 => {
                    kept_bytes += item.size;
                    kept.push(item);
                    if kept.len() >= KEPT_ITEMS || kept_bytes >= KEPT_BYTES {
                        tickets.push(std::mem::take(&mut kept));
                        kept_bytes = 0;
                        free_kept -= 1;
                    }
                }
                Urgency::Asked | Urgency::Kept => {}
            }
        }
        if !kept.is_empty() {
            tickets.push(kept);
        }
        for items in tickets {
            let ticket = ctx.ticket();
            for item in &items {
                if let Some(demand) = self.demands.wanted.get_mut(&item.object) {
                    demand.state = State::Fetching(ticket);
                }
            }
            self.demands.fetching.insert(ticket, items.iter().map(|item| (item.object, item.hash)).collect());
            ctx.out.push(Output::Fetch { ticket, items });
        }
    }

    /// Answer to a fetch; `false`: it was not for these.
    pub(super) fn demand_fetched(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        results: &[FetchResult],
    ) -> bool {
        let Some(items) = self.demands.fetching.remove(&ticket) else { return false };
        for (index, (object, hash)) in items.into_iter().enumerate() {
            let result = results.get(index);
            let demand = self.demands.wanted.get_mut(&object).filter(|demand| demand.hash == hash);
            let Some(demand) = demand else {
                if let Some(FetchResult::Staged(name)) = result {
                    ctx.out.push(Output::DropStage(vec![name.clone()]));
                }
                continue;
            };
            let content = match result {
                Some(FetchResult::Inline(bytes)) => Ok(ReplayContent::Inline(bytes.clone())),
                Some(FetchResult::Staged(name)) => Ok(ReplayContent::Staged(name.clone(), demand.size)),
                Some(FetchResult::Superseded) => Err("the server has another content by now, or none"),
                Some(FetchResult::Failed(why)) => Err(why.as_str()),
                None => Err("it did not come"),
            };
            match content {
                Ok(content) => {
                    (demand.state, demand.since, demand.tries) = (State::Here(content), ctx.now, 0);
                    demand.why.clear();
                }
                // Of a fetch that was given up, another one may be under way.
                Err(_) if !matches!(demand.state, State::Fetching(current) if current == ticket) => {}
                Err(why) => Demands::later(demand, ctx.now, why.to_owned()),
            }
        }
        true
    }

    /// Puts what has come into the files, as far as one batch goes.
    pub(super) fn plan_fills(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        // Small ones first: presto takes as long for one as it takes to copy it.
        let mut here: Vec<_> = self.demands.wanted.iter().collect();
        here.sort_unstable_by_key(|(_, demand)| demand.size);
        for (object, demand) in here {
            let State::Here(content) = &demand.state else { continue };
            if !self.replaying.has_room() {
                break;
            }
            if demand.not_before > ctx.now {
                continue;
            }
            let planned = View::planned(ctx.store, &self.replaying.overlay).object(*object)?;
            let Some(row) = planned.filter(|row| row.missing) else { continue };
            // Planned anew, or replaced by what has no identity yet.
            if row.file.ino == 0 || row.content.is_none_or(|content| content.hash != demand.hash) {
                continue;
            }
            let record = OpId(Tag { replica: 0, incarnation: 0, number: ctx.meta.position.0 });
            let file = self.replaying.reference(ctx, *object)?;
            self.replaying.push(ReplayItem {
                record,
                object: *object,
                hash: Some(demand.hash),
                verdict: 0,
                parent_mtime: None,
                target_parent_mtime: None,
                op: ReplayOp::Fill { file, content: content.clone() },
            });
            let row = Object { missing: false, ..row };
            Tree::planned(ctx.store, &mut self.replaying.overlay).set_object(*object, Some(&row))?;
            self.replaying.changed(*object);
        }
        Ok(())
    }

    /// The disk does not take a content.
    pub(super) fn fill_refused(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        errno: i32,
        why: &str,
    ) -> Result<(), StoreError> {
        let Some(demand) = self.demands.wanted.get_mut(&object) else { return Ok(()) };
        if !matches!(demand.state, State::Here(_)) {
            return Ok(());
        }
        if errno == ENOENT {
            Demands::later(demand, ctx.now, why.to_owned());
            return Ok(());
        }
        demand.not_before = Millis(ctx.now.0.saturating_add(PAUSE));
        let asks: Vec<(u64, Ask)> = self.demands.asks.iter().map(|(id, ask)| (*id, *ask)).collect();
        for (id, ask) in asks {
            if handle::get(ctx.store, ask.file)? == Some(object) {
                self.demands.asks.remove(&id);
                ctx.out.push(Output::Demanded(id, Demanded::Failed { errno, why: why.to_owned() }));
            }
        }
        Ok(())
    }

    /// How many wait for contents.
    pub fn waiting_for_contents(&self) -> u64 {
        self.demands.waiting()
    }
}
