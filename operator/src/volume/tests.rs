//! What becomes of Volumes: judged, replicated, told, ended.

use intermezzo_api::condition::{ACCEPTED, CONNECTED, IN_SYNC, READY, SERVING};
use intermezzo_api::{Volume, VolumeStatus};
use jiff::Timestamp;
use serde_json::json;

use super::build::replicators;
use super::dereference::Seen;
use super::status::status;
use super::terminate::{End, end};
use super::validate::{Judged, validate};
use crate::conditions::{find, holds};
use crate::context::Deadline;
use crate::testing::{at_server, report, served, settings, volume, world};
use crate::world::Snapshot;

fn judge(volume: &Volume, world: &Snapshot) -> Judged {
    validate(&Seen::new(volume, world), &settings(json!({"allowedSources": ["/srv"]})))
}

fn reasons(judged: &Judged) -> Vec<&'static str> {
    judged.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn a_server_is_chosen_once_and_kept() {
    let selector = json!({"server": {"nodeSelector": {"matchLabels": {"tier": "edge"}}}});
    let busy = served(volume("busy", json!({"server": {"nodeName": "c"}})), "c", &[]);
    let new = volume("new", selector.clone());
    let mut all = world(vec![busy, new.clone()], vec![]);
    assert_eq!(judge(&new, &all).server.as_deref(), Some("d"), "c serves another one already");
    all.reports.insert("e".into(), report(vec![at_server("ns/new", vec![])]));
    assert_eq!(judge(&new, &all).server.as_deref(), Some("e"), "it has the data");

    let old = served(volume("old", selector), "a", &[]);
    let judged = judge(&old, &all);
    assert_eq!(judged.server.as_deref(), Some("a"));
    assert_eq!(judged.warnings[0].reason, "SelectorChanged");
    assert!(judged.problems.is_empty());
}

#[test]
fn what_cannot_be_is_named_with_its_field() {
    let all = world(vec![], vec![]);
    let of = |spec| judge(&volume("v", spec), &all);
    let missing = of(json!({"server": {"nodeName": "z"}}));
    assert_eq!((reasons(&missing), missing.server), (vec!["NodeNotFound"], None));
    let tenant = of(json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": "/etc"}}}));
    assert_eq!(reasons(&tenant), ["SourceNotAllowed"]);
    assert_eq!(
        reasons(&of(json!({"server": {"nodeSelector": {"matchLabels": {"x": "y"}}}}))),
        ["NodeNotFound"]
    );
}

#[test]
fn what_was_served_goes_on_whatever_its_new_spec_says() {
    let all = world(vec![], vec![]);
    let wrong = served(volume("v", json!({"server": {"nodeName": "b"}})), "a", &[]);
    let judged = judge(&wrong, &all);
    assert_eq!(judged.server.as_deref(), Some("a"));
    assert_eq!(reasons(&judged), ["ServerCannotMove"]);
    let status = status(&Seen::new(&wrong, &all), &judged, Timestamp::now());
    assert_eq!(status.server.as_deref(), Some("a"));
    assert!(find(&status.conditions, ACCEPTED).unwrap().message.contains("goes on as before"));
}

#[test]
fn of_two_volumes_on_one_path_the_first_has_it() {
    let spec = |path: &str| json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": path}}});
    let first = served(volume("first", spec("/srv/data")), "a", &[]);
    let second = volume("second", spec("/srv/data/below"));
    let elsewhere = volume(
        "elsewhere",
        json!({"server": {"nodeName": "b"}, "source": {"hostPath": {"path": "/srv/data"}}}),
    );
    let all = world(vec![first.clone(), second.clone(), elsewhere.clone()], vec![]);
    assert!(judge(&first, &all).problems.is_empty());
    assert_eq!(reasons(&judge(&second, &all)), ["PathTaken"]);
    assert!(judge(&elsewhere, &all).problems.is_empty(), "another node's directory is another directory");
}

fn edge() -> Volume {
    let spec = json!({"server": {"nodeName": "c"}, "replication": {"nodeSelector": {"matchLabels": {"tier": "edge"}}}});
    served(volume("v", spec), "c", &[])
}

fn plan(volume: &Volume, all: &Snapshot) -> replicators::Plan {
    let (seen, settings) = (Seen::new(volume, all), settings(json!({})));
    let judged = validate(&seen, &settings);
    replicators::build(&seen, &judged, &settings, Timestamp::now())
}

#[test]
fn replicators_follow_the_labels_of_nodes() {
    let volume = edge();
    let mut all = world(vec![volume.clone()], vec![]);
    let made = plan(&volume, &all);
    let nodes: Vec<&str> = made.apply.iter().map(|r| r.spec.node_name.as_str()).collect();
    assert_eq!(nodes, ["d", "e"], "the server has all of it already");
    assert_eq!(made.apply[0].metadata.owner_references.as_ref().unwrap()[0].uid, "uid-v");

    all.replicators = made.apply.into_iter().map(|r| (r.id(), r.into())).collect();
    std::sync::Arc::make_mut(all.nodes.get_mut("e").unwrap()).labels.clear();
    let after = plan(&volume, &all);
    assert_eq!(after.delete, ["v-e"]);
    assert_eq!(after.apply.len(), 1);

    // A node that is gone altogether may be registered anew: its Replicator waits.
    all.nodes.remove("d");
    assert!(!plan(&volume, &all).delete.contains(&"v-d".to_owned()));
}

#[test]
fn a_replicator_made_by_hand_is_left_alone() {
    let volume = edge();
    let mut by_hand = crate::testing::replicator("v", "d");
    by_hand.metadata.name = Some("mine".into());
    let all = world(vec![volume.clone()], vec![by_hand, crate::testing::replicator("v", "a")]);
    let plan = plan(&volume, &all);
    assert!(plan.delete.is_empty());
    let nodes: Vec<&str> = plan.apply.iter().map(|r| r.spec.node_name.as_str()).collect();
    assert_eq!(nodes, ["e"]);
    let seen = Seen::new(&volume, &all);
    let status = status(&seen, &validate(&seen, &settings(json!({}))), Timestamp::now());
    assert_eq!(status.replication_list, ["a", "d"]);
}

fn told(volume: &Volume, all: &Snapshot) -> VolumeStatus {
    let seen = Seen::new(volume, all);
    status(&seen, &validate(&seen, &settings(json!({}))), Timestamp::now())
}

#[test]
fn conditions_say_how_it_is() {
    let volume = served(volume("v", json!({"server": {"nodeName": "a"}})), "a", &["b"]);
    let mut all = world(vec![volume.clone()], vec![crate::testing::replicator("v", "b")]);
    let before = told(&volume, &all);
    assert!(holds(&before.conditions, ACCEPTED) && !holds(&before.conditions, READY));
    assert_eq!(find(&before.conditions, SERVING).unwrap().reason, "AgentAway");

    let b = |connected, lag_records| {
        let node = "b".into();
        intermezzo_proto::v1::ReplicatorStatus { node, connected, lag_records, ..Default::default() }
    };
    all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![b(true, 0)])]));
    let well = told(&volume, &all);
    for condition in [ACCEPTED, SERVING, READY, CONNECTED, IN_SYNC] {
        assert!(holds(&well.conditions, condition), "{condition}: {:?}", well.conditions);
    }
    all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![b(false, 3)])]));
    let behind = told(&volume, &all);
    assert!(holds(&behind.conditions, READY), "a node that is away is no trouble for the others");
    assert!(find(&behind.conditions, CONNECTED).unwrap().message.ends_with(": b"));
    assert!(!holds(&behind.conditions, IN_SYNC));

    all.reports.clear();
    all.nodes.remove("a");
    let gone = told(&volume, &all);
    assert_eq!(find(&gone.conditions, SERVING).unwrap().reason, "ServerGone");
    assert_eq!((gone.server.as_deref(), gone.replication_list), (Some("a"), vec!["b".to_owned()]));
}

#[test]
fn the_end_waits_for_nodes_but_not_for_ever() {
    let ends = |spec, deadline, all: &mut Snapshot| {
        end(&Seen::new(&served(volume("v", spec), "a", &["b"]), all), deadline)
    };
    let keep = json!({"server": {"nodeName": "a"}});
    let remove = json!({"server": {"nodeName": "a"}, "deletionPolicy": "Delete"});
    let mut all = world(vec![], vec![]);
    all.reports.insert("a".into(), report(vec![at_server("ns/v", vec![])]));
    let waits = |end| match end {
        End::Waits { reason, nodes } => (reason, nodes.into_iter().collect::<Vec<_>>()),
        End::Done { .. } => panic!("it is done"),
    };
    let pair = |node: &str, why: &str| (node.to_owned(), why.to_owned());
    let (silent, away) = ("it has not answered yet", "its agent is not attached");
    assert_eq!(waits(ends(keep.clone(), Deadline::Ahead, &mut all)), ("Unmounting", vec![pair("a", silent)]));
    let both = vec![pair("a", silent), pair("b", away)];
    assert_eq!(waits(ends(remove.clone(), Deadline::Ahead, &mut all)), ("Discarding", both));

    let stuck = crate::control::Problem {
        volume: "ns/v".into(),
        field: String::new(),
        reason: "a mount is in the way".into(),
    };
    all.reports.get_mut("a").unwrap().problems.push(stuck);
    let (_, nodes) = waits(ends(remove.clone(), Deadline::Ahead, &mut all));
    assert_eq!(nodes[0], pair("a", "a mount is in the way"), "what the node says is passed on");

    let mut done = report(vec![]);
    done.discarded.insert("ns/v".into());
    all.reports.insert("a".into(), done);
    assert_eq!(ends(keep, Deadline::Ahead, &mut all), End::Done { removed: [].into(), left: [].into() });
    assert_eq!(waits(ends(remove.clone(), Deadline::Ahead, &mut all)).1, [pair("b", away)]);
    let end = ends(remove, Deadline::Over, &mut all);
    assert_eq!(end, End::Done { removed: ["a".to_owned()].into(), left: [pair("b", away)].into() });
}
