//! What Presto is told under permits. Each word has a serial, so that it does not matter which of two comes first.

use super::Shared;
use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::Input;
use lento_core::types::Recno;
use lento_core::types::Ticket;
use lento_core::volume::Millis;
use std::time::Duration;
use tracing::warn;

/// How long updates may run before presto says that they do not end.
const DRAIN: Duration = Duration::from_secs(30);
/// How long its answer may take.
const DEADLINE: Duration = Duration::from_secs(35);

/// `Output::Admit`. A lost one does no harm: users ask.
pub(super) async fn admit(shared: Shared, serial: u64, until: Millis) {
    let body = Body::AdmitWriters(v1::AdmitWriters { serial, until_ms: until.0 });
    if let Err(error) = shared.call(body, "AdmitWriters", DEADLINE).await {
        warn!(target: "volume", volume = &*shared.volume.name, %error, "presto was not told that users may write");
    }
}

/// `Output::Revoke`.
pub(super) async fn revoke(shared: Shared, ticket: Ticket, serial: u64) {
    let deadline_ms = u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX);
    let body = Body::RevokePermit(v1::RevokePermit { serial, deadline_ms });
    let upto = match shared.call(body, "RevokePermit", DEADLINE).await {
        Ok((Body::PermitRevoked(revoked), _)) => Some(Recno(revoked.upto)),
        Ok(_) => None,
        Err(error) => {
            warn!(target: "volume", volume = &*shared.volume.name, %error, "users of this node cannot be kept from writing");
            None
        }
    };
    shared.answer(ticket, Input::Revoked { ticket, upto }).await;
}
