//! `Output::ReadContent`: lower files are opened by Presto, many at a time, and read here; large ones travel to the
//! server's stage while they are read.

use super::DEADLINE;
use super::Shared;
use crate::content::difference::Have;
use crate::content::difference::send;
use crate::content::packing::Packer;
use crate::content::source;
use crate::content::source::SourceError;
use crate::content::source::Whole;
use crate::content::source::read_whole;
use crate::fetch_service::pace;
use crate::wire;
use bytes::Bytes;
use intermezzo_proto::v1::StageBegin;
use intermezzo_proto::v1::StageChunk;
use intermezzo_proto::v1::StageEnd;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use intermezzo_proto::v1::stage_chunk::What;
use intermezzo_proto::v1::stage_reply;
use lento_core::Volume;
use lento_core::io::Input;
use lento_core::io::NodeName;
use lento_core::io::ReadResult;
use lento_core::types::FileId;
use lento_core::types::Ticket;
use lento_core::types::Version;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

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
                let result = read(&job, file, request.file, request.stage_at.as_deref()).await;
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

async fn read(shared: &Shared, file: Arc<File>, id: FileId, stage_at: Option<&str>) -> ReadResult {
    for attempt in 1..=TRIES {
        let result = match stage_at {
            Some(node) => read_and_stage(shared, file.clone(), id, node).await,
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

/// Reads; a large content goes to `node` at the same time, as far as it is not there already, and is safe there when
/// this says so.
async fn read_and_stage(
    shared: &Shared,
    file: Arc<File>,
    id: FileId,
    node: &str,
) -> Result<Whole, SourceError> {
    let version = source::version(&file)?;
    if version.size <= lento_core::types::INLINE_MAX {
        return read_only(file).await;
    }
    let sink = |error: String| SourceError::Sink(format!("stage at node {node}: {error}"));
    let channel = shared.peers.channel(node).ok_or_else(|| sink("not connected".to_owned()))?;
    let object = shared.store.read(|tables| Volume::object_of(tables, id)).ok().flatten();
    let begin = StageBegin {
        volume: shared.volume.name.to_string(),
        size: version.size,
        object: object.map(|object| wire::tag(object.0)),
        version: fingerprint(id, version),
    };
    let deadline = Duration::from_secs(60 + version.size / SLOWEST);
    timeout(deadline, stage(file, begin, channel))
        .await
        .unwrap_or_else(|_| Err(Stopped::Peer(format!("not done within {deadline:?}"))))
        .map_err(|stopped| match stopped {
            Stopped::Source(error) => error,
            Stopped::Peer(reason) => sink(reason),
        })
}

/// The same number, the same bytes, as far as versions tell.
fn fingerprint(id: FileId, version: Version) -> u64 {
    let [first, second, ..] =
        *blake3::hash(format!("{id:?} {version:?}").as_bytes()).as_bytes().as_chunks::<8>().0
    else {
        return 0;
    };
    u64::from_le_bytes(first) ^ u64::from_le_bytes(second)
}

/// Why a content did not get to the server's stage.
enum Stopped {
    Source(SourceError),
    Peer(String),
}

async fn stage(file: Arc<File>, begin: StageBegin, channel: Channel) -> Result<Whole, Stopped> {
    let (chunks, queue) = mpsc::channel(8);
    let size = begin.size;
    let gone = || Stopped::Peer(BROKE.to_owned());
    chunks.send(chunk(What::Begin(begin))).await.map_err(|_| gone())?;
    let mut client = ReplicationClient::new(channel).max_decoding_message_size(wire::MESSAGE_MAX);
    let refused = |status: Status| Stopped::Peer(status.message().to_owned());
    let mut replies = client.stage(ReceiverStream::new(queue)).await.map_err(refused)?.into_inner();
    let have = match replies.message().await.map_err(refused)?.and_then(|reply| reply.what) {
        Some(stage_reply::What::Have(have)) => wire::have_back("stage.have", Some(have)),
        _ => return Err(Stopped::Peer("it did not say what it has".to_owned())),
    };
    let have = have.map_err(|error| Stopped::Peer(error.to_string()))?;
    let reading = tokio::task::spawn_blocking(move || read_into(&file, size, &have, &chunks));
    let staged = replies.message().await;
    let whole = reading.await.map_err(|error| Stopped::Peer(error.to_string()))?;
    match (whole, staged.map(|reply| reply.and_then(|reply| reply.what))) {
        // Why the peer took no more is what it says.
        (Err(SourceError::Sink(_)), Err(status)) => Err(refused(status)),
        (Err(error), _) => Err(Stopped::Source(error)),
        // It shrank to an inline content between the two looks.
        (Ok(whole), _) if whole.inline.is_some() => Ok(whole),
        (Ok(whole), Ok(Some(stage_reply::What::Staged(hash)))) if hash == whole.hash.0.as_slice() => {
            Ok(whole)
        }
        (Ok(_), Ok(_)) => Err(Stopped::Peer("other bytes are there than were sent".to_owned())),
        (Ok(_), Err(status)) => Err(refused(status)),
    }
}

const BROKE: &str = "the stream broke";

fn chunk(what: What) -> StageChunk {
    StageChunk { what: Some(what) }
}

/// The reading half; the end goes out only when the version held, so a torn file is never staged.
fn read_into(
    file: &File,
    size: u64,
    have: &Have,
    chunks: &mpsc::Sender<StageChunk>,
) -> Result<Whole, SourceError> {
    let mut packer = Packer::default();
    let say = |what| chunks.blocking_send(chunk(what)).map_err(|_| BROKE.to_owned());
    let whole = send(file, have, &mut |piece| say(What::Piece(packer.pack(piece, pace(chunks)))))?;
    if whole.inline.is_none() {
        if whole.size != size {
            return Err(SourceError::Changed);
        }
        let hash = Bytes::copy_from_slice(&whole.hash.0);
        say(What::End(StageEnd { hash })).map_err(SourceError::Sink)?;
    }
    Ok(whole)
}
