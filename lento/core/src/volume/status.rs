//! What people, metrics and tests see of a volume.

use crate::cml::Cml;
use crate::context::Meta;
use crate::facet;
use crate::facet::Facet;
use crate::history::Extent;
use crate::io::NodeName;
use crate::ledger::Behind;
use crate::missing;
use crate::missing::Missing;
use crate::scrub::ScrubStatus;
use crate::server::ConflictRow;
use crate::server::Held;
use crate::server::Judged;
use crate::server::ReplicatorRow;
use crate::server::Standing;
use crate::server::resync;
use crate::store::Store;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Time;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::Fault;
use super::Part;
use super::PermitState;
use super::Volume;

/// One pending record, for people.
#[derive(Clone, Debug)]
pub struct CmlEntry {
    /// Its number.
    pub recno: Recno,
    /// What it does.
    pub operation: &'static str,
    /// Where.
    pub path: String,
    /// Bytes of content that go with it.
    pub size: u64,
}

/// What `intermezzo status` shows of one volume.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Server: newest durable position. Client: base.
    pub position: Position,
    /// Visible in the tree.
    pub applied: Position,
    /// Own records without a verdict.
    pub pending: u64,
    /// Bytes of content on this node's disk that they stand for.
    pub pending_bytes: u64,
    /// When the oldest of them was made.
    pub pending_since: Option<Time>,
    /// Others' changes not yet in the tree.
    pub dirty: u64,
    /// Client: the stream to the server is up and welcomed.
    pub connected: bool,
    /// Client: since it was welcomed, everything that the server had then has come into the tree. Server: always.
    pub whole: bool,
    /// Server: its Replicators.
    pub replicators: Vec<ReplicatorStatus>,
    /// Server: conflicts that wait for a person; what belongs together is one.
    pub conflicts: u64,
    /// Server: removals that wait for a person, by node.
    pub held: Vec<(NodeName, Held)>,
    /// Server: the same, of those that the volume's policy has decided; what lost is kept for a while.
    pub conflicts_decided: u64,
    /// Server: bytes that are kept of those that wait, and of those that are decided.
    pub conflict_bytes: (u64, u64),
    /// Server: what was kept for long enough and has gone, since the volume was opened.
    pub conflicts_dropped: u64,
    /// Server: position of the newest of them.
    pub newest_conflict: Position,
    /// Server: what is kept of what was; `None`: nothing.
    pub history: Option<Extent>,
    /// Server: verdicts given since the volume was opened.
    pub judged: Judged,
    /// How this node's users stand towards the permit.
    pub permit: PermitState,
    /// Server: the client that holds it.
    pub permit_holder: Option<NodeName>,
    /// Server: nodes that wait for it.
    pub permit_waiting: u64,
    /// What it waits for and why.
    pub waiting: Vec<String>,
    /// How the last scrub went, or goes.
    pub scrub: ScrubStatus,
    /// Client: contents that are not here.
    pub missing: Missing,
    /// Client: how many wait for one of them.
    pub waiting_for_contents: u64,
}

/// One Replicator, seen from the server.
#[derive(Clone, Debug, Default)]
pub struct ReplicatorStatus {
    /// Node.
    pub node: NodeName,
    /// Its stream is up.
    pub connected: bool,
    /// Visible in its tree.
    pub applied: Position,
    /// Visible and durable there.
    pub durable: Position,
    /// It takes a snapshot now.
    pub syncing: bool,
    /// Positions between what is visible in its tree and the server's newest durable one.
    pub lag_records: u64,
    /// It was away when the log became too long, and will get the whole tree.
    pub must_resync: bool,
    /// Its stream is up, and its copy has another history: nothing is exchanged.
    pub other_history: bool,
    /// What these brought; `None`: it has never followed the log, so it gets the whole tree.
    pub lag: Option<Behind>,
}

impl Volume {
    /// The CML for people: recno, what, path, content size, whether it was sent.
    ///
    /// # Errors
    /// The store's.
    pub fn cml(store: &dyn Store, limit: usize) -> Result<Vec<CmlEntry>, Fault> {
        let mut list = Vec::new();
        for (recno, row) in Cml::rows(store, Recno(0), limit)? {
            let view = View::new(store, Which::Local);
            let entry = facet::touched(&row.op).into_iter().find_map(|facet| match facet {
                Facet::Entry(dir, name) => Some((dir, name)),
                Facet::Object(_) => None,
            });
            let path = match entry {
                Some((dir, name)) => view.path_in(dir, &name)?,
                None => view.path(row.op.object)?,
            };
            list.push(CmlEntry {
                recno,
                operation: row.op.kind.name(),
                path,
                size: row.slot.map_or(0, |slot| slot.version.size),
            });
        }
        Ok(list)
    }

    /// The nodes of the replicas that this server has met.
    ///
    /// # Errors
    /// The store's.
    pub fn nodes(store: &dyn Store) -> Result<BTreeMap<u64, NodeName>, Fault> {
        let mut nodes = BTreeMap::new();
        table::each_with_prefix(store, Table::Replicator, &[], |key, value| {
            let row: ReplicatorRow = table::decode(Table::Replicator, value)?;
            nodes.insert(row.replica, String::from_utf8_lossy(key).into_owned());
            Ok(())
        })?;
        Ok(nodes)
    }

    /// The replica of this node; `None`: there is none yet.
    ///
    /// # Errors
    /// The store's.
    pub fn replica(store: &dyn Store) -> Result<Option<u64>, Fault> {
        Ok(Meta::load(store)?.map(|meta| meta.replica))
    }

    /// The newest record that has been read.
    ///
    /// # Errors
    /// The store's.
    pub fn last_read(store: &dyn Store) -> Result<Recno, Fault> {
        Ok(Meta::load(store)?.map(|meta| meta.last_read()).unwrap_or_default())
    }

    /// The records of which something is kept in the conflict store.
    ///
    /// # Errors
    /// The store's.
    pub fn kept_records(store: &dyn Store) -> Result<BTreeSet<OpId>, Fault> {
        let mut records = BTreeSet::new();
        table::each_with_prefix(store, Table::Conflict, &[], |_, value| {
            let row: ConflictRow = table::decode(Table::Conflict, value)?;
            records.insert(row.record);
            Ok(())
        })?;
        table::each_with_prefix(store, Table::Standing, &[], |_, value| {
            let standing: Standing = table::decode(Table::Standing, value)?;
            records.extend(standing.earlier);
            Ok(())
        })?;
        Ok(records)
    }

    /// Conflicts kept by this server, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn conflicts(store: &dyn Store, limit: usize) -> Result<Vec<(Position, ConflictRow)>, Fault> {
        let mut list = Vec::new();
        for (key, value) in store.scan(Table::Conflict, &[], limit)? {
            let position = table::number_from_key(&key).unwrap_or_default();
            list.push((Position(position), table::decode(Table::Conflict, &value)?));
        }
        Ok(list)
    }

    /// Who decides about each conflict, and what is kept of it.
    ///
    /// # Errors
    /// The store's.
    pub fn standing(store: &dyn Store, position: Position) -> Result<Standing, Fault> {
        Ok(Standing::get(store, Recno(position.0))?)
    }

    /// Whether a conflict is listed at this position.
    ///
    /// # Errors
    /// The store's.
    pub fn has_conflict(store: &dyn Store, position: Position) -> Result<bool, Fault> {
        Ok(store.get(Table::Conflict, &table::number_key(position.0))?.is_some())
    }

    /// Both trees, entry by entry, where they differ: for a test that failed.
    ///
    /// # Errors
    /// The store's.
    pub fn differences(store: &dyn Store) -> Result<String, Fault> {
        let mut text = String::new();
        for (table, which) in [(Table::LocalEntry, "here"), (Table::BaseEntry, "base")] {
            table::each_with_prefix(store, table, &[], |key, value| {
                if let Some((dir, name)) = table::tag_from_key(key) {
                    let object: ObjectId = table::decode(table, value)?;
                    text += &format!("{which} {dir}/{} = {object}\n", String::from_utf8_lossy(name));
                }
                Ok(())
            })?;
        }
        table::each_with_prefix(store, Table::Dirty, &[], |key, _| {
            text += &format!("dirty {:?}\n", Facet::from_key(key));
            Ok(())
        })?;
        Ok(text)
    }

    /// For people and metrics. Reads a few rows for each Replicator and never counts rows: it is asked often.
    ///
    /// # Errors
    /// The store's.
    pub fn status(&self, store: &dyn Store) -> Result<Status, Fault> {
        let mut status = self.status_of_part(store)?;
        status.scrub = self.scrub.status();
        if status.scrub.running {
            let ScrubStatus { adopting, done, looked, found, .. } = &status.scrub;
            let what =
                if *adopting { "the directory is being adopted" } else { "the tree is looked through" };
            let percent = done * 100.0;
            status
                .waiting
                .insert(0, format!("{what}: {percent:.1} %, {looked} names, {found} not known before"));
        }
        Ok(status)
    }

    fn status_of_part(&self, store: &dyn Store) -> Result<Status, Fault> {
        match &self.part {
            Part::Server(server) => {
                let mut replicators = Vec::new();
                let (sums, tally) = (server.sums(), server.conflicts());
                let (permit_holder, permit_waiting) = server.permit_holder();
                for node in server.replist() {
                    let row = ReplicatorRow::get(store, node)?;
                    let session = server.session(node);
                    let lag = row.follows.then(|| sums.behind(row.ack.applied));
                    replicators.push(ReplicatorStatus {
                        node: node.clone(),
                        connected: session.is_some_and(|session| session.is_welcomed()),
                        applied: row.ack.applied,
                        durable: row.ack.durable,
                        must_resync: resync::since(store, node)?.is_some(),
                        other_history: session.is_some_and(|session| session.is_estranged()),
                        syncing: session.is_some_and(|session| session.is_syncing()),
                        lag_records: server.position().0.saturating_sub(row.ack.applied.0),
                        lag,
                    });
                }
                Ok(Status {
                    position: server.position(),
                    applied: Position(self.meta.last_read().0),
                    replicators,
                    conflicts: tally.open,
                    held: server.held().map(|(node, held)| (node.clone(), held.clone())).collect(),
                    conflicts_decided: tally.decided,
                    conflict_bytes: (tally.open_bytes, tally.decided_bytes),
                    conflicts_dropped: server.conflicts_dropped(),
                    newest_conflict: server.newest_conflict(),
                    history: server.history(),
                    judged: server.judged(),
                    permit: server.permit_state(),
                    permit_holder: permit_holder.cloned(),
                    permit_waiting,
                    waiting: server.waiting(store)?,
                    connected: true,
                    whole: true,
                    ..Status::default()
                })
            }
            Part::Client(client) => Ok(Status {
                position: self.meta.position,
                applied: client.applied(self.meta.position),
                pending: client.pending().records,
                pending_bytes: client.pending().bytes,
                pending_since: Cml::oldest(store)?,
                dirty: client.dirty(),
                missing: missing::sum(store)?,
                waiting_for_contents: client.waiting_for_contents(),
                connected: client.is_connected(),
                whole: client.is_whole(&self.meta),
                permit: client.permit_state(),
                waiting: client.waiting(&self.meta, store)?,
                ..Status::default()
            }),
        }
    }
}
