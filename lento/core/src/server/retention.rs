//! How much of the log is kept, and for whom: up to the last Replicator that follows it, unless that is more than the
//! volume's limit and the Replicator is away. Then it *must resync*: the log goes, and it gets the tree when it is back.

use super::Server;
use super::session::ReplicatorRow;
use super::session::Session;
use super::session::resync;
use crate::context::Context;
use crate::io::Event;
use crate::io::LogLimit;
use crate::io::NodeName;
use crate::io::Output;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::Position;
use crate::types::Recno;
use crate::volume::Millis;

/// Rows of the log removed in one go.
const STEP: usize = 2048;

/// A Replicator for which the log is kept.
#[derive(Debug)]
struct Follower {
    node: NodeName,
    /// It has everything up to here.
    has: Position,
    /// Visible there.
    shown: Position,
    /// It may be given up.
    is_away: bool,
}

impl Server {
    /// From now on the log may hold so much for Replicators that are away.
    pub fn set_log_limit(&mut self, ctx: &mut Context<'_>, limit: LogLimit) -> Result<(), StoreError> {
        self.log_limit = limit;
        self.truncate(ctx)
    }

    /// The log is needed up to the last Replicator that has begun; the KML only until it is in the durable store.
    pub(super) fn truncate(&mut self, ctx: &mut Context<'_>) -> Result<(), StoreError> {
        let own = self.forwardable();
        let mut followers = self.followers(ctx)?;
        self.give_up(ctx, own, &mut followers)?;
        let needed = followers.iter().map(|follower| follower.has).fold(own, Position::min);
        let shown = followers.iter().map(|follower| follower.shown).fold(own, Position::min);
        for _ in 0..STEP {
            let Some((key, _)) = ctx.store.scan(Table::Log, &[], 1)?.into_iter().next() else { break };
            if table::number_from_key(&key).is_none_or(|at| at > needed.0) {
                break;
            }
            ctx.store.delete(Table::Log, &key)?;
        }
        let kept =
            ctx.store.scan(Table::Log, &[], 1)?.first().and_then(|(key, _)| table::number_from_key(key));
        let floor = kept.map_or(needed, |first| needed.min(Position(first.saturating_sub(1))));
        ctx.meta.log_floor = ctx.meta.log_floor.max(floor);
        self.ledger.truncate(floor.min(shown));
        if self.durable > self.truncated {
            self.truncated = self.durable;
            ctx.out.push(Output::Truncate(Recno(self.durable.0)));
        }
        Ok(())
    }

    /// One that has not begun needs no log: it gets the tree.
    fn followers(&mut self, ctx: &Context<'_>) -> Result<Vec<Follower>, StoreError> {
        let mut followers = Vec::new();
        for node in &self.replist {
            let row = ReplicatorRow::get(ctx.store, node)?;
            if !row.follows {
                continue;
            }
            let session = self.sessions.get(node).filter(|session| !session.is_estranged());
            let since = match session {
                Some(_) => {
                    self.away.remove(node);
                    ctx.now
                }
                None => *self.away.entry(node.clone()).or_insert(ctx.now),
            };
            let is_away = session.is_none() && ctx.now.0.saturating_sub(since.0) >= self.log_limit.patience;
            let began = session.and_then(Session::follows_from).unwrap_or_default();
            let (has, shown) = (began.max(row.ack.position), row.ack.applied);
            followers.push(Follower { node: node.clone(), has, shown, is_away });
        }
        Ok(followers)
    }

    /// While the log is too long: the one that is furthest behind and away has to take the tree.
    fn give_up(
        &mut self,
        ctx: &mut Context<'_>,
        own: Position,
        followers: &mut Vec<Follower>,
    ) -> Result<(), StoreError> {
        followers.sort_by_key(|follower| follower.has);
        while let Some(last) = followers.first() {
            // What is not durable, or has no hash, stays in any case; and whoever is here gets it soon.
            let stored = self.ledger.stored_after(last.has.min(own));
            if stored <= self.log_limit.bytes || !last.is_away || last.has >= own {
                break;
            }
            let Follower { node, has, .. } = followers.remove(0);
            let mut row = ReplicatorRow::get(ctx.store, &node)?;
            row.follows = false;
            row.put(ctx.store, &node)?;
            resync::mark(ctx.store, &node, has)?;
            let limit = self.log_limit.bytes;
            ctx.out.push(Output::Event(Event::MustResync { node, position: has, stored, limit }));
        }
        Ok(())
    }

    /// Visible and durable at every Replicator up to here.
    pub(super) fn durable_everywhere(&self, store: &dyn Store) -> Result<Position, StoreError> {
        let mut least = self.durable;
        for node in &self.replist {
            least = least.min(ReplicatorRow::get(store, node)?.ack.durable);
        }
        Ok(least)
    }

    /// Whether contents may lack at one of the Replicators: how far it is says nothing of them.
    pub(super) fn is_any_partial(&self, store: &dyn Store) -> Result<bool, StoreError> {
        for node in &self.replist {
            if ReplicatorRow::get(store, node)?.partial {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same without those that must take the tree in any case: nobody keeps anything for them.
    pub(super) fn stable(&self, ctx: &Context<'_>) -> Result<Position, StoreError> {
        let mut least = self.durable;
        for node in &self.replist {
            if resync::since(ctx.store, node)?.is_none() {
                least = least.min(ReplicatorRow::get(ctx.store, node)?.ack.durable);
            }
        }
        Ok(least)
    }

    /// A stream is gone.
    pub fn disconnected(&mut self, now: Millis, node: &NodeName) {
        self.permits.stream_ended(node);
        self.sessions.remove(node);
        self.torn.peer_changed(node);
        self.away.insert(node.clone(), now);
    }
}
