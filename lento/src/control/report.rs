//! How the node is, for the operator: the same words as `intermezzo status`. Numbers go every few seconds, what a condition
//! may hang on at once, and a node on which nothing happens is silent.

use super::asked::Asked;
use super::carried_out::CarriedOut;
use super::discard::Fate;
use super::discard::Fates;
use crate::admin::volume_status;
use crate::listing;
use crate::req_dispatcher::ChannelState;
use crate::req_dispatcher::Downcalls;
use crate::volume::Volumes;
use intermezzo_proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often numbers are worth a message.
const NUMBERS: Duration = Duration::from_secs(5);
/// Most conflicts of one volume that are told.
const CONFLICTS: usize = 50;

pub(super) enum Due {
    Now(Box<v1::Report>),
    NotYet,
}

pub(super) struct Reporter {
    volumes: Volumes,
    downcalls: Downcalls,
    told: Option<(Instant, v1::Report)>,
    /// Read anew when their number or the position of the newest changes.
    conflicts: BTreeMap<String, ((u64, u64), Vec<v1::ConflictRecord>)>,
}

impl Reporter {
    pub(super) fn new(volumes: Volumes, downcalls: Downcalls) -> Reporter {
        Reporter { volumes, downcalls, told: None, conflicts: BTreeMap::new() }
    }

    /// A new stream has been told nothing.
    pub(super) fn begin(&mut self) {
        self.told = None;
    }

    pub(super) async fn look(&mut self, carried_out: &CarriedOut, fates: &Fates, asked: &Asked) -> Due {
        let report = self.report(carried_out, fates, asked).await;
        let due = match &self.told {
            None => true,
            Some((_, told)) if *told == report => false,
            Some((then, told)) => then.elapsed() >= NUMBERS || shape(told) != shape(&report),
        };
        if !due {
            return Due::NotYet;
        }
        self.told = Some((Instant::now(), report.clone()));
        Due::Now(Box::new(report))
    }

    async fn report(&mut self, carried_out: &CarriedOut, fates: &Fates, asked: &Asked) -> v1::Report {
        let (kernel, presto_connected) = match &*self.downcalls.state().borrow() {
            ChannelState::Up(_, attached) => (attached.kernel.clone(), true),
            ChannelState::Down => (Vec::new(), false),
        };
        let mut volumes = Vec::new();
        for volume in self.volumes.all() {
            let report = volume.report().await;
            let kml = (report.kml.0.0, report.kml.1.0);
            let reached = asked.reached(&volume.name);
            volumes.push(v1::VolumeStatus { reached, ..volume_status(&volume.name, report, kml) });
        }
        let conflicts = self.conflicts_of(&volumes);
        let mut problems: Vec<v1::VolumeProblem> = carried_out
            .problems()
            .iter()
            .map(|problem| v1::VolumeProblem {
                volume: problem.volume.clone(),
                kind: problem.kind.clone(),
                object: problem.object.clone(),
                field: problem.field.clone(),
                reason: problem.reason.clone(),
            })
            .collect();
        let mut discarded = Vec::new();
        for volume in carried_out.discard() {
            let reason = match fates.get(volume) {
                Some(Fate::Gone) => {
                    discarded.push(volume.clone());
                    continue;
                }
                Some(Fate::Stuck(reason)) => reason.clone(),
                Some(Fate::Removing) | None => "its data is being removed".to_owned(),
            };
            problems.push(v1::VolumeProblem {
                volume: volume.clone(),
                kind: "Volume".to_owned(),
                object: volume.clone(),
                field: String::new(),
                reason,
            });
        }
        let revision = carried_out.revision().to_owned();
        v1::Report { revision, volumes, kernel, presto_connected, problems, conflicts, discarded }
    }

    fn conflicts_of(&mut self, volumes: &[v1::VolumeStatus]) -> Vec<v1::VolumeConflicts> {
        let present = |name: &str| volumes.iter().any(|status| status.name == name && status.conflicts > 0);
        self.conflicts.retain(|name, _| present(name));
        let mut told = Vec::new();
        for status in volumes.iter().filter(|status| status.conflicts > 0) {
            let now = (status.conflicts, status.newest_conflict);
            let known = self.conflicts.get(&status.name).filter(|(then, _)| *then == now);
            let records = match known {
                Some((_, records)) => records.clone(),
                None => {
                    let Some(volume) = self.volumes.get(&status.name) else { continue };
                    let Ok(records) = listing::conflicts(&volume) else { continue };
                    // Objects are for what waits for a person; parts of another one are told with that.
                    let waits = |record: &v1::ConflictRecord| record.group == 0 && record.state != "Decided";
                    let newest: Vec<_> = records.into_iter().rev().filter(waits).take(CONFLICTS).collect();
                    self.conflicts.insert(status.name.clone(), (now, newest.clone()));
                    newest
                }
            };
            told.push(v1::VolumeConflicts { volume: status.name.clone(), records });
        }
        told
    }
}

/// The report without its numbers: what is left is what conditions are made of.
fn shape(report: &v1::Report) -> v1::Report {
    let mut shape = report.clone();
    for volume in &mut shape.volumes {
        let pending = u64::from(volume.pending > 0);
        let dirty = u64::from(volume.dirty > 0);
        let waiting = if volume.waiting.is_empty() { Vec::new() } else { vec![String::new()] };
        let replicators = std::mem::take(&mut volume.replicators);
        *volume = v1::VolumeStatus {
            pending,
            dirty,
            waiting,
            position: None,
            applied: None,
            kml_first: 0,
            kml_last: 0,
            pending_bytes: 0,
            pending_seconds: 0.0,
            replicators: replicators.into_iter().map(shape_of_replicator).collect(),
            ..std::mem::take(volume)
        };
    }
    shape
}

fn shape_of_replicator(replicator: v1::ReplicatorStatus) -> v1::ReplicatorStatus {
    v1::ReplicatorStatus {
        lag_records: u64::from(replicator.lag_records > 0),
        lag_seconds: None,
        lag_bytes: None,
        applied: None,
        durable: None,
        ..replicator
    }
}
