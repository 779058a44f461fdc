//! Mass removals: before a node's records take a large part of the tree, a person is asked.
//!
//! Removals of one node that follow each other are a *run*. Those on their way count as well: what lies in the inbox, and what
//! the client says it still has. If a run would take more than the volume's owner wants, its next removal waits, and with it
//! all that its node did afterwards, since verdicts keep a node's order; everybody else goes on. While a run is large and not
//! at its end, removals wait a moment, so that a person is asked before they are done and not in the middle.
//!
//! Refused removals are verdicts like conflicts: the client puts back what is missing, out of limbo or from the server. Names
//! that a repair of a damaged file system has lost are removals to a node, and are caught here.

use super::Server;
use crate::context::Context;
use crate::io::Event;
use crate::io::Judgement;
use crate::io::MassOptions;
use crate::io::NodeName;
use crate::io::Output;
use crate::message::Hello;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;

/// A run is over when no removal has come for so long, in milliseconds.
const OVER: u64 = 60_000;
/// No run is longer: who removes a little all the time is not about to remove everything.
const LONGEST: u64 = 600_000;
/// A large run is at its end when no removal has come for so long.
const QUIET: u64 = 1_000;
/// No removal waits longer for the end of its run.
const PATIENCE: u64 = 15_000;
/// Paths that are shown.
const PATHS: usize = 5;

/// Removals of a node that wait for a person, or about which one has decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The client's replica.
    pub replica: u64,
    /// Its incarnation: what it does after a loss is another matter.
    pub incarnation: u32,
    /// The first record that waits.
    pub first: Recno,
    /// The last one that is known.
    pub upto: Recno,
    /// Files and directories that go.
    pub removals: u64,
    /// Of so many.
    pub objects: u64,
    /// Some of them.
    pub paths: Vec<String>,
    /// What a person has said.
    pub judgement: Option<Judgement>,
}

/// What to do with a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// Judge it like any record.
    Go,
    /// Not now.
    Wait,
    /// A person has refused it.
    Refuse,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Removals {
    options: MassOptions,
    runs: BTreeMap<NodeName, Run>,
    held: BTreeMap<NodeName, Held>,
}

/// Removals of one node that follow each other.
#[derive(Clone, Debug, Default)]
struct Run {
    replica: (u64, u32),
    /// What was made after this does not count.
    began: Recno,
    /// When that was.
    since: Millis,
    /// Objects in the tree then.
    objects: u64,
    /// Removals so far, done or not.
    count: u64,
    /// The newest record that was looked at.
    upto: Recno,
    /// When the last one came.
    last: Millis,
    /// Removals wait since then for its end.
    braking: Option<Millis>,
    /// What the client has said it still has, on top of what had come by then.
    ahead: (u64, Recno),
}

impl Run {
    fn total(&self) -> u64 {
        self.count.max(self.ahead.0)
    }
}

impl Removals {
    /// Reads what waits.
    pub fn load(store: &dyn Store) -> Result<Removals, StoreError> {
        let mut held = BTreeMap::new();
        table::each_with_prefix(store, Table::Held, &[], |key, value| {
            held.insert(String::from_utf8_lossy(key).into_owned(), table::decode(Table::Held, value)?);
            Ok(())
        })?;
        Ok(Removals { held, ..Removals::default() })
    }

    /// What waits for a person, by node.
    pub fn held(&self) -> impl Iterator<Item = (&NodeName, &Held)> {
        self.held.iter().filter(|(_, held)| held.judgement.is_none())
    }

    /// Up to which record a person has decided about this log.
    fn judged_upto(&self, node: &NodeName, hello: &Hello) -> Option<Recno> {
        let held = self.held.get(node).filter(|held| held.judgement.is_some())?;
        ((held.replica, held.incarnation) == (hello.replica, hello.incarnation)).then_some(held.upto)
    }

    /// When to look again at what waits for the end of its run.
    pub fn wake(&self) -> Option<Millis> {
        let braking = self.runs.values().filter_map(|run| {
            let since = run.braking?;
            Some(Millis((run.last.0 + QUIET).min(since.0 + PATIENCE)))
        });
        braking.min()
    }

    fn put(&mut self, store: &mut dyn Store, node: &NodeName, held: Held) -> Result<(), StoreError> {
        table::put(store, Table::Held, node.as_bytes(), &held)?;
        self.held.insert(node.clone(), held);
        Ok(())
    }

    fn end(&mut self, store: &mut dyn Store, node: &NodeName) -> Result<(), StoreError> {
        if self.held.remove(node).is_some() {
            store.delete(Table::Held, node.as_bytes())?;
        }
        Ok(())
    }
}

impl Server {
    /// What the volume's owner wants.
    pub fn set_mass_options(
        &mut self,
        ctx: &mut Context<'_>,
        options: MassOptions,
    ) -> Result<(), StoreError> {
        self.removals.options = options;
        if options.percent.is_none() {
            let waiting: Vec<NodeName> = self.removals.held().map(|(node, _)| node.clone()).collect();
            for node in waiting {
                self.removals.end(ctx.store, &node)?;
            }
        }
        Ok(())
    }

    /// A person has decided about what one node is about to remove.
    pub fn judged_removals(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        judgement: Judgement,
    ) -> Result<(), StoreError> {
        let Some(mut held) = self.removals.held.get(node).cloned() else { return Ok(()) };
        if let Some(run) = self.removals.runs.remove(node) {
            held.upto = held.upto.max(run.upto).max(run.ahead.1);
        }
        held.judgement = Some(judgement);
        let Held { removals, objects, .. } = held;
        ctx.out.push(Output::Event(Event::RemovalsJudged {
            node: node.clone(),
            removals,
            objects,
            judgement,
        }));
        self.removals.put(ctx.store, node, held)
    }

    /// The client says how many removals it still has in its log.
    pub(super) fn removals_ahead(&mut self, ctx: &Context<'_>, node: &NodeName, removals: u64, upto: Recno) {
        let Some(hello) = self.sessions.get(node).and_then(|session| session.hello.clone()) else { return };
        if self.removals.judged_upto(node, &hello).is_some() {
            return; // A person knows of these.
        }
        if let Some(run) = self.run(ctx, node, &hello) {
            run.ahead = (run.count.saturating_add(removals), upto);
            run.last = ctx.now;
        }
    }

    /// Counts the removals among records that have come.
    pub(super) fn count_removals(
        &mut self,
        ctx: &Context<'_>,
        node: &NodeName,
        operations: &[Operation],
    ) -> Result<(), StoreError> {
        if !operations.iter().any(is_removal) {
            return Ok(());
        }
        let Some(hello) = self.sessions.get(node).and_then(|session| session.hello.clone()) else {
            return Ok(());
        };
        let judged = self.removals.judged_upto(node, &hello);
        let Some(run) = self.run(ctx, node, &hello) else { return Ok(()) };
        let view = View::new(ctx.store, Which::Local);
        for op in operations.iter().filter(|op| is_removal(op)) {
            let number = Recno(op.id.0.number);
            if number <= run.upto {
                continue;
            }
            run.upto = number;
            if judged.is_some_and(|upto| number <= upto) {
                continue;
            }
            // What the run itself has made, or what nobody has, is nobody's loss.
            if view.object(op.object)?.is_some_and(|row| row.made <= run.began) {
                run.count = run.count.saturating_add(1);
                run.last = ctx.now;
            }
        }
        Ok(())
    }

    fn run(&mut self, ctx: &Context<'_>, node: &NodeName, hello: &Hello) -> Option<&mut Run> {
        self.removals.options.percent?;
        let replica = (hello.replica, hello.incarnation);
        let is_held = self.removals.held.get(node).is_some_and(|held| held.judgement.is_none());
        let run = self.removals.runs.entry(node.clone()).or_default();
        let is_long = run.braking.is_none() && ctx.now.0.saturating_sub(run.since.0) > LONGEST;
        let is_over = !is_held && (is_long || ctx.now.0.saturating_sub(run.last.0) > OVER);
        if run.replica != replica || is_over {
            let objects = ctx.store.len(Table::LocalObject).ok()?;
            // What it sends again has been counted.
            let upto = if run.replica == replica { run.upto } else { Recno(0) };
            let (began, now) = (ctx.meta.last_read(), ctx.now);
            *run = Run { replica, began, since: now, objects, last: now, upto, ..Run::default() };
        }
        Some(run)
    }

    /// Whether this removal may be judged now.
    pub(super) fn may_remove(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        op: &Operation,
    ) -> Result<Removal, StoreError> {
        let MassOptions { percent: Some(percent), minimum } = self.removals.options else {
            return Ok(Removal::Go);
        };
        let number = Recno(op.id.0.number);
        if let Some(held) = self.removals.held.get(node) {
            let is_same = (held.replica, held.incarnation) == (op.id.0.replica, op.id.0.incarnation);
            match held.judgement {
                None if is_same && number >= held.first => return Ok(Removal::Wait),
                Some(Judgement::Approved) if is_same && number <= held.upto => return Ok(Removal::Go),
                Some(Judgement::Refused) if is_same && number <= held.upto => return Ok(Removal::Refuse),
                // Before the first one, sent once more.
                None if is_same => {}
                // All of it is done, or a loss has made it another matter.
                _ => self.removals.end(ctx.store, node)?,
            }
        }
        let Some(run) = self.removals.runs.get_mut(node) else { return Ok(Removal::Go) };
        let total = run.total();
        let limit = (run.objects.saturating_mul(u64::from(percent)) / 100).max(minimum.saturating_sub(1));
        if total > limit {
            run.braking = None;
            let (removals, objects, upto) = (total, run.objects, run.upto.max(run.ahead.1));
            let paths = self.some_paths(ctx, node)?;
            let held = Held {
                replica: op.id.0.replica,
                incarnation: op.id.0.incarnation,
                first: number,
                upto,
                removals,
                objects,
                paths,
                judgement: None,
            };
            let path = held.paths.first().cloned().unwrap_or_default();
            ctx.out.push(Output::Event(Event::RemovalsHeld { node: node.clone(), removals, objects, path }));
            self.removals.put(ctx.store, node, held)?;
            return Ok(Removal::Wait);
        }
        if total >= minimum.max(limit / 10) {
            let since = *run.braking.get_or_insert(ctx.now);
            let is_quiet = ctx.now.0.saturating_sub(run.last.0) >= QUIET;
            if !is_quiet && ctx.now.0.saturating_sub(since.0) < PATIENCE {
                return Ok(Removal::Wait);
            }
            if is_quiet {
                run.braking = None;
            }
        }
        Ok(Removal::Go)
    }

    /// A few of what the node is about to remove.
    fn some_paths(&self, ctx: &Context<'_>, node: &NodeName) -> Result<Vec<String>, StoreError> {
        let Some(session) = self.sessions.get(node) else { return Ok(Vec::new()) };
        let view = View::new(ctx.store, Which::Local);
        let mut paths = Vec::new();
        for op in session.inbox.iter().filter(|op| is_removal(op)).take(PATHS) {
            if let OpKind::Remove { dir, name, .. } = &op.kind {
                paths.push(view.path_in(*dir, name)?);
            }
        }
        Ok(paths)
    }

    /// What waits for a person, in words.
    pub(super) fn removals_waiting(&self, list: &mut Vec<String>) {
        for (node, held) in self.removals.held() {
            let Held { removals, objects, .. } = held;
            list.push(format!(
                "node {node} is about to remove {removals} of {objects} files and directories: \
                 a person has to approve or refuse that (intermezzo hold)"
            ));
        }
    }
}

/// Whether it takes a name away.
pub(super) fn is_removal(op: &Operation) -> bool {
    matches!(op.kind, OpKind::Remove { .. })
}
