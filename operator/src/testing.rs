//! Objects for tests.

use std::sync::Arc;

use intermezzo_api::{Replicator, Volume, VolumeStatus};
use intermezzo_proto::v1;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::time::Duration;

use crate::control::Report;
use crate::settings::Settings;
use crate::world::{NodeFacts, Snapshot};

pub(crate) fn settings(more: Value) -> Settings {
    let mut all = json!({"images": {"presto": "p:1", "lento": "l:1"}});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

pub(crate) fn volume(name: &str, spec: Value) -> Volume {
    let mut volume = Volume::new(name, serde_json::from_value(spec).unwrap());
    volume.metadata.namespace = Some("ns".into());
    volume.metadata.uid = Some(format!("uid-{name}"));
    volume.metadata.generation = Some(1);
    volume
}

pub(crate) fn served(mut volume: Volume, server: &str, list: &[&str]) -> Volume {
    let replication_list = list.iter().map(|&node| node.to_owned()).collect();
    volume.status =
        Some(VolumeStatus { server: Some(server.into()), replication_list, ..VolumeStatus::default() });
    volume
}

pub(crate) fn replicator(volume: &str, node: &str) -> Replicator {
    let spec = json!({"volume": volume, "nodeName": node});
    let mut replicator = Replicator::new(&format!("{volume}-{node}"), serde_json::from_value(spec).unwrap());
    replicator.metadata.namespace = Some("ns".into());
    replicator.metadata.uid = Some(format!("uid-{volume}-{node}"));
    replicator
}

pub(crate) fn deleted(at: Timestamp) -> Option<Time> {
    Some(Time(at))
}

pub(crate) fn seconds_ago(seconds: u64) -> Timestamp {
    Timestamp::now() - Duration::from_secs(seconds)
}

/// A world of nodes `a` to `e`, all ready, all with the label `node=NAME`, `c` to `e` with `tier=edge`.
pub(crate) fn world(volumes: Vec<Volume>, replicators: Vec<Replicator>) -> Snapshot {
    let node = |name: &str| {
        let mut labels = std::collections::BTreeMap::from([("node".to_owned(), name.to_owned())]);
        if name >= "c" {
            labels.insert("tier".into(), "edge".into());
        }
        (name.to_owned(), Arc::new(NodeFacts { labels, ready: true, schedulable: true }))
    };
    Snapshot {
        volumes: volumes.into_iter().map(|volume| (volume.id(), Arc::new(volume))).collect(),
        replicators: replicators.into_iter().map(|r| (r.id(), Arc::new(r))).collect(),
        nodes: ["a", "b", "c", "d", "e"].map(node).into(),
        reports: std::collections::BTreeMap::new(),
        unreadable: crate::world::Unreadable::default(),
    }
}

pub(crate) fn report(volumes: Vec<v1::VolumeStatus>) -> Report {
    Report {
        since: Timestamp::now(),
        advertise: "10.0.0.1:7430".into(),
        version: "0".into(),
        revision: String::new(),
        presto_connected: true,
        volumes,
        problems: Vec::new(),
        conflicts: std::collections::BTreeMap::new(),
        discarded: std::collections::BTreeSet::new(),
    }
}

pub(crate) fn at_server(name: &str, replicators: Vec<v1::ReplicatorStatus>) -> v1::VolumeStatus {
    v1::VolumeStatus { name: name.into(), role: "Server".into(), replicators, ..v1::VolumeStatus::default() }
}

pub(crate) fn at_client(name: &str, pending: u64) -> v1::VolumeStatus {
    let role = "Client".into();
    v1::VolumeStatus { name: name.into(), role, pending, connected: true, ..v1::VolumeStatus::default() }
}

/// What was asked of an API server that takes everything, in order: method, path, body.
pub(crate) type Asked = Arc<parking_lot::Mutex<Vec<(String, String, Value)>>>;

/// A context in this world, whose API server takes everything.
pub(crate) fn context(world: Snapshot) -> (Arc<crate::context::Context>, Asked) {
    use kube_client::client::Body;
    let (service, mut handle) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap();
            let mut value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let path = parts.uri.path().to_owned();
            noted.lock().push((parts.method.to_string(), path.clone(), value.clone()));
            // What is needed to read it as the kind.
            if path.contains("/volumes/") {
                value = json!({"metadata": {"name": "v"}, "spec": {"server": {}}});
            } else if path.contains("/replicators/") {
                value = json!({"metadata": {"name": "v"}, "spec": {"volume": "v", "nodeName": "n"}});
            }
            send.send_response(http::Response::new(Body::from(value.to_string().into_bytes())));
        }
    });
    let client = kube_client::Client::new(service, "ns");
    let context = crate::context::Context {
        events: crate::events::Events::new(client.clone(), "test"),
        client,
        world: crate::world::World::fixed(world),
        settings: tokio::sync::watch::channel(Arc::new(settings(json!({})))).1,
        writes: crate::rate::Writes::default(),
        conflicts: crate::rate::Applied::default(),
        claims: crate::rate::Applied::default(),
        metrics: crate::metrics::Metrics::default(),
        namespace: "sys".into(),
        began: seconds_ago(3600),
        stop: tokio_util::sync::CancellationToken::new(),
    };
    (Arc::new(context), asked)
}
