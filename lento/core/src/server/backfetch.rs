//! Contents that a power cut took from the server come back from Replicators: one after the other is asked, by the hash
//! where it is known here, else for what its base says of the object. Whoever comes back later is asked then.
//!
//! Owns the questions under way and what was answered in this life. Nobody is waited for without an end: a question has a
//! deadline, and where the log waits for a name it waits for [`PATIENCE`] at most.

use super::ReplicatorRow;
use super::Server;
use super::session::Session;
use super::session::SessionState;
use super::session::resync;
use super::vetting;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::io::ReplayContent;
use crate::message::Holds;
use crate::message::Message;
use crate::message::Stored;
use crate::store::Store;
use crate::store::StoreError;
use crate::types::Content;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::Position;
use crate::volume::Millis;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Questions under way.
const ASKS: usize = 16;
/// How long one may take to be answered, in milliseconds.
const ANSWER: u64 = 30_000;
/// The least throughput of a content on its way, in bytes for each millisecond.
const SLOWEST: u64 = 64;
/// How long one is waited for at most, in milliseconds: what has come by then is there for the next try.
const LONGEST: u64 = 3_600_000;
/// How long after "not now" the same one is asked again, in milliseconds.
const NOT_NOW: u64 = 5_000;
/// How long after one was silent it is asked again, in milliseconds.
const SILENT: u64 = 60_000;
/// How long nodes that never followed the log may take to show that they did, in milliseconds.
const GRACE: u64 = 3_000;
/// How long the log waits for somebody who knows what a content was, in milliseconds.
const PATIENCE: u64 = 30_000;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought {
    /// The content with this hash.
    Content(Hash),
    /// The same; the log waits until somebody says that he knows it.
    Name(Hash),
    /// What was told at this position; the log waits until somebody says what that was.
    Unknown(Position),
}

impl Sought {
    fn hash(self) -> Option<Hash> {
        match self {
            Sought::Content(hash) | Sought::Name(hash) => Some(hash),
            Sought::Unknown(_) => None,
        }
    }

    fn holds_up_the_log(self) -> bool {
        !matches!(self, Sought::Content(_))
    }

    /// Whether this client may know it.
    fn may_be_with(self, session: &Session) -> bool {
        let Sought::Unknown(told) = self else { return true };
        session.hello.as_ref().is_some_and(|hello| hello.snapshot.is_none() && hello.position >= told)
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Somebody may still have it.
    NotYet,
    /// Here it is.
    Here(ReplayContent),
    /// Nobody has it.
    Nowhere,
}

#[derive(Clone, Debug)]
struct Ask {
    node: NodeName,
    hash: Option<Hash>,
    until: Millis,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Backfetching {
    /// Since when this life looks for contents.
    since: Option<Millis>,
    asks: BTreeMap<ObjectId, Ask>,
    /// Those that would ask, if fewer were asking.
    queue: BTreeSet<ObjectId>,
    /// Who said that it has nothing.
    lacking: BTreeSet<(ObjectId, NodeName)>,
    /// Who is not to be asked before.
    not_before: BTreeMap<(ObjectId, NodeName), Millis>,
    given: BTreeMap<ObjectId, ReplayContent>,
}

impl Backfetching {
    /// Since when this life looks for contents: since now, if it did not yet.
    pub fn begin(&mut self, now: Millis) -> Millis {
        *self.since.get_or_insert(now)
    }

    /// The same; `None`: it does not.
    pub fn since(&self) -> Option<Millis> {
        self.since
    }

    /// The object's content is looked for no longer.
    pub fn end(&mut self, object: ObjectId) {
        self.asks.remove(&object);
        self.queue.remove(&object);
        self.given.remove(&object);
        self.lacking.retain(|(of, _)| *of != object);
        self.not_before.retain(|(of, _), _| *of != object);
    }

    /// A node begins anew, or is gone: what it was asked it will not answer, and what it said may be so no longer.
    pub fn forget(&mut self, node: &NodeName) {
        self.asks.retain(|_, ask| ask.node != *node);
        self.queue.clear();
        self.lacking.retain(|(_, lacks)| lacks != node);
        self.not_before.retain(|(_, later), _| later != node);
    }

    fn lacks(&self, object: ObjectId, node: &NodeName) -> bool {
        self.lacking.contains(&(object, node.clone()))
    }
}

impl Server {
    /// Looks for an object's content.
    pub(super) fn backfetch(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        sought: Sought,
    ) -> Result<Found, StoreError> {
        let (now, hash) = (ctx.now, sought.hash());
        let fetching = &mut self.torn.backfetching;
        let since = fetching.begin(now);
        if let Some(content) = fetching.given.get(&object) {
            return Ok(Found::Here(content.clone()));
        }
        if let Some(ask) = fetching.asks.get(&object) {
            if now < ask.until {
                return Ok(Found::NotYet);
            }
            let silent = Millis(now.0.saturating_add(SILENT));
            fetching.not_before.insert((object, ask.node.clone()), silent);
            self.torn.look_again(object, silent);
            self.end_ask(object);
        }
        let fetching = &mut self.torn.backfetching;
        let next = self.sessions.iter().find(|(node, session)| {
            session.is_welcomed()
                && sought.may_be_with(session)
                && !fetching.lacks(object, node)
                && fetching.not_before.get(&(object, (*node).clone())).is_none_or(|at| *at <= now)
        });
        if let Some((node, _)) = next {
            if fetching.asks.len() >= ASKS {
                fetching.queue.insert(object);
                return Ok(Found::NotYet);
            }
            let until = Millis(now.0.saturating_add(ANSWER));
            let ask = Ask { node: node.clone(), hash, until };
            ctx.out.push(Output::Send(node.clone(), Message::Backfetch { object, hash }));
            fetching.asks.insert(object, ask);
            self.torn.look_again(object, until);
            return Ok(Found::NotYet);
        }
        let grace = Millis(since.0.saturating_add(GRACE));
        let patience = Millis(since.0.saturating_add(PATIENCE));
        let undecided = self.may_have(ctx.store, object, sought, now >= grace)?;
        if undecided.is_empty() || sought.holds_up_the_log() && now >= patience {
            return Ok(Found::Nowhere);
        }
        self.torn.look_again(object, if now < grace { grace } else { patience.max(Millis(now.0 + NOT_NOW)) });
        Ok(Found::NotYet)
    }

    /// The nodes of the replication list that have not said that they have nothing.
    fn may_have(
        &self,
        store: &dyn Store,
        object: ObjectId,
        sought: Sought,
        is_late: bool,
    ) -> Result<Vec<NodeName>, StoreError> {
        let mut nodes = Vec::new();
        for node in &self.replist {
            let decided = match self.sessions.get(node) {
                Some(session) => match session.state {
                    SessionState::Estranged => true,
                    SessionState::Welcomed => {
                        self.torn.backfetching.lacks(object, node) || !sought.may_be_with(session)
                    }
                    SessionState::Connected | SessionState::Fencing | SessionState::Offering => false,
                },
                None => {
                    let row = ReplicatorRow::get(store, node)?;
                    let never = !row.follows && resync::since(store, node)?.is_none();
                    is_late && never && row.ack.position == Position(0)
                }
            };
            if !decided {
                nodes.push(node.clone());
            }
        }
        Ok(nodes)
    }

    fn end_ask(&mut self, object: ObjectId) {
        self.torn.backfetching.asks.remove(&object);
        if let Some(next) = self.torn.backfetching.queue.pop_first() {
            self.torn.look_at(next);
        }
    }

    /// A client says what it has.
    pub(super) fn backfetched(
        &mut self,
        ctx: &mut Context<'_>,
        node: &NodeName,
        object: ObjectId,
        holds: Holds,
    ) -> Result<(), StoreError> {
        let asked = self.torn.backfetching.asks.get(&object);
        let Some(ask) = asked.filter(|ask| ask.node == *node).cloned() else {
            // Asked no longer: it has been restored or written anew meanwhile.
            return Ok(());
        };
        self.torn.look_at(object);
        let named = match &holds {
            Holds::Nothing | Holds::NotNow => None,
            Holds::Named(stored) | Holds::Coming(stored) => Some(*stored),
            Holds::Whole(content) if vetting::is_false(content) => {
                ctx.out.push(Output::Hangup(node.clone(), "a content with a wrong hash".into()));
                None
            }
            Holds::Whole(content) => Some(Stored { hash: content.hash, size: content.size }),
        };
        let named = named.filter(|named| ask.hash.is_none_or(|hash| hash == named.hash));
        if let Some(named) = named {
            self.named(ctx, object, named)?;
        }
        match (holds, named) {
            (Holds::Coming(_), Some(named)) => {
                let slow = (named.size / SLOWEST).min(LONGEST);
                let until = Millis(ctx.now.0.saturating_add(ANSWER).saturating_add(slow));
                self.torn.backfetching.asks.insert(object, Ask { hash: Some(named.hash), until, ..ask });
                self.torn.look_again(object, until);
            }
            (Holds::Whole(content), Some(_)) => {
                self.end_ask(object);
                match self.bytes_of(object, content) {
                    Some(bytes) => drop(self.torn.backfetching.given.insert(object, bytes)),
                    None => self.ask_later(ctx.now, object, node),
                }
            }
            (Holds::NotNow, _) => {
                self.end_ask(object);
                self.ask_later(ctx.now, object, node);
            }
            _ => {
                self.end_ask(object);
                self.torn.backfetching.lacking.insert((object, node.clone()));
            }
        }
        Ok(())
    }

    fn bytes_of(&mut self, object: ObjectId, content: Content) -> Option<ReplayContent> {
        if content.size == 0 {
            return Some(ReplayContent::Inline(Vec::new()));
        }
        match content.inline {
            Some(bytes) => Some(ReplayContent::Inline(bytes)),
            None => {
                let staged = self.staged.give(object, &content.hash);
                staged.map(|(name, size)| ReplayContent::Staged(name, size))
            }
        }
    }

    fn ask_later(&mut self, now: Millis, object: ObjectId, node: &NodeName) {
        let at = Millis(now.0.saturating_add(NOT_NOW));
        self.torn.backfetching.not_before.insert((object, node.clone()), at);
        self.torn.look_again(object, at);
    }

    /// For people: whom it waits for.
    pub(super) fn backfetching_status(
        &self,
        store: &dyn Store,
        object: ObjectId,
        sought: Sought,
    ) -> Result<String, StoreError> {
        let fetching = &self.torn.backfetching;
        if let Some(ask) = fetching.asks.get(&object) {
            return Ok(format!("node {} is asked for its good content", ask.node));
        }
        if fetching.given.contains_key(&object) {
            return Ok("its good content is being installed".to_owned());
        }
        let nodes = self.may_have(store, object, sought, true)?;
        Ok(match nodes.is_empty() {
            true => "nobody has a better content".to_owned(),
            false => format!("its good content may be on {}, write it anew to do without", nodes.join(", ")),
        })
    }
}
