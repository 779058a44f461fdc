//! A content that arrives piece by piece: taken off the stream by one task, put together by a thread that may block.

use super::assembly::Assembly;
use super::difference::Have;
use super::packing::unpack;
use intermezzo_proto::v1;
use lento_core::types::Hash;
use std::fs::File;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::task::spawn_blocking;

/// Most pieces on their way to the disk: bounds what lies in memory.
const QUEUE: usize = 8;

/// See the module. Dropped, it leaves what has come in the file, for the next try.
#[derive(Debug)]
pub struct Incoming {
    steps: mpsc::Sender<Step>,
    writing: JoinHandle<Result<(), String>>,
}

enum Step {
    Piece(v1::Piece),
    End(Hash),
}

impl Incoming {
    /// Looks at what `file` holds of an earlier try and at the object's `old` content: the sender may leave that out.
    ///
    /// # Errors
    /// What the file system says, for people.
    pub async fn begin(file: File, size: u64, old: Option<Arc<File>>) -> Result<(Incoming, Have), String> {
        let began = spawn_blocking(move || Assembly::begin(file, size, old.as_deref())).await;
        let (assembly, have) =
            began.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (steps, queue) = mpsc::channel(QUEUE);
        let writing = spawn_blocking(move || write(assembly, queue));
        Ok((Incoming { steps, writing }, have))
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// An earlier piece could not be unpacked or written; for people.
    pub async fn take(&mut self, piece: v1::Piece) -> Result<(), String> {
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
        drop(self.steps);
        let _ = self.writing.await;
    }
}

fn write(mut assembly: Assembly, mut queue: mpsc::Receiver<Step>) -> Result<(), String> {
    while let Some(step) = queue.blocking_recv() {
        match step {
            Step::Piece(piece) => {
                let piece = unpack(piece).map_err(|error| error.to_string())?;
                assembly.take(&piece).map_err(|error| error.to_string())?;
            }
            Step::End(hash) => return assembly.finish(hash).map_err(|error| error.to_string()),
        }
    }
    Err("the content ended early".to_owned())
}
