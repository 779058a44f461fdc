//! Conflict objects from what the server's agent keeps: the newest ones, so that a mess does not fill the API server.

use std::collections::BTreeSet;

use intermezzo_api::{Conflict, ConflictSpec};
use intermezzo_proto::v1::ConflictRecord;
use kube_client::{Resource, ResourceExt};

use crate::names;
use crate::volume::dereference::Seen;

/// Most Conflict objects of one Volume.
pub const MOST: usize = 100;

/// What shall be there; `None` while the server's agent does not say.
#[must_use]
pub fn build(seen: &Seen<'_>) -> Option<Vec<Conflict>> {
    let report = seen.report(seen.server()?)?;
    report.volume(&seen.id)?;
    let records = report.conflicts.get(&seen.id).map(Vec::as_slice).unwrap_or_default();
    let mut newest: Vec<&ConflictRecord> = records.iter().collect();
    newest.sort_by_key(|record| std::cmp::Reverse(record.position));
    let mut taken = BTreeSet::new();
    newest.retain(|record| taken.insert(record.position));
    newest.truncate(MOST);
    Some(newest.into_iter().map(|record| conflict(seen, record)).collect())
}

fn conflict(seen: &Seen<'_>, record: &ConflictRecord) -> Conflict {
    let volume = seen.volume.name_any();
    let time = record.time.as_ref().and_then(|time| {
        jiff::Timestamp::new(time.sec, i32::try_from(time.nsec).ok()?).ok().map(|time| time.to_string())
    });
    let spec = ConflictSpec {
        volume: volume.clone(),
        position: record.position,
        kind: record.kind.clone(),
        path: record.path.clone(),
        node_name: record.node.clone(),
        time,
        size: record.size,
    };
    let mut conflict = Conflict::new(&format!("{volume}-{}", record.position), spec);
    conflict.metadata.namespace = seen.volume.namespace();
    conflict.metadata.owner_references = seen.volume.controller_owner_ref(&()).map(|owner| vec![owner]);
    let mut labels = names::labels("conflict");
    labels.insert(names::VOLUME_LABEL.into(), volume);
    conflict.metadata.labels = Some(labels);
    conflict
}
