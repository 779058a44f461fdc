//! Answers of the node that serves the volume.

use super::Answers;
use super::Historian;
use super::Way;
use super::answered;
use super::check;
use super::contents::Sought;
use super::say;
use super::stopped;
use super::words;
use crate::rooms::Open;
use crate::store::TransactionError;
use crate::store::VolumeStore;
use crate::volume::VolumeHandle;
use crate::wire;
use intermezzo_proto::v1;
use intermezzo_proto::v1::past_reply::What;
use intermezzo_proto::v1::past_request::At;
use lento_core::Volume;
use lento_core::history::HistoryError;
use lento_core::history::Mentioned;
use lento_core::history::Node;
use lento_core::history::Past;
use lento_core::history::Wanted;
use lento_core::history::position_at;
use lento_core::history::story;
use lento_core::history::subtree;
use lento_core::io::NodeName;
use lento_core::store::Store;
use lento_core::store::StoreError;
use lento_core::types::Position;
use lento_core::types::Time;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;

/// Most lines of one answer.
const LINES: usize = 100_000;
/// Answers that are looked for and said together: as many contents as presto looks for at a time.
const BATCH: usize = 64;

/// Why an answer ended early.
struct Ended(Status);

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Ended {
        Ended(Status::unavailable(error.to_string()))
    }
}

impl From<HistoryError> for Ended {
    fn from(error: HistoryError) -> Ended {
        Ended(match error {
            HistoryError::Store(_) => Status::unavailable(error.to_string()),
            _ => Status::failed_precondition(error.to_string()),
        })
    }
}

impl Historian {
    /// What happened to a path of a volume that this node serves.
    ///
    /// # Errors
    /// The request cannot be meant, or the volume is not ready.
    pub fn lines_here(
        &self,
        volume: &VolumeHandle,
        request: &v1::HistoryRequest,
        room: Option<Open>,
    ) -> Result<Answers<v1::HistoryLine>, Status> {
        let limit = usize::try_from(request.limit).unwrap_or(LINES);
        let wanted = Wanted {
            path: check(&request.path)?,
            attributes: if request.attributes { Mentioned::Yes } else { Mentioned::No },
            limit: if limit == 0 { LINES } else { limit.min(LINES) },
            before: (request.before > 0).then_some(Position(request.before)),
        };
        let historian = self.clone();
        self.answer(volume, room, move |volume, store, way| {
            let nodes = historian.nodes(store)?;
            let lines = story(store, &wanted)?.into_iter().map(|line| {
                let replica = line.origin.0.replica;
                v1::HistoryLine {
                    position: line.position.0,
                    time: Some(words::time(line.time)),
                    made: Some(words::time(line.made)),
                    node: nodes.get(&replica).cloned().unwrap_or_else(|| format!("{replica:016x}")),
                    what: line.what.to_owned(),
                    path: words::names(line.path),
                    from: words::names(line.from.unwrap_or_default()),
                    after: line.after.map(|after| historian.condition(volume, after)),
                }
            });
            let mut lines: Vec<_> = lines.collect();
            for batch in lines.chunks_mut(BATCH) {
                let sought = batch.iter_mut().filter_map(|line| line.after.as_mut());
                historian.look_for(volume, sought).map_err(Ended)?;
                for line in batch {
                    say(way, std::mem::take(line)).map_err(Ended)?;
                }
            }
            Ok(())
        })
    }

    /// A part of an earlier tree of a volume that this node serves.
    ///
    /// # Errors
    /// The request cannot be meant, or the volume is not ready.
    pub fn past_here(
        &self,
        volume: &VolumeHandle,
        request: &v1::PastRequest,
        room: Option<Open>,
    ) -> Result<Answers<v1::PastReply>, Status> {
        let path = check(&request.path)?;
        let below = request.below;
        let at = request.at.ok_or_else(|| Status::invalid_argument("neither a position nor a time"))?;
        let historian = self.clone();
        self.answer(volume, room, move |volume, store, way| {
            let position = match at {
                At::Position(position) => Position(position),
                At::Time(v1::Time { sec, nsec }) => position_at(store, Time { sec, nsec })?,
            };
            let past = Past::at(store, position)?;
            say(way, v1::PastReply { what: Some(What::Position(position.0)) }).map_err(Ended)?;
            let mut batch = Vec::new();
            let depth = if below { usize::MAX } else { 1 };
            subtree(&past, &path, depth, |node| {
                batch.push(historian.past_node(volume, node));
                if batch.len() < BATCH { Ok(()) } else { historian.say_nodes(volume, way, &mut batch) }
            })?;
            historian.say_nodes(volume, way, &mut batch)
        })
    }

    fn past_node(&self, volume: &VolumeHandle, node: Node) -> v1::PastNode {
        v1::PastNode {
            path: words::names(node.path),
            object: Some(wire::tag(node.object.0)),
            condition: Some(self.condition(volume, node.condition)),
            is_there: node.is_there,
        }
    }

    fn say_nodes(
        &self,
        volume: &VolumeHandle,
        way: &Way<v1::PastReply>,
        batch: &mut Vec<v1::PastNode>,
    ) -> Result<(), Ended> {
        let sought: Sought<'_> = batch.iter_mut().filter_map(|node| node.condition.as_mut()).collect();
        self.look_for(volume, sought).map_err(Ended)?;
        for node in batch.drain(..) {
            say(way, v1::PastReply { what: Some(What::Node(node)) }).map_err(Ended)?;
        }
        Ok(())
    }

    /// Names of the nodes by their replicas, this one among them.
    fn nodes(&self, store: &dyn Store) -> Result<BTreeMap<u64, NodeName>, Ended> {
        let failed = |error: lento_core::volume::Fault| Ended(Status::unavailable(error.to_string()));
        let mut nodes = Volume::nodes(store).map_err(failed)?;
        nodes.extend(Volume::replica(store).map_err(failed)?.map(|own| (own, self.node.to_string())));
        Ok(nodes)
    }

    /// Reads in a thread of its own, beside the volume's task. `room`: what a peer may take of this agent.
    fn answer<T: Send + 'static>(
        &self,
        volume: &VolumeHandle,
        room: Option<Open>,
        tell: impl FnOnce(&VolumeHandle, &dyn Store, &Way<T>) -> Result<(), Ended> + Send + 'static,
    ) -> Result<Answers<T>, Status> {
        let store = volume.store().ok_or_else(|| stopped(volume, "it is not ready"))?;
        let volume = volume.clone();
        Ok(answered(self.question(room), BATCH, move |way| {
            read(&store, |store| tell(&volume, store, way)).map_err(|Ended(status)| {
                Status::new(status.code(), format!("volume {}: {}", volume.name, status.message()))
            })
        }))
    }
}

fn read(store: &Arc<VolumeStore>, run: impl FnOnce(&dyn Store) -> Result<(), Ended>) -> Result<(), Ended> {
    store.read(run).map_err(|error| match error {
        TransactionError::Inner(ended) => ended,
        TransactionError::Store(error) => error.into(),
    })
}
