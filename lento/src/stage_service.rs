//! `Stage`: a client's content comes ahead of the record that names it, and is durable here before the answer.

use crate::content::sink::Sink;
use crate::jobs::DEADLINE;
use crate::jobs::open_stage;
use crate::random;
use crate::replication::ReplicationService;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use crate::wire;
use bytes::Bytes;
use intermezzo_channel::v1::DropStage;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use lento_core::types::Hash;
use std::fs::File;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::Streaming;

/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(60);

enum Piece {
    Data(u64, Bytes),
    End(u64, Hash),
}

/// Takes one content in.
///
/// # Errors
/// The peer may not, the stream broke, or the bytes are not what they should be; nothing stays then.
pub async fn stage(
    service: &ReplicationService,
    node: &str,
    mut stream: Streaming<v1::StageChunk>,
) -> Result<v1::StageReply, Status> {
    let first = next(&mut stream).await?;
    let volume = service.admitted(node, &first.volume)?;
    let _room = service.contents.acquire().await.map_err(|_| Status::unavailable("stopping"))?;
    let name = name()?;
    let file = open_stage(&service.downcalls, &volume.name, &name, 0)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    match take(file, first, &mut stream).await {
        Ok((size, hash)) => {
            volume.meters().staged_bytes.inc_by(size);
            arrived(&volume, hash, size, name).await?;
            Ok(v1::StageReply { hash: Bytes::copy_from_slice(&hash.0) })
        }
        Err(status) => {
            let body = Body::DropStage(DropStage { names: vec![name] });
            let _ = service.downcalls.call(&volume.name, body, "DropStage", DEADLINE).await;
            Err(status)
        }
    }
}

async fn arrived(volume: &VolumeHandle, hash: Hash, size: u64, name: String) -> Result<(), Status> {
    if volume.send(Mail::Staged { hash, size, name }).await {
        Ok(())
    } else {
        Err(Status::unavailable(format!("volume {} has been stopped", volume.name)))
    }
}

fn name() -> Result<String, Status> {
    let part = || random::id().map_err(|error| Status::internal(error.to_string()));
    Ok(format!("{:016x}{:016x}", part()?, part()?))
}

async fn next(stream: &mut Streaming<v1::StageChunk>) -> Result<v1::StageChunk, Status> {
    match tokio::time::timeout(IDLE, stream.message()).await {
        Ok(chunk) => chunk?.ok_or_else(|| Status::aborted("the content ended early")),
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {IDLE:?}"))),
    }
}

async fn take(
    file: File,
    first: v1::StageChunk,
    stream: &mut Streaming<v1::StageChunk>,
) -> Result<(u64, Hash), Status> {
    let (pieces, queue) = mpsc::channel(8);
    let writing = tokio::task::spawn_blocking(move || write_pieces(file, queue));
    let mut chunk = first;
    loop {
        let last = !chunk.hash.is_empty();
        if !chunk.data.is_empty() && pieces.send(Piece::Data(chunk.offset, chunk.data)).await.is_err() {
            break;
        }
        if last {
            let hash = wire::hash("stage.hash", &chunk.hash)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let _ = pieces.send(Piece::End(chunk.complete, hash)).await;
            break;
        }
        chunk = next(stream).await?;
    }
    drop(pieces);
    writing.await.map_err(|error| Status::internal(error.to_string()))?.map_err(Status::data_loss)
}

fn write_pieces(file: File, mut queue: mpsc::Receiver<Piece>) -> Result<(u64, Hash), String> {
    let mut sink = Sink::new(file).map_err(|error| error.to_string())?;
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Data(offset, bytes) => sink.write(offset, &bytes).map_err(|error| error.to_string())?,
            Piece::End(size, hash) => {
                sink.finish(size, hash).map_err(|error| error.to_string())?;
                return Ok((size, hash));
            }
        }
    }
    Err("the content ended early".to_owned())
}
