//! `Output::ReadContent`: lower files are opened by Presto, many at a time, and read here; large ones travel to the
//! server's stage while they are read.

use super::DEADLINE;
use super::RENAME_COMES;
use super::Shared;
use super::WORTH_WAITING;
use crate::content::Stop;
use crate::content::difference::Advice;
use crate::content::difference::Blocks;
use crate::content::difference::Have;
use crate::content::difference::Outgoing;
use crate::content::known::Known;
use crate::content::packing::Packer;
use crate::content::source::SourceError;
use crate::content::source::Whole;
use crate::content::source::read_whole;
use crate::content::source::version;
use crate::fetch_service::pace;
use crate::meters::Meters;
use crate::wire;
use bytes::Bytes;
use intermezzo_proto::v1::StageBegin;
use intermezzo_proto::v1::StageChunk;
use intermezzo_proto::v1::StageEnd;
use intermezzo_proto::v1::StageReply;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use intermezzo_proto::v1::stage_chunk::What;
use intermezzo_proto::v1::stage_reply;
use lento_core::Volume;
use lento_core::ground;
use lento_core::ground::AtServer;
use lento_core::io::Input;
use lento_core::io::NodeName;
use lento_core::io::ReadResult;
use lento_core::types::FileId;
use lento_core::types::INLINE_MAX;
use lento_core::types::ObjectId;
use lento_core::types::Ticket;
use lento_core::types::Version;
use prost::Message;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Channel;

/// Most files in one `Resolve`.
const BATCH: usize = 64;
/// Most small files that one thread reads.
const TOGETHER: usize = 16;
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
        let mut batch = Vec::with_capacity(waiting.len());
        for (index, request) in waiting.drain(..).enumerate() {
            match &opened {
                Err(error) => answer(&shared, &request, ReadResult::Failed(error.clone())).await,
                Ok(files) => match files.get(index).cloned().flatten() {
                    None => answer(&shared, &request, ReadResult::Gone).await,
                    Some(file) => batch.push((request, file)),
                },
            }
        }
        while !batch.is_empty() {
            let some = batch.drain(..batch.len().min(TOGETHER)).collect();
            let Ok(permit) = shared.contents.clone().acquire_owned().await else { return };
            let job = shared.clone();
            shared.spawn(async move {
                let others = read_small(&job, some).await;
                drop(permit);
                for (request, file) in others {
                    read_alone(&job, request, file).await;
                }
            });
        }
    }
}

/// Reads and answers those that are small and quiet; the others come back. Most files are, and a thread for each would
/// cost more than the reading.
async fn read_small(
    shared: &Shared,
    batch: Vec<(Request, Arc<File>)>,
) -> impl Iterator<Item = (Request, Arc<File>)> {
    let files: Vec<_> = batch.iter().map(|(_, file)| file.clone()).collect();
    let reading =
        tokio::task::spawn_blocking(move || files.iter().map(|file| small(file)).collect::<Vec<_>>());
    // Without an answer each is tried alone, and says why.
    let mut read = reading.await.unwrap_or_default().into_iter();
    let mut others = Vec::new();
    for (request, file) in batch {
        match read.next().flatten() {
            Some(whole) => answer(shared, &request, told(shared, whole)).await,
            None => others.push((request, file)),
        }
    }
    others.into_iter()
}

fn small(file: &File) -> Option<Whole> {
    if version(file).ok()?.size > INLINE_MAX {
        return None;
    }
    read_whole(file, &mut |_, _| Err("it is large now".to_owned())).ok()
}

async fn read_alone(shared: &Shared, request: Request, file: Arc<File>) {
    let Ok(permit) = shared.contents.clone().acquire_owned().await else { return };
    let job = shared.clone();
    shared.spawn(async move {
        let result = read(&job, file, request.file, request.stage_at.as_deref()).await;
        answer(&job, &request, result).await;
        drop(permit);
    });
}

fn told(shared: &Shared, whole: Whole) -> ReadResult {
    let Whole { hash, size, version, racy, inline } = whole;
    shared.volume.meters().read_bytes.inc_by(size);
    ReadResult::Whole { hash, size, version, racy, inline }
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
            None => read_only(file.clone(), shared.volume.known().clone()).await,
        };
        match result {
            Ok(whole) => return told(shared, whole),
            Err(SourceError::Changed) => {
                tokio::time::sleep(Duration::from_millis(10) * attempt).await;
            }
            Err(error) => return ReadResult::Failed(error.to_string()),
        }
    }
    ReadResult::Unstable
}

async fn read_only(file: Arc<File>, known: Known) -> Result<Whole, SourceError> {
    blocking(move || {
        let Some(mut outgoing) = Outgoing::of(&file)? else {
            return read_whole(&file, &mut |_, _| Ok(()));
        };
        let whole = outgoing.hash(&file)?;
        remember(&known, &whole, outgoing);
        Ok(whole)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(run).await;
    done.unwrap_or_else(|error| Err(SourceError::Sink(error.to_string())))
}

fn remember(known: &Known, whole: &Whole, outgoing: Outgoing) {
    if let Some(values) = outgoing.into_values() {
        known.put(whole.hash, values);
    }
}

/// Reads; a large content goes to `node` at the same time, as far as it is not there already, and is safe there when
/// this says so.
async fn read_and_stage(
    shared: &Shared,
    file: Arc<File>,
    id: FileId,
    node: &str,
) -> Result<Whole, SourceError> {
    let known = shared.volume.known();
    let Some(outgoing) = Outgoing::of(&file)? else {
        return read_only(file, known.clone()).await;
    };
    let version = outgoing.version();
    let sink = |error: String| SourceError::Sink(format!("stage at node {node}: {error}"));
    let channel = shared.peers.channel(node).ok_or_else(|| sink("not connected".to_owned()))?;
    let object = shared.store.read(|tables| Volume::object_of(tables, id)).ok().flatten();
    let begin = StageBegin {
        volume: shared.volume.name.to_string(),
        size: version.size,
        object: object.map(|object| wire::tag(object.0)),
        version: fingerprint(id, version),
        over: over(shared, object, version.size).await.map(|over| wire::tag(over.0)),
    };
    let deadline = Duration::from_secs(60 + version.size / SLOWEST);
    let meters = shared.volume.meters().clone();
    timeout(deadline, stage(file, outgoing, begin, channel, (known, meters)))
        .await
        .unwrap_or_else(|_| Err(Stopped::Peer(format!("not done within {deadline:?}"))))
        .map_err(|stopped| match stopped {
            Stopped::Source(error) => error,
            Stopped::Peer(reason) => sink(reason),
        })
}

/// What the server has in the place of this object. Where it has nothing at all to build a large content upon, a rename
/// may be on its way.
async fn over(shared: &Shared, object: Option<ObjectId>, size: u64) -> Option<ObjectId> {
    let object = object?;
    let at_server = || {
        let found = shared.store.read(|tables| ground::at_server(tables, object, INLINE_MAX));
        found.unwrap_or(AtServer::Own)
    };
    let mut found = at_server();
    if found == AtServer::Nothing && size >= WORTH_WAITING {
        tokio::time::sleep(RENAME_COMES).await;
        found = at_server();
    }
    match found {
        AtServer::Other(other) => Some(other),
        AtServer::Own | AtServer::Nothing => None,
    }
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

async fn stage(
    file: Arc<File>,
    outgoing: Outgoing,
    begin: StageBegin,
    channel: Channel,
    (known, meters): (&Known, Arc<Meters>),
) -> Result<Whole, Stopped> {
    let (chunks, queue) = mpsc::channel(8);
    let gone = || Stopped::Peer(BROKE.to_owned());
    chunks.send(chunk(What::Begin(begin))).await.map_err(|_| gone())?;
    // Until the server has said what it has, which may take a look at all of it, this side hashes.
    let ahead = Ahead::start(file.clone(), outgoing);
    let mut client = ReplicationClient::new(channel).max_decoding_message_size(wire::MESSAGE_MAX);
    let refused = |status: Status| Stopped::Peer(status.message().to_owned());
    let mut replies = client.stage(ReceiverStream::new(queue)).await.map_err(refused)?.into_inner();
    let mut have = have_told(&mut replies).await?;
    let outgoing = ahead.end(&have).await.map_err(Stopped::Source)?;

    let (weighed, told_before) = (file.clone(), have.clone());
    let weigh = blocking(move || {
        let mut outgoing = outgoing;
        Ok((outgoing.weigh(&weighed, &told_before)?, outgoing))
    });
    let (advice, mut outgoing) = weigh.await.map_err(Stopped::Source)?;
    if advice == Advice::AskForChunks {
        chunks.send(chunk(What::Chunks(true))).await.map_err(|_| gone())?;
        have.chunks = have_told(&mut replies).await?.chunks;
    }
    let reading = blocking(move || {
        let whole = send(&file, &mut outgoing, &have, &chunks, &meters)?;
        Ok((whole, outgoing))
    });
    let reading = tokio::spawn(reading);
    let staged = replies.message().await;
    let read = reading.await.map_err(|error| Stopped::Peer(error.to_string()))?;
    match (read, staged.map(|reply| reply.and_then(|reply| reply.what))) {
        // Why the peer took no more is what it says.
        (Err(SourceError::Sink(_)), Err(status)) => Err(refused(status)),
        (Err(error), _) => Err(Stopped::Source(error)),
        (Ok((whole, outgoing)), Ok(Some(stage_reply::What::Staged(hash))))
            if hash == whole.hash.0.as_slice() =>
        {
            remember(known, &whole, outgoing);
            Ok(whole)
        }
        (Ok(_), Ok(_)) => Err(Stopped::Peer("other bytes are there than were sent".to_owned())),
        (Ok(_), Err(status)) => Err(refused(status)),
    }
}

/// What the server says it has.
async fn have_told(replies: &mut Streaming<StageReply>) -> Result<Have, Stopped> {
    let reply = replies.message().await.map_err(|status| Stopped::Peer(status.message().to_owned()))?;
    match reply.and_then(|reply| reply.what) {
        Some(stage_reply::What::Have(have)) => {
            wire::have_back("stage.have", Some(have)).map_err(|error| Stopped::Peer(error.to_string()))
        }
        _ => Err(Stopped::Peer("it did not say what it has".to_owned())),
    }
}

/// A file that is hashed while its receiver looks at what it has. Dropped, it stops.
struct Ahead {
    stop: Stop,
    hashing: JoinHandle<Result<Outgoing, SourceError>>,
}

impl Ahead {
    fn start(file: Arc<File>, mut outgoing: Outgoing) -> Ahead {
        let stop = Stop::default();
        let until = stop.0.clone();
        let hashing = tokio::task::spawn_blocking(move || {
            outgoing.hash_until(&file, &until)?;
            Ok(outgoing)
        });
        Ahead { stop, hashing }
    }

    /// Where everything travels, it is hashed as it does.
    async fn end(mut self, have: &Have) -> Result<Outgoing, SourceError> {
        self.stop.0.store(have.blocks == Blocks::Zeros, Ordering::Relaxed);
        (&mut self.hashing).await.unwrap_or_else(|error| Err(SourceError::Sink(error.to_string())))
    }
}

const BROKE: &str = "the stream broke";

fn chunk(what: What) -> StageChunk {
    StageChunk { what: Some(what) }
}

/// The end goes out only when the version held, so a torn file is never staged.
fn send(
    file: &File,
    outgoing: &mut Outgoing,
    have: &Have,
    chunks: &mpsc::Sender<StageChunk>,
    meters: &Meters,
) -> Result<Whole, SourceError> {
    let mut packer = Packer::default();
    let say = |what| chunks.blocking_send(chunk(what)).map_err(|_| BROKE.to_owned());
    let whole = outgoing.send(file, have, &mut |part| {
        let piece = packer.pack(part, pace(chunks));
        meters.moved_bytes.inc_by(piece.encoded_len() as u64);
        say(What::Piece(piece))
    })?;
    let hash = Bytes::copy_from_slice(&whole.hash.0);
    say(What::End(StageEnd { hash })).map_err(SourceError::Sink)?;
    Ok(whole)
}
