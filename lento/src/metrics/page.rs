//! The text of a scrape. What each metric means is in its help text and in `docs/operating.md`.

use super::Seen;
use crate::clock;
use lento_core::types::Time;
use lento_core::volume::PermitState;
use lento_core::volume::ReplicatorStatus;
use lento_core::volume::Status;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::MetricEncoder;
use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit;
use std::fmt;

type Labels = Vec<(&'static str, String)>;

/// One metric and its series.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    series: Vec<(Labels, Value)>,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    Number(u64),
    Seconds(f64),
    Durations(Histogram),
}

/// All of it, as of one moment.
#[derive(Debug, Default)]
struct Page(Vec<Family>);

/// The page, in the OpenMetrics text format.
pub(super) fn text(node: &str, presto: bool, volumes: &[Seen], now: Time) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("intermezzo");
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let build = Info::new(vec![("version", version), ("node", node.to_owned())]);
    registry.register("build", "Version of this lento and its node", build);
    let attached = ConstGauge::new(u64::from(presto));
    registry.register("presto_attached", "1 while the channel to presto is up", attached);
    let mut page = Page::default();
    page.states(volumes, now);
    page.replicators(volumes, now);
    page.records(volumes);
    page.contents(volumes);
    page.journals(volumes);
    registry.register_collector(Box::new(page));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

impl Seen {
    fn labels(&self) -> Labels {
        vec![("volume", self.name.to_string()), ("role", self.role.to_owned())]
    }

    fn with(&self, label: &'static str, value: &str) -> Labels {
        let mut labels = self.labels();
        labels.push((label, value.to_owned()));
        labels
    }

    /// What the core says; `None` while there is none.
    fn status(&self) -> Option<&Status> {
        Some(&self.report.status).filter(|_| self.report.alive)
    }

    fn is_server(&self) -> bool {
        self.role == "server"
    }
}

/// One number for each volume of a role that has a life.
fn of_status<'a>(
    volumes: &'a [Seen],
    role: impl Fn(&Seen) -> bool + 'a,
    value: impl Fn(&Status) -> u64 + 'a,
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    volumes
        .iter()
        .filter(move |seen| role(seen))
        .filter_map(move |seen| seen.status().map(|status| (seen.labels(), value(status))))
}

fn each_replicator(volumes: &[Seen]) -> impl Iterator<Item = (Labels, &ReplicatorStatus)> {
    volumes.iter().filter_map(|seen| seen.status().map(|status| (seen, status))).flat_map(|(seen, status)| {
        status.replicators.iter().map(|replicator| (seen.with("peer", &replicator.node), replicator))
    })
}

impl Page {
    fn family(
        &mut self,
        kind: MetricType,
        name: &'static str,
        unit: Option<Unit>,
        help: &'static str,
        series: impl Iterator<Item = (Labels, Value)>,
    ) {
        self.0.push(Family { name, help, unit, kind, series: series.collect() });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, series: impl Iterator<Item = (Labels, u64)>) {
        let series = series.map(|(labels, value)| (labels, Value::Number(value)));
        self.family(MetricType::Gauge, name, None, help, series);
    }

    fn bytes(&mut self, name: &'static str, help: &'static str, series: impl Iterator<Item = (Labels, u64)>) {
        let series = series.map(|(labels, value)| (labels, Value::Number(value)));
        self.family(MetricType::Gauge, name, Some(Unit::Bytes), help, series);
    }

    fn seconds(
        &mut self,
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (Labels, f64)>,
    ) {
        let series = series.map(|(labels, value)| (labels, Value::Seconds(value)));
        self.family(MetricType::Gauge, name, Some(Unit::Seconds), help, series);
    }

    fn counter(
        &mut self,
        name: &'static str,
        unit: Option<Unit>,
        help: &'static str,
        series: impl Iterator<Item = (Labels, u64)>,
    ) {
        let series = series.map(|(labels, value)| (labels, Value::Count(value)));
        self.family(MetricType::Counter, name, unit, help, series);
    }

    fn durations<'a>(
        &mut self,
        name: &'static str,
        help: &'static str,
        series: impl Iterator<Item = (Labels, &'a Histogram)>,
    ) {
        let series = series.map(|(labels, value)| (labels, Value::Durations(value.clone())));
        self.family(MetricType::Histogram, name, Some(Unit::Seconds), help, series);
    }

    /// How volumes are.
    fn states(&mut self, volumes: &[Seen], now: Time) {
        let (any, server, client) = (|_: &Seen| true, Seen::is_server, |seen: &Seen| !seen.is_server());
        self.gauge(
            "volume_ready",
            "1 while the volume works on this node",
            volumes.iter().map(|seen| (seen.labels(), u64::from(seen.report.not_ready().is_none()))),
        );
        self.counter(
            "volume_faults",
            None,
            "How often a fault has stopped the volume",
            volumes.iter().map(|seen| (seen.labels(), seen.meters.faults().0)),
        );
        self.seconds(
            "volume_last_fault_timestamp",
            "When a fault stopped the volume last, in seconds since 1970",
            volumes.iter().filter_map(|seen| Some((seen.labels(), seen.meters.faults().1? as f64))),
        );
        self.gauge(
            "volume_position",
            "Server: newest durable position; client: position of base",
            of_status(volumes, any, |status| status.position.0),
        );
        self.gauge(
            "volume_applied_position",
            "Position that is visible in the tree",
            of_status(volumes, any, |status| status.applied.0),
        );
        self.gauge(
            "volume_pending_records",
            "Own records without a verdict",
            of_status(volumes, client, |status| status.pending),
        );
        self.bytes(
            "volume_pending",
            "Content of own records without a verdict",
            of_status(volumes, client, |status| status.pending_bytes),
        );
        self.seconds(
            "volume_pending_age",
            "Age of the oldest own record without a verdict; 0: there is none",
            volumes.iter().filter(|seen| client(seen)).filter_map(|seen| {
                Some((seen.labels(), clock::seconds_since(seen.status()?.pending_since, now)))
            }),
        );
        self.gauge(
            "volume_dirty_facets",
            "Changes of others that are not in the tree yet",
            of_status(volumes, client, |status| status.dirty),
        );
        self.gauge(
            "volume_missing_files",
            "Files whose content is not here (mode OnDemand)",
            of_status(volumes, client, |status| status.missing.files),
        );
        self.gauge(
            "volume_missing_bytes",
            "Bytes of these contents",
            of_status(volumes, client, |status| status.missing.bytes),
        );
        self.gauge(
            "volume_waiting_for_contents",
            "Programs that wait for one of them",
            of_status(volumes, client, |status| status.waiting_for_contents),
        );
        self.gauge(
            "volume_conflicts",
            "Conflicts that wait for a person",
            of_status(volumes, server, |status| status.conflicts),
        );
        self.gauge(
            "volume_held_removals",
            "Files and directories that nodes are about to remove and that wait for a person",
            of_status(volumes, server, |status| status.held.iter().map(|(_, held)| held.removals).sum()),
        );
        self.gauge(
            "volume_conflicts_decided",
            "Conflicts that the volume's policy has decided, of which what lost is still kept",
            of_status(volumes, server, |status| status.conflicts_decided),
        );
        self.gauge(
            "volume_conflict_bytes",
            "Bytes kept of conflicts that wait for a person",
            of_status(volumes, server, |status| status.conflict_bytes.0),
        );
        self.gauge(
            "volume_conflict_decided_bytes",
            "Bytes kept of conflicts that the volume's policy has decided",
            of_status(volumes, server, |status| status.conflict_bytes.1),
        );
        let permit = |status: &Status, states: &[PermitState]| u64::from(states.contains(&status.permit));
        let under_permits =
            |seen: &Seen| seen.status().is_some_and(|status| status.permit != PermitState::NotNeeded);
        self.gauge(
            "volume_permit_held",
            "1 while users of this node may write by the permit (writes: Permits)",
            of_status(volumes, under_permits, |status| permit(status, &[PermitState::Held])),
        );
        self.gauge(
            "volume_permit_stolen",
            "1 while users of this node write without the permit, since its server is away",
            of_status(volumes, under_permits, |status| permit(status, &[PermitState::Stolen])),
        );
        self.gauge(
            "volume_permit_waiting",
            "Nodes that wait for the permit",
            of_status(
                volumes,
                |seen| seen.is_server() && under_permits(seen),
                |status| status.permit_waiting,
            ),
        );
        self.bytes(
            "volume_history_records",
            "Records of what was that the server keeps",
            of_status(volumes, server, |status| status.history.map_or(0, |extent| extent.bytes)),
        );
        self.gauge(
            "volume_connected",
            "1 while the stream to the peer is up: a client's to its server, a server's to each Replicator",
            volumes
                .iter()
                .filter(|seen| client(seen))
                .filter_map(|seen| {
                    let connected = u64::from(seen.status()?.connected);
                    Some((seen.with("peer", &seen.report.server), connected))
                })
                .chain(each_replicator(volumes).map(|(labels, one)| (labels, u64::from(one.connected)))),
        );
    }

    /// How far Replicators are, seen from their server.
    fn replicators(&mut self, volumes: &[Seen], now: Time) {
        let each = |value: fn(&ReplicatorStatus) -> u64| {
            each_replicator(volumes).map(move |(labels, one)| (labels, value(one)))
        };
        self.gauge(
            "replicator_syncing",
            "1 while the Replicator waits for the whole tree",
            each(|one| u64::from(one.syncing)),
        );
        self.gauge(
            "replicator_must_resync",
            "1 while the log is gone that the Replicator needs: it will get the whole tree when it is back",
            each(|one| u64::from(one.must_resync)),
        );
        self.gauge(
            "replicator_other_history",
            "1 while the Replicator is here with another history of the volume: nothing is exchanged",
            each(|one| u64::from(one.other_history)),
        );
        self.gauge(
            "replicator_applied_position",
            "Position that is visible in the Replicator's tree",
            each(|one| one.applied.0),
        );
        self.gauge(
            "replicator_durable_position",
            "Position that is visible and durable there",
            each(|one| one.durable.0),
        );
        self.gauge(
            "replicator_lag_records",
            "Positions between the server's newest durable one and what is visible there",
            each(|one| one.lag_records),
        );
        let known = || each_replicator(volumes).filter_map(|(labels, one)| Some((labels, one.lag?)));
        self.bytes(
            "replicator_lag",
            "Content that these positions brought; absent where the Replicator never followed the log",
            known().map(|(labels, lag)| (labels, lag.bytes)),
        );
        self.seconds(
            "replicator_lag",
            "Age of the oldest position that is not visible there; 0: there is none",
            known().map(|(labels, lag)| (labels, clock::seconds_since(lag.since, now))),
        );
    }

    /// Records on their ways.
    fn records(&mut self, volumes: &[Seen]) {
        self.counter(
            "records_judged",
            None,
            "Verdicts that this server gave since the volume began its present life",
            volumes
                .iter()
                .filter(|seen| seen.is_server())
                .filter_map(|seen| Some((seen, seen.status()?.judged)))
                .flat_map(|(seen, judged)| {
                    [
                        ("accepted", judged.accepted),
                        ("unified", judged.unified),
                        ("conflict", judged.conflicts),
                    ]
                    .map(|(verdict, count)| (seen.with("verdict", verdict), count))
                }),
        );
        self.counter(
            "records_forwarded",
            None,
            "Log records sent to the Replicator",
            volumes.iter().flat_map(|seen| {
                let all = seen.meters.forwarded_to().into_iter();
                all.map(|(node, count)| (seen.with("peer", &node), count))
            }),
        );
        self.counter(
            "records_submitted",
            None,
            "Own records sent to the server; after a reconnect some go twice",
            volumes
                .iter()
                .filter(|seen| !seen.is_server())
                .map(|seen| (seen.with("peer", &seen.report.server), seen.meters.submitted.get())),
        );
        self.durations(
            "replay_duration",
            "How long presto took for a batch of others' changes",
            volumes.iter().map(|seen| (seen.labels(), &seen.meters.replays)),
        );
        self.counter(
            "replay_items",
            None,
            "Others' changes that presto was given in these batches and tried",
            volumes.iter().map(|seen| (seen.labels(), seen.meters.replayed.get())),
        );
    }

    /// Contents on their ways.
    fn contents(&mut self, volumes: &[Seen]) {
        let mut bytes = |name, help, counter: fn(&Seen) -> &Counter| {
            let series = volumes.iter().map(|seen| (seen.labels(), counter(seen).get()));
            self.counter(name, Some(Unit::Bytes), help, series);
        };
        bytes("content_read", "Content read from the lower tree for own records", |seen| {
            &seen.meters.read_bytes
        });
        bytes("content_fetched", "Content fetched from the server", |seen| &seen.meters.fetched_bytes);
        bytes("content_served", "Content that Replicators fetched from here", |seen| {
            &seen.meters.served_bytes
        });
        bytes("content_staged", "Content that clients staged here", |seen| &seen.meters.staged_bytes);
    }

    /// Journals and what presto keeps.
    fn journals(&mut self, volumes: &[Seen]) {
        self.durations(
            "sync_duration",
            "How long it took to make contents, tree, journal and store durable",
            volumes.iter().map(|seen| (seen.labels(), &seen.meters.syncs)),
        );
        self.counter(
            "sync_failures",
            None,
            "Syncs that made nothing durable",
            volumes.iter().map(|seen| (seen.labels(), seen.meters.sync_failures.get())),
        );
        let stats = |value: fn(&intermezzo_channel::v1::Stats) -> u64| {
            volumes
                .iter()
                .filter_map(move |seen| seen.stats.as_ref().map(|stats| (seen.labels(), value(stats))))
        };
        self.bytes("kml", "Size of the journal on disk", stats(|stats| stats.log_bytes));
        self.bytes("kml_limit", "Size at which the journal is full", stats(|stats| stats.log_max_bytes));
        self.gauge("kml_first_record", "Oldest record in the journal", stats(|stats| stats.first_recno));
        self.gauge("kml_last_record", "Newest record in the journal", stats(|stats| stats.last_recno));
        self.gauge(
            "limbo_files",
            "Removed files whose content is kept until their verdicts",
            stats(|stats| stats.limbo_files),
        );
        self.gauge(
            "history_contents",
            "Earlier contents of files that are kept",
            stats(|stats| stats.history_contents),
        );
        self.bytes("history", "Earlier contents on disk", stats(|stats| stats.history_bytes));
        self.gauge("open_files", "Files open for writing", stats(|stats| stats.open_files));
        self.counter(
            "permit_stolen_updates",
            None,
            "Updates that presto let in without the permit since lento was away",
            stats(|stats| stats.stolen),
        );
        self.counter(
            "syncs_without_server",
            None,
            "Calls of fsync that ended without the server's disk although spec.durability wants it",
            stats(|stats| stats.syncs_without_server),
        );
        let limited = |value: fn(&intermezzo_channel::v1::Stats) -> Option<u64>| {
            volumes.iter().filter_map(move |seen| Some((seen.labels(), value(seen.stats.as_ref()?)?)))
        };
        self.bytes(
            "tree_limit",
            "Most bytes that the tree may hold (spec.limits.maxBytes)",
            limited(|stats| (stats.max_bytes > 0).then_some(stats.max_bytes)),
        );
        self.gauge(
            "tree_inodes_limit",
            "Most inodes that the tree may hold (spec.limits.maxInodes)",
            limited(|stats| (stats.max_inodes > 0).then_some(stats.max_inodes)),
        );
        self.bytes(
            "tree",
            "Lengths of the tree's files, where a limit is set",
            limited(|stats| Some(stats.usage?.bytes)),
        );
        self.gauge(
            "tree_inodes",
            "Inodes of the tree, where a limit is set",
            limited(|stats| Some(stats.usage?.inodes)),
        );
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.iter().filter(|family| !family.series.is_empty()) {
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), family.kind)?;
            for (labels, value) in &family.series {
                value.encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Value::Count(count) => ConstCounter::new(*count).encode(encoder),
            Value::Number(number) => ConstGauge::new(*number).encode(encoder),
            Value::Seconds(seconds) => ConstGauge::new(*seconds).encode(encoder),
            Value::Durations(histogram) => histogram.encode(encoder),
        }
    }
}
