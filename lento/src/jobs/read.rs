//! `Output::ReadContent`: lower files are opened by Presto, many at a time, and read here; large ones travel to the
//! server's stage while they are read.

use super::DEADLINE;
use super::Shared;
use crate::content::source::SourceError;
use crate::content::source::Whole;
use crate::content::source::read_whole;
use bytes::Bytes;
use intermezzo_proto::v1::StageChunk;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use lento_core::io::Input;
use lento_core::io::NodeName;
use lento_core::io::ReadResult;
use lento_core::types::FileId;
use lento_core::types::Ticket;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

/// Most files in one `Resolve`.
const BATCH: usize = 64;
/// How often a file that keeps changing is tried.
const TRIES: u32 = 3;
/// The least throughput of a stage that is not given up, in bytes per second.
const SLOWEST: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Request {
    pub ticket: Ticket,
    pub file: FileId,
    pub stage_at: Option<NodeName>,
}

pub(super) async fn run(shared: Shared, mut queue: mpsc::UnboundedReceiver<Request>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut waiting, BATCH).await > 0 {
        let ids = waiting.iter().map(|request| request.file).collect::<Vec<_>>();
        let opened = resolve(&shared, &ids).await;
        for (index, request) in waiting.drain(..).enumerate() {
            let file = match &opened {
                Ok(files) => files.get(index).cloned().flatten(),
                Err(error) => {
                    answer(&shared, &request, ReadResult::Failed(error.clone())).await;
                    continue;
                }
            };
            let Some(file) = file else {
                answer(&shared, &request, ReadResult::Gone).await;
                continue;
            };
            let Ok(permit) = shared.contents.clone().acquire_owned().await else { return };
            let job = shared.clone();
            shared.spawn(async move {
                let result = read(&job, file, request.stage_at.as_deref()).await;
                answer(&job, &request, result).await;
                drop(permit);
            });
        }
    }
}

async fn answer(shared: &Shared, request: &Request, result: ReadResult) {
    let ticket = request.ticket;
    shared.answer(ticket, Input::ContentRead { ticket, result }).await;
}

/// Opens lower files by identity; `None` for those that are gone.
pub(super) async fn resolve(shared: &Shared, files: &[FileId]) -> Result<Vec<Option<Arc<File>>>, String> {
    crate::fetch_service::resolve(&shared.downcalls, &shared.volume.name, files, DEADLINE)
        .await
        .map_err(|error| error.to_string())
}

async fn read(shared: &Shared, file: Arc<File>, stage_at: Option<&str>) -> ReadResult {
    for attempt in 1..=TRIES {
        let result = match stage_at {
            Some(node) => read_and_stage(shared, file.clone(), node).await,
            None => read_only(file.clone()).await,
        };
        match result {
            Ok(whole) => {
                let Whole { hash, size, version, racy, inline } = whole;
                shared.volume.meters().read_bytes.inc_by(size);
                return ReadResult::Whole { hash, size, version, racy, inline };
            }
            Err(SourceError::Changed) => {
                tokio::time::sleep(Duration::from_millis(10) * attempt).await;
            }
            Err(error) => return ReadResult::Failed(error.to_string()),
        }
    }
    ReadResult::Unstable
}

async fn read_only(file: Arc<File>) -> Result<Whole, SourceError> {
    tokio::task::spawn_blocking(move || read_whole(&file, &mut |_, _| Ok(())))
        .await
        .unwrap_or_else(|error| Err(SourceError::Sink(error.to_string())))
}

/// Reads; a large content goes to `node` at the same time and is safe there when this says so.
async fn read_and_stage(shared: &Shared, file: Arc<File>, node: &str) -> Result<Whole, SourceError> {
    let sink = |error: String| SourceError::Sink(error);
    let size = file.metadata()?.len();
    if size <= lento_core::types::INLINE_MAX {
        return read_only(file).await;
    }
    let channel = shared.peers.channel(node).ok_or_else(|| sink(format!("node {node} is not connected")))?;
    let (chunks, queue) = mpsc::channel(8);
    let volume = shared.volume.name.to_string();
    let reading = tokio::task::spawn_blocking(move || read_into(&file, volume, &chunks));
    let mut client = ReplicationClient::new(channel);
    let deadline = Duration::from_secs(60 + size / SLOWEST);
    let staged = timeout(deadline, client.stage(ReceiverStream::new(queue))).await;
    let whole = reading.await.map_err(|error| sink(error.to_string()))??;
    match staged {
        // It shrank to an inline content between the two looks.
        _ if whole.inline.is_some() => Ok(whole),
        Ok(Ok(reply)) if reply.get_ref().hash == whole.hash.0.as_slice() => Ok(whole),
        Ok(Ok(_)) => Err(sink(format!("node {node} staged other bytes than were sent"))),
        Ok(Err(status)) => Err(sink(format!("stage at node {node}: {}", status.message()))),
        Err(_) => Err(sink(format!("stage at node {node}: not done within {deadline:?}"))),
    }
}

/// The reading half; the last chunk goes out only when the version held, so a torn file is never staged.
fn read_into(file: &File, volume: String, chunks: &mpsc::Sender<StageChunk>) -> Result<Whole, SourceError> {
    let gone = || "the stream to the stage broke".to_owned();
    let mut volume = Some(volume);
    let whole = read_whole(file, &mut |offset, data: Bytes| {
        let volume = volume.take().unwrap_or_default();
        chunks.blocking_send(StageChunk { volume, offset, data, ..Default::default() }).map_err(|_| gone())
    })?;
    if whole.inline.is_none() {
        let last = StageChunk {
            volume: volume.take().unwrap_or_default(),
            complete: whole.size,
            hash: Bytes::copy_from_slice(&whole.hash.0),
            ..Default::default()
        };
        chunks.blocking_send(last).map_err(|_| SourceError::Sink(gone()))?;
    }
    Ok(whole)
}
