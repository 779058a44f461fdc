//! `Output::Replay`: batches go to Presto one after the other, cut into packets that the channel carries.

use super::Shared;
use crate::channel::convert;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::Downcalls;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::Input;
use lento_core::io::Ref;
use lento_core::io::ReplayItem;
use lento_core::io::ReplayOp;
use lento_core::io::ReplayOutcome;
use lento_core::types::FileId;
use lento_core::types::ObjectId;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use prost::Message;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// Presto may have to copy a large file where it cannot rename.
const DEADLINE: Duration = Duration::from_secs(120);
/// Packets are cut here, in bytes, where the socket would take more: long packets need long runs of kernel memory.
const PACKET_TARGET: usize = 256 << 10;
/// Most items in one packet, so that none holds Presto for long.
const PACKET_ITEMS: usize = 512;
/// How many identities are remembered for later batches.
const REMEMBERED: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Batch {
    pub ticket: Ticket,
    pub items: Vec<ReplayItem>,
    pub untouched_since: Recno,
    pub presto: Downcalls,
}

pub(super) async fn run(shared: Shared, mut queue: mpsc::UnboundedReceiver<Batch>) {
    let mut made = Made::default();
    while let Some(batch) = queue.recv().await {
        let ticket = batch.ticket;
        let began = Instant::now();
        let outcomes = match replay(&shared, &mut made, batch).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                warn!(target: "volume", volume = &*shared.volume.name, %error, "replay");
                Vec::new()
            }
        };
        let meters = shared.volume.meters();
        meters.replays.observe(began.elapsed().as_secs_f64());
        meters.replayed.inc_by(outcomes.len() as u64);
        shared.answer(ticket, Input::Replayed { ticket, outcomes }).await;
    }
}

async fn replay(shared: &Shared, made: &mut Made, batch: Batch) -> Result<Vec<ReplayOutcome>, CallError> {
    let mut outcomes = Vec::new();
    let mut items = batch.items.into_iter().peekable();
    while items.peek().is_some() {
        let limit = shared.downcalls.limit().saturating_sub(1024).min(PACKET_TARGET);
        let packet = made.packet(&mut items, limit);
        let (sent, objects) = (packet.items.len(), packet.objects);
        let body = v1::Replay { items: packet.items, untouched_since: batch.untouched_since.0 };
        let call = batch.presto.call(&shared.volume.name, Body::Replay(body), "Replay", DEADLINE);
        let answer = match call.await {
            Ok((Body::Replayed(answer), _)) => answer,
            Ok(_) => return Err(CallError::Confused("Replay")),
            // Only an item that is too long by itself gets here: nothing was touched, and people must know.
            Err(CallError::TooLong(_)) => {
                outcomes.push(ReplayOutcome::Refused {
                    errno: Errno::MSGSIZE.raw_os_error(),
                    message: "too long for the channel (many large extended attributes)".to_owned(),
                });
                break;
            }
            Err(error) => return Err(error),
        };
        let tried = answer.outcomes.len();
        for (outcome, object) in answer.outcomes.into_iter().take(sent).zip(objects) {
            let outcome = convert::outcome(outcome);
            if let ReplayOutcome::Applied { file, .. } = &outcome {
                made.note(object, *file);
            }
            outcomes.push(outcome);
        }
        let stopped = !matches!(outcomes.last(), Some(ReplayOutcome::Applied { .. }));
        if stopped || tried < sent {
            break;
        }
    }
    Ok(outcomes)
}

/// Identities of objects that earlier packets made. Presto knows the objects of one packet only.
#[derive(Debug, Default)]
struct Made {
    files: BTreeMap<ObjectId, FileId>,
    order: std::collections::VecDeque<ObjectId>,
}

struct Packet {
    items: Vec<v1::ReplayItem>,
    objects: Vec<ObjectId>,
}

impl Made {
    fn note(&mut self, object: ObjectId, file: FileId) {
        if self.files.insert(object, file).is_none() {
            self.order.push_back(object);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.files.remove(&oldest);
        }
    }

    /// Takes as many items as one packet holds, at least one.
    fn packet(
        &self,
        items: &mut std::iter::Peekable<impl Iterator<Item = ReplayItem>>,
        limit: usize,
    ) -> Packet {
        let mut packet = Packet { items: Vec::new(), objects: Vec::new() };
        let (mut bytes, mut here) = (0, BTreeSet::new());
        while packet.items.len() < PACKET_ITEMS
            && let Some(item) = items.next_if(|item| packet.items.is_empty() || bytes + length(item) <= limit)
        {
            let object = item.object;
            let wire = convert::replay_item(self.resolved(item, &here));
            bytes += wire.encoded_len() + 8;
            here.insert(object);
            packet.items.push(wire);
            packet.objects.push(object);
        }
        packet
    }

    fn resolved(&self, mut item: ReplayItem, here: &BTreeSet<ObjectId>) -> ReplayItem {
        let resolve = |by: &mut Ref| {
            if let Ref::Object(object) = by
                && !here.contains(object)
                && let Some(file) = self.files.get(object)
            {
                *by = Ref::File(*file);
            }
        };
        match &mut item.op {
            ReplayOp::Make { dir, .. } => resolve(dir),
            ReplayOp::Link { file, dir, .. } => {
                resolve(file);
                resolve(dir);
            }
            ReplayOp::Remove { dir, expect, .. } => {
                resolve(dir);
                resolve(expect);
            }
            ReplayOp::Rename { from, expect, to, replaced, .. } => {
                resolve(from);
                resolve(expect);
                resolve(to);
                replaced.iter_mut().for_each(resolve);
            }
            ReplayOp::Install { file, dir, .. } => {
                resolve(file);
                resolve(dir);
            }
            ReplayOp::SetAttr { file, .. }
            | ReplayOp::Fill { file, .. }
            | ReplayOp::SetXattr { file, .. }
            | ReplayOp::DelXattr { file, .. } => resolve(file),
            ReplayOp::Noop => {}
        }
        item
    }
}

/// Roughly how long an item is in a packet, in bytes; never less than it is.
fn length(item: &ReplayItem) -> usize {
    let fixed = 512;
    let xattrs = |list: &[(Vec<u8>, Vec<u8>)]| -> usize {
        list.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
    };
    let content = |content: &lento_core::io::ReplayContent| match content {
        lento_core::io::ReplayContent::Inline(bytes) => bytes.len(),
        lento_core::io::ReplayContent::Staged(name, _) => name.len(),
        lento_core::io::ReplayContent::Missing(_) => 0,
    };
    fixed
        + match &item.op {
            ReplayOp::Make { name, symlink, content: c, xattrs: x, .. } => {
                name.len() + symlink.len() + c.as_ref().map_or(0, content) + xattrs(x)
            }
            ReplayOp::Install { name, content: c, xattrs: x, .. } => name.len() + content(c) + xattrs(x),
            ReplayOp::Rename { from_name, to_name, .. } => from_name.len() + to_name.len(),
            ReplayOp::SetXattr { name, value, .. } => name.len() + value.len(),
            ReplayOp::Link { name, .. } | ReplayOp::Remove { name, .. } | ReplayOp::DelXattr { name, .. } => {
                name.len()
            }
            ReplayOp::Fill { content: c, .. } => content(c),
            ReplayOp::SetAttr { .. } | ReplayOp::Noop => 0,
        }
}
