//! `Output::Fetch`: contents from the server, in few round trips; small ones into memory, large ones into the stage.

use super::RENAME_COMES;
use super::Shared;
use super::WORTH_WAITING;
use super::patience;
use crate::content::difference::Have;
use crate::content::difference::Part;
use crate::content::incoming::Incoming;
use crate::content::packing::unpack;
use crate::wire;
use bytes::Bytes;
use intermezzo_proto::v1;
use intermezzo_proto::v1::fetch_chunk::End;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use lento_core::io::FetchItem;
use lento_core::io::FetchResult;
use lento_core::io::Input;
use lento_core::types::Hash;
use lento_core::types::INLINE_MAX;
use lento_core::types::ObjectId;
use lento_core::types::Ticket;
use prost::Message;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

/// How long the server may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Most small contents in one request: bounds what lies in memory.
const SMALL_BATCH: usize = 256;

pub(super) async fn run(shared: Shared, ticket: Ticket, items: Vec<FetchItem>) {
    let Some(channel) = shared.peers.channel(&shared.server) else {
        let reason = format!("server {} is not connected", shared.server);
        let results = items.iter().map(|_| FetchResult::Failed(reason.clone())).collect();
        return shared.answer(ticket, Input::Fetched { ticket, results }).await;
    };
    let not_tried = || FetchResult::Failed("not tried".to_owned());
    let mut results: Vec<FetchResult> = items.iter().map(|_| not_tried()).collect();
    let meters = shared.volume.meters().clone();
    let mut put = |index: usize, result: FetchResult| {
        if matches!(result, FetchResult::Inline(_) | FetchResult::Staged(_)) {
            meters.fetched_bytes.inc_by(items.get(index).map_or(0, |item| item.size));
        }
        if let Some(slot) = results.get_mut(index) {
            *slot = result;
        }
    };
    let numbered = || items.iter().copied().enumerate();
    let small: Vec<_> = numbered().filter(|(_, item)| item.size <= INLINE_MAX).collect();
    for batch in small.chunks(SMALL_BATCH) {
        let Ok(_permit) = shared.contents.acquire().await else { return };
        let contents = fetch_small(&shared, &channel, batch).await;
        for ((index, _), content) in batch.iter().zip(contents) {
            put(*index, content);
        }
    }
    // Several large ones at once, as the room for contents allows.
    let mut running = tokio::task::JoinSet::new();
    for (index, item) in numbered().filter(|(_, item)| item.size > INLINE_MAX) {
        let (shared, channel) = (shared.clone(), channel.clone());
        running.spawn(async move {
            let Ok(_permit) = shared.contents.clone().acquire_owned().await else {
                return (index, FetchResult::Failed("stopped".to_owned()));
            };
            (index, fetch_large(&shared, &channel, item).await)
        });
    }
    while let Some(done) = running.join_next().await {
        if let Ok((index, result)) = done {
            put(index, result);
        }
    }
    shared.answer(ticket, Input::Fetched { ticket, results }).await;
}

async fn begin(
    shared: &Shared,
    channel: &Channel,
    items: impl Iterator<Item = (FetchItem, Option<Have>)>,
) -> Result<Streaming<v1::FetchChunk>, String> {
    let items = items
        .map(|(item, have)| v1::FetchItem {
            object: Some(wire::tag(item.object.0)),
            hash: Bytes::copy_from_slice(&item.hash.0),
            have: have.as_ref().map(wire::have),
        })
        .collect();
    let request = v1::FetchRequest { volume: shared.volume.name.to_string(), items };
    let mut client = ReplicationClient::new(channel.clone()).max_decoding_message_size(wire::MESSAGE_MAX);
    match timeout(IDLE, client.fetch(request)).await {
        Ok(Ok(stream)) => Ok(stream.into_inner()),
        Ok(Err(status)) => Err(format!("fetch from {}: {}", shared.server, status.message())),
        Err(_) => Err(format!("fetch from {}: no answer within {IDLE:?}", shared.server)),
    }
}

async fn next(
    shared: &Shared,
    stream: &mut Streaming<v1::FetchChunk>,
    idle: Duration,
) -> Result<v1::FetchChunk, String> {
    match timeout(idle, stream.message()).await {
        Ok(Ok(Some(v1::FetchChunk { piece: None, end: None, .. }))) => {
            Err(format!("fetch from {}: a chunk that says nothing", shared.server))
        }
        Ok(Ok(Some(chunk))) => {
            shared.volume.meters().moved_bytes.inc_by(chunk.encoded_len() as u64);
            Ok(chunk)
        }
        Ok(Ok(None)) => Err(format!("fetch from {}: the stream ended early", shared.server)),
        Ok(Err(status)) => Err(format!("fetch from {}: {}", shared.server, status.message())),
        Err(_) => Err(format!("fetch from {}: nothing came for {idle:?}", shared.server)),
    }
}

async fn fetch_small(shared: &Shared, channel: &Channel, items: &[(usize, FetchItem)]) -> Vec<FetchResult> {
    let mut results = Vec::new();
    let outcome = async {
        let mut stream = begin(shared, channel, items.iter().map(|(_, item)| (*item, None))).await?;
        for (index, (_, item)) in items.iter().enumerate() {
            let result = small_content(shared, &mut stream, index, item).await?;
            results.push(result);
        }
        Ok::<_, String>(())
    };
    let error = outcome.await.err().unwrap_or_default();
    results.resize_with(items.len(), || FetchResult::Failed(error.clone()));
    results
}

async fn small_content(
    shared: &Shared,
    stream: &mut Streaming<v1::FetchChunk>,
    index: usize,
    item: &FetchItem,
) -> Result<FetchResult, String> {
    let mut bytes = Vec::new();
    loop {
        let chunk = next(shared, stream, IDLE).await?;
        if usize::try_from(chunk.item) != Ok(index) {
            return Err(format!("fetch from {}: contents out of order", shared.server));
        }
        if let Some(piece) = chunk.piece {
            let part = unpack(piece).map_err(|error| format!("fetch from {}: {error}", shared.server))?;
            let Part::Piece(piece) = part else {
                return Err(format!("fetch from {}: a piece of nothing that is here", shared.server));
            };
            let end = piece.offset.saturating_add(piece.bytes.len() as u64);
            if piece.offset < bytes.len() as u64 || end > INLINE_MAX {
                return Err(format!("fetch from {}: more came than was asked for", shared.server));
            }
            bytes.resize(usize::try_from(piece.offset).unwrap_or(0), 0);
            bytes.extend_from_slice(&piece.bytes);
        }
        match chunk.end {
            None => {}
            Some(End::Superseded(_)) => return Ok(FetchResult::Superseded),
            Some(End::Chunks(_)) => return Ok(FetchResult::Failed("a content of another size".to_owned())),
            Some(End::Complete(size)) => {
                if size > INLINE_MAX {
                    return Ok(FetchResult::Failed("a content of another size".to_owned()));
                }
                bytes.resize(usize::try_from(size).unwrap_or(0), 0);
                let right = Hash::of(&bytes) == item.hash;
                return Ok(if right { FetchResult::Inline(bytes) } else { wrong(shared) });
            }
        }
    }
}

fn wrong(shared: &Shared) -> FetchResult {
    FetchResult::Failed(format!("fetch from {}: the bytes are not what their hash says", shared.server))
}

async fn fetch_large(shared: &Shared, channel: &Channel, item: FetchItem) -> FetchResult {
    let name = stage_name(item.hash, item.object);
    match fetch_into_stage(shared, channel, item, &name).await {
        Ok(true) => FetchResult::Staged(name),
        Ok(false) => FetchResult::Superseded,
        Err(error) => FetchResult::Failed(error),
    }
}

/// `Ok(false)`: superseded. After an error the next try goes on with what is in the stage then.
async fn fetch_into_stage(
    shared: &Shared,
    channel: &Channel,
    item: FetchItem,
    name: &str,
) -> Result<bool, String> {
    let from = |error: &dyn std::fmt::Display| format!("fetch from {}: {error}", shared.server);
    // First of all: what is in its place may be about to go.
    let mut ground = shared.ground(item.object).await;
    let file = shared.open_stage(name, 0).await.map_err(|error| error.to_string())?;
    if ground.is_none() && item.size >= WORTH_WAITING {
        tokio::time::sleep(RENAME_COMES).await;
        ground = shared.ground(item.object).await;
    }
    let began = Incoming::begin((name, file), item.size, ground, shared.volume.known()).await;
    let (mut incoming, mut have) = began.map_err(|error| format!("staged {name}: {error}"))?;
    let mut stream = begin(shared, channel, std::iter::once((item, Some(have.clone())))).await?;
    loop {
        let chunk = next(shared, &mut stream, patience(item.size)).await?;
        if let Some(piece) = chunk.piece {
            incoming.take(piece).await.map_err(|error| from(&error))?;
        }
        match chunk.end {
            None => {}
            Some(End::Superseded(_)) => {
                incoming.stop().await;
                drop_stage(shared, name);
                return Ok(false);
            }
            Some(End::Chunks(_)) if have.chunks.is_some() => {
                return Err(from(&"it asks for chunks that it has been told"));
            }
            Some(End::Chunks(_)) => {
                have.chunks = incoming.chunks().await.map_err(|error| from(&error))?;
                if have.chunks.is_none() {
                    return Err(from(&"it asks for chunks, and there are none"));
                }
                stream = begin(shared, channel, std::iter::once((item, Some(have.clone())))).await?;
            }
            Some(End::Complete(size)) if size != item.size => {
                return Err(from(&format!("a content of {size} bytes instead of {}", item.size)));
            }
            Some(End::Complete(_)) => {
                incoming.finish(item.hash).await.map_err(|error| from(&error))?;
                return Ok(true);
            }
        }
    }
}

fn drop_stage(shared: &Shared, name: &str) {
    let (shared, names) = (shared.clone(), vec![name.to_owned()]);
    tokio::spawn(async move {
        let body = intermezzo_channel::v1::DropStage { names };
        let body = intermezzo_channel::v1::packet::Body::DropStage(body);
        let _ = shared.call(body, "DropStage", super::DEADLINE).await;
    });
}

/// A staged file for this content of this object: the same after a restart, so that nothing is left behind, and not
/// shared by two objects of equal content, because an install takes the file away.
fn stage_name(hash: Hash, object: ObjectId) -> String {
    let owner = Hash::of(object.to_string().as_bytes()).to_string();
    format!("{hash}-{}", owner.get(..14).unwrap_or_default())
}
