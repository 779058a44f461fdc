//! What becomes of Replicators: judged, told, ended.

use intermezzo_api::condition::{ACCEPTED, CONNECTED, IN_SYNC, READY};
use intermezzo_api::{Access, Replicator};
use jiff::Timestamp;
use serde_json::json;

use super::status::{HELD_BACK, NODE_GONE, status};
use super::terminate::{DISCARDING, DRAINING, End, end};
use super::validate::validate;
use crate::conditions::{find, holds};
use crate::context::Deadline;
use crate::testing::{at_client, at_server, replicator, report, served, volume, world};
use crate::world::Snapshot;

fn reasons(replicator: &Replicator, world: &Snapshot) -> Vec<&'static str> {
    validate(replicator, world).iter().map(|problem| problem.reason).collect()
}

#[test]
fn what_cannot_be_is_named() {
    let v = served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &[]);
    let mut second = replicator("v", "b");
    second.metadata.name = Some("z-second".into());
    let all =
        world(vec![v, volume("new", json!({"server": {}}))], vec![replicator("v", "b"), second.clone()]);
    assert!(reasons(&replicator("v", "b"), &all).is_empty());
    assert_eq!(reasons(&second, &all), ["NodeTaken"]);
    assert_eq!(reasons(&replicator("v", "a"), &all), ["NodeIsServer"]);
    assert_eq!(reasons(&replicator("away", "b"), &all), ["VolumeMissing"]);
    assert_eq!(reasons(&replicator("new", "b"), &all), ["VolumeNotAccepted"]);
}

#[test]
fn conditions_say_how_it_is() {
    let (v, r) =
        (served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &["b"]), replicator("v", "b"));
    let mut all = world(vec![v], vec![r.clone()]);
    let told = |all: &Snapshot| status(&r, &validate(&r, all), all, Timestamp::now());
    let away = told(&all);
    assert!(holds(&away.conditions, ACCEPTED));
    assert_eq!(find(&away.conditions, READY).unwrap().reason, "AgentAway");

    let mut there =
        intermezzo_proto::v1::ReplicatorStatus { node: "b".into(), connected: true, ..Default::default() };
    there.lag_seconds = Some(1.234);
    all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![there])]));
    all.reports.insert("b".into(), report(vec![at_client("ns/v", 4)]));
    let well = told(&all);
    for condition in [ACCEPTED, READY, CONNECTED, IN_SYNC] {
        assert!(holds(&well.conditions, condition), "{condition}: {:?}", well.conditions);
    }
    assert_eq!((well.pending, well.lag_seconds), (Some(4), Some(1.2)));

    all.reports.remove("b");
    all.nodes.remove("b");
    assert_eq!(find(&told(&all).conditions, READY).unwrap().reason, NODE_GONE);
}

#[test]
fn what_is_held_back_is_said_to_be() {
    let spec = json!({"server": {"nodeName": "a"}, "replication": {"lentoAccess": "ReadOnly"}});
    let v = served(volume("v", spec), "a", &["b"]);
    let mut r = replicator("v", "b");
    let mut all = world(vec![v], vec![r.clone()]);
    let there = intermezzo_proto::v1::ReplicatorStatus {
        node: "b".into(),
        connected: true,
        lag_records: 7,
        ..Default::default()
    };
    all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![there])]));
    all.reports.insert("b".into(), report(vec![at_client("ns/v", 0)]));
    let in_sync = |r: &Replicator| {
        let told = status(r, &validate(r, &all), &all, Timestamp::now());
        find(&told.conditions, IN_SYNC).map(|told| (told.reason.clone(), told.message.clone())).unwrap()
    };
    let (reason, message) = in_sync(&r);
    assert!(reason == HELD_BACK && message.contains("7 of others' updates"), "{reason}: {message}");
    r.spec.lento_access = Some(Access::ReadWrite);
    assert_eq!(in_sync(&r).0, "Behind", "a Replicator's own word counts");
}

#[test]
fn a_node_sends_what_it_has_before_its_replicator_ends() {
    let v = |policy| {
        served(volume("v", json!({"server": {"nodeName": "a"}, "deletionPolicy": policy})), "a", &["b"])
    };
    let r = replicator("v", "b");
    let mut all = world(vec![v("Retain")], vec![r.clone()]);
    let reason = |end: End| match end {
        End::Waits(reason, _) => reason,
        End::Done(left) => left.map_or("done", |_| "left"),
    };
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), DRAINING, "who is away may have something");
    assert_eq!(reason(end(&r, &all, Deadline::Over)), "left");
    all.reports.insert("b".into(), report(vec![at_client("ns/v", 4)]));
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), DRAINING);
    assert_eq!(reason(end(&r, &all, Deadline::Over)), "left", "somebody is told of the four updates");
    all.reports.insert("b".into(), report(vec![at_client("ns/v", 0)]));
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), "done");

    all.volumes = world(vec![v("Delete")], vec![]).volumes;
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), DISCARDING);
    all.reports.get_mut("b").unwrap().discarded.insert("ns/v".into());
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), "done");
    all.volumes.clear();
    all.reports.clear();
    assert_eq!(reason(end(&r, &all, Deadline::Ahead)), "done", "the Volume's own end looks after the nodes");
}
