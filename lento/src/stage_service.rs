//! `Stage`: a client's content comes ahead of the record that names it, and is durable here before the answer. What this
//! node has of it, from the object's present content or from an interrupted try, is told first and does not travel.

use crate::content::difference::Blocks;
use crate::content::difference::Have;
use crate::content::incoming::Incoming;
use crate::fetch_service::ground;
use crate::jobs::DEADLINE;
use crate::jobs::open_stage;
use crate::jobs::patience;
use crate::replication::ReplicationService;
use crate::stage_names::Arriving;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use crate::wire;
use bytes::Bytes;
use intermezzo_channel::v1::DropStage;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use intermezzo_proto::v1::stage_chunk::What;
use intermezzo_proto::v1::stage_reply;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use prost::Message;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::Streaming;
use tracing::debug;

/// What goes back to the client.
pub type Replies = ReceiverStream<Result<v1::StageReply, Status>>;

type Sender = mpsc::Sender<Result<v1::StageReply, Status>>;

/// Takes one content in.
#[must_use]
pub fn stage(service: &ReplicationService, node: &str, stream: Streaming<v1::StageChunk>) -> Replies {
    let (replies, outbound) = mpsc::channel(2);
    let (service, node) = (service.clone(), node.to_owned());
    tokio::spawn(async move {
        let last = match run(&service, &node, stream, &replies).await {
            Ok(hash) => Ok(reply(stage_reply::What::Staged(Bytes::copy_from_slice(&hash.0)))),
            Err(status) => Err(status),
        };
        let _ = tokio::time::timeout(DEADLINE, replies.send(last)).await;
    });
    ReceiverStream::new(outbound)
}

fn reply(what: stage_reply::What) -> v1::StageReply {
    v1::StageReply { what: Some(what) }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn run(
    service: &ReplicationService,
    node: &str,
    mut stream: Streaming<v1::StageChunk>,
    replies: &Sender,
) -> Result<Hash, Status> {
    let open = service.rooms.enter(node)?;
    let What::Begin(begin) = next(&mut stream, service.limits.taken_within).await? else {
        return Err(invalid("a piece of a content that was not begun"));
    };
    wire::limit("stage.volume", begin.volume.len(), wire::TEXT_MAX).map_err(invalid)?;
    let volume = service.admitted(node, &begin.volume)?;
    let object = begin.object.map(|object| wire::object_id("stage.object", Some(object)));
    let arriving = Arriving {
        volume: begin.volume,
        node: node.to_owned(),
        object: object.transpose().map_err(invalid)?,
        version: begin.version,
    };
    let over = begin.over.map(|object| wire::object_id("stage.over", Some(object)));
    let over = over.transpose().map_err(invalid)?;
    let _turn = open.turn(&service.contents).await?;
    let name = service.names.begin(&arriving);
    let content = Content { object: arriving.object, over, size: begin.size };
    match take(service, &volume, &content, &name, &mut stream, replies).await {
        Ok(hash) => {
            service.names.complete(&name);
            volume.meters().staged_bytes.inc_by(begin.size);
            arrived(&volume, Mail::Staged { node: node.into(), hash, size: begin.size, name }).await?;
            Ok(hash)
        }
        Err(status) => {
            debug!(target: "content", volume = &*volume.name, client = node, %status, "a stage ended early");
            if let Some((volume, name)) = service.names.broken(arriving, name) {
                let body = Body::DropStage(DropStage { names: vec![name] });
                let _ = service.downcalls.call(&volume, body, "DropStage", DEADLINE).await;
            }
            Err(status)
        }
    }
}

async fn arrived(volume: &VolumeHandle, staged: Mail) -> Result<(), Status> {
    if volume.send(staged).await {
        Ok(())
    } else {
        Err(Status::unavailable(format!("volume {} has been stopped", volume.name)))
    }
}

async fn next(stream: &mut Streaming<v1::StageChunk>, idle: Duration) -> Result<What, Status> {
    let chunk = match tokio::time::timeout(idle, stream.message()).await {
        Ok(chunk) => chunk?.ok_or_else(|| Status::aborted("the content ended early"))?,
        Err(_) => {
            return Err(Status::deadline_exceeded(format!("nothing, or too little, came for {idle:?}")));
        }
    };
    chunk.what.ok_or_else(|| invalid("a chunk that says nothing"))
}

/// What is to come.
struct Content {
    object: Option<ObjectId>,
    over: Option<ObjectId>,
    size: u64,
}

async fn take(
    service: &ReplicationService,
    volume: &VolumeHandle,
    content: &Content,
    name: &str,
    stream: &mut Streaming<v1::StageChunk>,
    replies: &Sender,
) -> Result<Hash, Status> {
    let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
    let Content { object, over, size } = *content;
    let file = open_stage(&service.downcalls, &volume.name, name, 0).await.map_err(|e| unavailable(&e))?;
    let store = volume.store();
    let ground = ground(&service.downcalls, volume, store.as_deref(), object, over).await;
    let began = Incoming::begin((name, file), size, ground, volume.known()).await;
    let (mut incoming, mut have) = began.map_err(|e| unavailable(&e))?;
    tell(replies, &have).await?;
    let (mut began, mut waited, mut received) = (false, Duration::ZERO, 0_u64);
    loop {
        let budget = service.limits.budget(patience(size), received);
        let asked = Instant::now();
        let what = next(stream, budget.saturating_sub(waited)).await?;
        waited += asked.elapsed();
        match what {
            What::Begin(_) => return Err(invalid("a content that begins twice")),
            What::Chunks(_) if began || have.chunks.is_some() => {
                return Err(invalid("chunks are told once, before any piece"));
            }
            What::Chunks(_) => {
                have.chunks = incoming.chunks().await.map_err(|e| unavailable(&e))?;
                if have.chunks.is_none() {
                    return Err(invalid("there are no chunks to tell"));
                }
                // The blocks have been told.
                tell(replies, &Have { blocks: Blocks::Zeros, ..have.clone() }).await?;
            }
            What::Piece(piece) => {
                began = true;
                received = received.saturating_add(piece.encoded_len() as u64);
                incoming.take(piece).await.map_err(Status::data_loss)?;
            }
            What::End(end) => {
                let hash = wire::hash("stage.hash", &end.hash).map_err(invalid)?;
                incoming.finish(hash).await.map_err(Status::data_loss)?;
                return Ok(hash);
            }
        }
    }
}

async fn tell(replies: &Sender, have: &Have) -> Result<(), Status> {
    let have = reply(stage_reply::What::Have(wire::have(have)));
    let told = tokio::time::timeout(DEADLINE, replies.send(Ok(have))).await;
    let Ok(Ok(())) = told else { return Err(Status::cancelled("the client went away")) };
    Ok(())
}
