//! Downcalls that tell Presto something and need no answer: in order, one at a time.

use super::DEADLINE;
use super::Shared;
use crate::channel::convert;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use lento_core::types::FileId;
use lento_core::types::Recno;
use tokio::sync::mpsc;
use tracing::warn;

/// Most names or identities in one downcall.
const BATCH: usize = 1024;

/// Something to tell Presto.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// All up to here have their verdicts.
    Settled(Recno),
    /// All up to here is in the durable store.
    Truncate(Recno),
    /// Limbo contents that nobody needs.
    ReleaseLimbo(Vec<FileId>, Recno),
    /// Everything in limbo but these.
    RetainLimbo(Vec<FileId>, Recno),
    /// Of what records before this one ended no content is needed.
    HistoryFloor(Recno),
    /// Staged files that nobody needs.
    DropStage(Vec<String>),
    /// Everything in an adopted tree is known.
    Adopted,
    /// From now on presto asks here before it uses what needs asking (a root file system is served without, until then).
    Filter,
}

pub(super) async fn run(shared: Shared, mut queue: mpsc::UnboundedReceiver<Note>) {
    while let Some(note) = queue.recv().await {
        for (call, body) in bodies(note) {
            // A lost one does no harm: the next of its kind says more, and what stays behind only takes space.
            if let Err(error) = shared.call(body, call, DEADLINE).await {
                warn!(target: "volume", volume = &*shared.volume.name, %error, "presto was not told");
            }
        }
    }
}

fn release_files(files: &[FileId]) -> v1::ReleaseLimbo {
    v1::ReleaseLimbo { files: files.iter().copied().map(convert::file_id).collect(), ..Default::default() }
}

fn release(release: v1::ReleaseLimbo) -> (&'static str, Body) {
    ("ReleaseLimbo", Body::ReleaseLimbo(release))
}

fn bodies(note: Note) -> Vec<(&'static str, Body)> {
    match note {
        Note::Settled(recno) => {
            vec![("Mark", Body::Mark(v1::Mark { settled: Some(recno.0), ..Default::default() }))]
        }
        Note::HistoryFloor(floor) => {
            vec![("Mark", Body::Mark(v1::Mark { history_floor: Some(floor.0), ..Default::default() }))]
        }
        Note::Truncate(upto) => vec![("Truncate", Body::Truncate(v1::Truncate { upto: upto.0 }))],
        Note::ReleaseLimbo(files, upto) => files
            .chunks(BATCH)
            .map(|files| release(v1::ReleaseLimbo { upto: upto.0, ..release_files(files) }))
            .collect(),
        Note::RetainLimbo(mut files, upto) => {
            // Presto has them in this order: each call is about the range up to its last file, the last one about the rest.
            files.sort_unstable();
            let mut after = None;
            let mut calls: Vec<_> = files
                .chunks(BATCH)
                .map(|files| {
                    let to = files.last().copied().map(convert::file_id);
                    let after = std::mem::replace(&mut after, to);
                    v1::ReleaseLimbo { upto: upto.0, all_but: true, after, to, ..release_files(files) }
                })
                .collect();
            calls.push(v1::ReleaseLimbo { upto: upto.0, all_but: true, after, ..Default::default() });
            calls.into_iter().map(release).collect()
        }
        Note::Filter => vec![("Mark", Body::Mark(v1::Mark { no_filter: Some(false), ..Default::default() }))],
        Note::Adopted => vec![("Mark", Body::Mark(v1::Mark { adopted: true, ..Default::default() }))],
        Note::DropStage(names) => names
            .chunks(BATCH)
            .map(|names| ("DropStage", Body::DropStage(v1::DropStage { names: names.to_vec() })))
            .collect(),
    }
}
