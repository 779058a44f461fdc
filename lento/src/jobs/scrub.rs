//! `Output::List` and `Output::Scrub`: Presto lists directories and compares what it is told with what is there.

use super::Shared;
use crate::channel::convert;
use crate::req_dispatcher::CallError;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::Input;
use lento_core::io::Listing;
use lento_core::io::ScrubItem;
use lento_core::io::ScrubOutcome;
use lento_core::scrub::Found;
use lento_core::types::FileId;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use rustix::io::Errno;
use std::time::Duration;
use tracing::warn;

/// A directory or a batch may wait for a slow disk.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn list(shared: Shared, ticket: Ticket, dir: FileId, after: u64) {
    let body = Body::List(v1::List { dir: Some(convert::file_id(dir)), after });
    let listing = match shared.call(body, "List", DEADLINE).await {
        Ok((Body::Listed(listed), _)) => match convert::listing(listed) {
            Some(listing) => listing,
            None => Listing::Failed("presto listed something that has no times".to_owned()),
        },
        Ok(_) => Listing::Failed("presto answered List with another message".to_owned()),
        Err(CallError::Refused { errno, .. }) if gone(errno) => Listing::Gone,
        Err(error) => Listing::Failed(error.to_string()),
    };
    shared.answer(ticket, Input::Listed { ticket, listing }).await;
}

fn gone(errno: i32) -> bool {
    [Errno::STALE, Errno::NOENT, Errno::NOTDIR].iter().any(|gone| gone.raw_os_error() == errno)
}

pub(super) async fn scrub(
    shared: Shared,
    ticket: Ticket,
    items: Vec<ScrubItem>,
    untouched_since: Recno,
    found: Found,
) {
    let items = items.into_iter().map(convert::scrub_item).collect();
    let (take, unvouched) = (found != Found::Show, found == Found::Mend);
    let body = Body::Scrub(v1::Scrub { items, untouched_since: untouched_since.0, take, unvouched });
    let outcomes: Vec<ScrubOutcome> = match shared.call(body, "Scrub", DEADLINE).await {
        Ok((Body::Scrubbed(answer), _)) => answer.outcomes.into_iter().map(convert::scrub_outcome).collect(),
        Ok(_) => Vec::new(),
        Err(error) => {
            warn!(target: "volume", volume = &*shared.volume.name, %error, "scrub");
            Vec::new()
        }
    };
    shared.answer(ticket, Input::Scrubbed { ticket, outcomes }).await;
}
