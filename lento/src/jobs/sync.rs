//! `Output::Sync`: Presto makes contents, tree and log durable, then the store becomes durable.

use super::Shared;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::Input;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// A disk that takes longer is broken.
const DEADLINE: Duration = Duration::from_secs(120);

pub(super) async fn run(shared: Shared, mut queue: mpsc::UnboundedReceiver<Ticket>) {
    while let Some(first) = queue.recv().await {
        let mut tickets = vec![first];
        while let Ok(next) = queue.try_recv() {
            tickets.push(next);
        }
        let began = Instant::now();
        let result = sync(&shared).await;
        shared.volume.meters().synced(began.elapsed(), &result);
        let recno = match result {
            Ok(recno) => Some(recno),
            Err(error) => {
                warn!(target: "volume", volume = &*shared.volume.name, error, "nothing was made durable");
                None
            }
        };
        for ticket in tickets {
            shared.answer(ticket, Input::Synced { ticket, recno }).await;
        }
    }
}

async fn sync(shared: &Shared) -> Result<Recno, String> {
    let answer = shared.call(Body::Sync(v1::Sync {}), "Sync", DEADLINE).await;
    let recno = match answer.map_err(|error| error.to_string())?.0 {
        Body::Synced(synced) => synced.recno,
        _ => return Err("presto answered Sync with another message".to_owned()),
    };
    // The order makes "durable in the store" mean "durable in log and tree". Commits of the volume's task wait for the
    // disk here rather than inside the database, where they would block a thread.
    let _writing = shared.writing.lock().await;
    let store = shared.store.clone();
    tokio::task::spawn_blocking(move || store.make_durable(recno))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(Recno(recno))
}
