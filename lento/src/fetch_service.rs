//! `Fetch`: contents of this node's lower tree for a client, each whole and with the hash asked for, or `superseded`.
//! What the client says it has of a content does not travel.

use crate::channel::convert;
use crate::content::difference::Have;
use crate::content::difference::Piece;
use crate::content::difference::send;
use crate::content::packing::Pace;
use crate::content::packing::Packer;
use crate::content::source::SourceError;
use crate::content::source::version;
use crate::jobs::DEADLINE;
use crate::replication::ReplicationService;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::Downcalls;
use crate::store::VolumeStore;
use crate::volume::VolumeHandle;
use crate::wire;
use intermezzo_channel::v1::Resolve;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use intermezzo_proto::v1::fetch_chunk::End;
use lento_core::Volume;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::ObjectId;
use lento_core::types::Version;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

type Chunks = mpsc::Sender<Result<v1::FetchChunk, Status>>;

/// Most files in one `Resolve`.
const BATCH: usize = 64;

struct Wanted {
    object: ObjectId,
    hash: Hash,
    have: Have,
}

/// Answers one request.
///
/// # Errors
/// The peer may not, or asks for what cannot be.
pub fn fetch(
    service: &ReplicationService,
    node: &str,
    request: v1::FetchRequest,
) -> Result<ReceiverStream<Result<v1::FetchChunk, Status>>, Status> {
    let volume = service.admitted(node, &request.volume)?;
    let invalid = |error: wire::WireError| Status::invalid_argument(error.to_string());
    wire::limit("fetch.items", request.items.len(), wire::FETCH_MAX).map_err(invalid)?;
    let several = request.items.len() > 1;
    let wanted = request.items.into_iter().map(|item| {
        if several && item.have.is_some() {
            let reason = "one content at a time where the client has some of it";
            return Err(wire::WireError::Wrong { field: "fetch.have", reason });
        }
        Ok(Wanted {
            object: wire::object_id("fetch.object", item.object)?,
            hash: wire::hash("fetch.hash", &item.hash)?,
            have: wire::have_back("fetch.have", item.have)?,
        })
    });
    let wanted: Vec<Wanted> = wanted.collect::<Result<_, _>>().map_err(invalid)?;
    let (chunks, stream) = mpsc::channel(8);
    let service = service.clone();
    tokio::spawn(async move {
        if let Err(status) = send_all(&service, &volume, &wanted, &chunks).await {
            let _ = tokio::time::timeout(DEADLINE, chunks.send(Err(status))).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn send_all(
    service: &ReplicationService,
    volume: &VolumeHandle,
    wanted: &[Wanted],
    chunks: &Chunks,
) -> Result<(), Status> {
    for (batch, items) in wanted.chunks(BATCH).enumerate() {
        let sources = sources(volume, items)?;
        let ids: Vec<FileId> = sources.iter().flatten().map(|(file, _)| *file).collect();
        let opened = resolve(&service.downcalls, &volume.name, &ids, DEADLINE)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut opened = opened.into_iter();
        for (index, (item, source)) in items.iter().zip(sources).enumerate() {
            let number = u32::try_from(batch * BATCH + index).unwrap_or(u32::MAX);
            let file = source.and_then(|(_, expected)| Some((opened.next()??, expected)));
            let _room = service.contents.acquire().await.map_err(|_| Status::unavailable("stopping"))?;
            send_one(volume, number, item, file, chunks).await?;
        }
    }
    Ok(())
}

/// Where each content should lie now, as of the volume's last commit.
fn sources(volume: &VolumeHandle, items: &[Wanted]) -> Result<Vec<Option<(FileId, Version)>>, Status> {
    let store = volume.store();
    let store = store.ok_or_else(|| Status::unavailable(format!("volume {} is not ready", volume.name)))?;
    store
        .read(|tables| {
            items.iter().map(|item| Volume::content_source(tables, item.object, item.hash)).collect()
        })
        .map_err(|error| Status::internal(format!("volume {}: {error}", volume.name)))
}

async fn send_one(
    volume: &VolumeHandle,
    number: u32,
    item: &Wanted,
    source: Option<(Arc<File>, Version)>,
    chunks: &Chunks,
) -> Result<(), Status> {
    let last = |piece, end| v1::FetchChunk { item: number, piece, end: Some(end) };
    let superseded = || last(None, End::Superseded(true));
    let end = match source {
        None => superseded(),
        Some((file, expected)) => {
            let (pieces, hash, have) = (chunks.clone(), item.hash, item.have.clone());
            let read = tokio::task::spawn_blocking(move || {
                read_pieces(number, &file, expected, hash, &have, &pieces)
            });
            match read.await.map_err(|error| Status::internal(error.to_string()))? {
                Ok((size, piece)) => {
                    volume.meters().served_bytes.inc_by(size);
                    last(piece, End::Complete(size))
                }
                Err(SourceError::Changed | SourceError::NotAFile) => superseded(),
                Err(error) => return Err(Status::unavailable(error.to_string())),
            }
        }
    };
    let send = tokio::time::timeout(DEADLINE * 2, chunks.send(Ok(end))).await;
    match send {
        Ok(Ok(())) => Ok(()),
        _ => Err(Status::cancelled("the client went away")),
    }
}

/// Sends what is large piece by piece and gives back what is small; size and bytes if any.
fn read_pieces(
    number: u32,
    file: &File,
    expected: Version,
    hash: Hash,
    have: &Have,
    chunks: &Chunks,
) -> Result<(u64, Option<v1::Piece>), SourceError> {
    // Names and permissions move ctime without touching content, so only these two end it here; the hash decides.
    let now = version(file)?;
    if (now.mtime, now.size) != (expected.mtime, expected.size) {
        return Err(SourceError::Changed);
    }
    let mut packer = Packer::default();
    let mut pack = |piece| packer.pack(piece, pace(chunks));
    let whole = send(file, have, &mut |piece| {
        let chunk = v1::FetchChunk { item: number, piece: Some(pack(piece)), end: None };
        chunks.blocking_send(Ok(chunk)).map_err(|_| "the client went away".to_owned())
    })?;
    if whole.hash != hash {
        return Err(SourceError::Changed);
    }
    let small = whole.inline.filter(|bytes| !bytes.is_empty());
    Ok((whole.size, small.map(|bytes| pack(Piece { offset: 0, bytes: bytes.into() }))))
}

/// Whether the peer behind a queue takes what it is sent at once.
pub fn pace<T>(queue: &mpsc::Sender<T>) -> Pace {
    if queue.capacity() == 0 { Pace::Lags } else { Pace::Keeps }
}

/// This node's file of an object, to begin a new content of it with. `None`: there is nothing to begin with.
pub async fn ground(
    downcalls: &Downcalls,
    volume: &str,
    store: Option<&VolumeStore>,
    object: Option<ObjectId>,
) -> Option<Arc<File>> {
    let object = object?;
    let file = store?.read(|tables| Volume::lower_file(tables, object)).ok()??;
    resolve(downcalls, volume, &[file], DEADLINE).await.ok()?.pop()?
}

/// Opens lower files by identity, in order; `None` for those that are gone.
///
/// # Errors
/// See [`CallError`].
pub async fn resolve(
    downcalls: &Downcalls,
    volume: &str,
    files: &[FileId],
    deadline: Duration,
) -> Result<Vec<Option<Arc<File>>>, CallError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let body = Resolve { files: files.iter().copied().map(convert::file_id).collect() };
    let (Body::Resolved(answer), fds) =
        downcalls.call(volume, Body::Resolve(body), "Resolve", deadline).await?
    else {
        return Err(CallError::Confused("Resolve"));
    };
    let mut fds = fds.into_iter();
    let mut opened = Vec::with_capacity(files.len());
    for found in answer.found {
        let fd = if found { Some(fds.next().ok_or(CallError::Confused("Resolve"))?) } else { None };
        opened.push(fd.map(|fd| Arc::new(File::from(fd))));
    }
    if opened.len() != files.len() {
        return Err(CallError::Confused("Resolve"));
    }
    Ok(opened)
}
