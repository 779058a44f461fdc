//! A content that arrives piece by piece: taken off the stream by one task, put together by a thread that may block.

use super::CHUNK;
use super::Stop;
use super::assembly::Assembly;
use super::assembly::AssemblyError;
use super::assembly::Ground;
use super::chunk::Chunks;
use super::difference::Have;
use super::known::Known;
use super::packing::PackingError;
use super::packing::unpack;
use intermezzo_proto::v1;
use lento_core::types::Hash;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::task::spawn_blocking;

/// Most pieces on their way to the disk: bounds what lies in memory.
const QUEUE: usize = 8;

/// See the module. Dropped, it leaves what has come in the file, for the next try.
#[derive(Debug)]
pub struct Incoming {
    steps: mpsc::Sender<Step>,
    writing: JoinHandle<Result<(), String>>,
    waited_for: Stop,
}

enum Step {
    Chunks(oneshot::Sender<Option<Chunks>>),
    Piece(v1::Piece),
    End(Hash),
}

impl Incoming {
    /// Looks at what the staged file holds of an earlier try and at the old version: the sender may leave that out.
    ///
    /// # Errors
    /// What the file system says, for people.
    pub async fn begin(
        (name, file): (&str, File),
        size: u64,
        ground: Option<Ground>,
        known: &Known,
    ) -> Result<(Incoming, Have), String> {
        let ground = ground.filter(|_| !known.doubts(name));
        let old = ground.as_ref().map(|ground| ground.file.clone());
        let waited_for = Stop::default();
        let ended = waited_for.0.clone();
        let began = spawn_blocking(move || Assembly::begin(file, size, ground, ended)).await;
        let (assembly, have) =
            began.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (steps, queue) = mpsc::channel(QUEUE);
        let (name, known) = (name.to_owned(), known.clone());
        let writing = spawn_blocking(move || write(assembly, queue, old, (&name, &known)));
        Ok((Incoming { steps, writing, waited_for }, have))
    }

    /// The chunks of the old version; `None`: there is none.
    ///
    /// # Errors
    /// What the file system says, for people.
    pub async fn chunks(&mut self) -> Result<Option<Chunks>, String> {
        let (reply, answer) = oneshot::channel();
        let _ = self.steps.send(Step::Chunks(reply)).await;
        match answer.await {
            Ok(chunks) => Ok(chunks),
            Err(_) => self.written().await.map(|()| None),
        }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// An earlier piece could not be unpacked or written; for people.
    pub async fn take(&mut self, piece: v1::Piece) -> Result<(), String> {
        // Before it waits in the queue: that takes memory.
        if piece.data.len() > CHUNK {
            return Err(PackingError::TooLong(piece.data.len() as u64).to_string());
        }
        match self.steps.send(Step::Piece(piece)).await {
            Ok(()) => Ok(()),
            Err(_) => self.written().await,
        }
    }

    /// Everything has come: waits until it is written, durable, and is what its hash says.
    ///
    /// # Errors
    /// A piece that could not be unpacked or written, or another hash; for people.
    pub async fn finish(mut self, hash: Hash) -> Result<(), String> {
        let _ = self.steps.send(Step::End(hash)).await;
        self.written().await
    }

    async fn written(&mut self) -> Result<(), String> {
        (&mut self.writing).await.map_err(|error| error.to_string())?
    }

    /// Nothing more will come: waits until nobody writes to the file any more.
    pub async fn stop(self) {
        drop((self.steps, self.waited_for));
        let _ = self.writing.await;
    }
}

fn write(
    mut assembly: Assembly,
    mut queue: mpsc::Receiver<Step>,
    old: Option<Arc<File>>,
    (name, known): (&str, &Known),
) -> Result<(), String> {
    let text = |error: AssemblyError| error.to_string();
    assembly.prepare().map_err(text)?;
    while let Some(step) = queue.blocking_recv() {
        match step {
            Step::Chunks(reply) => drop(reply.send(assembly.chunks().map_err(text)?)),
            Step::Piece(piece) => {
                let part = unpack(piece).map_err(|error| error.to_string())?;
                assembly.take(&part).map_err(text)?;
            }
            Step::End(hash) => {
                let finished = assembly.finish(hash);
                match &finished {
                    Ok(values) => {
                        outlast(old);
                        known.trust(name);
                        known.put(hash, values.clone());
                    }
                    Err(AssemblyError::Hash { .. }) => known.doubt(name),
                    Err(_) => {}
                }
                return finished.map(|_| ()).map_err(text);
            }
        }
    }
    Err("the content ended early".to_owned())
}

/// The content is about to replace the old one, whose space is freed by whoever closes it last: here, where nobody waits,
/// and not in presto under the locks of its directory.
fn outlast(old: Option<Arc<File>>) {
    tokio::spawn(async move {
        tokio::time::sleep(INSTALLED).await;
        spawn_blocking(move || drop(old));
    });
}

/// After so long it is.
const INSTALLED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::block::Value;
    use crate::content::difference::Blocks;

    #[tokio::test]
    async fn after_a_wrong_content_nothing_that_is_here_is_built_upon() {
        let dir = tempfile::tempdir().unwrap();
        let [old, staged] = ["old", "staged"].map(|name| dir.path().join(name));
        std::fs::write(&old, vec![7; 200_000]).unwrap();
        let known = Known::default();
        let begin = || async {
            let options = File::options().read(true).write(true).create(true).truncate(false).open(&staged);
            // It is said to be what it is not.
            let values: Vec<Value> = (0..4).map(|nth| Value::of(nth << 16, b"not that")).collect();
            let file = Arc::new(File::open(&old).unwrap());
            let ground = Ground { file, known: Some((200_000, values.into())) };
            Incoming::begin(("staged", options.unwrap()), 200_000, Some(ground), &known).await.unwrap()
        };
        let (incoming, have) = begin().await;
        assert!(matches!(have.blocks, Blocks::Marks(_)));
        let error = incoming.finish(Hash::of(b"something else")).await.unwrap_err();
        assert!(error.contains("hash"), "{error}");
        let (incoming, have) = begin().await;
        assert_eq!(have, Have::default());
        incoming.stop().await;
    }

    #[tokio::test]
    async fn what_was_announced_and_nobody_waits_for_keeps_no_thread_busy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("staged");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let size = 4 << 40;
        open().set_len(size).unwrap();
        let known = Known::default();
        let hashing = Incoming::begin(("staged", open()), size, None, &known);
        assert!(tokio::time::timeout(Duration::from_millis(50), hashing).await.is_err());
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while rustix::fs::flock(open(), rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            assert!(std::time::Instant::now() < patience, "the file is still read");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
