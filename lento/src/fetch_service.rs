//! `Fetch`: contents of this node's lower tree for a client, each whole and with the hash asked for, or `superseded`.
//! What the client says it has of a content does not travel.

use crate::channel::convert;
use crate::content::assembly::Ground;
use crate::content::difference::Advice;
use crate::content::difference::Have;
use crate::content::difference::Outgoing;
use crate::content::difference::Part;
use crate::content::difference::Piece;
use crate::content::known::Known;
use crate::content::packing::Pace;
use crate::content::packing::Packer;
use crate::content::source::SourceError;
use crate::content::source::read_whole;
use crate::content::source::version;
use crate::jobs::DEADLINE;
use crate::replication::ReplicationService;
use crate::req_dispatcher::CallError;
use crate::req_dispatcher::Downcalls;
use crate::rooms::Open;
use crate::store::VolumeStore;
use crate::volume::VolumeHandle;
use crate::wire;
use intermezzo_channel::v1::Resolve;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use intermezzo_proto::v1::fetch_chunk::End;
use lento_core::Volume;
use lento_core::ground;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::INLINE_MAX;
use lento_core::types::ObjectId;
use lento_core::types::Version;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

type Chunks = mpsc::Sender<Result<v1::FetchChunk, Status>>;

/// Most files in one `Resolve`.
const BATCH: usize = 64;

#[derive(Clone)]
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
    let open = service.rooms.enter(node)?;
    let (chunks, stream) = mpsc::channel(8);
    let service = service.clone();
    tokio::spawn(async move {
        if let Err(status) = send_all(&service, &volume, &open, &wanted, &chunks).await {
            debug!(target: "content", volume = &*volume.name, %status, "a fetch ended early");
            let _ = tokio::time::timeout(DEADLINE, chunks.send(Err(status))).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn send_all(
    service: &ReplicationService,
    volume: &VolumeHandle,
    open: &Open,
    wanted: &[Wanted],
    chunks: &Chunks,
) -> Result<(), Status> {
    let chunks = &Taken { chunks: chunks.clone(), within: service.limits.taken_within };
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
            let _turn = open.turn(&service.contents).await?;
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
    chunks: &Taken,
) -> Result<(), Status> {
    let last = |piece, end| v1::FetchChunk { item: number, piece, end: Some(end) };
    let superseded = || last(None, End::Superseded(true));
    let end = match source {
        None => superseded(),
        Some((file, expected)) => {
            let (pieces, item, known) = (chunks.clone(), item.clone(), volume.known().clone());
            let read = tokio::task::spawn_blocking(move || {
                read_pieces(number, &file, expected, &item, &known, &pieces)
            });
            match read.await.map_err(|error| Status::internal(error.to_string()))? {
                Ok(Read::Sent { size, piece }) => {
                    volume.meters().served_bytes.inc_by(size);
                    last(piece, End::Complete(size))
                }
                Ok(Read::ChunksWanted) => last(None, End::Chunks(true)),
                Err(SourceError::Changed | SourceError::NotAFile) => superseded(),
                Err(error) => return Err(Status::unavailable(error.to_string())),
            }
        }
    };
    chunks.send(end).await.map_err(Status::cancelled)
}

/// The way to a client that takes what it asked for.
#[derive(Clone)]
struct Taken {
    chunks: Chunks,
    within: Duration,
}

impl Taken {
    async fn send(&self, chunk: v1::FetchChunk) -> Result<(), String> {
        match self.chunks.send_timeout(Ok(chunk), self.within).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => {
                Err(format!("the client has taken nothing for {:?}", self.within))
            }
            Err(SendTimeoutError::Closed(_)) => Err("the client went away".to_owned()),
        }
    }
}

enum Read {
    /// All of a large one has been sent; a small one is this piece.
    Sent { size: u64, piece: Option<v1::Piece> },
    /// Nothing has been sent: the client is to say more.
    ChunksWanted,
}

/// Sends what is large piece by piece and gives back what is small.
fn read_pieces(
    number: u32,
    file: &File,
    expected: Version,
    item: &Wanted,
    known: &Known,
    chunks: &Taken,
) -> Result<Read, SourceError> {
    // Names and permissions move ctime without touching content, so only these two end it here; the hash decides.
    let now = version(file)?;
    if (now.mtime, now.size) != (expected.mtime, expected.size) {
        return Err(SourceError::Changed);
    }
    let mut packer = Packer::default();
    let mut pack = |part| packer.pack(part, pace(&chunks.chunks));
    let runtime = Handle::current();
    let Some(mut outgoing) = Outgoing::of(file)? else {
        let whole = read_whole(file, &mut |_, _| Err("it is large now".to_owned()))?;
        if whole.hash != item.hash {
            return Err(SourceError::Changed);
        }
        let bytes = whole.inline.filter(|bytes| !bytes.is_empty());
        let piece = bytes.map(|bytes| pack(Part::Piece(Piece { offset: 0, bytes: bytes.into() })));
        return Ok(Read::Sent { size: whole.size, piece });
    };
    if let Some(values) = known.get(item.hash) {
        outgoing.believe(&values);
    }
    if outgoing.weigh(file, &item.have)? == Advice::AskForChunks {
        return Ok(Read::ChunksWanted);
    }
    let whole = outgoing.send(file, &item.have, &mut |part| {
        let chunk = v1::FetchChunk { item: number, piece: Some(pack(part)), end: None };
        runtime.block_on(chunks.send(chunk))
    })?;
    if whole.hash != item.hash {
        return Err(SourceError::Changed);
    }
    if let Some(values) = outgoing.into_values() {
        known.put(whole.hash, values);
    }
    Ok(Read::Sent { size: whole.size, piece: None })
}

/// Whether the peer behind a queue takes what it is sent at once.
pub fn pace<T>(queue: &mpsc::Sender<T>) -> Pace {
    if queue.capacity() == 0 { Pace::Lags } else { Pace::Keeps }
}

/// What a large content of an object is built upon here; `over`: what the peer says had its name before. `None`: there
/// is nothing.
pub async fn ground(
    downcalls: &Downcalls,
    volume: &VolumeHandle,
    store: Option<&VolumeStore>,
    object: Option<ObjectId>,
    over: Option<ObjectId>,
) -> Option<Ground> {
    let (object, over) = (object.or(over)?, over);
    let found = store?.read(|tables| ground::of(tables, object, over, INLINE_MAX)).ok()??;
    let file = resolve(downcalls, &volume.name, &[found.file], DEADLINE).await.ok()?.pop()??;
    // What is remembered of the content is worth something only while the file still has it.
    let now = version(&file).ok()?;
    let hash = found.hash.filter(|_| (now.mtime, now.size) == (found.version.mtime, found.version.size));
    let known = hash.and_then(|hash| Some((now.size, volume.known().get(hash)?)));
    Some(Ground { file, known })
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
