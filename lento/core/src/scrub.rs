//! The scrub: the lower tree compared with the local one, so that what came to be behind Presto's back is found.
//!
//! It lists directory by directory. A name or an object that looks different is a *suspect*: Presto compares it once
//! more under its locks and, if that was asked for, journals what is there as an update of this node. What Presto
//! journaled is then read like any other record, so nothing here changes a tree. Adopting an existing directory is the
//! scrub of a volume that knows of nothing yet; when it is interrupted it begins again, and what is known by then is
//! equal.

mod doubt;
mod item;
mod suspect;

use crate::context::Context;
use crate::io::Event;
use crate::io::Listed;
use crate::io::Listing;
use crate::io::Output;
use crate::io::Ref;
use crate::io::ScrubOutcome;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::FileId;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Recno;
use crate::types::Ticket;
use crate::volume::Millis;
pub use doubt::doubt_tree;
pub use doubt::note_unknown;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;
use suspect::Suspect;
use suspect::Way;
use suspect::What;

/// Suspects asked about at once.
const BATCH: usize = 256;
/// Bytes of extended attributes and names in one question.
const BATCH_BYTES: usize = 96 << 10;
/// Findings told by path.
const SHOWN: usize = 1000;
/// Wait after something went wrong, in milliseconds.
const PAUSE: u64 = 500;
/// The whole walk. Each directory has a share of it and gives equal parts to itself and its subdirectories.
const WHOLE: u64 = 1 << 48;

/// What to do with what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Tell people.
    Show,
    /// It becomes this node's update.
    Take,
    /// The same after a power cut: what is in a file that differs may be torn, and is nobody's update.
    Mend,
}

/// For people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScrubStatus {
    /// It is not finished.
    pub running: bool,
    /// The volume is being adopted.
    pub adopting: bool,
    /// Part of the walk that is done, from 0 to 1.
    pub done: f64,
    /// Names looked at.
    pub looked: u64,
    /// Differences found.
    pub found: u64,
    /// They were taken.
    pub taken: bool,
    /// The first of them, and of those that replays came upon since: path and what differs.
    pub paths: Arc<Vec<(String, String)>>,
    /// What it could not do, last time.
    pub trouble: String,
}

/// The scrub of one volume: what runs, and what came of the last one.
#[derive(Debug, Default)]
pub struct Scrub {
    /// The tree is used by others than presto as well: what is there is theirs.
    adopted: bool,
    run: Option<Run>,
    status: ScrubStatus,
}

#[derive(Debug, Default)]
struct Run {
    /// It goes through the whole tree.
    whole: bool,
    /// What replays have put aside for a moment is part of that.
    aside: bool,
    take: bool,
    /// It is for what a power cut has left; what nobody vouches for is no update.
    mends: bool,
    /// A record has named what nobody knew of, perhaps where this has been already: another one follows.
    again: bool,
    /// Directories to list, with their shares.
    dirs: Vec<(ObjectId, u64)>,
    listing: Option<(Ticket, Walk)>,
    suspects: VecDeque<Suspect>,
    /// Names that are not there any more. They come last: what has moved is told at its new place.
    gone: Vec<Suspect>,
    asked: Option<(Ticket, Vec<Suspect>)>,
    /// Read up to here before going on.
    told: Recno,
    /// What has been doubted since it began, each once: whoever still cannot go on says so again.
    doubted: BTreeSet<ObjectId>,
    /// Taken entries whose objects are directories, looked into when their records are read.
    new: Vec<(ObjectId, Name, u64)>,
    done: u64,
    not_before: Millis,
    /// It waits for replays under way to end.
    wants_turn: bool,
}

/// A directory being listed.
#[derive(Debug, Default)]
struct Walk {
    dir: ObjectId,
    share: u64,
    seen: BTreeSet<Name>,
    dirs: Vec<ObjectId>,
    suspects: Vec<Suspect>,
}

impl Scrub {
    /// None runs. `adopted`: the tree was there before the volume.
    pub fn new(adopted: bool) -> Scrub {
        Scrub { adopted, ..Scrub::default() }
    }

    /// Begins with the whole tree, unless one that does as much is under way.
    pub fn begin(&mut self, found: Found, adopting: bool) {
        let (take, mends) = (found != Found::Show, found == Found::Mend);
        let covered = |run: &Run| run.whole && (run.take || !take) && (run.mends || !mends);
        if self.run.as_ref().is_some_and(covered) {
            return;
        }
        // Doubts that are being looked into are part of it.
        let mut run = self.run.take().filter(|run| !run.whole).unwrap_or_default();
        (run.whole, run.take, run.mends) = (true, run.take || take, run.mends || mends);
        run.dirs.push((ObjectId::ROOT, WHOLE));
        run.suspects.push_back(Suspect::new(What::Object(ObjectId::ROOT)));
        self.run = Some(run);
        self.status = ScrubStatus { running: true, adopting, taken: take, ..ScrubStatus::default() };
    }

    /// A record names what no record made: somewhere in the tree is more than is known.
    pub fn look_through(&mut self, adopting: bool) {
        match &mut self.run {
            Some(run) if run.whole && run.take => run.again = true,
            _ => self.begin(Found::Take, adopting),
        }
    }

    /// Presto is there, and its journal ends here: what a power cut may have left without records is looked for.
    pub fn presto_up(&mut self, ctx: &Context<'_>, last: Recno) -> Result<(), StoreError> {
        let Some(doubt) = doubt::get(ctx.store)? else { return Ok(()) };
        let found = if doubt == doubt::UNKNOWN { Found::Take } else { Found::Mend };
        self.begin(found, ctx.meta.adopting);
        if let Some(run) = &mut self.run {
            run.told = run.told.max(last);
        }
        Ok(())
    }

    /// Replays find this object, or what is in these directories, other than any record left it.
    pub fn doubt(&mut self, ctx: &Context<'_>, object: ObjectId, dirs: &[Ref]) -> Result<(), StoreError> {
        let run = self.run.get_or_insert_with(|| Run { take: true, ..Run::default() });
        if !run.take || !run.doubted.insert(object) {
            return Ok(());
        }
        run.suspects.push_back(Suspect::new(What::Object(object)));
        let mut named: BTreeSet<ObjectId> =
            View::new(ctx.store, Which::Local).names(object)?.into_iter().map(|(dir, _)| dir).collect();
        if View::new(ctx.store, Which::Local).object(object)?.is_some_and(|row| row.attributes.is_dir()) {
            named.insert(object);
        }
        for dir in dirs {
            match dir {
                Ref::File(file) => named.extend(handle::get(ctx.store, *file)?),
                Ref::Object(dir) => drop(named.insert(*dir)),
            }
        }
        run.dirs.extend(named.into_iter().filter(|dir| *dir != ObjectId::STAGING).map(|dir| (dir, 0)));
        Ok(())
    }

    /// This object has another name from now on.
    pub fn renamed(&mut self, object: ObjectId, target: ObjectId) {
        let Some(run) = &mut self.run else { return };
        let rename = |at: &mut ObjectId| {
            if *at == object {
                *at = target;
            }
        };
        run.dirs.iter_mut().for_each(|(dir, _)| rename(dir));
        run.new.iter_mut().for_each(|(dir, _, _)| rename(dir));
        let mut suspects: Vec<&mut Suspect> = run.suspects.iter_mut().chain(&mut run.gone).collect();
        suspects.extend(run.asked.iter_mut().flat_map(|(_, asked)| asked));
        if let Some((_, walk)) = &mut run.listing {
            rename(&mut walk.dir);
            walk.dirs.iter_mut().for_each(rename);
            suspects.extend(&mut walk.suspects);
        }
        for suspect in suspects {
            match &mut suspect.what {
                What::Entry(dir, ..) => rename(dir),
                What::Object(object) => rename(object),
            }
        }
    }

    /// This object has another name: it may have moved from where the walk has not been to where it has.
    pub fn moved(&mut self, ctx: &Context<'_>, object: ObjectId) -> Result<(), StoreError> {
        let Some(run) = self.run.as_mut().filter(|run| run.whole) else { return Ok(()) };
        let row = View::new(ctx.store, Which::Local).object(object)?;
        let Some(row) = row else { return Ok(()) };
        if row.attributes.is_dir() {
            run.dirs.push((object, 0));
        }
        run.suspects.push_back(Suspect::new(What::Object(object)));
        Ok(())
    }

    /// Replays must not be planned: a question waits, or is under way, or what came of it is not read yet.
    pub fn holds_replays(&self, read: Recno) -> bool {
        self.run.as_ref().is_some_and(|run| run.asked.is_some() || run.wants_turn || read < run.told)
    }

    /// When to go on, if it waits for the clock.
    pub fn wake(&self) -> Option<Millis> {
        self.run.as_ref().map(|run| run.not_before).filter(|at| at.0 > 0)
    }

    /// For people.
    pub fn status(&self) -> ScrubStatus {
        let mut status = self.status.clone();
        if let Some(run) = self.run.as_ref().filter(|run| run.whole) {
            status.done = run.done as f64 / WHOLE as f64;
        }
        status
    }

    /// What was asked of a presto that is gone has to be asked again.
    pub fn presto_down(&mut self) {
        let Some(run) = &mut self.run else { return };
        if let Some((_, walk)) = run.listing.take() {
            run.dirs.push((walk.dir, walk.share));
        }
        if let Some((_, asked)) = run.asked.take() {
            run.suspects.extend(asked);
        }
        run.wants_turn = false;
    }

    /// Goes on as far as it can. `replays_idle`: everything replayed is read. Says whether all that is in the tree has
    /// been taken.
    pub fn pump(&mut self, ctx: &mut Context<'_>, replays_idle: bool) -> Result<bool, StoreError> {
        let Some(run) = &mut self.run else { return Ok(false) };
        run.wants_turn = false;
        let waits = run.listing.is_some() || run.asked.is_some() || ctx.meta.last_read() < run.told;
        if waits || !ctx.presto || ctx.now < run.not_before {
            return Ok(false);
        }
        run.look_aside(ctx)?;
        loop {
            run.look_into_new(ctx)?;
            if run.suspects.len() >= BATCH || (run.dirs.is_empty() && !run.suspects.is_empty()) {
                if !replays_idle {
                    run.wants_turn = true;
                    return Ok(false);
                }
                if run.ask(ctx, self.adopted)? {
                    return Ok(false);
                }
            } else if let Some((dir, share)) = run.dirs.pop() {
                if let Some(file) = item::file_of(ctx, dir)? {
                    run.list(ctx, Walk { dir, share, ..Walk::default() }, file, 0);
                    return Ok(false);
                }
                run.done += share;
            } else if !run.gone.is_empty() {
                run.look_for_gone(ctx)?;
            } else {
                break;
            }
        }
        let Some(run) = self.run.take().filter(|run| run.whole) else { return Ok(false) };
        self.status.running = false;
        self.status.done = 1.0;
        let (looked, found, taken) = (self.status.looked, self.status.found, self.status.taken);
        ctx.out.push(Output::Event(Event::Scrubbed { looked, found, taken }));
        if run.again {
            self.begin(if run.mends { Found::Mend } else { Found::Take }, ctx.meta.adopting);
            return Ok(false);
        }
        if run.mends || run.take && doubt::get(ctx.store)?.is_some_and(|doubt| doubt == doubt::UNKNOWN) {
            doubt::end(ctx.store)?;
        }
        Ok(run.take)
    }

    /// Answer to a listing.
    pub fn listed(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        listing: Listing,
    ) -> Result<(), StoreError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let Some((_, mut walk)) = run.listing.take_if(|(asked, _)| *asked == ticket) else { return Ok(()) };
        let next = match listing {
            Listing::Page { entries, next } => {
                self.status.looked += entries.len() as u64;
                for entry in entries {
                    walk.see(ctx, entry, run.mends)?;
                }
                next
            }
            Listing::Gone => {
                // Its own name tells that; a whole walk comes by there anyway.
                if !run.whole {
                    let names = View::new(ctx.store, Which::Local).names(walk.dir)?;
                    run.dirs.extend(names.into_iter().map(|(dir, _)| (dir, 0)));
                }
                0
            }
            Listing::Failed(why) => {
                self.status.trouble = why;
                run.dirs.push((walk.dir, walk.share));
                run.not_before = Millis(ctx.now.0 + PAUSE);
                return Ok(());
            }
        };
        if let Some(file) = item::file_of(ctx, walk.dir)?.filter(|_| next != 0) {
            run.list(ctx, walk, file, next);
            return Ok(());
        }
        for (name, _) in View::new(ctx.store, Which::Local).children(walk.dir, usize::MAX)? {
            if !walk.seen.contains(&name) {
                run.gone.push(Suspect::new(What::Entry(walk.dir, name, None)));
            }
        }
        run.finish(walk);
        Ok(())
    }

    /// Answer to a question.
    pub fn scrubbed(
        &mut self,
        ctx: &mut Context<'_>,
        ticket: Ticket,
        outcomes: Vec<ScrubOutcome>,
    ) -> Result<(), StoreError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let Some((_, asked)) = run.asked.take_if(|(question, _)| *question == ticket) else { return Ok(()) };
        let news = |outcome: &ScrubOutcome| matches!(outcome, ScrubOutcome::Found { recno: Some(_), .. });
        let is_getting_on = outcomes.iter().any(news);
        let mut outcomes = outcomes.into_iter();
        for mut suspect in asked {
            match outcomes.next() {
                Some(ScrubOutcome::Same | ScrubOutcome::Busy) => {
                    run.settled(suspect);
                    continue;
                }
                Some(ScrubOutcome::Found { .. }) if suspect.way == Way::Verify && run.take => {
                    run.take_back(ctx, suspect)?;
                    continue;
                }
                Some(ScrubOutcome::Found { recno, what }) => {
                    run.told = run.told.max(recno.unwrap_or_default());
                    self.status.found += 1;
                    if self.status.paths.len() < SHOWN {
                        Arc::make_mut(&mut self.status.paths).push((item::path(ctx, &suspect.what)?, what));
                    }
                    run.settled(suspect);
                    continue;
                }
                Some(ScrubOutcome::Stale { recno: Recno(0) }) if suspect.way == Way::Verify => {
                    suspect.way = Way::Moved;
                }
                // It waits for others, of which some are told now.
                Some(ScrubOutcome::Stale { recno: Recno(0) }) if is_getting_on => {
                    run.suspects.push_back(suspect);
                    continue;
                }
                Some(ScrubOutcome::Stale { recno }) => {
                    run.told = run.told.max(recno);
                }
                Some(ScrubOutcome::Refused { message, .. }) => {
                    self.status.trouble = format!("{}: {message}", item::path(ctx, &suspect.what)?);
                    run.not_before = Millis(ctx.now.0 + PAUSE);
                }
                None => run.not_before = Millis(ctx.now.0 + PAUSE),
            }
            suspect.tries += 1;
            if suspect.way == Way::Moved && suspect.is_given_up() {
                suspect.way = Way::Verify;
            }
            // What is never at rest is somebody's work, who will report it. What is to be adopted is adopted.
            if suspect.tries < suspect::TRIES || self.status.adopting {
                run.suspects.push_back(suspect);
            } else {
                run.done += suspect.share;
            }
        }
        Ok(())
    }
}

impl Walk {
    /// One name of the directory. `closely`: what a list shows may have been vouched for by a later record, and what it does
    /// not show may differ.
    fn see(&mut self, ctx: &Context<'_>, entry: Listed, closely: bool) -> Result<(), StoreError> {
        let view = View::new(ctx.store, Which::Local);
        let known = view.at(self.dir, &entry.name)?;
        self.seen.insert(entry.name.clone());
        match known {
            Some((object, row)) if row.file == entry.file => {
                if closely || item::looks_different(&row, &entry) {
                    self.suspects.push(Suspect::new(What::Object(object)));
                }
                if entry.attributes.is_dir() {
                    self.dirs.push(object);
                }
            }
            _ => {
                // Records of names carry attributes along: what became of a file that has moved is told first.
                if let Some(moved) = handle::get(ctx.store, entry.file)? {
                    self.suspects.push(Suspect::new(What::Object(moved)));
                }
                let what = What::Entry(self.dir, entry.name, Some(entry.file));
                // Marks a directory; what its share is, is known at the end of the list.
                let share = u64::from(entry.attributes.is_dir());
                self.suspects.push(Suspect { share, ..Suspect::new(what) });
            }
        }
        Ok(())
    }
}

impl Run {
    fn list(&mut self, ctx: &mut Context<'_>, walk: Walk, dir: FileId, after: u64) {
        let ticket = ctx.ticket();
        self.listing = Some((ticket, walk));
        ctx.out.push(Output::List { ticket, dir, after });
    }

    /// What has been put aside is looked for as well: a power cut may have taken it, or have left it where it was going.
    fn look_aside(&mut self, ctx: &Context<'_>) -> Result<(), StoreError> {
        if !self.whole || std::mem::replace(&mut self.aside, true) {
            return Ok(());
        }
        if self.mends {
            // More may be there than is known: its list tells both.
            self.dirs.push((ObjectId::STAGING, 0));
            return Ok(());
        }
        let view = View::new(ctx.store, Which::Local);
        for (name, object) in view.children(ObjectId::STAGING, usize::MAX)? {
            if view.object(object)?.is_some_and(|row| row.attributes.is_dir()) {
                self.dirs.push((object, 0));
            }
            self.gone.push(Suspect::new(What::Entry(ObjectId::STAGING, name, None)));
        }
        Ok(())
    }

    /// A directory is listed: its share goes to it and its subdirectories.
    fn finish(&mut self, walk: Walk) {
        let unknown = walk.suspects.iter().filter(|suspect| suspect.share > 0).count();
        let parts = (walk.dirs.len() + unknown + 1) as u64;
        let part = walk.share / parts;
        self.done += walk.share - part * (parts - 1);
        if self.whole {
            self.dirs.extend(walk.dirs.into_iter().rev().map(|dir| (dir, part)));
        }
        let shared = |suspect: Suspect| Suspect { share: suspect.share * part, ..suspect };
        self.suspects.extend(walk.suspects.into_iter().map(shared));
    }

    /// Directories that were taken are known now.
    fn look_into_new(&mut self, ctx: &Context<'_>) -> Result<(), StoreError> {
        let view = View::new(ctx.store, Which::Local);
        for (dir, name, share) in self.new.drain(..) {
            match view.at(dir, &name)? {
                Some((object, row)) if row.attributes.is_dir() => self.dirs.push((object, share)),
                // What came in its place may differ in more than its content.
                Some((object, _)) if self.mends => {
                    self.suspects.push_back(Suspect::new(What::Object(object)))
                }
                _ => self.done += share,
            }
        }
        Ok(())
    }

    /// Names that are gone, when everything that is there is known. They have waited once.
    fn look_for_gone(&mut self, ctx: &Context<'_>) -> Result<(), StoreError> {
        let view = View::new(ctx.store, Which::Local);
        for suspect in self.gone.drain(..) {
            let What::Entry(dir, name, _) = &suspect.what else { continue };
            let has_children = match view.entry(*dir, name)? {
                Some(object) => !view.children(object, 1)?.is_empty(),
                None => false,
            };
            let way = if has_children { Way::Verify } else { Way::Plain };
            self.suspects.push_back(Suspect { tries: suspect.tries.max(1), way, ..suspect });
        }
        Ok(())
    }

    /// A directory is gone: what was in it goes first, children before parents.
    fn take_back(&mut self, ctx: &Context<'_>, suspect: Suspect) -> Result<(), StoreError> {
        let view = View::new(ctx.store, Which::Local);
        let mut order = Vec::new();
        let mut stack = vec![Suspect { way: Way::Plain, ..suspect }];
        while let Some(suspect) = stack.pop() {
            if let What::Entry(dir, name, _) = &suspect.what
                && let Some(object) = view.entry(*dir, name)?
            {
                for (child, _) in view.children(object, usize::MAX)? {
                    let child = Suspect::new(What::Entry(object, child, None));
                    stack.push(Suspect { tries: suspect.tries, way: Way::Below, ..child });
                }
            }
            order.push(suspect);
        }
        for suspect in order {
            self.suspects.push_front(suspect);
        }
        Ok(())
    }

    /// What stands there is known by now, also where it was not listed because it was away for a moment. A directory is
    /// looked into.
    fn settled(&mut self, suspect: Suspect) {
        match suspect.what {
            What::Entry(dir, name, _) => self.new.push((dir, name, suspect.share)),
            What::Object(_) => self.done += suspect.share,
        }
    }

    /// Asks about the first suspects; `false`: none of them needs an answer.
    fn ask(&mut self, ctx: &mut Context<'_>, adopted: bool) -> Result<bool, StoreError> {
        let (mut items, mut asked, mut bytes) = (Vec::new(), Vec::new(), 0);
        let verify = self.suspects.front().is_some_and(|suspect| suspect.way == Way::Verify);
        while items.len() < BATCH && bytes < BATCH_BYTES {
            let Some(suspect) = self.suspects.pop_front_if(|suspect| (suspect.way == Way::Verify) == verify)
            else {
                break;
            };
            let question = match &suspect.what {
                What::Object(object) => item::object(ctx, *object)?,
                What::Entry(dir, name, listed) => {
                    let (waits, question) = item::entry(ctx, (*dir, name), *listed, &suspect)?;
                    if waits && suspect.tries == 0 {
                        self.gone.push(suspect);
                        continue;
                    }
                    question
                }
            };
            match question {
                Some(item) => {
                    bytes += item.weight();
                    items.push(item);
                    asked.push(suspect);
                }
                None => self.settled(suspect),
            }
        }
        if items.is_empty() {
            return Ok(false);
        }
        let ticket = ctx.ticket();
        self.asked = Some((ticket, asked));
        let untouched_since = ctx.meta.last_read();
        let found = match (self.take && !verify, self.mends && !adopted) {
            (false, _) => Found::Show,
            (true, false) => Found::Take,
            (true, true) => Found::Mend,
        };
        ctx.out.push(Output::Scrub { ticket, items, untouched_since, found });
        Ok(true)
    }
}
